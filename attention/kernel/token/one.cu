// Attention of one query per row over all keys before it. A workgroup has a part of the keys of one key head, and each
// of its warps a part of those, which it fetches for itself: a query is so little work that the card only has to keep
// reading. Whoever of the workgroups of a key head is done last puts their parts together, in their order.
//
// Before this text come D (channels of a head, a multiple of 64), GROUP (query heads per key head, at most 8), WARPS and
// STAGES (of keys that a warp has in shared memory).

struct Call {
  // [B, H, D]
  const u16* q;
  u16* out;
  const u16* cache[2];
  // How far rows and heads of the caches lie apart, in elements.
  long long row[2], head[2];
  // Parts' sums [B, K, parts, GROUP, D], and their greatest scores and sums of weights, [B, K, parts, GROUP, 2]
  float* sums;
  float* ends;
  // Workgroups that are done, [B, K]; zero before and after.
  u32* done;
  int keys, kv, parts;
  float scale_log2;
  // The first key that a row sees; padding is before it.
  int start[MOST_ROWS];
};

static_assert(sizeof(Call) == CALL_BYTES, "a call as the host lays it out");

#define ROW (D * 2)                  // bytes of a key; a stage has TALL of them
#define TILE (TALL * ROW)            // bytes of a stage's keys, and of its values
#define PIECES (ROW / 16)
#define FOLDS (D / 16)

// Pieces of 16 bytes change places within a row, so that eight rows of one piece lie in different banks.
__device__ __forceinline__ u32 place(int key, int piece) { return key * ROW + ((piece ^ (key & 7)) << 4); }

__device__ __forceinline__ void matrices(u32 (&x)[4], u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(at) : "memory");
}

__device__ __forceinline__ void turned_matrices(u32 (&x)[4], u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(at) : "memory");
}

extern "C" __global__ void __launch_bounds__(WARPS * 32) one(const __grid_constant__ Call call) {
  extern __shared__ __align__(128) unsigned char room[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int part = blockIdx.x, kv = blockIdx.y, b = blockIdx.z;
  // Whole stages go to parts, and those of a part to its warps in turn.
  const int start = call.start[b], hidden = start / TALL, stages = (call.keys + TALL - 1) / TALL - hidden;
  const int begin = hidden + (long long)stages * part / call.parts;
  const int end = hidden + (long long)stages * (part + 1) / call.parts;
  const u16* from[2];
#pragma unroll
  for (int i = 0; i < 2; i++) from[i] = call.cache[i] + b * call.row[i] + kv * call.head[i];
  const u32 mine = (u32)__cvta_generic_to_shared(room) + warp * STAGES * 2 * TILE;

  auto fetch = [&](int stage, int slot) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
      for (int p = lane; p < TALL * PIECES; p += 32) {
        const int key = p / PIECES, piece = p % PIECES, at = stage * TALL + key;
        // Behind the last key: zeros, whose weights are none.
        const int bytes = at < call.keys ? 16 : 0;
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
                     :: "r"(mine + (slot * 2 + i) * TILE + place(key, piece)),
                        "l"(from[i] + (bytes ? (long long)at * D + piece * 8 : 0)), "r"(bytes) : "memory");
      }
    }
  };
  auto close = [&]() { asm volatile("cp.async.commit_group;" ::: "memory"); };

  // What was there before this token does not wait for the launch ahead.
  const int late = (call.keys - 1) / TALL;
#pragma unroll
  for (int i = 0; i < STAGES - 1; i++) {
    const int stage = begin + warp + i * WARPS;
    if (stage < end && stage != late) fetch(stage, i);
    close();
  }
  behind();
#pragma unroll
  for (int i = 0; i < STAGES - 1; i++)
    if (begin + warp + i * WARPS == late && late < end) fetch(late, i);
  close();

  // Queries are the rows of the products; those that are not there are zero.
  u32 q[FOLDS][2];
#pragma unroll
  for (int f = 0; f < FOLDS; f++) {
    const u32* at = (const u32*)(call.q + ((long long)(b * call.kv + kv) * GROUP + g) * D + f * 16 + t * 2);
    q[f][0] = g < GROUP ? at[0] : 0;
    q[f][1] = g < GROUP ? at[4] : 0;
  }
  float out[D / 8][2] = {};
  float most = -__int_as_float(0x7f800000), weight = 0;

  int slot = 0;
  for (int stage = begin + warp; stage < end; stage += WARPS) {
    // One group more than stages are under way was closed, where the last key was fetched late.
    if (stage == late) asm volatile("cp.async.wait_group 0;" ::: "memory");
    else asm volatile("cp.async.wait_group %0;" :: "n"(STAGES - 2) : "memory");
    __syncwarp();
    const u32 keys = mine + slot * 2 * TILE, values = keys + TILE;
    float score[2][4] = {};
    // Matrices of 8 keys by 8 channels: keys 0-7 and 8-15, channels 0-7 and 8-15 of a fold.
#pragma unroll
    for (int f = 0; f < FOLDS; f++) {
      u32 k[4];
      matrices(k, keys + place(lane % 8 + (lane / 16) * 8, f * 2 + (lane / 8) % 2));
      product(score[0], q[f][0], 0, q[f][1], 0, k[0], k[1]);
      product(score[1], q[f][0], 0, q[f][1], 0, k[2], k[3]);
    }
    float top = -__int_as_float(0x7f800000);
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const int key = stage * TALL + h * 8 + t * 2 + j;
        score[h][j] = key >= start && key < call.keys ? score[h][j] * call.scale_log2 : -__int_as_float(0x7f800000);
        top = fmaxf(top, score[h][j]);
      }
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
    // Every stage has a key, so that this is a number.
    const float before = most;
    most = fmaxf(most, top);
    const float less = exp2f(before - most);
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
      for (int j = 0; j < 2; j++) score[h][j] = exp2f(score[h][j] - most);
    weight = weight * less + (score[0][0] + score[0][1]) + (score[1][0] + score[1][1]);
    const u32 p0 = pack(score[0][0], score[0][1]), p1 = pack(score[1][0], score[1][1]);
