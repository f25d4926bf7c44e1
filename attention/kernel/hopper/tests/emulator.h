// A workgroup on this machine, in the place of instructions.cuh: threads take turns, loads and products are
// done at once, so that what remains to be seen on a card is their order in time.
//
// `main` reads a launch with its buffers and writes the buffers back.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <ucontext.h>
#include <vector>

#define __device__
#define __forceinline__ inline
#define __global__
#define __shared__
#define __align__(x)
#define __launch_bounds__(threads, groups)
#define __grid_constant__

typedef unsigned int u32;
typedef unsigned long long u64;

struct int2 { int x, y; };
struct int4 { int x, y, z, w; };
struct uint2 { u32 x, y; };
struct uint4 { u32 x, y, z, w; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct Place { int x, y, z; };
inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

static int current, threads;
static Place blockIdx, blockDim, gridDim;
#define threadIdx (Place{current, 0, 0})

template<class T> inline T __ldg(const T* p) { return *p; }
inline float __int_as_float(u32 x) { float y; memcpy(&y, &x, 4); return y; }
inline int __float_as_int(float x) { int y; memcpy(&y, &x, 4); return y; }
inline float __uint_as_float(u32 x) { return __int_as_float(x); }
inline float __log2f(float x) { return log2f(x); }

[[noreturn]] static void fail(const char* what) {
  fprintf(stderr, "%s: group %d, thread %d\n", what, blockIdx.x, current);
  exit(1);
}

// Threads

static ucontext_t scheduler, contexts[512];
static bool ended[512];
static std::vector<char> stacks;
static std::function<void()> work;
// Rounds in which nothing came of it.
static int idle;

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
  const size_t stack = 192 << 10;
  stacks.resize(stack * 512);
  threads = count;
  work = of_thread;
  for (int i = 0; i < count; i++) {
    ended[i] = false;
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

// Barriers

struct Meeting { int arrived, number; };
static Meeting named[16], of_warps[16], of_warpgroups[4], of_all;

static void arrive_at(Meeting& m, int count) {
  if (++m.arrived < count) return;
  m.arrived = 0;
  m.number++;
  idle = 0;
}
static void meet_at(Meeting& m, int count) {
  int number = m.number;
  arrive_at(m, count);
  while (m.number == number) others();
}
static void warp() { meet_at(of_warps[current >> 5], 32); }
static void warpgroup() { meet_at(of_warpgroups[current >> 7], 128); }
inline void __syncthreads() { meet_at(of_all, threads); }
inline void meet(int id, int count) { meet_at(named[id], count); }
inline void pass_by(int id, int count) { arrive_at(named[id], count); }
inline float __shfl_xor_sync(u32, float x, int lanes) {
  static float told[512];
  told[current] = x;
  warp();
  x = told[current ^ lanes];
  warp();
  return x;
}

inline int shuffled(int x, int from) {
  static int told[512];
  told[current] = x;
  warp();
  x = told[(current & ~31) + (from & 31)];
  warp();
  return x;
}
inline void __syncwarp() { warp(); }
inline u32 __shfl_xor_sync(u32, u32 x, int lanes) { return shuffled((int)x, (current ^ lanes) & 31); }
inline int __shfl_sync(u32, int x, int lane) { return shuffled(x, lane); }
inline int __shfl_up_sync(u32, int x, int lanes) {
  int lane = current & 31;
  return shuffled(x, lane < lanes ? lane : lane - lanes);
}

inline u32 __ballot_sync(u32, bool yes) {
  static bool told[512];
  told[current] = yes;
  warp();
  u32 all = 0;
  for (int i = 0; i < 32; i++) all |= (u32)told[(current & ~31) + i] << i;
  warp();
  return all;
}
inline int __ffs(u32 x) { return __builtin_ffs((int)x); }

alignas(1024) unsigned char memory[232448];
inline u32 shared_address(const void* p) { return (u32)((const unsigned char*)p - memory); }

struct Barrier { int count, pending; long bytes; int phase; };
static Barrier barriers[sizeof(memory) / 8];
static Barrier& barrier(u32 at) { return barriers[at / 8]; }
static void look(Barrier& b) {
  if (b.pending < 0) fail("a barrier that too many arrive at");
  if (b.pending > 0 || b.bytes > 0) return;
  b.phase ^= 1;
  b.pending = b.count;
  idle = 0;
}
inline void barrier_init(u32 at, u32 count) { barrier(at) = {(int)count, (int)count, 0, 0}; }
inline void barriers_ready() {}
inline void expect(u32 at, u32 bytes) {
  barrier(at).bytes += bytes;
  barrier(at).pending--;
  look(barrier(at));
}
inline void arrive(u32 at) {
  barrier(at).pending--;
  look(barrier(at));
}
static void came(u32 at, u32 bytes) {
  barrier(at).bytes -= bytes;
  look(barrier(at));
}
inline void wait(u32 at, u32 phase) {
  while (barrier(at).phase == (int)phase) others();
}
inline void compute_beside(u32 at, u32 phase) {
  if (barrier(at).phase == (int)phase) fail("a barrier that is not over yet");
}
inline void async_fence() {}
inline int fresh(int x) { return x; }
template<int N> inline void pin(float (&)[N]) {}
#define FEWER_REGISTERS(count)
#define MORE_REGISTERS(count)

// Numbers of 16 bits

inline unsigned short narrow(float x) {
#if IS_BF16
  u32 y;
  memcpy(&y, &x, 4);
  return x != x ? 0x7fff : (y + 0x7fff + ((y >> 16) & 1)) >> 16;
#else
  _Float16 y = (_Float16)x;
  unsigned short bits;
  memcpy(&bits, &y, 2);
  return bits;
#endif
}
inline float wide(unsigned short x) {
#if IS_BF16
  return __int_as_float((u32)x << 16);
#else
  _Float16 y;
  memcpy(&y, &x, 2);
  return (float)y;
#endif
}
inline u32 pack(float low, float high) { return narrow(low) | (u32)narrow(high) << 16; }
inline float low_of(u32 x) { return wide(x & 0xffff); }
inline float high_of(u32 x) { return wide(x >> 16); }
inline float power_of_2(float x) { return exp2f(x); }

// Loads

// What words hold: address, sizes (channels, tokens, heads, rows), distances (tokens, heads, rows), tokens
// of a box.
struct alignas(64) Map { u64 words[16]; };

inline u32 swizzled(u32 at) { return at ^ ((at >> 7) & 7) << 4; }
inline void load_box(u32 to, const Map* map, u32 bar, int channel, int token, int head, int row) {
  const u64* w = map->words;
  const unsigned short* from = (const unsigned short*)w[0];
  if (head >= (int)w[3] || row >= (int)w[4]) fail("a box beside the tensor");
  for (int t = 0; t < (int)w[8]; t++)
    for (int c = 0; c < 64; c++) {
      bool there = channel + c < (int)w[1] && token + t < (int)w[2];
      unsigned short x = there ? from[channel + c + (token + t) * w[5] + head * w[6] + row * w[7]] : 0;
      memcpy(memory + swizzled(to + t * 128 + c * 2), &x, 2);
    }
  came(bar, w[8] * 128);
}
inline void fetch_box(const Map* map, int, int, int head, int row) {
  if (head >= (int)map->words[3] || row >= (int)map->words[4]) fail("a box beside the tensor");
}
inline void load_line(u32 to, const void* from, u32 bytes, u32 bar) {
  memcpy(memory + to, from, bytes);
  came(bar, bytes);
}

// Products

inline void products_begin() {}
inline void products_commit() {}
template<int N> inline void products_wait() {}

struct Matrix { u32 at, leading, stride; };
static Matrix matrix_of(u64 x) {
  auto field = [x](int at) { return (u32)(x >> at & 0x3fff) << 4; };
  return {field(0), field(16), field(32)};
}
// Element `i` of the outer dimension, `k` of that which is summed over.
static float element(const Matrix& m, int i, int k, bool turned) {
  u32 at = turned ? m.at + (i >> 6) * m.leading + (k >> 3) * m.stride + (k & 7) * 128 + (i & 63) * 2
                  : m.at + (i >> 3) * m.stride + (i & 7) * 128 + k * 2;
  unsigned short x;
  memcpy(&x, memory + swizzled(at), 2);
  return wide(x);
}
template<int R> static void multiply(float (&x)[R], const float (&a)[2][16], const Matrix& b, bool add, bool turned) {
  for (int j = 0; j < R / 4; j++)
    for (int c = 0; c < 2; c++) {
      float sums[2] = {0.f, 0.f};
      for (int k = 0; k < 16; k++) {
        float y = element(b, 8 * j + 2 * (current & 3) + c, k, turned);
        for (int i = 0; i < 2; i++) sums[i] += a[i][k] * y;
      }
      for (int i = 0; i < 2; i++) x[4 * j + 2 * i + c] = (add ? x[4 * j + 2 * i + c] : 0.f) + sums[i];
    }
}
static int row_of_tile() { return ((current & 127) >> 5) * 16 + ((current & 31) >> 2); }
template<bool turned, int R> static void shared_product(float (&x)[R], u64 a, u64 b, int add) {
  warpgroup();
  Matrix left = matrix_of(a);
  float rows[2][16];
  for (int i = 0; i < 2; i++)
    for (int k = 0; k < 16; k++) rows[i][k] = element(left, row_of_tile() + 8 * i, k, turned);
  multiply(x, rows, matrix_of(b), add, turned);
  warpgroup();
}
template<int R> static void register_product(float (&x)[R], u32 a0, u32 a1, u32 a2, u32 a3, u64 b) {
  static float told[4][64][16];
  int group = current >> 7, row = row_of_tile(), column = 2 * (current & 3);
  u32 parts[4] = {a0, a1, a2, a3};
  for (int i = 0; i < 4; i++) {
    float* to = &told[group][row + 8 * (i & 1)][column + 8 * (i >> 1)];
    to[0] = low_of(parts[i]);
    to[1] = high_of(parts[i]);
  }
  warpgroup();
  float rows[2][16];
  for (int i = 0; i < 2; i++) memcpy(rows[i], told[group][row + 8 * i], sizeof(rows[i]));
  multiply(x, rows, matrix_of(b), true, true);
  warpgroup();
}

inline void store_matrices(u32 at, u32 a, u32 b, u32 c, u32 d) {
  static u32 told[512];
  told[current] = at;
  warp();
  u32 parts[4] = {a, b, c, d};
  int lane = current & 31, first = current & ~31;
  for (int i = 0; i < 4; i++) memcpy(memory + told[first + 8 * i + (lane >> 2)] + 4 * (lane & 3), &parts[i], 4);
  warp();
}
inline void store_four(u32 at, float a, float b, float c, float d) {
  float x[4] = {a, b, c, d};
  memcpy(memory + at, x, 16);
}
inline void store_ints(u32 at, int a, int b, int c, int d) {
  int x[4] = {a, b, c, d};
  memcpy(memory + at, x, 16);
}
inline int4 load_ints(u32 at) {
  int4 x;
  memcpy(&x, memory + at, 16);
  return x;
}
inline float2 load_two(u32 at) {
  float2 x;
  memcpy(&x, memory + at, 8);
  return x;
}
inline void add_tile(float* to, u32 from) {
  for (int i = 0; i < 4096; i++) {
    float x;
    memcpy(&x, memory + from + 4 * i, 4);
    to[i] += x;
  }
}
inline void store_box(const Map* map, u32 from, int channel, int token, int head, int row) {
  const u64* w = map->words;
  unsigned short* to = (unsigned short*)w[0];
  if (head >= (int)w[3] || row >= (int)w[4]) fail("a box beside the tensor");
  for (int t = 0; t < (int)w[8]; t++)
    for (int c = 0; c < 64; c++)
      if (channel + c < (int)w[1] && token + t < (int)w[2])
        memcpy(&to[channel + c + (token + t) * w[5] + head * w[6] + row * w[7]], memory + swizzled(from + t * 128 + c * 2), 2);
}
inline void stores_commit() {}
inline void stores_read() {}
inline void stores_written() {}
