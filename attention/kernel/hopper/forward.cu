// Attention forward: every workgroup goes through a list of tiles of queries of a head. One warpgroup
// loads tiles of keys and values, two or three compute, 64 queries each; while one of them does its softmax another
// has the tensor cores. The tiles of keys of all tiles of queries are one sequence: scores of the next tile of
// queries are computed beside the last values of the one before, which then leaves through shared memory.
//
// Where there are few queries, the keys of a row are in parts, as if each were a row with lists and results of
// its own.
//
// Tiles of keys come in pieces: whole, or in halves where out takes the registers that scores of a whole tile need.
//
// Matrix products: scores [64, PIECE] by channels, out [64, HEAD] by keys.

#define Q_TILES (Q_STAGES * BRANCHES)

__device__ __forceinline__ void scores(float (&s)[PIECE / 2], u32 q, u32 k) {
#pragma unroll
  for (int step = 0; step < HEAD / 16; step++)
    scores_product(s, by_channels<TALL>(q, step), by_channels<PIECE>(k, step), step != 0);
}
__device__ __forceinline__ void values(float (&o)[HEAD / 2], u32 (&p)[PIECE / 4], u32 v) {
#pragma unroll
  for (int step = 0; step < PIECE / 16; step++)
    values_product(o, p[4 * step], p[4 * step + 1], p[4 * step + 2], p[4 * step + 3], by_tokens<PIECE>(v, step));
}

// Maximum in units of log 2 and sum of one query, over this thread's keys.
struct Line { float top, sum; };

