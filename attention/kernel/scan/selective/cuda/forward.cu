// Outputs, the last state, and the states at the ends of spans: a thread per channel and chunk, which has all
// states in registers.

// h after a token.
__device__ __forceinline__ void step(float (&h)[STATES], const float (&rates)[STATES], float dt, float x,
                                     const float4 *of_b) {
#pragma unroll
  for (int q = 0; q < STATES / 4; ++q) {
    float4 b = of_b[q];
    h[4 * q] = fmaf(x, b.x, ex2(dt * rates[4 * q]) * h[4 * q]);
    h[4 * q + 1] = fmaf(x, b.y, ex2(dt * rates[4 * q + 1]) * h[4 * q + 1]);
    h[4 * q + 2] = fmaf(x, b.z, ex2(dt * rates[4 * q + 2]) * h[4 * q + 2]);
    h[4 * q + 3] = fmaf(x, b.w, ex2(dt * rates[4 * q + 3]) * h[4 * q + 3]);
  }
}

// What each chunk but the last leaves in a state of zeros, in its slot of `states`.
extern "C" __global__ void __launch_bounds__(WIDE) ends(const __grid_constant__ Call k) {
  extern __shared__ float4 space[];
  float4 *tile = space;
  float *rings = (float *)(tile + k.chunk * (STATES / 4));
  next_may_begin();
  Place p(k, blockIdx.y);
  int channel;
  bool is = p.channel(k, threadIdx.x, channel);
  Column u(k.u + p.token(k, k.len) + channel, rings), delta(k.delta + p.token(k, k.len) + channel, rings + COLUMN);
  lay_out(k, p, k.b, tile, 0, k.chunk);
#pragma unroll
  for (int t = 0; t < AHEAD - TOGETHER; t += TOGETHER) u.ask(k, p, t), delta.ask(k, p, t), sent();
  float h[STATES], rates[STATES];
#pragma unroll
  for (int n = 0; n < STATES; ++n) h[n] = 0.0f, rates[n] = rate(k, n, channel);
  arrived<AHEAD / TOGETHER - 2>();
  __syncthreads();
  if (!is) return;
  float total = 0.0f;
  bool cut = false;
  for (int t = 0; t < p.count; t += TOGETHER) {
    float of_u[TOGETHER], of_delta[TOGETHER];
    arrived<AHEAD / TOGETHER - 2>();
    u.get(t, of_u), delta.get(t, of_delta);
    u.ask(k, p, t + AHEAD - TOGETHER), delta.ask(k, p, t + AHEAD - TOGETHER), sent();
#pragma unroll
    for (int i = 0; i < TOGETHER; ++i) {
      int does = what(k, p, t + i);
      int live = bits(does != SKIP);
      float dt = where(live, step_of(of_delta[i])), x = where(live, dt * of_u[i]);
#if !PLAIN
      if (does == FIRST) {
        cut = true;
#pragma unroll
        for (int n = 0; n < STATES; ++n) h[n] = 0.0f;
      }
#endif
      total += dt;
      step(h, rates, dt, x, tile + (t + i) * (STATES / 4));
    }
  }
  float *to = k.states + ((long long)p.row * k.slots + p.chunk * k.per_chunk) * k.states_n * k.channels + channel;
#pragma unroll
  for (int n = 0; n < STATES; ++n)
    if (n < k.states_n) to[n * k.channels] = h[n];
  long long chunk = (long long)p.row * k.chunks + p.chunk;
  k.totals[chunk * k.channels + channel] = total;
  if (threadIdx.x == 0) k.cuts[chunk] = cut;
}

// B and C of two tiles of tokens: while one is worked on, the next comes.
struct Tiles {
  float4 b[2][TILE][STATES / 4], c[2][TILE][STATES / 4];
};

static_assert(sizeof(Tiles) == TILES, "shared memory as the host counts it");

