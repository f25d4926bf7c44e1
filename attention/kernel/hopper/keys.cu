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

#define AT_K 0
#define AT_V (AT_K + KEY_TILE)
#define AT_Q (AT_V + KEY_TILE)
#define AT_DOUT (AT_Q + STAGES * TILE)
#define AT_DS (AT_DOUT + STAGES * TILE)
#define DS_TILE (KEYS * TALL * 2)
#if ALONE
#define AT_DQ AT_DS
#define AT_LSE AT_DS
#else
#define AT_DQ (AT_DS + 2 * DS_TILE)
#define AT_LSE (AT_DQ + 2 * 16384)
#endif
#define AT_DOT (AT_LSE + STAGES * LINE)
#define AT_BARS (AT_DOT + STAGES * LINE)

SHARE_OUT(24, 240);

extern "C" __global__ void __launch_bounds__(THREADS, 1) keys(const __grid_constant__ Call call) {
  extern __shared__ __align__(1024) unsigned char memory[];
  u32 base = (shared_address(memory) + ATOM - 1) & ~(ATOM - 1), bars = base + AT_BARS;
  u32 v_full = bars, k_full = bars + 8, k_free = bars + 16, q_full = bars + 24, dout_full = q_full + 8 * STAGES,
      q_free = dout_full + 8 * STAGES;
  int bk = __ldg(call.order + 2 * blockIdx.x), tile = __ldg(call.order + 2 * blockIdx.x + 1);
  int heads = call.heads / call.kv, b = bk / call.kv, kv = bk % call.kv, head = kv * heads;
  int group = threadIdx.x >> 7;
  if (threadIdx.x == 0) {
    barrier_init(v_full, 1);
    barrier_init(k_full, 1);
    barrier_init(k_free, READERS);
    for (int i = 0; i < STAGES; i++) {
      barrier_init(q_full + 8 * i, 1);
      barrier_init(dout_full + 8 * i, 1);
      barrier_init(q_free + 8 * i, READERS);
    }
    barriers_ready();
  }
  __syncthreads();

  if (group == 0) {
    FEWER_REGISTERS(TO_LOAD);
    if (threadIdx.x == 0) {
      int i = 0, loaded = 0;
      for (int branch = 0; branch < BRANCHES; branch++) {
        if (!any(call, branch, b, head, heads, tile)) continue;
        wait(k_free, (loaded & 1) ^ 1);
        expect(k_full, KEY_TILE);
        load_tile<KEYS>(base + AT_K, &call.k, k_full, tile * KEYS, kv, branch * call.batch + b);
        if (loaded == 0) {
          expect(v_full, KEY_TILE);
          load_tile<KEYS>(base + AT_V, &call.v, v_full, tile * KEYS, kv, b);
        }
        loaded++;
        for (int h = head; h < head + heads; h++) {
          int2 list = list_of(call, branch, b, h, tile);
          int line = (b * call.heads + h) * call.tall;
          for (int at = list.x; at < list.y; at++, i++) {
            int token = tile_of(__ldg(call.sides[branch].tiles + at)) * TALL, stage = i % STAGES;
            u32 q_bar = q_full + 8 * stage, dout_bar = dout_full + 8 * stage;
            wait(q_free + 8 * stage, ((i / STAGES) & 1) ^ 1);
            expect(q_bar, TILE + LINE);
            load_tile<TALL>(base + AT_Q + stage * TILE, &call.q, q_bar, token, h, branch * call.batch + b);
            load_line(base + AT_LSE + stage * LINE, call.lse2 + (line + token), LINE, q_bar);
            expect(dout_bar, TILE + LINE);
            load_tile<TALL>(base + AT_DOUT + stage * TILE, &call.dout, dout_bar, token, h, b);
            load_line(base + AT_DOT + stage * LINE, call.dots + (line + token), LINE, dout_bar);
          }
        }
      }
    }
    return;
  }

  MORE_REGISTERS(TO_COMPUTE);
  int half = group - 1, thread = threadIdx.x & 127, lane = thread & 31, warp = thread >> 5;
  float dv[HEAD / 2], dk[HEAD / 2];
#pragma unroll
  for (int c = 0; c < HEAD / 2; c++) dv[c] = dk[c] = 0.f;
  u32 my_k = base + AT_K + half * 64 * ROW_BYTES, my_v = base + AT_V + half * 64 * ROW_BYTES;
  int key = tile * KEYS + half * 64 + warp * 16 + (lane >> 2), column = 2 * (lane & 3);
  // A loop even where there is one branch: without it the compiler of CUDA 13 keeps dv and dk in memory.
  int i = 0, loaded = 0, branches = fresh(BRANCHES);
  for (int branch = 0; branch < branches; branch++) {
    if (any(call, branch, b, head, heads, tile)) {
      wait(k_full, loaded & 1);
      wait(v_full, 0);
      loaded++;
      for (int h = head; h < head + heads; h++) {
        int2 list = list_of(call, branch, b, h, tile);
        for (int at = list.x; at < list.y; at++, i++) {
          int entry = __ldg(call.sides[branch].tiles + at), token = tile_of(entry) * TALL, stage = i % STAGES;
          u32 phase = (i / STAGES) & 1, q = base + AT_Q + stage * TILE, dout = base + AT_DOUT + stage * TILE;
          float s[TALL / 2], dp[TALL / 2];
          u32 p[TALL / 4], ds[TALL / 4];
          wait(q_full + 8 * stage, phase);
#if ALONE
          // All that is seen may be blocks of the other warpgroup's keys. One lane says so: where the compiler does not know
          // that a warp goes one way, it serializes the products.
          if (__shfl_sync(~0u, entry < 0 && nothing_seen(entry, half), 0)) {
            wait(dout_full + 8 * stage, phase);
            // No lane may still be waiting when the place is given back.
            __syncwarp();
            if (lane == 0) arrive(q_free + 8 * stage);
            continue;
          }
#endif
          pin(s);
          pin(dp);
          products_begin();
#pragma unroll
          for (int step = 0; step < HEAD / 16; step++)
            scores_product(s, by_channels<KEYS>(my_k, step), by_channels<TALL>(q, step), step != 0);
          products_commit();
          wait(dout_full + 8 * stage, phase);
#pragma unroll
          for (int step = 0; step < HEAD / 16; step++)
            scores_product(dp, by_channels<KEYS>(my_v, step), by_channels<TALL>(dout, step), step != 0);
          products_commit();
          products_wait<1>();
          pin(s);
          if (entry < 0) hide(s, call, entry, branch, b, h, token + column, key);
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
          // The tile before must have left shared memory.
          if (thread == 0) stores_read();
          meet(2 + half, 128);
          u32 sum = base + AT_DQ + half * 16384;
#pragma unroll
          for (int run = 0; run < 8; run++)
            store_four(sum + thread * 16 + run * 2048, dq[4 * run], dq[4 * run + 1], dq[4 * run + 2], dq[4 * run + 3]);
          async_fence();
          meet(2 + half, 128);
          if (thread == 0) {
            long long row = (long long)(branch * call.batch + b) * call.heads + h;
            add_tile(call.sums + (row * call.tall + token) * HEAD + half * 4096, sum);
          }
          products_wait<0>();
          pin(dk);
#endif
          // All lanes have read the lines that came with a tile.
          __syncwarp();
          if (lane == 0) arrive(q_free + 8 * stage);
        }
      }
      if (lane == 0) arrive(k_free);
    }
    store(head_of(call.dk, call.of_dk, branch * call.batch + b, kv), call.of_dk.token, call.keys, key, call.d, dk, call.scale, call.scale);
#pragma unroll
    for (int c = 0; c < HEAD / 2; c++) dk[c] = 0.f;
  }
  store(head_of(call.dv, call.of_dv, b, kv), call.of_dv.token, call.keys, key, call.e, dv, 1.f, 1.f);
#if !ALONE
  if (thread == 0) stores_written();
#endif
}
