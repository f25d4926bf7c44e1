// A workgroup on this machine, in the place of a kernel's instructions: threads take turns, so that what remains
// to be seen on a card is what happens at the same time. Shared memory is full of what is no number.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <ucontext.h>
#include <vector>

using std::max;
using std::min;

#define __device__
#define __forceinline__ inline
#define __global__
#define __shared__
#define __launch_bounds__(...)
#define __grid_constant__

struct Dim { int x, y, z; };
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

static int current, threads;
static Dim blockIdx;
#define threadIdx (Dim{current, 0, 0})
extern "C" { float4 space[232448 / 16]; }

inline float __int_as_float(int x) { float y; memcpy(&y, &x, 4); return y; }
inline int __float_as_int(float x) { int y; memcpy(&y, &x, 4); return y; }

[[noreturn]] static void fail(const char* what) {
  fprintf(stderr, "%s: group %d %d %d, thread %d\n", what, blockIdx.x, blockIdx.y, blockIdx.z, current);
  exit(1);
}

// Threads

static ucontext_t scheduler, contexts[512];
static bool ended[512];
static std::vector<char> stacks;
static std::function<void()> work;
// Rounds in which nothing came of it.
static int idle;

// Numbers on their way to shared memory come as late as they may.

struct OnWay { float* to; const float* from; bool counts; };
static std::vector<std::vector<OnWay>> on_way[512];

static void others() {
  int me = current;
  swapcontext(&contexts[me], &scheduler);
  current = me;
}
static void thread() {
  work();
  ended[current] = true;
  swapcontext(&contexts[current], &scheduler);
}
static void run_group(int count, std::function<void()> of_thread) {
  const size_t stack = 64 << 10;
  stacks.resize(stack * 512);
  threads = count;
  work = of_thread;
  for (int i = 0; i < count; i++) {
    ended[i] = false;
    on_way[i].clear();
    getcontext(&contexts[i]);
    contexts[i].uc_stack.ss_sp = &stacks[stack * i];
    contexts[i].uc_stack.ss_size = stack;
    makecontext(&contexts[i], thread, 0);
  }
  idle = 0;
  for (int left = count; left > 0;) {
    for (int i = 0; i < count; i++) {
      if (ended[i]) continue;
      current = i;
      swapcontext(&scheduler, &contexts[i]);
      if (ended[i]) left--, idle = 0;
    }
    if (++idle > 20000) fail("all wait for each other");
  }
}

struct Meeting { int arrived, number; };
static Meeting of_warps[16], of_all;
static void meet_at(Meeting& m, int count) {
  int number = m.number;
  if (++m.arrived == count) {
    m.arrived = 0;
    m.number++;
    idle = 0;
    return;
  }
  while (m.number == number) others();
}
inline void __syncwarp() { meet_at(of_warps[current >> 5], 32); }
inline void __syncthreads() { meet_at(of_all, threads); }

static float taken(float x, int from) {
  static float told[512];
  told[current] = x;
  __syncwarp();
  x = told[from];
  __syncwarp();
  return x;
}
inline float __shfl_xor_sync(unsigned, float x, int lanes) { return taken(x, current ^ lanes); }
inline float __shfl_up_sync(unsigned, float x, int n) { return taken(x, current % 32 >= n ? current - n : current); }
inline float __shfl_down_sync(unsigned, float x, int n) { return taken(x, current % 32 + n < 32 ? current + n : current); }
inline float __shfl_sync(unsigned, float x, int lane) { return taken(x, current / 32 * 32 + lane); }

inline void send_for(float* to, const float* from, bool counts = true) {
  auto& groups = on_way[current];
  if (groups.empty()) groups.emplace_back();
  groups.back().push_back({to, from, counts});
  *to = NAN;
}
inline void send_for_four(float* to, const float* from) {
  if (((size_t)to | (size_t)from) % 16 != 0) fail("four numbers that do not lie together");
  for (int i = 0; i < 4; i++) send_for(to + i, from + i);
}
inline void sent() {
  if (on_way[current].empty()) on_way[current].emplace_back();
  on_way[current].emplace_back();
}
template <int but> inline void arrived() {
  auto& groups = on_way[current];
  // The last one is not sent yet.
  while ((int)groups.size() > but + 1) {
    for (auto& x : groups.front()) *x.to = x.counts ? *x.from : 0.0f;
    groups.erase(groups.begin());
  }
}

// Instructions of the kernels' own

inline float ex2(float x) { return exp2f(x); }
inline float reciprocal(float x) { return 1.0f / x; }
inline int unknown(int x) { return x; }
inline void store_if(bool is, float* to, float x) {
  if (is) *to = x;
}
inline void next_may_begin() {}
inline void before_ended() {}
// What tensor cores read of a number.
static float read_part(int x) { return __int_as_float(x & 0xffffe000); }
static void add_product(float (&x)[4], const int (&a)[4], const int (&b)[2]) {
  static float left[512][4], right[512][2];
  for (int i = 0; i < 4; i++) left[current][i] = read_part(a[i]);
  for (int i = 0; i < 2; i++) right[current][i] = read_part(b[i]);
  __syncwarp();
  int warp = current / 32 * 32, lane = current % 32;
  for (int i = 0; i < 4; i++) {
    int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 8; k++)
      x[i] += left[warp + row % 8 * 4 + k % 4][row / 8 + k / 4 * 2] * right[warp + column * 4 + k % 4][k / 4];
  }
  __syncwarp();
}
