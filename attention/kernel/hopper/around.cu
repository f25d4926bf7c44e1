// What lies around the backward pass: rowsum(dO * O) and lse in units of log 2 before it, dq in its own
// dtype behind it.

// Queries of whole tiles, LANES threads each, which have 8 channels at a time: queries that do not exist, and those
// that see nothing, get an lse of +inf, under which every weight is 0. Sums of dq begin at 0.
extern "C" __global__ void before(const __grid_constant__ Call call) {
  int row = blockIdx.x * (blockDim.x / LANES) + threadIdx.x / LANES, lane = threadIdx.x % LANES;
  int bh = row / call.tall, token = row % call.tall, b = bh / call.heads, h = bh % call.heads;
  float dot = 0.f, lse = INFINITE;
  if (token < call.queries) {
    const unsigned short* out = head_of(call.out, call.of_out, b, h) + token * call.of_out.token;
    const unsigned short* dout = head_of(call.dout_rows, call.of_dout, b, h) + token * call.of_dout.token;
    for (int c = 8 * lane; c < call.e; c += 8 * LANES) dot += dot_of(*(const uint4*)(out + c), *(const uint4*)(dout + c));
    lse = call.lse[(long long)bh * call.queries + token];
    lse = lse == -INFINITE ? INFINITE : lse * 1.4426950408889634f;
  }
  for (int other = LANES / 2; other; other >>= 1) dot += __shfl_xor_sync(~0u, dot, other);
  if (lane == 0) {
    call.dots[row] = dot;
    call.lse2[row] = lse;
  }
  long long all = (long long)call.batch * call.heads * call.tall * HEAD;
#pragma unroll
  for (int i = 0; i < BRANCHES; i++)
    for (int c = 4 * lane; c < HEAD; c += 4 * LANES)
      *(float4*)(call.sums + i * all + (long long)row * HEAD + c) = make_float4(0.f, 0.f, 0.f, 0.f);
}

// Numbers of four neighbouring lanes, four each: the n-th lane gets the n-th numbers of all.
__device__ __forceinline__ void turn(u32 (&x)[4]) {
#pragma unroll
  for (int far = 1; far < 4; far *= 2) {
    bool second = threadIdx.x & far;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (i & far) continue;
      u32 other = __shfl_xor_sync(~0u, second ? x[i] : x[i | far], far);
      if (second) x[i] = other;
      else x[i | far] = other;
    }
  }
}

// Sums of dq times the scale, a workgroup per tile of 8192: they lie as accumulators do (see keys.cu), halves of 4096
// with 8 runs of four numbers per thread, of which neighbouring lanes make runs of 8 channels.
extern "C" __global__ void after(const __grid_constant__ Call call) {
  const int tall = 8192 / HEAD;
  int thread = threadIdx.x & 127, half = threadIdx.x >> 7, lane = thread & 31, tiles = call.tall / tall;
  long long tile = blockIdx.x, head = tile / tiles;
  const float4* from = (const float4*)(call.sums + tile * 8192 + half * 4096) + thread;
  u32 first[2][4], second[2][4];
#pragma unroll
  for (int run = 0; run < 8; run++) {
    float4 x = from[run * 128];
    first[run >> 2][run & 3] = pack(x.x * call.scale, x.y * call.scale);
    second[run >> 2][run & 3] = pack(x.z * call.scale, x.w * call.scale);
  }
  int token = (int)(tile % tiles) * tall + (thread >> 5) * 16 + (lane >> 2), channel = 8 * (lane & 3);
  if (HEAD == 128) channel += half * 64;
  else token += half * 64;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    turn(first[i]);
    turn(second[i]);
    if (channel + 32 * i >= call.d) continue;
    unsigned short* to = (unsigned short*)call.dq + (head * call.queries + token) * call.d + channel + 32 * i;
    if (token < call.queries) *(uint4*)to = make_uint4(first[i][0], first[i][1], first[i][2], first[i][3]);
    if (token + 8 < call.queries) *(uint4*)(to + 8 * call.d) = make_uint4(second[i][0], second[i][1], second[i][2], second[i][3]);
  }
}
