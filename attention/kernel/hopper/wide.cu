// Attention backward by keys where a warpgroup has no registers for both dk and dv: heads of more than 128 channels. A
// workgroup per tile of 64 keys of a key head, which goes through the tiles of queries that see it, of all the query heads
// that read it. One warpgroup loads, two compute, with keys as rows: the first has scores, weights and dv, the second the
// changes of weights and dk. Weights go from the first to the second through shared memory, so that nothing is
// computed twice; while one of them is at its exponentials or differences, the other has the tensor cores.
//
// dq has a pass of its own.
//
// Matrix products: scores and dp [64, TALL] by channels, dv and dk [64, HEAD] by queries.

#define TILE (TALL * HEAD * 2)
#define LINE (TALL * 4)
#define WEIGHTS (KEYS * TALL * 4)

#define AT_K 0
#define AT_V (AT_K + TILE)
#define AT_Q (AT_V + TILE)
#define AT_DOUT (AT_Q + STAGES * TILE)
#define AT_WEIGHTS (AT_DOUT + STAGES * TILE)
#define AT_LSE (AT_WEIGHTS + WEIGHTS)
#define AT_DOT (AT_LSE + STAGES * LINE)
#define AT_BARS (AT_DOT + STAGES * LINE)

// Barriers among those who compute: weights are there, and have been read.
#define THERE 1
#define READ_UP 2

static_assert(TALL == 64 && KEYS == 64, "both tiles are of one size, and a thread has 32 weights");

SHARE_OUT(40, 232);