// Outputs of each chunk from the state before it: of several, that in its slot of `states`.
extern "C" __global__ void __launch_bounds__(WIDE, PLAIN ? 5 : 3) outputs(const __grid_constant__ Call k) {
  extern __shared__ float4 space[];
  Tiles &tiles = *(Tiles *)space;
  next_may_begin();
  Place p(k, blockIdx.y);
  int channel;
  bool is = p.channel(k, threadIdx.x, channel), alone = k.chunks == 1;
  const float *u = k.u + p.token(k, k.len) + channel, *delta = k.delta + p.token(k, k.len) + channel;
#if GATE
  const float *z = k.z + p.token(k, k.len) + channel;
#endif
  lay_out(k, p, k.b, tiles.b[0][0], 0, TILE);
  lay_out(k, p, k.c, tiles.c[0][0], 0, TILE);
  sent();
  float next_u[TOGETHER], next_delta[TOGETHER];
  read(k, p, u, 0, next_u);
  read(k, p, delta, 0, next_delta);
#if GATE
  float next_z[TOGETHER];
  read(k, p, z, 0, next_z);
#endif
  float *out = k.out + p.token(k, k.rows) + channel;
  long long width = (long long)k.states_n * k.channels;
  float *state = k.states + ((long long)p.row * k.slots + p.chunk * k.per_chunk) * width + channel;
  float h[STATES], rates[STATES];
#pragma unroll
  for (int n = 0; n < STATES; ++n) rates[n] = rate(k, n, channel);
#if SKIP_D
  float d = k.d[channel];
#endif
  before_ended();
  const float *before = alone ? k.first + p.row * k.of_row + channel : state;
#pragma unroll
  for (int n = 0; n < STATES; ++n) h[n] = where(bits(n < k.states_n), before[min(n, k.states_n - 1) * k.channels]);
  for (int from = 0, at = 0; from < p.count; from += TILE, at ^= 1) {
    arrived<0>();
    __syncthreads();
    if (from + TILE < p.count) {
      lay_out(k, p, k.b, tiles.b[at ^ 1][0], from + TILE, TILE);
      lay_out(k, p, k.c, tiles.c[at ^ 1][0], from + TILE, TILE);
      sent();
    }
    for (int t = from; t < min(from + TILE, p.count); t += TOGETHER) {
      float of_u[TOGETHER], of_delta[TOGETHER];
#if GATE
      float of_z[TOGETHER];
#endif
#pragma unroll
      for (int i = 0; i < TOGETHER; ++i) of_u[i] = next_u[i], of_delta[i] = next_delta[i];
      read(k, p, u, t + TOGETHER, next_u);
      read(k, p, delta, t + TOGETHER, next_delta);
#if GATE
#pragma unroll
      for (int i = 0; i < TOGETHER; ++i) of_z[i] = next_z[i];
      read(k, p, z, t + TOGETHER, next_z);
#endif
#if TRACKED
      // That before a chunk is there already where there are several.
      if (t % SPAN == 0 && (t > 0 || alone)) {
        float *to = state + t / SPAN * width;
#pragma unroll
        for (int n = 0; n < STATES; ++n)
          if (is && n < k.states_n) to[n * k.channels] = h[n];
      }
#endif
#pragma unroll
      for (int i = 0; i < TOGETHER; ++i) {
        int does = what(k, p, t + i);
        int live = bits(does != SKIP);
        float dt = where(live, step_of(of_delta[i])), x = where(live, dt * of_u[i]);
#if !PLAIN
        if (does == FIRST) {
#pragma unroll
          for (int n = 0; n < STATES; ++n) h[n] = 0.0f;
        }
#endif
        step(h, rates, dt, x, tiles.b[at][t + i - from]);
        float y[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int q = 0; q < STATES / 4; ++q) {
          float4 c = tiles.c[at][t + i - from][q];
          y[0] = fmaf(h[4 * q], c.x, y[0]);
          y[1] = fmaf(h[4 * q + 1], c.y, y[1]);
          y[2] = fmaf(h[4 * q + 2], c.z, y[2]);
          y[3] = fmaf(h[4 * q + 3], c.w, y[3]);
        }
        float value = (y[0] + y[1]) + (y[2] + y[3]);
#if SKIP_D
        value = fmaf(d, of_u[i], value);
#endif
#if GATE
        value *= of_z[i] * sigmoid(of_z[i]);
#endif
        store_if(is && t + i < p.count, out + (t + i) * k.channels, where(live, value));
      }
    }
  }
#if KEEP_STATE
  if (is && p.first + p.count == k.len) {
    float *to = k.out + ((long long)p.row * k.rows + k.len) * k.channels + channel;
#pragma unroll
    for (int n = 0; n < STATES; ++n)
      if (n < k.states_n) to[n * k.channels] = h[n];
  }
#endif
}
