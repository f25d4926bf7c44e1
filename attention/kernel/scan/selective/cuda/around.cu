// States from chunk to chunk, and sums of parts.

// Chunks whose numbers a thread asks for together: it waits for memory, not for itself.
#define AT_A_TIME 16

// What chunks leave in a state of zeros becomes the state before each chunk.
__device__ __forceinline__ void hand_on(const Call &k, float *states, int slots, int per_chunk, bool given,
                                        bool reverse) {
  int width = k.states_n * k.channels, number = blockIdx.x * WIDE + threadIdx.x, row = blockIdx.y;
  next_may_begin();
  if (number >= width) return;
  int channel = number % k.channels;
  float h = given ? k.first[row * k.of_row + number] : 0.0f;
  float rates = rate(k, number / k.channels, channel);
  float *state = states + (long long)row * slots * width + number;
  const float *totals = k.totals + (long long)row * k.chunks * k.channels + channel;
  const int *cuts = k.cuts + (long long)row * k.chunks;
  int last = k.chunks - 1;
  before_ended();
  for (int from = 0; from <= last; from += AT_A_TIME) {
    float left[AT_A_TIME], decay[AT_A_TIME];
    bool cut[AT_A_TIME];
#pragma unroll
    for (int i = 0; i < AT_A_TIME; ++i) {
      int at = min(from + i, last), chunk = reverse ? last - at : at;
      // Nothing goes on from the last one.
      bool there = at < last;
      left[i] = there ? state[(long long)chunk * per_chunk * width] : 0.0f;
      decay[i] = there ? totals[(long long)chunk * k.channels] : 0.0f;
      cut[i] = !PLAIN && there && cuts[chunk] != 0;
    }
#pragma unroll
    for (int i = 0; i < AT_A_TIME; ++i) {
      int at = from + i, chunk = reverse ? last - at : at;
      if (at <= last) {
        state[(long long)chunk * per_chunk * width] = h;
        // What was before a document does not count even if it is no number.
        h = cut[i] ? left[i] : fmaf(ex2(decay[i] * rates), h, left[i]);
      }
    }
  }
}

extern "C" __global__ void __launch_bounds__(WIDE) combine(const __grid_constant__ Call k) {
  hand_on(k, k.states, k.slots, k.per_chunk, true, false);
}

extern "C" __global__ void __launch_bounds__(WIDE) combine_back(const __grid_constant__ Call k) {
  hand_on(k, k.carry, k.chunks, 1, KEEP_STATE, true);
}

// dB and dC, then dA, then dD; parts in their order.
extern "C" __global__ void __launch_bounds__(WIDE) sums(const __grid_constant__ Call k) {
  before_ended();
  long long i = (long long)blockIdx.x * WIDE + threadIdx.x;
  long long lines = (long long)k.batch * k.groups * k.len, shared = lines * 2 * STATES;
  int width = k.states_n * k.channels, parts = k.batch * k.chunks;
  float sum = 0.0f;
  if (i < shared) {
#pragma unroll 12
    for (int block = 0; block < k.blocks; ++block) sum += k.shared[block * shared + i];
    int n = i % STATES, half = i / STATES % 2, t = i / (2 * STATES) % k.len;
    long long line = i / (2 * STATES) / k.len;
    int group = line % k.groups, row = line / k.groups;
    long long at = (((long long)row * k.len + t) * k.groups + group) * k.states_n + n;
    if (n < k.states_n) (half ? k.sum_c : k.sum_b)[at] = sum;
    return;
  }
  i -= shared;
  if (i < width) {
#pragma unroll 16
    for (int part = 0; part < parts; ++part) sum += k.da[(long long)part * width + i];
    k.sum_a[i] = sum;
    return;
  }
  i -= width;
#if SKIP_D
  if (i < k.channels) {
#pragma unroll 16
    for (int part = 0; part < parts; ++part) sum += k.dd[(long long)part * k.channels + i];
    k.sum_d[i] = sum;
  }
#endif
}
