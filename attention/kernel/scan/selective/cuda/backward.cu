// Gradients: chunks side by side, tokens of each from its end.

// Gradient that each chunk but the first hands to the state before it when none comes from behind, in `carry`.
extern "C" __global__ void __launch_bounds__(WIDE) starts(const __grid_constant__ Call k) {
  extern __shared__ float4 space[];
  float4 *tile = space;
  float *rings = (float *)(tile + k.chunk * (STATES / 4));
  next_may_begin();
  Place p(k, blockIdx.y + 1);
  int channel;
  bool is = p.channel(k, threadIdx.x, channel);
  Column delta(k.delta + p.token(k, k.len) + channel, rings), dout(k.dout + p.token(k, k.rows) + channel, rings + COLUMN);
#if GATE
  Column z(k.z + p.token(k, k.len) + channel, rings + 2 * COLUMN);
#define ASK_BACK(t) delta.ask(k, p, t), dout.ask(k, p, t), z.ask(k, p, t), sent()
#else
#define ASK_BACK(t) delta.ask(k, p, t), dout.ask(k, p, t), sent()
#endif
  int last = (p.count - 1) / TOGETHER * TOGETHER;
  lay_out(k, p, k.c, tile, 0, k.chunk);
#pragma unroll
  for (int t = 0; t < AHEAD - TOGETHER; t += TOGETHER) ASK_BACK(last - t);
  float g[STATES], rates[STATES];
#pragma unroll
  for (int n = 0; n < STATES; ++n) g[n] = 0.0f, rates[n] = rate(k, n, channel);
  arrived<AHEAD / TOGETHER - 2>();
  __syncthreads();
  if (!is) return;
  float total = 0.0f;
  bool cut = false;
  for (int t = last; t >= 0; t -= TOGETHER) {
    float of_delta[TOGETHER], of_dout[TOGETHER];
    arrived<AHEAD / TOGETHER - 2>();
    delta.get(t, of_delta), dout.get(t, of_dout);
#if GATE
    float of_z[TOGETHER];
    z.get(t, of_z);
#endif
    ASK_BACK(t - AHEAD + TOGETHER);
#pragma unroll
    for (int i = TOGETHER - 1; i >= 0; --i) {
      int step = what(k, p, t + i);
      int live = bits(step != SKIP);
      float dt = where(live, step_of(of_delta[i])), dy = of_dout[i];
#if GATE
      dy *= of_z[i] * sigmoid(of_z[i]);
#endif
      dy = where(live, dy);
      total += dt;
#pragma unroll
      for (int q = 0; q < STATES / 4; ++q) {
        float4 c = tile[(t + i) * (STATES / 4) + q];
        g[4 * q] = ex2(dt * rates[4 * q]) * fmaf(dy, c.x, g[4 * q]);
        g[4 * q + 1] = ex2(dt * rates[4 * q + 1]) * fmaf(dy, c.y, g[4 * q + 1]);
        g[4 * q + 2] = ex2(dt * rates[4 * q + 2]) * fmaf(dy, c.z, g[4 * q + 2]);
        g[4 * q + 3] = ex2(dt * rates[4 * q + 3]) * fmaf(dy, c.w, g[4 * q + 3]);
      }
#if !PLAIN
      if (step == FIRST) {
        cut = true;
#pragma unroll
        for (int n = 0; n < STATES; ++n) g[n] = 0.0f;
      }
#endif
    }
  }
  long long chunk = (long long)p.row * k.chunks + p.chunk;
  float *to = k.carry + chunk * k.states_n * k.channels + channel;
#pragma unroll
  for (int n = 0; n < STATES; ++n)
    if (n < k.states_n) to[n * k.channels] = g[n];
  k.totals[chunk * k.channels + channel] = total;
  if (threadIdx.x == 0) k.cuts[chunk] = cut;
}

// A warp has 32 channels: a lane four of them, 8 apart, and four states of each; lanes 0 .. 8 have the first four
// states, the next lanes the next. So sums over either cost three exchanges for four numbers; of a channel they end in
// a lane of its own. From memory, a lane has a token of a run and four channels side by side.
#define OF_WARP (WIDE / WARPS)
// Tokens whose decays and states are in registers together.
#define RUN 4
#define RUNS (SPAN / RUN)
// Numbers of a lane: i is of its channel i / 4 and its state i % 4.
#define OWN 16

