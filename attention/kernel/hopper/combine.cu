// What comes of the parts of a row's keys, put together: a warp per query. Parts in which it sees nothing have
// an lse of -inf, and weigh nothing.

// Channels come in whole runs of 8: of every 128, a thread has four, which are there or not.
#define RUNS ((HEAD + 127) / 128)

extern "C" __global__ void combine(const __grid_constant__ Call call) {
  int row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), lane = threadIdx.x & 31;
  int of_row = call.heads * call.queries;
  if (row >= call.batch * of_row) return;
  // Of part 0, and as far apart as parts are.
  long long first = (long long)(row / of_row) * call.parts * of_row + row % of_row;
  float top = -INFINITE;
  for (int part = lane; part < call.parts; part += 32) top = fmaxf(top, call.lse[first + (long long)part * of_row]);
  for (int other = 16; other; other >>= 1) top = fmaxf(top, __shfl_xor_sync(~0u, top, other));
  float base = top == -INFINITE ? 0.f : top, sum = 0.f, x[RUNS][4];
#pragma unroll
  for (int run = 0; run < RUNS; run++)
#pragma unroll
    for (int i = 0; i < 4; i++) x[run][i] = 0.f;
#pragma unroll 4
  for (int part = 0; part < call.parts; part++) {
    long long at = first + (long long)part * of_row;
    float weight = power_of_2((call.lse[at] - base) * 1.4426950408889634f);
    sum += weight;
#pragma unroll
    for (int run = 0; run < RUNS; run++) {
      int channel = 128 * run + 4 * lane;
      if (channel >= call.e) continue;
      uint2 y = *(const uint2*)((const unsigned short*)call.out + at * call.e + channel);
      x[run][0] += weight * low_of(y.x);
      x[run][1] += weight * high_of(y.x);
      x[run][2] += weight * low_of(y.y);
      x[run][3] += weight * high_of(y.y);
    }
  }
  float scale = sum == 0.f ? 0.f : 1.f / sum;
#pragma unroll
  for (int run = 0; run < RUNS; run++) {
    int channel = 128 * run + 4 * lane;
    if (channel >= call.e) continue;
    u32* to = (u32*)((unsigned short*)call.whole + (long long)row * call.e + channel);
    to[0] = pack(x[run][0] * scale, x[run][1] * scale);
    to[1] = pack(x[run][2] * scale, x[run][3] * scale);
  }
  if (lane == 0) call.whole_lse[row] = base + __log2f(sum) * 0.6931471805599453f;
}
