// Gradients: chunks side by side, tokens of each from its end.

// Gradient that each chunk but the first hands to the state before it when none comes from behind, in `carry`.
extern "C" __global__ void __launch_bounds__(WIDE) starts(const __grid_constant__ Call k) {
  extern __shared__ float4 space[];
  float4 *tile = space;
  float *rings = (float *)(tile + k.chunk * (STATES / 4));
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
#pragma unroll
  for (int t = 0; t < AHEAD - TOGETHER; t += TOGETHER) ASK_BACK(last - t);
  lay_out(k, p, k.c, (float *)tile);
  __syncthreads();
  if (!is) return;
  float g[STATES], rates[STATES];
#pragma unroll
  for (int n = 0; n < STATES; ++n) g[n] = 0.0f, rates[n] = rate(k, n, channel);
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

// A warp has 16 channels: a lane two of them, lanes 0 .. 8 the next two each, and four states of both, the next
// four in lanes 8 .. 16 and so on. Tokens go in pairs, so that sums over states are of four numbers for four
// lanes, and sums over channels of eight for eight: three and seven exchanges. What belongs to a token and a
// channel alone is computed by the lane that such a sum ends in.
#define PAIRS (SPAN / 2)
#define OF_WARP (WIDE / WARPS)
// Numbers of a token and channel that are kept while its span is worked on.
#define KEPT 4
#define OWN 8

struct Room {
  // dt, u, the gradient of y before the gate, and what y is multiplied by for the gate's.
  float tokens[WARPS][KEPT][SPAN][OF_WARP];
  // States before all pairs of tokens but the last.
  float4 states[WARPS][PAIRS - 1][OWN / 4][32];
  // B and C: the next four states, in all orders that lanes have them in.
  float4 shared[2][SPAN][STATES / 4][4];
  float sums[WARPS][SPAN][2 * STATES];
};

static_assert(sizeof(Room) == ROOM, "shared memory as the host counts it");

// The order in which a lane has its four states: number i of it is state i ^ turn. Lanes that exchange sums then have
// what each gives and keeps in the same places.
__device__ __forceinline__ int turn_of(int lane) { return (lane & 1) * 2 + (lane >> 1 & 1); }

// Sums of numbers of four states and two tokens over lanes 0 .. 8, 8 .. 16 ...; a lane has that of its first state
// and, by its third bit, of the first token or the second.
__device__ __forceinline__ float over_channels(const float (&v)[8], int lane) {
  float a[4], b[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    int at = i / 2 * 4 + i % 2;
    a[i] = v[at] + __shfl_xor_sync(~0u, v[at + 2], 1);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) b[i] = a[2 * i] + __shfl_xor_sync(~0u, a[2 * i + 1], 2);
  float keep = lane & 4 ? b[1] : b[0], send = lane & 4 ? b[0] : b[1];
  return keep + __shfl_xor_sync(~0u, send, 4);
}

// Sums of four numbers over lanes that are 8 apart; lane i has number 2 (i >> 3 & 1) + (i >> 4).
__device__ __forceinline__ float over_states(const float (&v)[4], int lane) {
  float a[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float keep = lane & 8 ? v[2 + i] : v[i], send = lane & 8 ? v[i] : v[2 + i];
    a[i] = keep + __shfl_xor_sync(~0u, send, 8);
  }
  float keep = lane & 16 ? a[1] : a[0], send = lane & 16 ? a[0] : a[1];
  return keep + __shfl_xor_sync(~0u, send, 16);
}

struct Two {
  float x[2];
  __device__ __forceinline__ Two(float2 v) : x{v.x, v.y} {}
};

struct Four {
  float x[4];
  __device__ __forceinline__ Four(float4 v) : x{v.x, v.y, v.z, v.w} {}
};

// What a token's numbers of a channel become: delta, u, the gradient of the output and z.
__device__ __forceinline__ void turn_into(float (&of)[KEPT][SPAN][OF_WARP], int t, int own, int live) {
  float dy = of[2][t][own], factor = 0.0f;
#if GATE
  float z = of[3][t][own], s = sigmoid(z);
  factor = dy * (s * fmaf(z, 1.0f - s, 1.0f));
  dy *= z * s;
#endif
  of[0][t][own] = where(live, step_of(of[0][t][own]));
  of[1][t][own] = where(live, of[1][t][own]);
  of[2][t][own] = where(live, dy);
  of[3][t][own] = where(live, factor);
}

// All gradients of each chunk, from the states before its spans and the gradient of the state behind it, which
// is in `carry`.
extern "C" __global__ void __launch_bounds__(32 * WARPS, 2) gradients(const __grid_constant__ Call k) {
  extern __shared__ float4 space[];
  Room &room = *(Room *)space;
  Place p(k, blockIdx.y);
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, of_channels = lane & 7, of_states = lane >> 3;
  // The lane's own token of a pair, and its own channel.
  int second = lane >> 3 & 1, own = 2 * of_channels + (lane >> 4), turn = turn_of(lane), channel;
  bool is = p.channel(k, warp * OF_WARP + own, channel);
  auto &tokens = room.tokens[warp];
  auto &kept = room.states[warp];
  float h[OWN], g[OWN], da[OWN], rates[OWN];
  long long width = (long long)k.states_n * k.channels;
  int spans = (p.count + SPAN - 1) / SPAN;
  // Of two channels and four states: where they are in [N, E], and whether there is one.
  int member = p.block * WIDE + warp * OF_WARP + 2 * of_channels, of_group = k.channels / k.groups;
  int corner = 4 * of_states * k.channels + p.group * of_group + member;
#define THERE(i) (4 * of_states + ((i) / 2 ^ turn) < k.states_n && member + (i) % 2 < of_group)
#define AT(i) (corner + ((i) / 2 ^ turn) * k.channels + (i) % 2)
// Some other number where there is none.
#define SOME(x, i) where(bits(THERE(i)), (x)[THERE(i) ? AT(i) : 0])
  const float *behind = k.carry + ((long long)p.row * k.chunks + p.chunk) * width;
  const float *state = k.states + ((long long)p.row * k.slots + p.first / SPAN + spans - 1) * width;
#pragma unroll
  for (int i = 0; i < OWN; ++i) {
    rates[i] = LOG2_E * SOME(k.a, i);
    g[i] = SOME(behind, i);
    da[i] = 0.0f;
  }
  float d = 0.0f, dd = 0.0f;
#if SKIP_D
  d = k.d[channel];
#endif
  // Of the lane's own token and channel.
  long long from = p.token(k, k.len) + channel;
  long long from_dout = p.token(k, k.rows) + channel;
  float *shared = k.shared + (((long long)p.block * k.batch + p.row) * k.groups + p.group) * k.len * (2 * STATES);

#define ASK_TOKEN(t, at)                                                                                             \
  send_for(&tokens[0][t][own], k.delta + (from + (at))), send_for(&tokens[1][t][own], k.u + (from + (at)));          \
  send_for(&tokens[2][t][own], k.dout + (from_dout + (at)));                                                         \
  if (GATE) send_for(&tokens[3][t][own], k.z + (from + (at)));
// The state before a span comes to where that before its first pair of tokens is.
#define ASK_STATE                                                                                                    \
  _Pragma("unroll 1") for (int i = 0; i < OWN; ++i)                                                                  \
      send_for((float *)&kept[0][i / 4][lane] + i % 4, state + (THERE(i) ? AT(i) : 0), THERE(i));

  int start = (spans - 1) * SPAN;
#pragma unroll 1
  for (int t = second; t < SPAN; t += 2) {
    int at = min(start + t, p.count - 1) * k.channels;
    ASK_TOKEN(t, at)
  }
  ASK_STATE
  sent();
  // A number of B and one of C for the next span.
  int line = threadIdx.x / STATES, column = threadIdx.x % STATES;
  float next_b = shared_number(k, p, k.b, start + line, column);
  float next_c = shared_number(k, p, k.c, start + line, column);

  for (; start >= 0; start -= SPAN) {
    bool more = start > 0;
    arrived<0>();
#pragma unroll 4
    for (int t = second; t < SPAN; t += 2) turn_into(tokens, t, own, bits(is && what(k, p, start + t) != SKIP));
#pragma unroll
    for (int turned = 0; turned < 4; ++turned) {
      ((float *)&room.shared[0][line][column / 4][turned])[column % 4 ^ turned] = next_b;
      ((float *)&room.shared[1][line][column / 4][turned])[column % 4 ^ turned] = next_c;
    }
    __syncthreads();
    // States before pairs of tokens.
#pragma unroll
    for (int i = 0; i < OWN / 4; ++i) {
      float4 v = kept[0][i][lane];
      h[4 * i] = v.x, h[4 * i + 1] = v.y, h[4 * i + 2] = v.z, h[4 * i + 3] = v.w;
    }
#pragma unroll 1
    for (int pair = 0; pair < PAIRS - 1; ++pair) {
#pragma unroll
      for (int i = 0; i < OWN / 4; ++i)
        if (pair > 0) kept[pair][i][lane] = make_float4(h[4 * i], h[4 * i + 1], h[4 * i + 2], h[4 * i + 3]);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        int t = 2 * pair + j;
        Two dt = ((const float2 *)tokens[0][t])[of_channels], of_u = ((const float2 *)tokens[1][t])[of_channels];
        Four b = room.shared[0][t][of_states][turn];
#if !PLAIN
        if (what(k, p, start + t) == FIRST) {
#pragma unroll
          for (int i = 0; i < OWN; ++i) h[i] = 0.0f;
        }
#endif
        float x[2] = {dt.x[0] * of_u.x[0], dt.x[1] * of_u.x[1]};
#pragma unroll
        for (int i = 0; i < OWN; ++i) h[i] = fmaf(x[i % 2], b.x[i / 2], ex2(dt.x[i % 2] * rates[i]) * h[i]);
      }
    }
#pragma unroll 1
    for (int pair = PAIRS - 1; pair >= 0; --pair) {
      if (pair < PAIRS - 1) {
#pragma unroll
        for (int i = 0; i < OWN / 4; ++i) {
          float4 v = kept[pair][i][lane];
          h[4 * i] = v.x, h[4 * i + 1] = v.y, h[4 * i + 2] = v.z, h[4 * i + 3] = v.w;
        }
      }
      // Decays, and what they left of the states before.
      float decay[2][OWN], past[2][OWN], read[4] = {}, of_c[8] = {};
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        int t = 2 * pair + j;
        Two dt = ((const float2 *)tokens[0][t])[of_channels], of_u = ((const float2 *)tokens[1][t])[of_channels];
        Two dy = ((const float2 *)tokens[2][t])[of_channels];
        Four b = room.shared[0][t][of_states][turn], c = room.shared[1][t][of_states][turn];
#if !PLAIN
        if (what(k, p, start + t) == FIRST) {
#pragma unroll
          for (int i = 0; i < OWN; ++i) h[i] = 0.0f;
        }
#endif
        float x[2] = {dt.x[0] * of_u.x[0], dt.x[1] * of_u.x[1]};
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
          decay[j][i] = ex2(dt.x[i % 2] * rates[i]);
          past[j][i] = decay[j][i] * h[i];
          h[i] = fmaf(x[i % 2], b.x[i / 2], past[j][i]);
          read[2 * j + i % 2] = fmaf(h[i], c.x[i / 2], read[2 * j + i % 2]);
          of_c[4 * j + i / 2] = fmaf(dy.x[i % 2], h[i], of_c[4 * j + i / 2]);
        }
      }
      if (pair == 0 && more) {
        state -= width;
        ASK_STATE
      }
      float of_b[8] = {}, by_input[4] = {}, by_decay[4] = {};
#pragma unroll
      for (int j = 1; j >= 0; --j) {
        int t = 2 * pair + j;
        Two dt = ((const float2 *)tokens[0][t])[of_channels], of_u = ((const float2 *)tokens[1][t])[of_channels];
        Two dy = ((const float2 *)tokens[2][t])[of_channels];
        Four b = room.shared[0][t][of_states][turn], c = room.shared[1][t][of_states][turn];
        float x[2] = {dt.x[0] * of_u.x[0], dt.x[1] * of_u.x[1]};
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
          g[i] = fmaf(dy.x[i % 2], c.x[i / 2], g[i]);
          of_b[4 * j + i / 2] = fmaf(g[i], x[i % 2], of_b[4 * j + i / 2]);
          by_input[2 * j + i % 2] = fmaf(g[i], b.x[i / 2], by_input[2 * j + i % 2]);
          float of_decay = g[i] * past[j][i];
          by_decay[2 * j + i % 2] = fmaf(of_decay, rates[i], by_decay[2 * j + i % 2]);
          da[i] = fmaf(of_decay, dt.x[i % 2], da[i]);
          g[i] *= decay[j][i];
        }
#if !PLAIN
        if (what(k, p, start + t) == FIRST) {
#pragma unroll
          for (int i = 0; i < OWN; ++i) g[i] = 0.0f;
        }
#endif
      }
      float y = over_states(read, lane);
      float into = over_states(by_input, lane), through = LN_2 * over_states(by_decay, lane);
      float sum_b = over_channels(of_b, lane), sum_c = over_channels(of_c, lane);
      int odd = lane >> 2 & 1, n = 4 * of_states + turn;
      // Halves change places in every other line, which the lanes of a sum write at the same time.
      room.sums[warp][2 * pair + odd][odd * STATES + n] = sum_b;
      room.sums[warp][2 * pair + odd][(1 - odd) * STATES + n] = sum_c;
      int t = 2 * pair + second;
      float dt = tokens[0][t][own], of_u = tokens[1][t][own], dy = tokens[2][t][own];
      dd = fmaf(dy, of_u, dd);
      if (is && start + t < p.count) {
        int live = bits(PLAIN || what(k, p, start + t) != SKIP);
        long long at = from + (start + t) * k.channels;
        k.du[at] = where(live, fmaf(dt, into, d * dy));
        k.ddelta[at] = where(live, fmaf(of_u, into, through) * slope_of(dt));
        if (GATE) k.dz[at] = where(live, tokens[3][t][own] * fmaf(d, of_u, y));
      }
      __syncwarp();
      // What the next span needs is asked for as soon as there is room.
      if (more) {
        int at = (start - SPAN + t) * k.channels;
        ASK_TOKEN(t, at)
      }
    }
    sent();
    if (more) {
      next_b = shared_number(k, p, k.b, start - SPAN + line, column);
      next_c = shared_number(k, p, k.c, start - SPAN + line, column);
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      int t = i * (SPAN / 2) + threadIdx.x / (2 * STATES), at = threadIdx.x % (2 * STATES);
      float sum = 0.0f;
#pragma unroll
      for (int w = 0; w < WARPS; ++w) sum += room.sums[w][t][at];
      if (start + t < p.count)
        shared[(long long)(p.first + start + t) * (2 * STATES) + (at ^ (t & 1) * STATES)] = sum;
    }
  }
  float *to = k.da + ((long long)p.row * k.chunks + p.chunk) * width;
#pragma unroll
  for (int i = 0; i < OWN; ++i) {
    if (THERE(i)) to[AT(i)] = da[i];
    if (THERE(i) && p.chunk == 0) k.dh0[p.row * width + AT(i)] = g[i];
  }
#if SKIP_D
  // Two lanes have tokens of a channel.
  dd += __shfl_xor_sync(~0u, dd, 8);
  if (is && second == 0) k.dd[((long long)p.row * k.chunks + p.chunk) * k.channels + channel] = dd;
#endif
}