struct Room {
  // dt, dt u, the gradient of y before the gate, and u.
  float4 tokens[WARPS][SPAN][OF_WARP];
  // How dt changes with delta, and what y is multiplied by for the gate's gradient.
  float2 factors[WARPS][SPAN][OF_WARP];
  // States before runs of tokens, and before the next span.
  float4 states[WARPS][RUNS][OWN / 4][32];
  float before[WARPS][OWN][32];
  // What comes for a run of the next span: delta, u, the gradient of the output and z.
  float4 next[WARPS][4][32];
  // B and C: the next four states, in all orders that lanes have them in.
  float4 shared[2][SPAN][STATES / 4][4];
  float sums[WARPS][SPAN][2 * STATES];
  // What tokens do.
  int does[WARPS][SPAN];
};

static_assert(sizeof(Room) == ROOM, "shared memory as the host counts it");

// The order in which a lane has four of something: its number i is number i ^ turn. Lanes that exchange sums then have
// what each gives and keeps in the same places.
__device__ __forceinline__ int turn_of(int lane) { return (lane & 1) * 2 + (lane >> 1 & 1); }

// Sums over four lanes, `apart` and twice that, of four numbers each; a lane has that of its first.
template <int apart>
__device__ __forceinline__ float of_four(const float (&v)[4]) {
  float a = v[0] + __shfl_xor_sync(~0u, v[2], apart), b = v[1] + __shfl_xor_sync(~0u, v[3], apart);
  return a + __shfl_xor_sync(~0u, b, 2 * apart);
}

// Where a channel of a warp is among its 32: no two of 8 lanes meet in a bank, neither with channels side by side nor
// with channels four apart.
__device__ __forceinline__ int slot(int channel) { return channel ^ channel >> 3; }

struct Four {
  float x[4];
  __device__ __forceinline__ Four(float4 v) : x{v.x, v.y, v.z, v.w} {}
};

// A lane's part of what comes from memory by tokens.
struct Ways {
  const Call &k;
  const Place &p;
  // Its token of a run, its first channel among those of the warp, and how many of the four there are.
  int of_run, side, channels, first;
  // Of the chunk.
  const float *delta, *u, *dout, *z;
  bool aligned;

  __device__ Ways(const Call &k, const Place &p, int warp, int lane)
      : k(k), p(p), of_run(lane / (32 / RUN)), side(lane % (32 / RUN) * 4) {
    int of_group = k.channels / k.groups, here = p.block * WIDE + warp * OF_WARP + side;
    channels = max(0, min(4, of_group - here));
    first = p.group * of_group + (channels > 0 ? here : 0);
    delta = k.delta + p.token(k, k.len), u = k.u + p.token(k, k.len);
    dout = k.dout + p.token(k, k.rows), z = k.z + p.token(k, k.len);
    long long all = (long long)k.delta | (long long)k.u | (long long)k.dout | (long long)k.z;
    aligned = all % 16 == 0 && k.channels % 4 == 0 && of_group % 4 == 0;
  }

  // Sends for a token and channel of a run from `t` on, or others where there are no more: numbers `apart`.
  __device__ __forceinline__ void send(int t, int i, float *to, int apart) const {
    int at = min(t + of_run, p.count - 1) * k.channels + first + min(i, max(channels - 1, 0));
    send_for(to, delta + at), send_for(to + apart, u + at), send_for(to + 2 * apart, dout + at);
    if (GATE) send_for(to + 3 * apart, z + at);
  }

  __device__ __forceinline__ void send(int t, float4 (&to)[4][32], int lane) const {
    if (aligned) {
      int at = min(t + of_run, p.count - 1) * k.channels + first;
      send_for_four(&to[0][lane].x, delta + at), send_for_four(&to[1][lane].x, u + at);
      send_for_four(&to[2][lane].x, dout + at);
      if (GATE) send_for_four(&to[3][lane].x, z + at);
    } else {
#pragma unroll 1
      for (int i = 0; i < 4; ++i) send(t, i, &to[0][lane].x + i, 4 * 32);
    }
    sent();
  }