// Weights in place of scores; what outputs so far are multiplied by. Queries without a key so far have
// a maximum of -inf, which is taken as 0 here, so that nothing becomes NaN.
__device__ __forceinline__ void softmax(float (&s)[PIECE / 2], Line& a, Line& b, float& keep_a, float& keep_b, float scale) {
  float top_a = -INFINITE, top_b = -INFINITE;
#pragma unroll
  for (int j = 0; j < PIECE / 8; j++) {
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
  for (int j = 0; j < PIECE / 8; j++) {
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

// Zeros, and -inf as the logarithm of 0, for tiles of queries that see nothing: by all who compute, before
// there is anything to compute with.
__device__ __forceinline__ void blind(const Call& call) {
  int lane = threadIdx.x & 31, tile;
  for (int first = (threadIdx.x & ~31) - 128; first < call.turns; first += 128 * COMPUTING) {
    bool nothing = false;
    if (first + lane < call.turns) {
      int bh = item(call, first + lane, tile);
      nothing = bh >= 0 && lists_of(call, bh / call.heads, bh % call.heads, tile).total == 0;
    }
    for (u32 left = __ballot_sync(~0u, nothing); left != 0; left &= left - 1) {
      int bh = item(call, first + __ffs(left) - 1, tile), token = tile * TALL;
      int end = token + TALL < call.queries ? token + TALL : call.queries;
      unsigned short* out = head_of(call.out, call.of_out, bh / call.heads, bh % call.heads);
      for (; token < end; token++) {
        for (int c = 2 * lane; c < call.e; c += 64) *(u32*)(out + token * call.of_out.token + c) = 0;
        if (lane == 0) call.lse[(long long)bh * call.queries + token] = -INFINITE;
      }
    }
  }
}

SHARE_OUT(COMPUTING == 3 ? 32 : 56, COMPUTING == 3 ? 160 : 224);

extern "C" __global__ void __launch_bounds__(THREADS, 1) forward(const __grid_constant__ Call call) {
  extern __shared__ __align__(1024) unsigned char memory[];
  u32 base = (shared_address(memory) + ATOM - 1) & ~(ATOM - 1);
  u32 q = base, k = q + Q_TILES * TILE, v = k + K_STAGES * PIECE_TILE, bars = v + V_STAGES * PIECE_TILE;
  u32 k_full = bars, k_free = k_full + 8 * K_STAGES, v_full = k_free + 8 * K_STAGES, v_free = v_full + 8 * V_STAGES,
      q_full = v_free + 8 * V_STAGES, q_free = q_full + 8 * Q_STAGES, whats = bars + 128;
  int group = threadIdx.x >> 7;
  if (threadIdx.x == 0) {
    for (int i = 0; i < K_STAGES; i++) {
      barrier_init(k_full + 8 * i, 1);
      barrier_init(k_free + 8 * i, READERS);
    }
    for (int i = 0; i < V_STAGES; i++) {
      barrier_init(v_full + 8 * i, 1);
      barrier_init(v_free + 8 * i, READERS);
    }
    for (int i = 0; i < Q_STAGES; i++) {
      barrier_init(q_full + 8 * i, 1);
      barrier_init(q_free + 8 * i, COMPUTING);
    }
    barriers_ready();
  }
  __syncthreads();

  if (group == 0) {
    FEWER_REGISTERS(TO_LOAD);
    if (threadIdx.x < 32) {
      int i = 0, count = 0;
      bool leads = threadIdx.x == 0;
      walk(call, [&](const Load& x) {
        if (leads) {
          Heads heads = heads_of(call, x.bh);
          int b = call.parts > 1 ? heads.row / call.parts : heads.row;
          if (x.marks & FIRST) {
            int at = count % Q_STAGES;
            wait(q_free + 8 * at, ((count / Q_STAGES) & 1) ^ 1);
            expect(q_full + 8 * at, BRANCHES * TILE);
            for (int n = 0; n < BRANCHES; n++)
              load_tile<TALL>(q + (at * BRANCHES + n) * TILE, &call.q, q_full + 8 * at, x.tile * TALL, heads.query, n * call.batch + b);
          }
          int now = i;
#pragma unroll 1
          for (int piece = 0; piece < PIECES; piece++, now++) {
            int k_at = now % K_STAGES, v_at = now % V_STAGES, token = tile_of(x.entry) * TILE_KEYS + piece * PIECE;
            wait(k_free + 8 * k_at, ((now / K_STAGES) & 1) ^ 1);
            store_ints(whats + 16 * k_at, x.entry, x.bh, x.tile, marks_of(x.marks, piece));
            expect(k_full + 8 * k_at, PIECE_TILE);
            load_tile<PIECE>(k + k_at * PIECE_TILE, &call.k, k_full + 8 * k_at, token, heads.key, (x.marks & BRANCH) * call.batch + b);
            wait(v_free + 8 * v_at, ((now / V_STAGES) & 1) ^ 1);
            expect(v_full + 8 * v_at, PIECE_TILE);
            load_tile<PIECE>(v + v_at * PIECE_TILE, &call.v, v_full + 8 * v_at, token, heads.key, b);
          }
        }
        if (x.marks & FIRST) count++;
        i += PIECES;
      });
      int stage = i % K_STAGES;
      if (leads) {
        wait(k_free + 8 * stage, ((i / K_STAGES) & 1) ^ 1);
        store_ints(whats + 16 * stage, 0, 0, 0, END);
        arrive(k_full + 8 * stage);
      }
    }
    return;
  }

  MORE_REGISTERS(TO_COMPUTE);
  blind(call);
  int part = group - 1, thread = threadIdx.x & 127, lane = thread & 31, warp = thread >> 5;
  float o[HEAD / 2], s[PIECE / 2];
  u32 p[PIECE / 4];
  Line first = {-INFINITE, 0.f}, second = first;
  float keep_first, keep_second;
  int row = part * 64 + warp * 16 + (lane >> 2), column = 2 * (lane & 3);
  // The tile of queries under way, and how many there were before it.
  int bh = 0, tile = 0, count = -1;
  // Whether the tile before it may still be on its way out of shared memory.
  bool owed = false;
#pragma unroll
  for (int i = 0; i < HEAD / 2; i++) o[i] = 0.f;

  // What has been handed over last has left: its place is free.
  auto settle = [&](int of) {
    if (thread == 0 && owed) {
      stores_read();
      arrive(q_free + 8 * (of % Q_STAGES));
    }
    owed = false;
  };
  // A tile of queries leaves, in the place of its queries, which nobody reads any more.
  auto finish = [&](Line a, Line b) {
#pragma unroll
    for (int other = 1; other < 4; other *= 2) {
      a.sum += __shfl_xor_sync(~0u, a.sum, other);
      b.sum += __shfl_xor_sync(~0u, b.sum, other);
    }
    // A query that sees nothing: zeros, and -inf as the logarithm of 0.
    float one = a.sum == 0.f ? 0.f : 1.f / a.sum, other = b.sum == 0.f ? 0.f : 1.f / b.sum;
    int token = tile * TALL + row;
    if ((lane & 3) == 0) {
      const float LN_2 = 0.6931471805599453f;
      float* line = call.lse + (long long)bh * call.queries + token;
      if (token < call.queries) line[0] = (a.top + __log2f(a.sum)) * LN_2;
      if (token + 8 < call.queries) line[8] = (b.top + __log2f(b.sum)) * LN_2;
    }
    u32 mine = q + (count % Q_STAGES) * BRANCHES * TILE + part * 64 * ROW_BYTES, me = fresh(thread);
    u32 line = mine + ((me >> 5) * 16 + (me & 15)) * ROW_BYTES;
#pragma unroll
    for (int step = 0; step < HEAD / 16; step++)
      store_matrices(line + (step >> 2) * TALL * ROW_BYTES + ((((step & 3) * 2 + ((me >> 4) & 1)) ^ (me & 7)) << 4),
                     pack(o[8 * step] * one, o[8 * step + 1] * one), pack(o[8 * step + 2] * other, o[8 * step + 3] * other),
                     pack(o[8 * step + 4] * one, o[8 * step + 5] * one), pack(o[8 * step + 6] * other, o[8 * step + 7] * other));
    async_fence();
    meet(1 + COMPUTING + part, 128);
    if (thread == 0) {
      for (int fold = 0; fold < FOLDS; fold++)
        store_box(&call.to, mine + fold * TALL * ROW_BYTES, fold * 64, tile * TALL + part * 64, bh % call.heads, bh / call.heads);
      stores_commit();
    }
    owed = true;
  };

  // Hides scores, and takes weights in their place.
  auto weights = [&](int4 what, int stage) {
    pin(s);
    // All lanes have read what came with the keys.
    __syncwarp();
    if (lane == 0) arrive(k_free + 8 * stage);
    if (what.x < 0)
      hide(s, call, what.x, what.w & BRANCH, what.y / call.heads / call.parts, what.y % call.heads, what.z * TALL + row, key_of(what) + column);
    softmax(s, first, second, keep_first, keep_second, call.scale_log2);
  };
  auto keep_outputs = [&] {
#pragma unroll
    for (int j = 0; j < HEAD / 8; j++) {
      o[4 * j] *= keep_first;
      o[4 * j + 1] *= keep_first;
      o[4 * j + 2] *= keep_second;
      o[4 * j + 3] *= keep_second;
    }
  };
  auto begin = [&](int4 what) {
#pragma unroll
    for (int j = 0; j < HEAD / 2; j++) o[j] = 0.f;
    bh = what.y;
    tile = what.z;
    count++;
  };
#if APART
  // Each on its own: it passes over pieces of which its queries see nothing, and others compute meanwhile.
  for (int i = 0;; i++) {
    int stage = i % K_STAGES, at = i % V_STAGES;
    wait(k_full + 8 * stage, (i / K_STAGES) & 1);
    int4 what = load_ints(whats + 16 * stage);
    if (what.w & END) break;
    if (what.w & FIRST) {
      settle(count);
      begin(what);
      first.top = second.top = -INFINITE;
      first.sum = second.sum = 0.f;
      wait(q_full + 8 * (count % Q_STAGES), (count / Q_STAGES) & 1);
    }
    bool passes = nothing_seen(what, part);
    if (passes) {
      __syncwarp();
      if (lane == 0) arrive(k_free + 8 * stage);
    } else {
      pin(s);
      products_begin();
      scores(s, q + (count % Q_STAGES * BRANCHES + (what.w & BRANCH)) * TILE + part * 64 * ROW_BYTES, k + stage * PIECE_TILE);
      products_commit();
      products_wait<0>();
      weights(what, stage);
      keep_outputs();
      pack_all(p, s);
    }
    wait(v_full + 8 * at, (i / V_STAGES) & 1);
    if (!passes) {
      pin(o);
      products_begin();
      values(o, p, v + at * PIECE_TILE);
      products_commit();
      products_wait<0>();
      pin(o);
    }
    // No lane may still be waiting when the place is given back.
    __syncwarp();
    if (lane == 0) arrive(v_free + 8 * at);
    if (!(what.w & LAST)) continue;
    meet(1 + COMPUTING + part, 128);
    finish(first, second);
    // The loader waits for its place before it brings anything more.
    if (Q_STAGES == 1) settle(count);
  }
#else
  // They take turns: scores and values of one are computed while the others do their softmax.
  int next = 1 + (part + 1) % COMPUTING;
  if (part == COMPUTING - 1) pass_by(1, 256);
  wait(k_full, 0);
  int4 what = load_ints(whats);
  int i = 0;
  while (!(what.w & END)) {
    int at = (count + 1) % Q_STAGES, stage = i % K_STAGES;
    wait(q_full + 8 * at, ((count + 1) / Q_STAGES) & 1);
    meet(1 + part, 256);
    pin(s);
    products_begin();
    scores(s, q + (at * BRANCHES + (what.w & BRANCH)) * TILE + part * 64 * ROW_BYTES, k + stage * PIECE_TILE);
    products_commit();
    pass_by(next, 256);
    products_wait<0>();
    first.top = second.top = -INFINITE;
    first.sum = second.sum = 0.f;
    weights(what, stage);
    begin(what);
    pack_all(p, s);
    for (;;) {
      int before = i % V_STAGES;
      u32 phase_before = (i / V_STAGES) & 1;
      bool last = what.w & LAST;
      // Or the loader would wait for its place before it brought anything more.
      if (last) settle(count - 1);
      i++;
      if (Q_STAGES == 1 && last) break;
      stage = i % K_STAGES;
      wait(k_full + 8 * stage, (i / K_STAGES) & 1);
      what = load_ints(whats + 16 * stage);
      bool begins = Q_STAGES > 1 && (what.w & FIRST);
      if (what.w & END) break;
      // The same, where another tile cannot have begun: two registers less.
      if (Q_STAGES == 1) what.y = bh, what.z = tile;
      if (begins) wait(q_full + 8 * ((count + 1) % Q_STAGES), ((count + 1) / Q_STAGES) & 1);
      u32 mine = q + ((count + begins) % Q_STAGES * BRANCHES + (what.w & BRANCH)) * TILE + part * 64 * ROW_BYTES;
      meet(1 + part, 256);
      pin(s);
      pin(o);
      products_begin();
      scores(s, mine, k + stage * PIECE_TILE);
      products_commit();
      wait(v_full + 8 * before, phase_before);
      values(o, p, v + before * PIECE_TILE);
      products_commit();
      pass_by(next, 256);
      products_wait<1>();
      Line done_first = first, done_second = second;
      if (begins) {
        first.top = second.top = -INFINITE;
        first.sum = second.sum = 0.f;
      }
      weights(what, stage);
      compute_beside(v_full + 8 * before, phase_before);
      products_wait<0>();
      pin(o);
      if (lane == 0) arrive(v_free + 8 * before);
      settle(count - 1);
      if (begins) {
        finish(done_first, done_second);
        begin(what);
      } else {
        keep_outputs();
      }
      pack_all(p, s);
    }
    // The last values, with nothing beside them.
    int last = (i - 1) % V_STAGES;
    wait(v_full + 8 * last, ((i - 1) / V_STAGES) & 1);
    pin(o);
    products_begin();
    values(o, p, v + last * PIECE_TILE);
    products_commit();
    products_wait<0>();
    pin(o);
    if (lane == 0) arrive(v_free + 8 * last);
    meet(1 + COMPUTING + part, 128);
    finish(first, second);
    settle(count);
    if (Q_STAGES > 1) continue;
    wait(k_full + 8 * (i % K_STAGES), (i / K_STAGES) & 1);
    what = load_ints(whats + 16 * (i % K_STAGES));
  }
#endif
  if (thread == 0) stores_written();
}
