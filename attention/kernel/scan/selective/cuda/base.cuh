// What the kernels of the selective scan share: the call, places, and elementary functions.

typedef unsigned char u8;

#define NEXT 0
#define FIRST 1
#define SKIP 2

struct Call {
  // [B, T, E]; delta before softplus
  const float *u, *delta, *z;
  // [N, E], [E]
  const float *a, *d;
  // [B, T, G N]
  const float *b, *c;
  // The state before all chunks, or the gradient of the one behind them, `of_row` numbers from row to row.
  const float *first;
  // [B, rows, E]
  const float *dout;
  // What each token does, [B, T]
  const u8 *steps;
  // [B, slots, N, E], a chunk every `per_chunk` slots.
  float *states;
  // [B, chunks, N, E]
  float *carry;
  // Sums of steps of chunks, [B, chunks, E], and whether a document begins there, [B, chunks]
  float *totals;
  int *cuts;
  // [B, rows, E]
  float *out;
  // Gradients. What other chunks or workgroups add to, too, comes in parts: da [B, chunks, N, E], dd
  // [B, chunks, E], and dB beside dC in `shared`, [blocks, B, G, T, 2, STATES].
  float *du, *ddelta, *dz, *dh0, *da, *dd, *shared;
  // What becomes of these: [N, E], [E], [B, T, G N]
  float *sum_a, *sum_d, *sum_b, *sum_c;
  long long of_row;
  int batch, len, channels, states_n, groups, blocks;
  // Tokens of a chunk, whole spans.
  int chunk;
  int chunks, slots, per_chunk;
  // Tokens of the packed output: T, and N more where the state is in it.
  int rows;
};

static_assert(sizeof(Call) == CALL_BYTES, "a call as the host lays it out");

// All bits or none. The compiler may not know which of two numbers that is: it would put what leads to a number
// that does not always count behind a branch, and keep what comes next waiting for it.
__device__ __forceinline__ int bits(bool counts) {
  return unknown(counts ? -1 : 0);
}

// `x` where it counts, otherwise 0.
__device__ __forceinline__ float where(int bits, float x) { return __int_as_float(__float_as_int(x) & bits); }

#define LOG2_E 1.4426950408889634f
#define LN_2 0.6931471805599453f

// exp(-|x|)
__device__ __forceinline__ float small(float x) { return ex2(-LOG2_E * fabsf(x)); }

// Delta from what the layer gave: ln(1 + e^x), with a polynomial of ln(1 + s) / s between 0 and 1 that is
// exact to the last bit or two; and how it changes with x.
__device__ __forceinline__ float step_of(float x, float &slope) {
#if SOFTPLUS
  float s = small(x), r = reciprocal(1.0f + s), p = -0.0031760570127516985f;
  p = fmaf(p, s, 0.019542526453733444f);
  p = fmaf(p, s, -0.056373611092567444f);
  p = fmaf(p, s, 0.10543623566627502f);
  p = fmaf(p, s, -0.1526966691017151f);
  p = fmaf(p, s, 0.1966327428817749f);
  p = fmaf(p, s, -0.24951615929603577f);
  p = fmaf(p, s, 0.33329710364341736f);
  p = fmaf(p, s, -0.49999892711639404f);
  slope = r * (x >= 0.0f ? 1.0f : s);
  return fmaf(fmaf(p, s, 1.0f), s, fmaxf(x, 0.0f));
#else
  slope = 1.0f;
  return x;
#endif
}

__device__ __forceinline__ float step_of(float x) {
  float slope;
  return step_of(x, slope);
}

__device__ __forceinline__ float sigmoid(float x) {
  float s = small(x), r = reciprocal(1.0f + s);
  return r * (x >= 0.0f ? 1.0f : s);
}

// Where a workgroup is.
struct Place {
  int row, chunk, group, block;
  // First token, and tokens up to the end of chunk or row.
  int first, count;

  __device__ Place(const Call &k, int chunk) : row(blockIdx.z), chunk(chunk) {
    group = blockIdx.x / k.blocks;
    block = blockIdx.x % k.blocks;
    first = chunk * k.chunk;
    count = min(k.chunk, k.len - first);
  }

  // The channel of a member of the workgroup, and whether there is one; otherwise it is another's.
  __device__ bool channel(const Call &k, int member, int &channel) const {
    int of_group = k.channels / k.groups, at = block * WIDE + member;
    channel = group * of_group + min(at, of_group - 1);
    return at < of_group;
  }

  __device__ long long token(const Call &k, int rows) const {
    return ((long long)row * rows + first) * k.channels;
  }
};

// What the tokens of a chunk do; behind its end they do nothing.
__device__ __forceinline__ int what(const Call &k, const Place &p, int t) {
  if (t >= p.count) return SKIP;
#if PLAIN
  return NEXT;
#else
  return k.steps[(long long)p.row * k.len + p.first + t];
#endif
}

// A group's number of a token and state; zero where there is none.
__device__ __forceinline__ float shared_number(const Call &k, const Place &p, const float *x, int t, int n) {
  long long line = (long long)p.row * k.len + p.first + min(t, p.count - 1);
  float number = x[(line * k.groups + p.group) * k.states_n + min(n, k.states_n - 1)];
  return where(bits(n < k.states_n && what(k, p, t) != SKIP), number);
}

// Sends for the same of `count` tokens from `from` on; a thread has one state.
__device__ __forceinline__ void lay_out(const Call &k, const Place &p, const float *x, float4 *tile, int from,
                                        int count) {
  int n = threadIdx.x % STATES, step = k.groups * k.states_n;
  x += (((long long)p.row * k.len + p.first) * k.groups + p.group) * k.states_n + min(n, k.states_n - 1);
#pragma unroll 4
  for (int t = threadIdx.x / STATES; t < count; t += WIDE / STATES)
    send_for((float *)tile + t * STATES + n, x + min(from + t, p.count - 1) * step,
             n < k.states_n && what(k, p, from + t) != SKIP);
}

// Tokens that a thread computes together.
#define TOGETHER 4

// A thread's own column of tokens in shared memory: the compiler would put loads to registers off until these are
// wanted.
struct Column {
  float *ring;
  const float *x;

  __device__ Column(const float *x, float *ring) : ring(ring + threadIdx.x), x(x) {}

  // Sends for tokens from `t` on, or for others where there are no more.
  __device__ __forceinline__ void ask(const Call &k, const Place &p, int t) const {
#pragma unroll
    for (int i = 0; i < TOGETHER; ++i)
      send_for(ring + (t + i & AHEAD - 1) * WIDE, x + min(max(t + i, 0), p.count - 1) * k.channels);
  }

  __device__ __forceinline__ void get(int t, float (&to)[TOGETHER]) const {
#pragma unroll
    for (int i = 0; i < TOGETHER; ++i) to[i] = ring[((t & AHEAD - 1) + i) * WIDE];
  }
};

#define COLUMN (AHEAD * WIDE)

// Numbers of a channel from token `t` on, or of others where there are no more.
__device__ __forceinline__ void read(const Call &k, const Place &p, const float *x, int t, float (&to)[TOGETHER]) {
#pragma unroll
  for (int i = 0; i < TOGETHER; ++i) to[i] = x[min(max(t + i, 0), p.count - 1) * k.channels];
}

// Rates of decay in powers of two.
__device__ __forceinline__ float rate(const Call &k, int n, int channel) {
  return where(bits(n < k.states_n), LOG2_E * k.a[min(n, k.states_n - 1) * k.channels + channel]);
}