  // What delta, u, the gradient of the output and z become, for a token of a span and the lane's channel i.
  __device__ __forceinline__ void put(float delta, float u, float dout, float z, bool there, int i, float4 *tokens,
                                      float2 *factors) const {
    int live = bits(there && i < channels), at = slot(side + i);
    float slope, dt = where(live, step_of(delta, slope)), dy = dout, factor = 0.0f;
    u = where(live, u);
#if GATE
    float s = sigmoid(z);
    factor = where(live, dy * (s * fmaf(z, 1.0f - s, 1.0f)));
    dy *= z * s;
#endif
    tokens[at] = make_float4(dt, dt * u, where(live, dy), u);
    factors[at] = make_float2(where(live, slope), factor);
  }
};

// All gradients of each chunk, from the states before its spans and the gradient of the state behind it: of several
// chunks, that in `carry`.
extern "C" __global__ void __launch_bounds__(32 * WARPS, 2) gradients(const __grid_constant__ Call k) {
  extern __shared__ float4 space[];
  Room &room = *(Room *)space;
  next_may_begin();
  Place p(k, blockIdx.y);
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, of_channels = lane & 7, of_states = lane >> 3;
  // The orders of the lane's states and channels, and its own channel.
  int turn = turn_of(lane), turned = turn_of(of_states), own = of_channels + 8 * turned, channel;
  bool is = p.channel(k, warp * OF_WARP + own, channel);
  own = slot(own);
  int places[4];
#pragma unroll
  for (int q = 0; q < 4; ++q) places[q] = slot(of_channels + 8 * (q ^ turned));
  auto &tokens = room.tokens[warp];
  auto &factors = room.factors[warp];
  auto &kept = room.states[warp];
  auto &before = room.before[warp];
  auto &next = room.next[warp];
  auto &does = room.does[warp];
  Ways ways(k, p, warp, lane);
  float g[OWN], da[OWN], rates[OWN];
  long long width = (long long)k.states_n * k.channels;
  int spans = (p.count + SPAN - 1) / SPAN, start = (spans - 1) * SPAN;
  int member = p.block * WIDE + warp * OF_WARP + of_channels, of_group = k.channels / k.groups;
#define MEMBER(i) (member + 8 * ((i) / 4 ^ turned))
#define STATE(i) (4 * of_states + ((i) % 4 ^ turn))
// Where in [N, E] a number of the lane is, and whether there is one.
#define AT(i) (STATE(i) * k.channels + p.group * of_group + MEMBER(i))
#define THERE(i) (STATE(i) < k.states_n && MEMBER(i) < of_group)
// Some other number where there is none.
#define SOME(x, i) where(bits(THERE(i)), (x)[THERE(i) ? AT(i) : 0])
  const float *state = k.states + ((long long)p.row * k.slots + p.first / SPAN + spans - 1) * width;
  int there = 0;
#pragma unroll
  for (int i = 0; i < OWN; ++i) there |= THERE(i) << i;
  // The state before a span.
  auto ask_state = [&] {
#pragma unroll 1
    for (int n = 0; n < 4; ++n) {
      const float *line = state + (STATE(n) < k.states_n ? AT(0) + (STATE(n) - STATE(0)) * k.channels : 0);
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        bool is = there >> 4 * q + n & 1;
        send_for(&before[4 * q + n][lane], is ? line + 8 * (q ^ turned) - 8 * turned : state, is);
      }
    }
    sent();
  };

  // All that comes first is asked for together; numbers of tokens lie where what becomes of them will.
#pragma unroll 1
  for (int run = 0; run < RUNS; ++run)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      ways.send(start + run * RUN, i, &tokens[run * RUN + ways.of_run][slot(ways.side + i)].x, 1);
  ask_state();
  // Numbers of B and C for the next span.
  int line = threadIdx.x / STATES, column = threadIdx.x % STATES;
#define LINES (32 * WARPS / STATES)
  float next_b[SPAN / LINES], next_c[SPAN / LINES];
#define ASK_SHARED(start)                                                                                            \
  _Pragma("unroll") for (int i = 0; i < SPAN / LINES; ++i)                                                           \
      next_b[i] = shared_number(k, p, k.b, (start) + line + i * LINES, column),                                      \
      next_c[i] = shared_number(k, p, k.c, (start) + line + i * LINES, column);
  ASK_SHARED(start)
  // Tokens of the lane's own channel.
  int mine = is ? p.count : 0;
  float d = 0.0f, dd = 0.0f;
