// What all kernels share: what a launch gets, and tiles in shared memory.
//
// Before this text come HEAD (channels of a tile, a multiple of 64), BRANCHES, RULES_0 to RULES_2 (what
// masks look at, see mask.cuh), ALONE, TYPE ("bf16" or "f16"), and behind it the matrix products (see
// source.rs), and COMPUTING, warpgroups that do. There are no headers: NVRTC compiles it where the toolkit is not installed.

// Distances in elements.
struct Steps { long long row, head, token; };

struct Call {
  // o: out, where it is read; to: where a pass by queries puts what comes of it, 64 queries at a time.
  Map q, k, v, dout, o, to;
  Side sides[3];
  // Pairs (row and head, tile) in the order in which they are taken up; by queries in turns, with as many
  // places in each as the forward pass has workgroups. Negative where a place is empty.
  const int* order;
  // Forward and, read by `before`, backward.
  void* out;
  float* lse;
  // Backward: lse in units of log 2 and rowsum(dO * O), both [B, H, tall]; sums of dq in f32.
  float* lse2;
  float* dots;
  float* sums;
  // What comes of the parts of a row together.
  void* whole;
  float* whole_lse;
  const void* dout_rows;
  void* dq;
  void* dk;
  void* dv;
  Steps of_out, of_dout, of_dk, of_dv;
  // Channels of q and k, and of v: at most HEAD; what a tile has beyond them is zero.
  int d, e;
  int batch, heads, kv, queries, keys;
  // Queries rounded up to whole tiles.
  int tall;
  int turns;
  // Of the keys of a row, where there are few queries.
  int parts;
  float scale, scale_log2;
};

static_assert(sizeof(Call) == CALL_BYTES, "launch.rs lays out what this reads");

#define ROW_BYTES 128   // of a tile: 64 channels, the width that a swizzle covers
#define ATOM 1024       // 8 rows
#define FOLDS (HEAD / 64)

#define INFINITE __int_as_float(0x7f800000)

// A tile of TALL tokens: one box per 64 channels. Tokens and channels that are not there become zero.
template<int TALL> __device__ __forceinline__ void load_tile(u32 to, const Map* map, u32 bar, int token, int head, int row) {
#pragma unroll
  for (int fold = 0; fold < FOLDS; fold++)
    load_box(to + fold * TALL * ROW_BYTES, map, bar, fold * 64, token, head, row);
}

// A matrix in shared memory with 128-byte swizzle; distances in bytes. What lies further is added in
// units of 16 bytes: addresses stay within the 18 bits that there are.
__device__ __forceinline__ u64 matrix(u32 at, u32 leading, u32 further) {
  const u64 kind = ((u64)(ATOM >> 4) << 32) | (1ull << 62);
  return kind | ((at >> 4 | leading >> 4 << 16) + (further >> 4));
}
// Channels 16·step onwards of a tile that is TALL tokens high, as the side of a product that is summed
// over channels.
template<int TALL> __device__ __forceinline__ u64 by_channels(u32 tile, int step) {
  return matrix(tile, 16, (step >> 2) * TALL * ROW_BYTES + (step & 3) * 32);
}
// Tokens 16·step onwards of such a tile, as the side of a product that is summed over tokens.
template<int TALL> __device__ __forceinline__ u64 by_tokens(u32 tile, int step) {
  return matrix(tile, TALL * ROW_BYTES, step * 16 * ROW_BYTES);
}

// Accumulators as the left side of a product.
template<int N> __device__ __forceinline__ void pack_all(u32 (&to)[N], float (&from)[2 * N]) {
#pragma unroll
  for (int i = 0; i < N; i++) to[i] = pack(from[2 * i], from[2 * i + 1]);
}

// Sum of the products of 8 neighbouring numbers.
template<class X> __device__ __forceinline__ float dot_of(X x, uint4 y) {
  float sum = low_of(x.x) * low_of(y.x) + high_of(x.x) * high_of(y.x);
  sum += low_of(x.y) * low_of(y.y) + high_of(x.y) * high_of(y.y);
  sum += low_of(x.z) * low_of(y.z) + high_of(x.z) * high_of(y.z);
  return sum + (low_of(x.w) * low_of(y.w) + high_of(x.w) * high_of(y.w));
}

// One warpgroup loads, the others compute.
#define THREADS (128 + 128 * COMPUTING)
// Registers that a thread of those who load, and of those who compute, may have: together what a workgroup gets when it
// begins, since it would wait for more for ever.
#define SHARE_OUT(to_load, to_compute)                                                                        \
  constexpr int TO_LOAD = to_load, TO_COMPUTE = to_compute;                                                   \
  static_assert(TO_LOAD + COMPUTING * TO_COMPUTE <= (1 + COMPUTING) * (65536 / THREADS / 8 * 8), "registers")
// Warps that compute: each tells once that it has read a tile.
#define READERS (4 * COMPUTING)

// Where the tokens of a head begin.
__device__ __forceinline__ unsigned short* head_of(const void* to, const Steps& steps, int row, int head) {
  return (unsigned short*)to + row * steps.row + head * steps.head;
}

// Writes 64 x HEAD accumulators, as many channels as there are, `step` from token to token; this thread has `token`,
// and the one eight further, too. Tokens from `tokens` on do not exist.
template<int N> __device__ __forceinline__ void store(unsigned short* to, long long step, int tokens, int token, int channels,
                                                      float (&x)[N], float first, float second) {
  int at = 2 * (threadIdx.x & 3);
  u32* line = (u32*)(to + token * step + at);
#pragma unroll
  for (int j = 0; j < N / 4; j++) {
    if (8 * j + at >= channels) break;
    if (token < tokens) line[4 * j] = pack(x[4 * j] * first, x[4 * j + 1] * first);
    if (token + 8 < tokens) line[4 * step + 4 * j] = pack(x[4 * j + 2] * second, x[4 * j + 3] * second);
  }
}
