// Attention backward by keys: a workgroup per tile of 128 keys of a key head, which goes through the tiles
// of queries that see it, of all the query heads that read it. One warpgroup loads, two compute, 64 keys
// each: scores and weights with keys as rows, so that dv and dk stay in registers. Unless ALONE, dq is
// added up in f32 in global memory, in whatever order workgroups get there.
//
// Matrix products: scores and dp [64, TALL] by channels, dv and dk [64, HEAD] by queries,
// dq [64, 64] by keys.

// Of a tile's dq a warpgroup has 64 x 64: of all queries and half of the channels, or of half of the queries and all
// channels.

#define TILE (TALL * HEAD * 2)
#define KEY_TILE (KEYS * HEAD * 2)
#define LINE (TALL * 4)

// Whether those who compute need all registers that they can have.
#define TIGHT (HEAD == 128)

#define AT_K 0
#define AT_V (AT_K + KEY_TILE)
#define AT_Q (AT_V + KEY_TILE)
#define AT_DOUT (AT_Q + STAGES * TILE)
#define AT_DS (AT_DOUT + STAGES * TILE)
#define DS_TILE (KEYS * TALL * 2)
// Of sums of dq, 16 x 64 numbers.
#define OF_WARP 4096
#if ALONE
#define AT_DQ AT_DS
#define AT_LSE AT_DS
#else
#define AT_DQ (AT_DS + 2 * DS_TILE)
#define AT_LSE (AT_DQ + 8 * OF_WARP)
#endif
#define AT_DOT (AT_LSE + STAGES * LINE)
#define AT_BARS (AT_DOT + STAGES * LINE)