#if SKIP_D
  d = k.d[channel];
#endif
#pragma unroll
  for (int i = 0; i < OWN; ++i) rates[i] = LOG2_E * SOME(k.a, i), da[i] = 0.0f;
  float *du = k.du + p.token(k, k.len), *ddelta = k.ddelta + p.token(k, k.len), *dz = k.dz + p.token(k, k.len);
  float *shared = k.shared + (((long long)p.block * k.batch + p.row) * k.groups + p.group) * k.len * (2 * STATES);
  arrived<0>();
#pragma unroll 1
  for (int t = ways.of_run; t < SPAN; t += RUN) {
    int here = what(k, p, start + t);
    if (!PLAIN && ways.side == 0) does[t] = here;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float4 x = tokens[t][slot(ways.side + i)];
      ways.put(x.x, x.y, x.z, x.w, here != SKIP, i, tokens[t], factors[t]);
    }
  }
  before_ended();
  bool alone = k.chunks == 1;
  const float *behind = alone ? k.first + p.row * k.of_row : k.carry + ((long long)p.row * k.chunks + p.chunk) * width;
#pragma unroll
  for (int i = 0; i < OWN; ++i) g[i] = !alone || KEEP_STATE ? SOME(behind, i) : 0.0f;

  for (; start >= 0; start -= SPAN) {
    bool more = start > 0;
#pragma unroll
    for (int i = 0; i < SPAN / LINES; ++i)
#pragma unroll
      for (int turned = 0; turned < 4; ++turned) {
        ((float *)&room.shared[0][line + i * LINES][column / 4][turned])[column % 4 ^ turned] = next_b[i];
        ((float *)&room.shared[1][line + i * LINES][column / 4][turned])[column % 4 ^ turned] = next_c[i];
      }
    arrived<0>();
    __syncthreads();
    // States before runs of tokens.
    {
      float h[OWN];
#pragma unroll
      for (int i = 0; i < OWN; ++i) h[i] = before[i][lane];
      if (more) state -= width, ask_state();
#pragma unroll 1
      for (int run = 0; run < RUNS; ++run) {
#pragma unroll
        for (int q = 0; q < 4; ++q)
          kept[run][q][lane] = make_float4(h[4 * q], h[4 * q + 1], h[4 * q + 2], h[4 * q + 3]);
        if (run == RUNS - 1) break;
#pragma unroll
        for (int j = 0; j < RUN; ++j) {
          int t = run * RUN + j;
          Four b = room.shared[0][t][of_states][turn];
#if !PLAIN
          if (does[t] == FIRST) {
#pragma unroll
            for (int i = 0; i < OWN; ++i) h[i] = 0.0f;
          }
#endif
#pragma unroll
          for (int i = 0; i < OWN; ++i) {
            float2 token = *(const float2 *)&tokens[t][places[i / 4]];
            h[i] = fmaf(token.y, b.x[i % 4], ex2(token.x * rates[i]) * h[i]);
          }
        }
      }
    }
#pragma unroll 1
    for (int run = RUNS - 1; run >= 0; --run) {
      // What the next span needs comes to the place of what this one had.
      if (more) ways.send(start - SPAN + run * RUN, next, lane);
      float h[OWN];
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        Four v = kept[run][q][lane];
#pragma unroll
        for (int n = 0; n < 4; ++n) h[4 * q + n] = v.x[n];
      }
      // Of the states, the first is read again: registers are few.
      float decay[RUN][OWN], past[RUN][OWN], y[RUN], sum_c[RUN];
#pragma unroll
      for (int j = 0; j < RUN; ++j) {
        int t = run * RUN + j;
        Four b = room.shared[0][t][of_states][turn], c = room.shared[1][t][of_states][turn];
#if !PLAIN
        if (does[t] == FIRST) {
#pragma unroll
          for (int i = 0; i < OWN; ++i) h[i] = 0.0f;
        }
#endif
        float read[4] = {}, of_c[4] = {};
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
          float4 token = tokens[t][places[i / 4]];
          if (j > 0) past[j][i] = h[i];
          decay[j][i] = ex2(token.x * rates[i]);
          h[i] = fmaf(token.y, b.x[i % 4], decay[j][i] * h[i]);
          read[i / 4] = fmaf(h[i], c.x[i % 4], read[i / 4]);
          of_c[i % 4] = fmaf(token.z, h[i], of_c[i % 4]);
        }
        y[j] = of_four<8>(read), sum_c[j] = of_four<1>(of_c);
      }
