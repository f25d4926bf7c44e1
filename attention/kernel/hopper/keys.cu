// Attention backward by keys: a workgroup has tiles of 128 keys of a key head, one after another where there are turns,
// and goes through the tiles of queries that see it, of all the query heads that read it. One warpgroup loads, two
// compute, 64 keys each: scores and weights with keys as rows, so that dv and dk stay in registers. Unless dq has a
// pass of its own (ALONE), it is added up in f32 in global memory, in whatever order workgroups get there.
//
// Matrix products: scores and dp [64, TALL] by channels, dv and dk [64, HEAD] by queries,
// dq [64, 64] by keys.

// Queries of a tile. A warpgroup has 64 x 64 of its dq: of all queries and half of the channels, or of half
// of the queries and all channels.
#define TALL (8192 / HEAD)
#define KEYS 128
#define TILE (TALL * HEAD * 2)
#define KEY_TILE (KEYS * HEAD * 2)
#define STAGES 2
#define LINE (TALL * 4)
// Tiles of keys and values at a time: beside dq there is room for one.
#define KEY_STAGES (ALONE ? 2 : 1)

// There are hardly enough for dk, dv and dq.
#if ALONE
#define LOAD_REGISTERS 48
#define COMPUTE_REGISTERS 232
#else
#define LOAD_REGISTERS 32
#define COMPUTE_REGISTERS 240
#endif

#define AT_KV 0
#define AT_Q (KEY_STAGES * 2 * KEY_TILE)
#define AT_DOUT (AT_Q + STAGES * TILE)
#define AT_DS (AT_DOUT + STAGES * TILE)
#define DS_TILE (KEYS * TALL * 2)
#if ALONE
#define AT_LSE AT_DS
#else
#define AT_DQ (AT_DS + 2 * DS_TILE)
#define AT_LSE (AT_DQ + 2 * 16384)
#endif
#define AT_DOT (AT_LSE + STAGES * LINE)
#define AT_BARS (AT_DOT + STAGES * LINE)

// With every stage of queries come four numbers for those who compute: an entry of a list, its head, the tile of keys that
// it is for, and marks: which branch it is of, whether it is the branch's or the tile's last, whether there is nothing
// to compute, and whether there is nothing more.
#define BRANCH 3
#define LAST 4
#define LAST_OF_LIST 8
#define NOTHING 16
#define END 32

// Tiles of queries of one head that see a tile of keys: where they begin, and how many.
__device__ __forceinline__ int2 list_of(const Call& call, int branch, int b, int h, int tile) {
  const Side& side = call.sides[branch];
  int tiles = (call.keys + KEYS - 1) / KEYS;
  int row = (b * side.classes + __ldg(side.numbers + side.heads + 4 * h)) * tiles + tile, start = __ldg(side.starts + row);
  return make_int2(start, __ldg(side.starts + row + 1) - start);
}