#pragma unroll
    for (int c = 0; c < D / 8; c += 2) {
      u32 v[4];
      // Keys 0-7 and 8-15 of eight channels, then of the next eight.
      turned_matrices(v, values + place(lane % 16, c + lane / 16));
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float sum[4] = {out[c + h][0] * less, out[c + h][1] * less, 0, 0};
        product(sum, p0, 0, p1, 0, v[h * 2], v[h * 2 + 1]);
        out[c + h][0] = sum[0];
        out[c + h][1] = sum[1];
      }
    }
    __syncwarp();
    const int next = stage + (STAGES - 1) * WARPS;
    if (next < end) fetch(next, (slot + STAGES - 1) % STAGES);
    close();
    slot = (slot + 1) % STAGES;
  }
  weight += __shfl_xor_sync(~0u, weight, 1);
  weight += __shfl_xor_sync(~0u, weight, 2);

  // Warps' parts: sums [WARPS][GROUP][D], ends [WARPS][GROUP][2].
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncthreads();
  float* sums = (float*)room;
  float* ends = sums + WARPS * GROUP * D;
  if (g < GROUP) {
#pragma unroll
    for (int c = 0; c < D / 8; c++)
      *(float2*)(sums + (warp * GROUP + g) * D + c * 8 + t * 2) = make_float2(out[c][0], out[c][1]);
    if (t == 0) {
      ends[(warp * GROUP + g) * 2] = most;
      ends[(warp * GROUP + g) * 2 + 1] = weight;
    }
  }
  __syncthreads();

  // Of several parts, what is their sum, and where it is put together.
  const long long of = (long long)b * call.kv + kv;
  float* to = call.sums + (of * call.parts + part) * GROUP * D;
  float* to_ends = call.ends + (of * call.parts + part) * GROUP * 2;
  for (int i = threadIdx.x; i < GROUP * D; i += WARPS * 32) {
    const int head = i / D;
    float all = -__int_as_float(0x7f800000);
#pragma unroll
    for (int w = 0; w < WARPS; w++) all = fmaxf(all, ends[(w * GROUP + head) * 2]);
    float sum = 0, total = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
      const float most = ends[(w * GROUP + head) * 2];
      const float by = most == -__int_as_float(0x7f800000) ? 0 : exp2f(most - all);
      sum += by * sums[w * GROUP * D + i];
      total += by * ends[(w * GROUP + head) * 2 + 1];
    }
    if (call.parts == 1) {
      call.out[of * GROUP * D + i] = narrow(sum / total);
    } else {
      to[i] = sum;
      if (i % D == 0) { to_ends[head * 2] = all; to_ends[head * 2 + 1] = total; }
    }
  }
  if (call.parts == 1) return;
  __threadfence();
  __syncthreads();
  __shared__ u32 last;
  if (threadIdx.x == 0) last = atomicAdd(call.done + of, 1) + 1 == call.parts;
  __syncthreads();
  if (!last) return;
  __threadfence();
  to = call.sums + of * call.parts * GROUP * D;
  to_ends = call.ends + of * call.parts * GROUP * 2;
  // What each part counts for: [parts][GROUP], and all of a head together [GROUP].
  float* counts = (float*)room;
  float* totals = counts + call.parts * GROUP;
  for (int i = threadIdx.x; i < call.parts * GROUP * 2; i += WARPS * 32) (totals + GROUP)[i] = __ldcg(to_ends + i);
  __syncthreads();
  if (threadIdx.x < GROUP) {
    const float* ends = totals + GROUP + threadIdx.x * 2;
    float all = -__int_as_float(0x7f800000), total = 0;
    for (int p = 0; p < call.parts; p++) all = fmaxf(all, ends[p * GROUP * 2]);
    for (int p = 0; p < call.parts; p++) {
      const float most = ends[p * GROUP * 2];
      const float by = most == -__int_as_float(0x7f800000) ? 0 : exp2f(most - all);
      counts[p * GROUP + threadIdx.x] = by;
      total += by * ends[p * GROUP * 2 + 1];
    }
    totals[threadIdx.x] = total;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < GROUP * D; i += WARPS * 32) {
    const int head = i / D;
    float sum = 0;
#pragma unroll 16
    for (int p = 0; p < call.parts; p++) sum += counts[p * GROUP + head] * __ldcg(to + (long long)p * GROUP * D + i);
    call.out[of * GROUP * D + i] = narrow(sum / totals[head]);
  }
  if (threadIdx.x == 0) call.done[of] = 0;
}
