// dq in a pass of its own, and before it what the backward pass needs of a query: its lse in units of log 2 and
// rowsum(dO * O). Every workgroup goes through lists of tiles of 128 queries of a head and branch. One warpgroup
// loads, two compute, 64 queries each. The tiles of keys, in pieces of 64, are one sequence over all tiles of queries:
// scores of the next one are computed beside the last dq of the one before, which then leaves through shared memory.
//
// Two runs give the same bits, and no sums go through memory.
//
// Matrix products: scores and dp [64, 64] by channels, dq [64, HEAD] by keys.

// Whether there are registers for dp while a product still reads the ds before it.
#define DP_BESIDE (HEAD <= 192)
// Whether there are registers for the rows of out beside all that is computed.
#define OUT_BESIDE (HEAD <= 128)

// For tiles of queries that see nothing: zeros, and where no branch sees anything, an lse of +inf, under which
// every weight is 0.
__device__ __forceinline__ void blind(const Call& call) {
  int lane = threadIdx.x & 31, tile;
  for (int first = (threadIdx.x & ~31) - 128; first < call.turns; first += 256) {
    u32 nothing = 0;
    if (first + lane < call.turns) {
      int bh = item(call, first + lane, tile);
      if (bh >= 0) {
        Lists lists = lists_of(call, bh / call.heads, bh % call.heads, tile);
#pragma unroll
        for (int n = 0; n < BRANCHES; n++) nothing |= (lists.count[n] == 0) << n;
      }
    }
    for (u32 left = __ballot_sync(~0u, nothing != 0); left != 0; left &= left - 1) {
      int turn = __ffs(left) - 1, bh = item(call, first + turn, tile);
      u32 of = __shfl_sync(~0u, (int)nothing, turn);
      if (of == (1 << BRANCHES) - 1) {
        for (int row = lane; row < TALL; row += 32) {
          call.lse2[(long long)bh * call.tall + tile * TALL + row] = INFINITE;
          call.dots[(long long)bh * call.tall + tile * TALL + row] = 0.f;
        }
      }
      int end = (tile + 1) * TALL < call.queries ? (tile + 1) * TALL : call.queries;
      for (int n = 0; n < BRANCHES; n++) {
        if (!(of >> n & 1)) continue;
        for (int token = tile * TALL; token < end; token++) {
          long long row = ((long long)n * call.batch * call.heads + bh) * call.queries + token;
          for (int c = 2 * lane; c < call.d; c += 64) *(u32*)((unsigned short*)call.dq + row * call.d + c) = 0;
        }
      }
    }
  }
}

SHARE_OUT(56, 224);

