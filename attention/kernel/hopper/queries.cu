// dq in a pass of its own, so that two runs give the same bits: a workgroup per tile of 128 queries of a
// head and branch, which goes through the tiles of keys that they see. One warpgroup loads, two compute,
// 64 queries each.
//
// Matrix products: scores and dp [64, 64] by channels, dq [64, HEAD] by keys.

#define TALL 128
#define TILE (TALL * HEAD * 2)
#define STAGES 2
// A tile of keys goes through in parts, whose scores and dp fit into registers together.
#define PART 64

extern "C" __global__ void __launch_bounds__(THREADS, 1) queries(const __grid_constant__ Call call) {
  extern __shared__ __align__(1024) unsigned char memory[];
  u32 base = (shared_address(memory) + ATOM - 1) & ~(ATOM - 1);
  u32 q = base, dout = q + TILE, k = dout + TILE, v = k + STAGES * TILE, bars = v + STAGES * TILE;
  u32 q_full = bars, full = bars + 8, unused = full + 8 * STAGES;
  int bh = __ldg(call.order + 2 * blockIdx.x), tile = __ldg(call.order + 2 * blockIdx.x + 1), branch = blockIdx.y;
  if (bh < 0) return;
  int b = bh / call.heads, h = bh % call.heads, kv = h / (call.heads / call.kv);
  int group = threadIdx.x >> 7;
  if (threadIdx.x == 0) {
    barrier_init(q_full, 1);
    for (int i = 0; i < STAGES; i++) {
      barrier_init(full + 8 * i, 1);
      barrier_init(unused + 8 * i, READERS);
    }
    barriers_ready();
  }
  __syncthreads();
  const Side& side = call.sides[branch];
  int row = (b * side.classes + __ldg(side.numbers + side.heads + 4 * h)) * (call.tall / TALL) + tile;
  int start = __ldg(side.starts + row), total = __ldg(side.starts + row + 1) - start;
  const int* tiles = side.tiles + start;

  if (group == 0) {
    FEWER_REGISTERS;
    if (threadIdx.x == 0 && total > 0) {
      expect(q_full, 2 * TILE);
      load_tile<TALL>(q, &call.q, q_full, tile * TALL, h, branch * call.batch + b);
      load_tile<TALL>(dout, &call.dout, q_full, tile * TALL, h, b);
      for (int i = 0; i < total; i++) {
        int token = tile_of(__ldg(tiles + i)) * TALL, stage = i % STAGES;
        u32 bar = full + 8 * stage;
        wait(unused + 8 * stage, ((i / STAGES) & 1) ^ 1);
        expect(bar, 2 * TILE);
        load_tile<TALL>(k + stage * TILE, &call.k, bar, token, kv, branch * call.batch + b);
        load_tile<TALL>(v + stage * TILE, &call.v, bar, token, kv, b);
      }
    }
    return;
  }

  MORE_REGISTERS;
  int half = group - 1, thread = threadIdx.x & 127, lane = thread & 31, warp = thread >> 5;
  u32 my_q = q + half * 64 * ROW_BYTES, my_dout = dout + half * 64 * ROW_BYTES;
  int token = tile * TALL + half * 64 + warp * 16 + (lane >> 2), column = 2 * (lane & 3);
  const float* lse = call.lse2 + (long long)bh * call.tall + token;
  const float* dots = call.dots + (long long)bh * call.tall + token;
  float lse_a = lse[0], lse_b = lse[8], dot_a = dots[0], dot_b = dots[8];
  float dq[HEAD / 2];
#pragma unroll
  for (int c = 0; c < HEAD / 2; c++) dq[c] = 0.f;
  if (total > 0) wait(q_full, 0);
  for (int i = 0; i < total; i++) {
    int entry = __ldg(tiles + i), stage = i % STAGES;
    wait(full + 8 * stage, (i / STAGES) & 1);
#pragma unroll 1
    for (int part = 0; part < TALL; part += PART) {
      u32 my_k = k + stage * TILE + part * ROW_BYTES, my_v = v + stage * TILE + part * ROW_BYTES;
      float s[PART / 2], dp[PART / 2];
      u32 ds[PART / 4];
      pin(s);
      pin(dp);
      products_begin();
#pragma unroll
      for (int step = 0; step < HEAD / 16; step++)
        scores_product(s, by_channels<TALL>(my_q, step), by_channels<TALL>(my_k, step), step != 0);
      products_commit();
#pragma unroll
      for (int step = 0; step < HEAD / 16; step++)
        scores_product(dp, by_channels<TALL>(my_dout, step), by_channels<TALL>(my_v, step), step != 0);
      products_commit();
      products_wait<1>();
      pin(s);
      if (entry < 0) hide(s, call, entry, branch, b, h, token, tile_of(entry) * TALL + part + column);
#pragma unroll
      for (int j = 0; j < PART / 8; j++) {
        s[4 * j] = power_of_2(fmaf(s[4 * j], call.scale_log2, -lse_a));
        s[4 * j + 1] = power_of_2(fmaf(s[4 * j + 1], call.scale_log2, -lse_a));
        s[4 * j + 2] = power_of_2(fmaf(s[4 * j + 2], call.scale_log2, -lse_b));
        s[4 * j + 3] = power_of_2(fmaf(s[4 * j + 3], call.scale_log2, -lse_b));
      }
      products_wait<0>();
      pin(dp);
#pragma unroll
      for (int j = 0; j < PART / 8; j++) {
        dp[4 * j] = s[4 * j] * (dp[4 * j] - dot_a);
        dp[4 * j + 1] = s[4 * j + 1] * (dp[4 * j + 1] - dot_a);
        dp[4 * j + 2] = s[4 * j + 2] * (dp[4 * j + 2] - dot_b);
        dp[4 * j + 3] = s[4 * j + 3] * (dp[4 * j + 3] - dot_b);
      }
      pack_all(ds, dp);
      pin(dq);
      products_begin();
#pragma unroll
      for (int step = 0; step < PART / 16; step++)
        gradient_product(dq, ds[4 * step], ds[4 * step + 1], ds[4 * step + 2], ds[4 * step + 3], by_tokens<TALL>(my_k, step));
      products_commit();
      products_wait<0>();
      pin(dq);
    }
    if (lane == 0) arrive(unused + 8 * stage);
  }
  store(call.dq, (long long)(branch * call.batch + b) * call.heads + h, call.queries, token, call.d, dq, call.scale, call.scale);
}
