// Attention forward: a workgroup per tile of 128 queries of a head. One warpgroup loads tiles of keys and
// values, two compute, 64 queries each; while one of them does its softmax the other has the tensor cores.
//
// Matrix products: scores [64, 128] by channels, out [64, HEAD] by keys.

#define TALL 128
#define TILE (TALL * HEAD * 2)
#define STAGES 2

// The tiles of all branches, one after another.
struct Lists {
  const int* from[BRANCHES];
  int count[BRANCHES];
  int total;
};

__device__ __forceinline__ Lists lists_of(const Call& call, int b, int h, int tile) {
  Lists lists;
  lists.total = 0;
  int tiles = call.tall / TALL;
#pragma unroll
  for (int i = 0; i < BRANCHES; i++) {
    const Side& side = call.sides[i];
    int row = (b * side.classes + __ldg(side.numbers + side.heads + 4 * h)) * tiles + tile;
    int start = __ldg(side.starts + row);
    lists.from[i] = side.tiles + start;
    lists.count[i] = __ldg(side.starts + row + 1) - start;
    lists.total += lists.count[i];
  }
  return lists;
}

// Entry i, and the branch that it is of.
__device__ __forceinline__ int entry(const Lists& lists, int i, int& branch) {
  const int* from = lists.from[0];
  branch = 0;
#pragma unroll
  for (int n = 1; n < BRANCHES; n++) {
    if (branch == n - 1 && i >= lists.count[n - 1]) {
      i -= lists.count[n - 1];
      from = lists.from[n];
      branch = n;
    }
  }
  return __ldg(from + i);
}

__device__ __forceinline__ void scores(float (&s)[64], u32 q, u32 k) {
#pragma unroll
  for (int step = 0; step < HEAD / 16; step++)
    scores_product(s, by_channels<TALL>(q, step), by_channels<TALL>(k, step), step != 0);
}
__device__ __forceinline__ void values(float (&o)[HEAD / 2], u32 (&p)[32], u32 v) {
#pragma unroll
  for (int step = 0; step < 8; step++)
    values_product(o, p[4 * step], p[4 * step + 1], p[4 * step + 2], p[4 * step + 3], by_tokens<TALL>(v, step));
}

// Maximum in units of log 2 and sum of one query, over this thread's keys.
struct Line { float top, sum; };