extern "C" __global__ void __launch_bounds__(THREADS, 1) keys(const __grid_constant__ Call call) {
  extern __shared__ __align__(1024) unsigned char memory[];
  u32 base = (shared_address(memory) + ATOM - 1) & ~(ATOM - 1), bars = base + AT_BARS;
  u32 v_full = bars, k_full = bars + 8, q_full = bars + 16, dout_full = q_full + 8 * STAGES, q_free = dout_full + 8 * STAGES,
      dout_free = q_free + 8 * STAGES, whats = bars + 128;
  int bk = __ldg(call.order + 2 * blockIdx.x), tile = __ldg(call.order + 2 * blockIdx.x + 1);
  int heads = call.heads / call.kv, b = bk / call.kv, kv = bk % call.kv, head = kv * heads;
  int group = threadIdx.x >> 7;
  if (threadIdx.x == 0) {
    barrier_init(v_full, 1);
    barrier_init(k_full, 1);
    for (int i = 0; i < STAGES; i++) {
      barrier_init(q_full + 8 * i, 1);
      barrier_init(dout_full + 8 * i, 1);
      barrier_init(q_free + 8 * i, READERS);
      barrier_init(dout_free + 8 * i, READERS);
    }
    barriers_ready();
  }
  __syncthreads();

  // With every tile of queries come four numbers for those who compute: an entry of a list, the head, the branch, which is
  // BRANCHES where there is nothing more, and how often keys have been loaded.
  if (group == 0) {
    FEWER_REGISTERS(TO_LOAD);
    if (threadIdx.x == 0) {
      int i = 0, loaded = 0;
      for (int branch = 0; branch < BRANCHES; branch++) {
        if (!any(call, branch, b, head, heads, tile)) continue;
        bool loads = true;
        for (int h = head; h < head + heads; h++) {
          int2 list = list_of(call, branch, b, h, tile);
          int line = (b * call.heads + h) * call.tall;
          for (int at = list.x; at < list.y; at++, i++) {
            int entry = __ldg(call.sides[branch].tiles + at), token = tile_of(entry) * TALL, stage = i % STAGES;
            u32 q_bar = q_full + 8 * stage, dout_bar = dout_full + 8 * stage, phase = ((i / STAGES) & 1) ^ 1;
            wait(q_free + 8 * stage, phase);
            loaded += loads;
            store_ints(whats + 16 * stage, entry, h, branch, loaded);
            expect(q_bar, TILE + LINE);
            load_tile<TALL>(base + AT_Q + stage * TILE, &call.q, q_bar, token, h, branch * call.batch + b);
            load_line(base + AT_LSE + stage * LINE, call.lse2 + (line + token), LINE, q_bar);
            wait(dout_free + 8 * stage, phase);
            expect(dout_bar, TILE + LINE);
            load_tile<TALL>(base + AT_DOUT + stage * TILE, &call.dout, dout_bar, token, h, b);
            load_line(base + AT_DOT + stage * LINE, call.dots + (line + token), LINE, dout_bar);
            if (!loads) continue;
            // Who sees that a tile of another branch has come is done with the one before, and then with its keys.
            if (i > 0) wait(q_free + 8 * ((i - 1) % STAGES), ((i - 1) / STAGES) & 1);
            expect(k_full, TILE);
            load_tile<KEYS>(base + AT_K, &call.k, k_full, tile * KEYS, kv, branch * call.batch + b);
            if (i == 0) {
              expect(v_full, TILE);
              load_tile<KEYS>(base + AT_V, &call.v, v_full, tile * KEYS, kv, b);
            }
            loads = false;
          }
        }
      }
      int stage = i % STAGES;
      u32 phase = ((i / STAGES) & 1) ^ 1;
      wait(q_free + 8 * stage, phase);
      store_ints(whats + 16 * stage, 0, 0, BRANCHES, 0);
      arrive(q_full + 8 * stage);
      wait(dout_free + 8 * stage, phase);
      arrive(dout_full + 8 * stage);
    }
    return;
  }

  MORE_REGISTERS(TO_COMPUTE);
  bool second = group == 2;
  int thread = threadIdx.x & 127, lane = thread & 31, warp = thread >> 5;
  int key = tile * KEYS + warp * 16 + (lane >> 2), column = 2 * (lane & 3);
  // A product of scores is of the first two, one of gradients of weights and the third.
  u32 of_keys = base + (second ? AT_V : AT_K), near = base + (second ? AT_DOUT : AT_Q), far = base + (second ? AT_Q : AT_DOUT);
  u32 near_full = second ? dout_full : q_full, near_free = second ? dout_free : q_free;
  u32 far_full = second ? q_full : dout_full, far_free = second ? q_free : dout_free;
  u32 weights = base + AT_WEIGHTS + thread * 16;
  float s[TALL / 2], sum[HEAD / 2];
  u32 factors[TALL / 4];
  wait(near_full, 0);
  int4 what = load_ints(whats);
  // A loop even where there is one branch: see keys.cu.
  int i = 0, loaded = 0, branches = fresh(BRANCHES);
  for (int branch = 0; branch < branches; branch++) {
    if (second || branch == 0) {
#pragma unroll
      for (int c = 0; c < HEAD / 2; c++) sum[c] = 0.f;
    }
    pin(sum);
    bool begun = false;
    while (what.z == branch) {
      int stage = i % STAGES, before = (i + STAGES - 1) % STAGES;
      u32 phase = (i / STAGES) & 1;
      if (what.w != loaded) {
        if (second) wait(v_full, 0); else wait(k_full, loaded & 1);
        loaded = what.w;
      }
      pin(s);
      products_begin();
#pragma unroll
      for (int step = 0; step < HEAD / 16; step++)
        scores_product(s, by_channels<KEYS>(of_keys, step), by_channels<TALL>(near + stage * TILE, step), step != 0);
      products_commit();
      if (begun) {
        products_wait<1>();
        if (lane == 0) arrive(far_free + 8 * before);
      }
      products_wait<0>();
      pin(s);
      pin(sum);
      if (second) {
        u32 dot_at = base + AT_DOT + stage * LINE + column * 4;
        meet(THERE, 256);
#pragma unroll
        for (int j = 0; j < TALL / 8; j++) {
          int4 weight = load_ints(weights + j * 2048);
          float2 dot = load_two(dot_at + j * 32);
          s[4 * j] = __int_as_float(weight.x) * (s[4 * j] - dot.x);
          s[4 * j + 1] = __int_as_float(weight.y) * (s[4 * j + 1] - dot.y);
          s[4 * j + 2] = __int_as_float(weight.z) * (s[4 * j + 2] - dot.x);
          s[4 * j + 3] = __int_as_float(weight.w) * (s[4 * j + 3] - dot.y);
        }
        pass_by(READ_UP, 256);
      } else {
        u32 lse_at = base + AT_LSE + stage * LINE + column * 4;
        if (what.x < 0) hide(s, call, what.x, branch, b, what.y, tile_of(what.x) * TALL + column, key);
#pragma unroll
        for (int j = 0; j < TALL / 8; j++) {
          float2 lse = load_two(lse_at + j * 32);
          s[4 * j] = power_of_2(fmaf(s[4 * j], call.scale_log2, -lse.x));
          s[4 * j + 1] = power_of_2(fmaf(s[4 * j + 1], call.scale_log2, -lse.y));
          s[4 * j + 2] = power_of_2(fmaf(s[4 * j + 2], call.scale_log2, -lse.x));
          s[4 * j + 3] = power_of_2(fmaf(s[4 * j + 3], call.scale_log2, -lse.y));
        }
        if (i > 0) meet(READ_UP, 256);
#pragma unroll
        for (int j = 0; j < TALL / 8; j++) store_four(weights + j * 2048, s[4 * j], s[4 * j + 1], s[4 * j + 2], s[4 * j + 3]);
        pass_by(THERE, 256);
      }
      pack_all(factors, s);
      // The line that came with a tile has been read, too.
      __syncwarp();
      if (lane == 0) arrive(near_free + 8 * stage);
      wait(far_full + 8 * stage, phase);
      pin(sum);
      products_begin();
#pragma unroll
      for (int step = 0; step < TALL / 16; step++)
        gradient_product(sum, factors[4 * step], factors[4 * step + 1], factors[4 * step + 2], factors[4 * step + 3],
                         by_tokens<TALL>(far + stage * TILE, step));
      products_commit();
      begun = true;
      i++;
      wait(near_full + 8 * (i % STAGES), (i / STAGES) & 1);
      what = load_ints(whats + 16 * (i % STAGES));
    }
    products_wait<0>();
    pin(sum);
    if (begun && lane == 0) arrive(far_free + 8 * ((i + STAGES - 1) % STAGES));
    if (second) store(head_of(call.dk, call.of_dk, branch * call.batch + b, kv), call.of_dk.token, call.keys, key, call.d, sum, call.scale, call.scale);
  }
  if (second) return;
  // Nobody is left waiting for the last weights to be read.
  if (loaded > 0) meet(READ_UP, 256);
  store(head_of(call.dv, call.of_dv, b, kv), call.of_dv.token, call.keys, key, call.e, sum, 1.f, 1.f);
}