#pragma unroll
      for (int j = RUN - 1; j >= 0; --j) {
        int t = run * RUN + j;
        Four b = room.shared[0][t][of_states][turn], c = room.shared[1][t][of_states][turn];
        float of_b[4] = {}, by_input[4] = {}, by_decay[4] = {};
        if (j == 0) {
#pragma unroll
          for (int q = 0; q < 4; ++q) {
            Four v = kept[run][q][lane];
#pragma unroll
            for (int n = 0; n < 4; ++n) past[0][4 * q + n] = v.x[n];
          }
#if !PLAIN
          if (does[t] == FIRST) {
#pragma unroll
            for (int i = 0; i < OWN; ++i) past[0][i] = 0.0f;
          }
#endif
        }
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
          float4 token = tokens[t][places[i / 4]];
          g[i] = fmaf(token.z, c.x[i % 4], g[i]);
          of_b[i % 4] = fmaf(g[i], token.y, of_b[i % 4]);
          by_input[i / 4] = fmaf(g[i], b.x[i % 4], by_input[i / 4]);
          g[i] *= decay[j][i];
          float of_decay = g[i] * past[j][i];
          by_decay[i / 4] = fmaf(of_decay, rates[i], by_decay[i / 4]);
          da[i] = fmaf(of_decay, token.x, da[i]);
        }
#if !PLAIN
        if (does[t] == FIRST) {
#pragma unroll
          for (int i = 0; i < OWN; ++i) g[i] = 0.0f;
        }
#endif
        float into = of_four<8>(by_input), through = LN_2 * of_four<8>(by_decay), sum_b = of_four<1>(of_b);
        // Half of the lanes end with a sum for dB, the others with one for dC.
        float sum = (lane & 4 ? sum_c[j] : sum_b) + __shfl_xor_sync(~0u, lane & 4 ? sum_b : sum_c[j], 4);
        room.sums[warp][t][(lane >> 2 & 1) * STATES + 4 * of_states + turn] = sum;
        float4 token = tokens[t][own];
        float2 factor = factors[t][own];
        dd = fmaf(token.z, token.w, dd);
        bool there = start + t < mine;
        int live = bits(PLAIN || does[t] != SKIP);
        int at = (start + t) * k.channels + channel;
        store_if(there, du + at, where(live, fmaf(token.x, into, d * token.z)));
        store_if(there, ddelta + at, where(live, fmaf(token.w, into, through) * factor.x));
        if (GATE) store_if(there, dz + at, where(live, factor.y * fmaf(d, token.w, y[j])));
      }
      __syncwarp();
      if (more) {
        arrived<0>();
        int t = run * RUN + ways.of_run;
        int here = what(k, p, start - SPAN + t);
        if (!PLAIN && ways.side == 0) does[t] = here;
        Four delta = next[0][lane], u = next[1][lane], dout = next[2][lane], z = GATE ? next[3][lane] : float4{};
#pragma unroll
        for (int i = 0; i < 4; ++i)
          ways.put(delta.x[i], u.x[i], dout.x[i], z.x[i], here != SKIP, i, tokens[t], factors[t]);
      }
    }
    if (more) {
      ASK_SHARED(start - SPAN)
    }
    __syncthreads();
#pragma unroll
    for (int t = warp; t < SPAN; t += WARPS) {
      float sum = 0.0f;
#pragma unroll
      for (int w = 0; w < WARPS; ++w) sum += room.sums[w][t][lane];
      if (start + t < p.count) shared[(long long)(p.first + start + t) * (2 * STATES) + lane] = sum;
    }
  }
  float *to = k.da + ((long long)p.row * k.chunks + p.chunk) * width;
#pragma unroll
  for (int i = 0; i < OWN; ++i) {
    if (THERE(i)) to[AT(i)] = da[i];
    if (THERE(i) && p.chunk == 0) k.dh0[p.row * width + AT(i)] = g[i];
  }
#if SKIP_D
  if (mine > 0) k.dd[((long long)p.row * k.chunks + p.chunk) * k.channels + channel] = dd;
#endif
}