// Weights in place of scores; what outputs so far are multiplied by. Queries without a key so far have
// a maximum of -inf, which is taken as 0 here, so that nothing becomes NaN.
__device__ __forceinline__ void softmax(float (&s)[64], Line& a, Line& b, float& keep_a, float& keep_b, float scale) {
  float top_a = -INFINITE, top_b = -INFINITE;
#pragma unroll
  for (int j = 0; j < 16; j++) {
    top_a = fmaxf(top_a, fmaxf(s[4 * j], s[4 * j + 1]));
    top_b = fmaxf(top_b, fmaxf(s[4 * j + 2], s[4 * j + 3]));
  }
#pragma unroll
  for (int lane = 1; lane < 4; lane *= 2) {
    top_a = fmaxf(top_a, __shfl_xor_sync(~0u, top_a, lane));
    top_b = fmaxf(top_b, __shfl_xor_sync(~0u, top_b, lane));
  }
  top_a = fmaxf(a.top, top_a * scale);
  top_b = fmaxf(b.top, top_b * scale);
  float base_a = top_a == -INFINITE ? 0.f : top_a, base_b = top_b == -INFINITE ? 0.f : top_b;
  keep_a = power_of_2(a.top - base_a);
  keep_b = power_of_2(b.top - base_b);
  float sum_a = 0.f, sum_b = 0.f;
#pragma unroll
  for (int j = 0; j < 16; j++) {
    s[4 * j] = power_of_2(fmaf(s[4 * j], scale, -base_a));
    s[4 * j + 1] = power_of_2(fmaf(s[4 * j + 1], scale, -base_a));
    s[4 * j + 2] = power_of_2(fmaf(s[4 * j + 2], scale, -base_b));
    s[4 * j + 3] = power_of_2(fmaf(s[4 * j + 3], scale, -base_b));
    sum_a += s[4 * j] + s[4 * j + 1];
    sum_b += s[4 * j + 2] + s[4 * j + 3];
  }
  a.top = top_a;
  b.top = top_b;
  a.sum = a.sum * keep_a + sum_a;
  b.sum = b.sum * keep_b + sum_b;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) forward(const __grid_constant__ Call call) {
  extern __shared__ __align__(1024) unsigned char memory[];
  u32 base = (shared_address(memory) + ATOM - 1) & ~(ATOM - 1);
  u32 q = base, k = q + BRANCHES * TILE, v = k + STAGES * TILE, bars = v + STAGES * TILE;
  u32 q_full = bars, k_full = bars + 8, k_free = k_full + 8 * STAGES, v_full = k_free + 8 * STAGES,
      v_free = v_full + 8 * STAGES;
  int bh = __ldg(call.order + 2 * blockIdx.x), tile = __ldg(call.order + 2 * blockIdx.x + 1);
  int b = bh / call.heads, h = bh % call.heads, kv = h / (call.heads / call.kv);
  int group = threadIdx.x >> 7;
  if (threadIdx.x == 0) {
    barrier_init(q_full, 1);
    for (int i = 0; i < STAGES; i++) {
      barrier_init(k_full + 8 * i, 1);
      barrier_init(v_full + 8 * i, 1);
      barrier_init(k_free + 8 * i, READERS);
      barrier_init(v_free + 8 * i, READERS);
    }
    barriers_ready();
  }
  __syncthreads();
  Lists lists = lists_of(call, b, h, tile);
  int total = lists.total, branch;

  if (group == 0) {
    FEWER_REGISTERS;
    if (threadIdx.x == 0 && total > 0) {
      expect(q_full, BRANCHES * TILE);
      for (int i = 0; i < BRANCHES; i++)
        load_tile<TALL>(q + i * TILE, &call.q, q_full, tile * TALL, h, i * call.batch + b);
      for (int i = 0; i < total; i++) {
        int token = (entry(lists, i, branch) & 0x7fffffff) * TALL, stage = i % STAGES;
        u32 phase = ((i / STAGES) & 1) ^ 1;
        wait(k_free + 8 * stage, phase);
        expect(k_full + 8 * stage, TILE);
        load_tile<TALL>(k + stage * TILE, &call.k, k_full + 8 * stage, token, kv, branch * call.batch + b);
        wait(v_free + 8 * stage, phase);
        expect(v_full + 8 * stage, TILE);
        load_tile<TALL>(v + stage * TILE, &call.v, v_full + 8 * stage, token, kv, b);
      }
    }
    return;
  }

  MORE_REGISTERS;
  int half = group - 1, thread = threadIdx.x & 127, lane = thread & 31, warp = thread >> 5;
  // 64 queries of each branch's tile.
  u32 mine = q + half * 64 * ROW_BYTES;
  float o[HEAD / 2], s[64];
  u32 p[32];
  Line first = {-INFINITE, 0.f}, second = first;
  float keep_first, keep_second;
#pragma unroll
  for (int i = 0; i < HEAD / 2; i++) o[i] = 0.f;
  int token = tile * TALL + half * 64 + warp * 16 + (lane >> 2), column = 2 * (lane & 3);
  // The two take turns: scores and values of one are computed while the other does its softmax.
  if (half == 1) pass_by(1, 256);
  if (total > 0) {
    int e = entry(lists, 0, branch);
    wait(q_full, 0);
    wait(k_full, 0);
    pin(s);
    products_begin();
    scores(s, mine + branch * TILE, k);
    products_commit();
    products_wait<0>();
    pin(s);
    if (lane == 0) arrive(k_free);
    if (e < 0) hide(s, call, branch, b, h, token, (e & 0x7fffffff) * TALL + column);
    softmax(s, first, second, keep_first, keep_second, call.scale_log2);
    pack_all(p, s);
    for (int i = 1; i < total; i++) {
      int stage = i % STAGES, before = (i - 1) % STAGES;
      u32 phase = (i / STAGES) & 1, phase_before = ((i - 1) / STAGES) & 1;
      e = entry(lists, i, branch);
      wait(k_full + 8 * stage, phase);
      meet(1 + half, 256);
      pin(s);
      pin(o);
      products_begin();
      scores(s, mine + branch * TILE, k + stage * TILE);
      products_commit();
      wait(v_full + 8 * before, phase_before);
      values(o, p, v + before * TILE);
      products_commit();
      pass_by(2 - half, 256);
      products_wait<1>();
      pin(s);
      if (lane == 0) arrive(k_free + 8 * stage);
      if (e < 0) hide(s, call, branch, b, h, token, (e & 0x7fffffff) * TALL + column);
      softmax(s, first, second, keep_first, keep_second, call.scale_log2);
      products_wait<0>();
      pin(o);
      if (lane == 0) arrive(v_free + 8 * before);
#pragma unroll
      for (int j = 0; j < HEAD / 8; j++) {
        o[4 * j] *= keep_first;
        o[4 * j + 1] *= keep_first;
        o[4 * j + 2] *= keep_second;
        o[4 * j + 3] *= keep_second;
      }
      pack_all(p, s);
    }
    int last = (total - 1) % STAGES;
    wait(v_full + 8 * last, ((total - 1) / STAGES) & 1);
    pin(o);
    products_begin();
    values(o, p, v + last * TILE);
    products_commit();
    products_wait<0>();
    pin(o);
  }
#pragma unroll
  for (int other = 1; other < 4; other *= 2) {
    first.sum += __shfl_xor_sync(~0u, first.sum, other);
    second.sum += __shfl_xor_sync(~0u, second.sum, other);
  }
  // A query that sees nothing: zeros, and -inf as the logarithm of 0.
  float one = first.sum == 0.f ? 0.f : 1.f / first.sum, other = second.sum == 0.f ? 0.f : 1.f / second.sum;
  if ((lane & 3) == 0) {
    const float LN_2 = 0.6931471805599453f;
    float* line = call.lse + (long long)bh * call.queries + token;
    if (token < call.queries) line[0] = (first.top + __log2f(first.sum)) * LN_2;
    if (token + 8 < call.queries) line[8] = (second.top + __log2f(second.sum)) * LN_2;
  }
  store(call.out, bh, call.queries, token, call.e, o, one, other);
}