extern "C" __global__ void __launch_bounds__(THREADS, 1) queries(const __grid_constant__ Call call) {
  extern __shared__ __align__(1024) unsigned char memory[];
  u32 base = (shared_address(memory) + ATOM - 1) & ~(ATOM - 1);
  u32 q = base, k = q + Q_STAGES * 2 * TILE, v = k + K_STAGES * PIECE_TILE, bars = v + V_STAGES * PIECE_TILE;
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
      barrier_init(q_free + 8 * i, 2);
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
        bool begins = x.marks & FIRST_OF_LIST;
        if (leads) {
          Heads heads = heads_of(call, x.bh);
          int row = (x.marks & BRANCH) * call.batch + heads.row;
          if (begins) {
            int at = count % Q_STAGES;
            u32 my_q = q + at * 2 * TILE;
            wait(q_free + 8 * at, ((count / Q_STAGES) & 1) ^ 1);
            expect(q_full + 8 * at, 2 * TILE);
            load_tile<TALL>(my_q, &call.q, q_full + 8 * at, x.tile * TALL, heads.query, row);
            load_tile<TALL>(my_q + TILE, &call.dout, q_full + 8 * at, x.tile * TALL, heads.query, heads.row);
            // Those who compute read it where it lies, soon.
            for (int fold = 0; fold < FOLDS; fold++) fetch_box(&call.o, fold * 64, x.tile * TALL, heads.query, heads.row);
          }
          int now = i;
#pragma unroll 1
          for (int piece = 0; piece < PIECES; piece++, now++) {
            int k_at = now % K_STAGES, v_at = now % V_STAGES, token = tile_of(x.entry) * TILE_KEYS + piece * PIECE;
            wait(k_free + 8 * k_at, ((now / K_STAGES) & 1) ^ 1);
            store_ints(whats + 16 * k_at, x.entry, x.bh, x.tile, marks_of(x.marks, piece));
            expect(k_full + 8 * k_at, PIECE_TILE);
            load_tile<PIECE>(k + k_at * PIECE_TILE, &call.k, k_full + 8 * k_at, token, heads.key, row);
            wait(v_free + 8 * v_at, ((now / V_STAGES) & 1) ^ 1);
            expect(v_full + 8 * v_at, PIECE_TILE);
            load_tile<PIECE>(v + v_at * PIECE_TILE, &call.v, v_full + 8 * v_at, token, heads.key, heads.row);
          }
        }
        i += PIECES;
        count += begins;
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
  int half = group - 1, thread = threadIdx.x & 127, lane = thread & 31, warp = thread >> 5;
  int row = half * 64 + warp * 16 + (lane >> 2), column = 2 * (lane & 3);
  float s[PIECE / 2], dp[PIECE / 2], dq[HEAD / 2];
  u32 ds[PIECE / 4];
  float lse_a = 0.f, lse_b = 0.f, dot_a = 0.f, dot_b = 0.f;
  // The tile of queries under way, and how many there were before it.
  int bh = 0, tile = 0, branch = 0, count = -1;
  // Whether the tile before it may still be on its way out of shared memory.
  bool owed = false;

  // Made anew each time where it is always the same, or what follows from it would be kept in registers.
  auto place = [&](int of) { return Q_STAGES == 1 ? (u32)fresh(q) : q + (of % Q_STAGES) * 2 * TILE; };
  auto settle = [&](int of) {
    if (thread == 0 && owed) {
      stores_read();
      arrive(q_free + 8 * (of % Q_STAGES));
    }
    owed = false;
  };
  // Scores and dp of a piece, of the tile of queries with that number.
  auto scores = [&](int of, int i) {
    u32 my_q = place(of) + half * 64 * ROW_BYTES, my_k = k + i % K_STAGES * PIECE_TILE;
#pragma unroll
    for (int step = 0; step < HEAD / 16; step++)
      scores_product(s, by_channels<TALL>(my_q, step), by_channels<PIECE>(my_k, step), step != 0);
    products_commit();
  };
  auto changes_of_weights = [&](int of, int i) {
    u32 my_dout = place(of) + TILE + half * 64 * ROW_BYTES, my_v = v + i % V_STAGES * PIECE_TILE;
    wait(v_full + 8 * (i % V_STAGES), (i / V_STAGES) & 1);
#pragma unroll
    for (int step = 0; step < HEAD / 16; step++)
      scores_product(dp, by_channels<TALL>(my_dout, step), by_channels<PIECE>(my_v, step), step != 0);
    products_commit();
  };
  auto gradient = [&](int i) {
    u32 my_k = k + i % K_STAGES * PIECE_TILE;
#pragma unroll
    for (int step = 0; step < PIECE / 16; step++)
      gradient_product(dq, ds[4 * step], ds[4 * step + 1], ds[4 * step + 2], ds[4 * step + 3], by_tokens<PIECE>(my_k, step));
    products_commit();
  };
  auto lse_of = [&](int4 what) {
    int token = what.z * TALL + row;
    const float* lse = call.lse + (long long)what.y * call.queries + token;
    lse_a = token < call.queries ? __ldg(lse) : -INFINITE;
    lse_b = token + 8 < call.queries ? __ldg(lse + 8) : -INFINITE;
    lse_a = lse_a == -INFINITE ? INFINITE : lse_a * 1.4426950408889634f;
    lse_b = lse_b == -INFINITE ? INFINITE : lse_b * 1.4426950408889634f;
  };
  // Out of this thread's queries, a quarter of the channels: they are on their way while products are computed.
  uint4 out_a[HEAD / 32], out_b[HEAD / 32];
  auto read_out = [&](int4 what) {
    int token = what.z * TALL + row, h = what.y % call.heads;
    const unsigned short* out = head_of(call.out, call.of_out, what.y / call.heads, h) + token * call.of_out.token;
#pragma unroll
    for (int n = 0; n < HEAD / 32; n++) {
      int channel = 32 * n + 8 * (lane & 3);
      out_a[n] = out_b[n] = make_uint4(0, 0, 0, 0);
      if (token < call.queries && channel < call.e) out_a[n] = __ldg((const uint4*)(out + channel));
      if (token + 8 < call.queries && channel < call.e) out_b[n] = __ldg((const uint4*)(out + 8 * call.of_out.token + channel));
    }
  };
  auto weights = [&](int4 what) {
    if (what.x < 0)
      hide(s, call, what.x, what.w & BRANCH, what.y / call.heads, what.y % call.heads, what.z * TALL + row,
           key_of(what) + column);
#pragma unroll
    for (int j = 0; j < PIECE / 8; j++) {
      s[4 * j] = power_of_2(fmaf(s[4 * j], call.scale_log2, -lse_a));
      s[4 * j + 1] = power_of_2(fmaf(s[4 * j + 1], call.scale_log2, -lse_a));
      s[4 * j + 2] = power_of_2(fmaf(s[4 * j + 2], call.scale_log2, -lse_b));
      s[4 * j + 3] = power_of_2(fmaf(s[4 * j + 3], call.scale_log2, -lse_b));
    }
  };
  // rowsum(dO * O), of the tile of queries with that number; both numbers are kept for the pass by keys.
  auto dots_of = [&](int4 what, int of) {
    u32 dout = place(of) + TILE + row * ROW_BYTES;
    dot_a = dot_b = 0.f;
#pragma unroll
    for (int n = 0; n < HEAD / 32; n++) {
      u32 at = (n >> 1) * TALL * ROW_BYTES + (((4 * (n & 1) + (lane & 3)) ^ (row & 7)) << 4);
      dot_a += dot_of(load_ints(dout + at), out_a[n]);
      dot_b += dot_of(load_ints(dout + at + 8 * ROW_BYTES), out_b[n]);
    }
#pragma unroll
    for (int other = 1; other < 4; other *= 2) {
      dot_a += __shfl_xor_sync(~0u, dot_a, other);
      dot_b += __shfl_xor_sync(~0u, dot_b, other);
    }
    // Of all branches the same.
    if ((lane & 3) == 0) {
      long long at = (long long)what.y * call.tall + what.z * TALL + row;
      call.lse2[at] = lse_a;
      call.lse2[at + 8] = lse_b;
      call.dots[at] = dot_a;
      call.dots[at + 8] = dot_b;
    }
  };
  auto changes = [&] {
#pragma unroll
    for (int j = 0; j < PIECE / 8; j++) {
      ds[2 * j] = pack(s[4 * j] * (dp[4 * j] - dot_a), s[4 * j + 1] * (dp[4 * j + 1] - dot_a));
      ds[2 * j + 1] = pack(s[4 * j + 2] * (dp[4 * j + 2] - dot_b), s[4 * j + 3] * (dp[4 * j + 3] - dot_b));
    }
  };
  auto begin = [&](int4 what) {
#pragma unroll
    for (int c = 0; c < HEAD / 2; c++) dq[c] = 0.f;
    bh = what.y;
    tile = what.z;
    branch = what.w & BRANCH;
    count++;
  };
  // dq leaves, in the place of its queries, which nobody reads any more.
  auto finish = [&] {
    u32 mine = place(count) + half * 64 * ROW_BYTES, me = fresh(thread), line = mine + ((me >> 5) * 16 + (me & 15)) * ROW_BYTES;
    float x = call.scale;
    meet(3 + half, 128);
#pragma unroll
    for (int step = 0; step < HEAD / 16; step++)
      store_matrices(line + (step >> 2) * TALL * ROW_BYTES + ((((step & 3) * 2 + ((me >> 4) & 1)) ^ (me & 7)) << 4),
                     pack(dq[8 * step] * x, dq[8 * step + 1] * x), pack(dq[8 * step + 2] * x, dq[8 * step + 3] * x),
                     pack(dq[8 * step + 4] * x, dq[8 * step + 5] * x), pack(dq[8 * step + 6] * x, dq[8 * step + 7] * x));
    async_fence();
    meet(3 + half, 128);
    if (thread == 0) {
      for (int fold = 0; fold < FOLDS; fold++)
        store_box(&call.to, mine + fold * TALL * ROW_BYTES, fold * 64, tile * TALL + half * 64, bh % call.heads,
                  branch * call.batch + bh / call.heads);
      stores_commit();
    }
    owed = true;
  };

#if APART
  // Each on its own: it passes over pieces of which its queries see nothing, and others compute meanwhile.
  for (int i = 0;; i++) {
    int stage = i % K_STAGES, at = i % V_STAGES;
    wait(k_full + 8 * stage, (i / K_STAGES) & 1);
    int4 what = load_ints(whats + 16 * stage);
    if (what.w & END) break;
    if (what.w & FIRST_OF_LIST) {
      settle(count);
      begin(what);
      lse_of(what);
      read_out(what);
      wait(q_full + 8 * (count % Q_STAGES), (count / Q_STAGES) & 1);
      dots_of(what, count);
    }
    if (nothing_seen(what, half)) {
      wait(v_full + 8 * at, (i / V_STAGES) & 1);
      // No lane may still be waiting when the places are given back.
      __syncwarp();
      if (lane == 0) arrive(v_free + 8 * at);
    } else {
      pin(s);
      pin(dp);
      products_begin();
      scores(count, i);
      changes_of_weights(count, i);
      products_wait<1>();
      pin(s);
      weights(what);
      products_wait<0>();
      pin(dp);
      if (lane == 0) arrive(v_free + 8 * at);
      changes();
      pin(dq);
      products_begin();
      gradient(i);
      products_wait<0>();
      pin(dq);
    }
    // All lanes have read what came with the keys.
    __syncwarp();
    if (lane == 0) arrive(k_free + 8 * stage);
    if (!(what.w & LAST_OF_LIST)) continue;
    finish();
    // The loader waits for its place before it brings anything more.
    if (Q_STAGES == 1) settle(count);
  }
#else
  wait(k_full, 0);
  int4 what = load_ints(whats);
  int i = 0;
  while (!(what.w & END)) {
    // The first piece, with nothing beside it.
    begin(what);
    wait(q_full + 8 * (count % Q_STAGES), (count / Q_STAGES) & 1);
    lse_of(what);
    read_out(what);
    if (!OUT_BESIDE) dots_of(what, count);
    pin(s);
    pin(dp);
    products_begin();
    scores(count, i);
    changes_of_weights(count, i);
    products_wait<1>();
    pin(s);
    weights(what);
    products_wait<0>();
    pin(dp);
    if (lane == 0) arrive(v_free + 8 * (i % V_STAGES));
    if (OUT_BESIDE) dots_of(what, count);
    changes();
    for (;;) {
      bool last = what.w & LAST_OF_LIST;
      // Or the loader would wait for its place before it brought anything more, where lists are a piece long.
      if (last) settle(count - 1);
      i++;
      if (Q_STAGES == 1 && last) break;
      int stage = i % K_STAGES;
      wait(k_full + 8 * stage, (i / K_STAGES) & 1);
      what = load_ints(whats + 16 * stage);
      bool begins = Q_STAGES > 1 && (what.w & FIRST_OF_LIST);
      if (what.w & END) break;
      // The same, where another tile cannot have begun: two registers less.
      if (Q_STAGES == 1) what.y = bh, what.z = tile;
      if (begins) wait(q_full + 8 * ((count + 1) % Q_STAGES), ((count + 1) / Q_STAGES) & 1);
      pin(s);
      if (DP_BESIDE) pin(dp);
      pin(dq);
      products_begin();
      scores(count + begins, i);
      if (DP_BESIDE) changes_of_weights(count + begins, i);
      gradient(i - 1);
      if (begins) {
        lse_of(what);
        read_out(what);
      }
      products_wait<1 + DP_BESIDE>();
      pin(s);
      weights(what);
      if (DP_BESIDE) {
        products_wait<1>();
        pin(dp);
        if (lane == 0) arrive(v_free + 8 * (i % V_STAGES));
        if (begins) dots_of(what, count + 1);
      }
      products_wait<0>();
      pin(dq);
      __syncwarp();
      if (lane == 0) arrive(k_free + 8 * ((i - 1) % K_STAGES));
      if (!DP_BESIDE) {
        pin(dp);
        products_begin();
        changes_of_weights(count, i);
        products_wait<0>();
        pin(dp);
        if (lane == 0) arrive(v_free + 8 * (i % V_STAGES));
      }
      settle(count - 1);
      if (begins) {
        finish();
        begin(what);
      }
      changes();
    }
    // The last dq, with nothing beside it.
    pin(dq);
    products_begin();
    gradient(i - 1);
    products_wait<0>();
    pin(dq);
    __syncwarp();
    if (lane == 0) arrive(k_free + 8 * ((i - 1) % K_STAGES));
    finish();
    settle(count);
    if (Q_STAGES > 1) continue;
    wait(k_full + 8 * (i % K_STAGES), (i / K_STAGES) & 1);
    what = load_ints(whats + 16 * (i % K_STAGES));
  }
#endif
  if (thread == 0) stores_written();
}
