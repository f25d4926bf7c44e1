// What lies around the backward pass: rowsum(dO * O) and lse in units of log 2 before it, dq in its own
// dtype behind it.

// A warp per query of whole tiles: those that do not exist, and those that see nothing, get an lse of
// +inf, under which every weight is 0. Sums of dq begin at 0.
extern "C" __global__ void before(const __grid_constant__ Call call) {
  int row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), lane = threadIdx.x & 31;
  int bh = row / call.tall, token = row % call.tall;
  if (bh >= call.batch * call.heads) return;
  int b = bh / call.heads, h = bh % call.heads;
  float dot = 0.f, lse = INFINITE;
  if (token < call.queries) {
    const unsigned short* out = (const unsigned short*)call.out + b * call.of_out.row + h * call.of_out.head + token * call.of_out.token;
    const unsigned short* dout = (const unsigned short*)call.dout_rows + b * call.of_dout.row + h * call.of_dout.head + token * call.of_dout.token;
    for (int c = 4 * lane; c < call.e; c += 128) {
      uint2 x = *(const uint2*)(out + c), y = *(const uint2*)(dout + c);
      dot += low_of(x.x) * low_of(y.x) + high_of(x.x) * high_of(y.x);
      dot += low_of(x.y) * low_of(y.y) + high_of(x.y) * high_of(y.y);
    }
    for (int other = 16; other; other >>= 1) dot += __shfl_xor_sync(~0u, dot, other);
    lse = call.lse[(long long)bh * call.queries + token];
    lse = lse == -INFINITE ? INFINITE : lse * 1.4426950408889634f;
  }
  if (lane == 0) {
    call.dots[row] = dot;
    call.lse2[row] = lse;
  }
  long long all = (long long)call.batch * call.heads * call.tall * HEAD;
#pragma unroll
  for (int i = 0; i < BRANCHES; i++)
    for (int c = 4 * lane; c < HEAD; c += 128)
      *(float4*)(call.sums + i * all + (long long)row * HEAD + c) = make_float4(0.f, 0.f, 0.f, 0.f);
}

// Sums of dq, which lie as accumulators do (see keys.cu), times the scale: a thread per two channels.
extern "C" __global__ void after(const __grid_constant__ Call call) {
  long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  // Tiles of 8192 numbers: halves of 4096, each 8 runs of four numbers per thread.
  long long tile = i >> 12;
  int within = (int)(i & 4095) * 2, half = within >> 12, run = (within >> 9) & 7, thread = (within >> 2) & 127;
  int row = (thread >> 5) * 16 + ((thread & 31) >> 2) + ((within & 3) >> 1) * 8;
  int channel = run * 8 + (thread & 3) * 2;
  if (HEAD == 128) channel += half * 64;
  else row += half * 64;
  int tall = 8192 / HEAD, tiles = call.tall / tall, token = (int)(tile % tiles) * tall + row;
  long long head = tile / tiles;
  if (head >= (long long)BRANCHES * call.batch * call.heads || token >= call.queries || channel >= call.d) return;
  float2 x = ((const float2*)call.sums)[i];
  u32* to = (u32*)call.dq + ((head * call.queries + token) * call.d + channel) / 2;
  *to = pack(x.x * call.scale, x.y * call.scale);
}