// Calls `each` with the number of a head among `heads`, entry and whether it is the last one, for the tiles of queries that
// see a tile of keys; with a head of -1 where the last one has been passed. By one warp.
#if ALONE
// Its lanes look up 32 heads, and 32 entries at a time.
template<class Each> __device__ __forceinline__ void walk(const Call& call, int branch, int b, int head, int heads, int tile, Each each) {
  int lane = threadIdx.x & 31;
  bool done = false;
  for (int base = 0; base < heads; base += 32) {
    int2 mine = make_int2(0, 0);
    if (base + lane < heads) mine = list_of(call, branch, b, head + base + lane, tile);
    int upto = mine.y;
#pragma unroll
    for (int other = 1; other < 32; other *= 2) {
      int before = __shfl_up_sync(~0u, upto, other);
      if (lane >= other) upto += before;
    }
    int all = __shfl_sync(~0u, upto, 31);
    auto find = [&](int at, int& of) {
      of = 0;
#pragma unroll
      for (int step = 16; step > 0; step /= 2)
        if (__shfl_sync(~0u, upto, of + step - 1) <= at) of += step;
      int within = at - __shfl_sync(~0u, upto, of) + __shfl_sync(~0u, mine.y, of);
      int first = __shfl_sync(~0u, mine.x, of);
      return at < all ? __ldg(call.sides[branch].tiles + first + within) : 0;
    };
    int next_of, next = find(lane, next_of);
    for (int at = 0; at < all; at += 32) {
      int now = next, of = next_of;
      if (at + 32 < all) next = find(at + 32 + lane, next_of);
      for (int n = 0; n < 32 && at + n < all; n++) {
        done = base + 32 >= heads && at + n + 1 == all;
        each(base + __shfl_sync(~0u, of, n), __shfl_sync(~0u, now, n), done);
      }
    }
  }
  if (!done) each(-1, 0, true);
}
#else
// There are no registers for more.
template<class Each> __device__ __forceinline__ void walk(const Call& call, int branch, int b, int head, int heads, int tile, Each each) {
  for (int n = 0; n < heads; n++) {
    int2 list = list_of(call, branch, b, head + n, tile);
    for (int at = list.x; at < list.x + list.y; at++) each(n, __ldg(call.sides[branch].tiles + at), false);
  }
  each(-1, 0, true);
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 1) keys(const __grid_constant__ Call call) {
  extern __shared__ __align__(1024) unsigned char memory[];
  u32 base = (shared_address(memory) + ATOM - 1) & ~(ATOM - 1), bars = base + AT_BARS;
  u32 kv_full = bars, kv_free = kv_full + 8 * KEY_STAGES, q_full = kv_free + 8 * KEY_STAGES, dout_full = q_full + 8 * STAGES,
      q_free = dout_full + 8 * STAGES, whats = bars + 128;
  int heads = call.heads / call.kv, group = threadIdx.x >> 7;
  if (threadIdx.x == 0) {
    for (int i = 0; i < KEY_STAGES; i++) {
      barrier_init(kv_full + 8 * i, 1);
      barrier_init(kv_free + 8 * i, READERS);
    }
    for (int i = 0; i < STAGES; i++) {
      barrier_init(q_full + 8 * i, 1);
      barrier_init(dout_full + 8 * i, 1);
      barrier_init(q_free + 8 * i, READERS);
    }
    barriers_ready();
  }
  __syncthreads();

  if (group == 0) {
    FEWER_REGISTERS(LOAD_REGISTERS);
    if (threadIdx.x < 32) {
      int i = 0, loaded = 0;
      bool leads = threadIdx.x == 0;
      for (int turn = 0; turn < (ALONE ? call.turns : 1); turn++) {
        const int* item = call.order + 2 * (turn * (int)gridDim.x + (int)blockIdx.x);
        int bk = __ldg(item), tile = __ldg(item + 1);
        if (bk < 0) continue;
        int b = bk / call.kv, kv = bk % call.kv;
        for (int branch = 0; branch < BRANCHES; branch++, loaded++) {
          if (leads) {
            int slot = loaded % KEY_STAGES;
            u32 bar = kv_full + 8 * slot, to = base + AT_KV + slot * 2 * KEY_TILE;
            wait(kv_free + 8 * slot, ((loaded / KEY_STAGES) & 1) ^ 1);
            expect(bar, 2 * KEY_TILE);
            load_tile<KEYS>(to, &call.k, bar, tile * KEYS, kv, branch * call.batch + b);
            load_tile<KEYS>(to + KEY_TILE, &call.v, bar, tile * KEYS, kv, b);
          }
          walk(call, branch, b, kv * heads, heads, tile, [&](int n, int entry, bool last) {
            int stage = i % STAGES, token = tile_of(entry) * TALL, bh = bk * heads + (n < 0 ? 0 : n), line = bh * call.tall + token;
            u32 q_bar = q_full + 8 * stage, dout_bar = dout_full + 8 * stage;
            if (leads) {
              wait(q_free + 8 * stage, ((i / STAGES) & 1) ^ 1);
              store_ints(whats + 16 * stage, entry, bh, tile,
                         branch | (n < 0 ? NOTHING : 0) | (last ? LAST_OF_LIST : 0) | (last && branch == BRANCHES - 1 ? LAST : 0));
              if (n < 0) {
                arrive(q_bar);
                arrive(dout_bar);
              } else {
                expect(q_bar, TILE + LINE);
                load_tile<TALL>(base + AT_Q + stage * TILE, &call.q, q_bar, token, kv * heads + n, branch * call.batch + b);
                load_line(base + AT_LSE + stage * LINE, call.lse2 + line, LINE, q_bar);
                expect(dout_bar, TILE + LINE);
                load_tile<TALL>(base + AT_DOUT + stage * TILE, &call.dout, dout_bar, token, kv * heads + n, b);
                load_line(base + AT_DOT + stage * LINE, call.dots + line, LINE, dout_bar);
              }
            }
            i++;
          });
        }
      }
      if (leads) {
        wait(q_free + 8 * (i % STAGES), ((i / STAGES) & 1) ^ 1);
        store_ints(whats + 16 * (i % STAGES), 0, 0, 0, END);
        arrive(q_full + 8 * (i % STAGES));
      }
    }
    return;
  }

  MORE_REGISTERS(COMPUTE_REGISTERS);
  int half = group - 1, thread = threadIdx.x & 127, lane = thread & 31, warp = thread >> 5;
  int row = half * 64 + warp * 16 + (lane >> 2), column = 2 * (lane & 3);
  float dv[HEAD / 2], dk[HEAD / 2];
#pragma unroll
  for (int c = 0; c < HEAD / 2; c++) dv[c] = dk[c] = 0.f;
  int loaded = 0;
  bool begun = false;
#if !ALONE
  int computed = 0;
#endif
  for (int i = 0;; i++) {
    int stage = i % STAGES, slot = loaded % KEY_STAGES;
    u32 phase = (i / STAGES) & 1, q = base + AT_Q + stage * TILE, dout = base + AT_DOUT + stage * TILE;
    u32 keys = base + AT_KV + slot * 2 * KEY_TILE, my_k = keys + half * 64 * ROW_BYTES, my_v = my_k + KEY_TILE;
    wait(q_full + 8 * stage, phase);
    int4 what = load_ints(whats + 16 * stage);
    if (what.w & END) break;
    if (!begun) wait(kv_full + 8 * slot, (loaded / KEY_STAGES) & 1);
    begun = true;
    if (!(what.w & NOTHING)) {
      float s[TALL / 2], dp[TALL / 2];
      u32 p[TALL / 4], ds[TALL / 4];
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
      if (what.x < 0)
        hide(s, call, what.x, what.w & BRANCH, what.y / call.heads, what.y % call.heads, tile_of(what.x) * TALL + column, what.z * KEYS + row);
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
      u32 shared_ds = base + AT_DS + (computed & 1) * DS_TILE, me = fresh(thread);
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
      u32 of_channels = keys + (HEAD == 128 ? half * KEYS * ROW_BYTES : 0);
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
        long long of = (long long)(what.w & BRANCH) * call.batch * call.heads + what.y;
        add_tile(call.sums + (of * call.tall + tile_of(what.x) * TALL) * HEAD + half * 4096, sum);
      }
      products_wait<0>();
      pin(dk);
      computed++;
#endif
    }
    if (lane == 0) arrive(q_free + 8 * stage);
    if (!(what.w & LAST_OF_LIST)) continue;
    if (lane == 0) arrive(kv_free + 8 * slot);
    int bk = what.y / heads, key = what.z * KEYS + row;
    store(call.dk, (long long)(what.w & BRANCH) * call.batch * call.kv + bk, call.keys, key, call.d, dk, call.scale, call.scale);
#pragma unroll
    for (int c = 0; c < HEAD / 2; c++) dk[c] = 0.f;
    loaded++;
    begun = false;
    if (!(what.w & LAST)) continue;
    store(call.dv, bk, call.keys, key, call.e, dv, 1.f, 1.f);
#pragma unroll
    for (int c = 0; c < HEAD / 2; c++) dv[c] = 0.f;
  }
#if !ALONE
  if (thread == 0) stores_written();
#endif
}