extern "C" __global__ void __launch_bounds__(THREADS, 1) keys(const __grid_constant__ Call call) {
  extern __shared__ __align__(1024) unsigned char memory[];
  u32 base = (shared_address(memory) + ATOM - 1) & ~(ATOM - 1), bars = base + AT_BARS;
  u32 v_full = bars, k_full = bars + 8, q_full = bars + 16, dout_full = q_full + 8 * STAGES, q_free = dout_full + 8 * STAGES,
      whats = bars + 128;
  int group = threadIdx.x >> 7;
  if (threadIdx.x == 0) {
    barrier_init(v_full, 1);
    barrier_init(k_full, 1);
    for (int i = 0; i < STAGES; i++) {
      barrier_init(q_full + 8 * i, 1);
      barrier_init(dout_full + 8 * i, 1);
      barrier_init(q_free + 8 * i, READERS);
    }
    barriers_ready();
  }
  __syncthreads();

  if (group == 0) {
    FEWER_REGISTERS(TIGHT ? 32 : 48);
    if (threadIdx.x < 32) {
      OfKeys at = of_group(call, fresh(blockIdx.x));
      int i = 0, loaded = 0, of = -1;
      bool leads = threadIdx.x == 0;
      walk(call, at, [&](int entry, int h, int branch) {
        if (leads) {
          int token = tile_of(entry) * TALL, line = (at.b * call.heads + h) * call.tall, stage = i % STAGES;
          u32 q_bar = q_full + 8 * stage, dout_bar = dout_full + 8 * stage;
          wait(q_free + 8 * stage, ((i / STAGES) & 1) ^ 1);
          bool begins = BRANCHES == 1 ? i == 0 : branch != of;
          of = branch;
          loaded += begins;
          store_ints(whats + 16 * stage, entry, h, branch, loaded);
          expect(q_bar, TILE + LINE);
          load_tile<TALL>(base + AT_Q + stage * TILE, &call.q, q_bar, token, h, branch * call.batch + at.b);
          load_line(base + AT_LSE + stage * LINE, call.lse2 + (line + token), LINE, q_bar);
          expect(dout_bar, TILE + LINE);
          load_tile<TALL>(base + AT_DOUT + stage * TILE, &call.dout, dout_bar, token, h, at.b);
          load_line(base + AT_DOT + stage * LINE, call.dots + (line + token), LINE, dout_bar);
          if (begins) {
            // Who sees that a tile of another branch has come is done with the one before, and then with its keys.
            if (i > 0) wait(q_free + 8 * ((i - 1) % STAGES), ((i - 1) / STAGES) & 1);
            expect(k_full, KEY_TILE);
            load_tile<KEYS>(base + AT_K, &call.k, k_full, at.tile * KEYS, kv_of(call, at), branch * call.batch + at.b);
            if (i == 0) {
              expect(v_full, KEY_TILE);
              load_tile<KEYS>(base + AT_V, &call.v, v_full, at.tile * KEYS, kv_of(call, at), at.b);
            }
          }
        }
        i++;
      });
      if (leads) {
        int stage = i % STAGES;
        wait(q_free + 8 * stage, ((i / STAGES) & 1) ^ 1);
        store_ints(whats + 16 * stage, 0, 0, BRANCHES, 0);
        arrive(q_full + 8 * stage);
      }
    }
    return;
  }

  MORE_REGISTERS(TIGHT ? 240 : 232);
  OfKeys at = of_group(call, fresh(blockIdx.x));
  int half = group - 1, thread = threadIdx.x & 127, lane = thread & 31;
  float dv[HEAD / 2], dk[HEAD / 2];
#pragma unroll
  for (int c = 0; c < HEAD / 2; c++) dv[c] = dk[c] = 0.f;
  int column = 2 * (lane & 3);
  // Made anew each time: there are hardly enough registers.
  auto key = [&] { return at.tile * KEYS + half * 64 + (fresh(thread) >> 5) * 16 + (lane >> 2); };
  wait(q_full, 0);
  int4 what = load_ints(whats);
  // The tile that comes behind tile `i`.
  auto follow = [&](int& i) {
    i++;
    wait(q_full + 8 * (i % STAGES), (i / STAGES) & 1);
    what = load_ints(whats + 16 * (i % STAGES));
  };
  // A loop even where there is one branch: without it the compiler of CUDA 13 keeps dv and dk in memory.
  int i = 0, loaded = 0, branches = fresh(BRANCHES);
  for (int branch = 0; branch < branches; branch++) {
    while (what.z == branch) {
      int entry = what.x, h = what.y, token = tile_of(entry) * TALL, stage = i % STAGES;
      u32 phase = (i / STAGES) & 1, q = base + AT_Q + stage * TILE, dout = base + AT_DOUT + stage * TILE;
      if (what.w != loaded) {
        wait(k_full, loaded & 1);
        wait(v_full, 0);
        loaded = what.w;
      }
      float s[TALL / 2], dp[TALL / 2];
      u32 p[TALL / 4], ds[TALL / 4];
#if ALONE
      // All that is seen may be blocks of the other warpgroup's keys. One lane says so: where the compiler does not know
      // that a warp goes one way, it serializes the products.
      if (__shfl_sync(~0u, entry < 0 && nothing_seen(entry, half), 0)) {
        wait(dout_full + 8 * stage, phase);
        // No lane may still be waiting when the place is given back.
        __syncwarp();
        if (lane == 0) arrive(q_free + 8 * stage);
        follow(i);
        continue;
      }
#endif
      u32 mine = fresh(base) + half * 64 * ROW_BYTES;
      pin(s);
      pin(dp);
      products_begin();
#pragma unroll
      for (int step = 0; step < HEAD / 16; step++)
        scores_product(s, by_channels<KEYS>(mine + AT_K, step), by_channels<TALL>(q, step), step != 0);
      products_commit();
      wait(dout_full + 8 * stage, phase);
#pragma unroll
      for (int step = 0; step < HEAD / 16; step++)
        scores_product(dp, by_channels<KEYS>(mine + AT_V, step), by_channels<TALL>(dout, step), step != 0);
      products_commit();
      products_wait<1>();
      pin(s);
      if (entry < 0) hide(s, call, entry, branch, at.b, h, token + column, key());
      u32 lse_at = base + AT_LSE + stage * LINE + column * 4, dot_at = base + AT_DOT + stage * LINE + column * 4;
#pragma unroll
      for (int j = 0; j < TALL / 8; j++) {
        float2 lse = load_two(lse_at + j * 32);
        s[4 * j] = power_of_2(fmaf(s[4 * j], call.scale_log2, -lse.x));
        s[4 * j + 1] = power_of_2(fmaf(s[4 * j + 1], call.scale_log2, -lse.y));
        s[4 * j + 2] = power_of_2(fmaf(s[4 * j + 2], call.scale_log2, -lse.x));
        s[4 * j + 3] = power_of_2(fmaf(s[4 * j + 3], call.scale_log2, -lse.y));
      }
      products_wait<0>();
      pin(dp);
#pragma unroll
      for (int j = 0; j < TALL / 8; j++) {
        float2 dot = load_two(dot_at + j * 32);
        dp[4 * j] = s[4 * j] * (dp[4 * j] - dot.x);
        dp[4 * j + 1] = s[4 * j + 1] * (dp[4 * j + 1] - dot.y);
        dp[4 * j + 2] = s[4 * j + 2] * (dp[4 * j + 2] - dot.x);
        dp[4 * j + 3] = s[4 * j + 3] * (dp[4 * j + 3] - dot.y);
        // Packed here, one after another, so that registers become free: there are hardly enough.
        p[2 * j] = pack(s[4 * j], s[4 * j + 1]);
        p[2 * j + 1] = pack(s[4 * j + 2], s[4 * j + 3]);
        ds[2 * j] = pack(dp[4 * j], dp[4 * j + 1]);
        ds[2 * j + 1] = pack(dp[4 * j + 2], dp[4 * j + 3]);
      }
      pin(dv);
      products_begin();
#pragma unroll
      for (int step = 0; step < TALL / 16; step++)
        gradient_product(dv, p[4 * step], p[4 * step + 1], p[4 * step + 2], p[4 * step + 3], by_tokens<TALL>(dout, step));
      products_commit();
#if ALONE
      pin(dk);
      products_begin();
#pragma unroll
      for (int step = 0; step < TALL / 16; step++)
        gradient_product(dk, ds[4 * step], ds[4 * step + 1], ds[4 * step + 2], ds[4 * step + 3], by_tokens<TALL>(q, step));
      products_commit();
      products_wait<0>();
      pin(dv);
      pin(dk);
#else
      // Keys as rows, queries in chunks of 8, swizzled; two buffers, since the other warpgroup may still
      // read the one before.
      u32 shared_ds = base + AT_DS + (i & 1) * DS_TILE, me = fresh(thread);
      u32 ds_row = half * 64 + (me >> 5) * 16 + ((me >> 3) & 1) * 8 + (me & 7), ds_chunk = (me >> 4) & 1;
#pragma unroll
      for (int step = 0; step < TALL / 16; step++)
        store_matrices(shared_ds + (step >> 2) * KEYS * ROW_BYTES + ds_row * ROW_BYTES + ((((step & 3) * 2 + ds_chunk) ^ (me & 7)) << 4),
                       ds[4 * step], ds[4 * step + 1], ds[4 * step + 2], ds[4 * step + 3]);
      async_fence();
      meet(1, 256);
      float dq[32];
      pin(dq);
      pin(dk);
      products_begin();
      u32 of_queries = shared_ds + (HEAD == 128 ? 0 : half * KEYS * ROW_BYTES);
      u32 of_channels = base + AT_K + (HEAD == 128 ? half * KEYS * ROW_BYTES : 0);
#pragma unroll
      for (int step = 0; step < 8; step++)
        query_product(dq, by_tokens<KEYS>(of_queries, step), by_tokens<KEYS>(of_channels, step), step != 0);
      products_commit();
#pragma unroll
      for (int step = 0; step < TALL / 16; step++)
        gradient_product(dk, ds[4 * step], ds[4 * step + 1], ds[4 * step + 2], ds[4 * step + 3], by_tokens<TALL>(q, step));
      products_commit();
      products_wait<1>();
      pin(dq);
      pin(dv);
      // Every warp adds its own 16 rows. Those of the tile before must have left shared memory.
      int warp = half * 4 + (thread >> 5);
      if (lane == 0) stores_read();
      __syncwarp();
      u32 sum = base + AT_DQ + warp * OF_WARP;
#pragma unroll
      for (int run = 0; run < 8; run++)
        store_four(sum + lane * 16 + run * 512, dq[4 * run], dq[4 * run + 1], dq[4 * run + 2], dq[4 * run + 3]);
      async_fence();
      __syncwarp();
      if (lane == 0) {
        long long row = (long long)(branch * call.batch + at.b) * call.heads + h;
        add_numbers(call.sums + (row * call.tall + token) * HEAD + warp * (OF_WARP / 4), sum, OF_WARP);
      }
      products_wait<0>();
      pin(dk);
#endif
      if (lane == 0) arrive(q_free + 8 * stage);
      follow(i);
    }
    store(head_of(call.dk, call.of_dk, branch * call.batch + at.b, kv_of(call, at)), call.of_dk.token, call.keys, key(), call.d, dk, call.scale, call.scale);
#pragma unroll
    for (int c = 0; c < HEAD / 2; c++) dk[c] = 0.f;
  }
  store(head_of(call.dv, call.of_dv, at.b, kv_of(call, at)), call.of_dv.token, call.keys, key(), call.e, dv, 1.f, 1.f);
#if !ALONE
  if (lane == 0) stores_written();
#endif
}
