// A linear layer of few rows: y = W x. Every weight is read once, straight into the operands of the products; rows of
// tokens are their narrow side. WARPS warps share 16 rows of weights, each with a part of the columns, and go on to other
// rows while what they read next is on its way.
//
// Before this text come ROWS (rows of tokens, in eights: 1 or 2), WARPS, STEPS (runs of 32 columns of a warp), DEEP (how
// many of them are under way; divides STEPS), and KIND, one of these:
//   TURNED  queries, keys and values: rotated, keys and values to where the cache ends
//   ADDED   to the residual stream, in place
//   GATED   silu of the one half times the other
//   PLAIN   in f32
// All but ADDED read a normalised x: its scale is a factor of the sums, the weights of the norm are one of x.

#define NORM (KIND != ADDED)

#define COLUMNS (WARPS * STEPS * 32)
// Whether a warp keeps its part of x.
#define KEPT (STEPS <= 8)

struct Call {
  // Weights of the parts, row by row: of queries, keys, values; of the gate and what it lets through.
  const u16* w[3];
  // In f32, as are the weights of the norm; 0 where there is none.
  const float* bias[3];
  const float* norm;
  const u16* x;
  u16* y;
  float* wide;
  // Where the keys and values of this token go, and how far rows and heads lie apart, in elements.
  u16* cache[2];
  long long row[2], head[2];
  // [D / 2] each; those of the next row lie so many numbers further.
  const float* cos;
  const float* sin;
  // Distances of rows of the weights, in elements.
  int step[3];
  int of_row;
  float eps;
  int rows, tiles;
  // Rows of the first part, of the second; channels of a head.
  int first, second, d;
};

static_assert(sizeof(Call) == CALL_BYTES, "a call as the host lays it out");

// The two rows of weights of a lane: they meet in its sums, so that pairs can be made of them there.
struct Pair {
  int part, near, far;
  const u16* w_near;
  const u16* w_far;
};

__device__ __forceinline__ Pair pair_of(const Call& call, int tile, int g, int begin) {
  Pair p;
  p.part = 0;
#if KIND == TURNED
  const int q = call.first / 16, k = q + call.second / 16;
  p.part = tile < q ? 0 : tile < k ? 1 : 2;
  tile -= p.part == 0 ? 0 : p.part == 1 ? q : k;
  if (p.part < 2) {
    // Eight channels of a head, and those that they turn with.
    const int each = call.d / 16, of = tile / each, at = tile % each * 8;
    p.near = of * call.d + at + g;
    p.far = p.near + call.d / 2;
  } else {
    p.near = tile * 16 + g;
    p.far = p.near + 8;
  }
#elif KIND == GATED
  p.near = p.far = tile * 8 + g;
#else
  p.near = tile * 16 + g;
  p.far = p.near + 8;
#endif
  const int other = KIND == GATED ? 1 : p.part;
  // Behind the last row, where their number is no multiple of 16, the last one stands for those that are not there.
  const int last = KIND == TURNED ? p.far : call.first - 1;
  p.w_near = call.w[p.part] + (long long)min(p.near, last) * call.step[p.part] + begin;
  p.w_far = call.w[other] + (long long)min(p.far, last) * call.step[other] + begin;
  return p;
}

// Eight numbers of x times the weights of the norm; the sum of their squares before.
__device__ __forceinline__ float normalised(uint4& x, float4 a, float4 b) {
  float square = 0;
  u32* each = &x.x;
  const float by[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
  for (int j = 0; j < 4; j++) {
    const float lo = low(each[j]), hi = high(each[j]);
    square += lo * lo + hi * hi;
    each[j] = pack(lo * by[j * 2], hi * by[j * 2 + 1]);
  }
  return square;
}

__device__ __forceinline__ void finish(const Call& call, const Pair& p, int token, float y0, float y1) {
#if KIND == TURNED
  if (call.bias[p.part]) {
    y0 += low(narrow(call.bias[p.part][p.near]));
    y1 += low(narrow(call.bias[p.part][p.far]));
  }
  y0 = low(narrow(y0));
  y1 = low(narrow(y1));
  if (p.part < 2) {
    const int at = token * call.of_row + p.near % call.d;
    const float c = call.cos[at], s = call.sin[at], turned = y0 * c - y1 * s;
    y1 = y1 * c + y0 * s;
    y0 = turned;
  }
  u16* y = call.y + (long long)token * call.first;
  int near = p.near, far = p.far;
  if (p.part > 0) {
    const int i = p.part - 1;
    y = call.cache[i] + token * call.row[i] + near / call.d * call.head[i];
    near %= call.d;
    far %= call.d;
  }
  y[near] = narrow(y0);
  y[far] = narrow(y1);
#elif KIND == ADDED
  u16* y = call.y + (long long)token * call.first;
  if (p.near < call.first) y[p.near] = narrow(low(y[p.near]) + low(narrow(y0)));
  if (p.far < call.first) y[p.far] = narrow(low(y[p.far]) + low(narrow(y1)));
#elif KIND == GATED
  const float gate = low(narrow(y0)), through = low(narrow(y1));
  if (p.near < call.first) call.y[(long long)token * call.first + p.near] = narrow(gate / (1 + __expf(-gate)) * through);
#else
  float* y = call.wide + (long long)token * call.first;
  if (p.near < call.first) y[p.near] = low(narrow(y0));
  if (p.far < call.first) y[p.far] = low(narrow(y1));
#endif
}

extern "C" __global__ void __launch_bounds__(WARPS * 32) thin(const __grid_constant__ Call call) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int begin = warp * STEPS * 32 + t * 8;
  __shared__ float parts[2][WARPS][ROWS][4][32];
  __shared__ float squares[2][WARPS][ROWS * 8];

  // Weights do not wait for the launch ahead.
  Pair now = pair_of(call, blockIdx.x, g, begin);
  uint4 a[DEEP], b[DEEP];
#pragma unroll
  for (int i = 0; i < DEEP; i++) { a[i] = once(now.w_near + i * 32); b[i] = once(now.w_far + i * 32); }
  behind();

  const u16* x[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; r++) x[r] = call.x + (long long)(r * 8 + g) * COLUMNS + begin;
  auto read = [&](int r, int i) {
    return r * 8 + g < call.rows ? *(const uint4*)(x[r] + i * 32) : make_uint4(0, 0, 0, 0);
  };
  float square[ROWS] = {};
#if KEPT
  uint4 v[STEPS][ROWS];
#pragma unroll
  for (int i = 0; i < STEPS; i++)
#pragma unroll
    for (int r = 0; r < ROWS; r++) v[i][r] = read(r, i);
#if NORM
#pragma unroll
  for (int i = 0; i < STEPS; i++) {
    const float4* by = (const float4*)(call.norm + begin + i * 32);
#pragma unroll
    for (int r = 0; r < ROWS; r++) square[r] += normalised(v[i][r], by[0], by[1]);
  }
#endif
#endif

  int turn = 0;
  for (int tile = blockIdx.x; tile < call.tiles; tile += gridDim.x, turn ^= 1) {
    const bool more = tile + gridDim.x < call.tiles;
    const Pair next = pair_of(call, more ? tile + gridDim.x : tile, g, begin);
    float sum[ROWS][4] = {};
#if !KEPT
#pragma unroll
    for (int r = 0; r < ROWS; r++) square[r] = 0;
#pragma unroll 1
    for (int s = 0; s < STEPS; s += DEEP) {
      uint4 v[DEEP][ROWS];
#pragma unroll
      for (int i = 0; i < DEEP; i++)
#pragma unroll
        for (int r = 0; r < ROWS; r++) v[i][r] = read(r, s + i);
#if NORM
#pragma unroll
      for (int i = 0; i < DEEP; i++) {
        const float4* by = (const float4*)(call.norm + begin + (s + i) * 32);
#pragma unroll
        for (int r = 0; r < ROWS; r++) square[r] += normalised(v[i][r], by[0], by[1]);
      }
#endif
      const bool here = s + DEEP < STEPS;
      const u16* w_near = here ? now.w_near + (s + DEEP) * 32 : next.w_near;
      const u16* w_far = here ? now.w_far + (s + DEEP) * 32 : next.w_far;
#pragma unroll
      for (int i = 0; i < DEEP; i++) {
        const uint4 wa = a[i], wb = b[i];
        if (here || more) { a[i] = once(w_near + i * 32); b[i] = once(w_far + i * 32); }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          product(sum[r], wa.x, wb.x, wa.y, wb.y, v[i][r].x, v[i][r].y);
          product(sum[r], wa.z, wb.z, wa.w, wb.w, v[i][r].z, v[i][r].w);
        }
      }
    }
#else
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
      const uint4 wa = a[s % DEEP], wb = b[s % DEEP];
      if (s + DEEP < STEPS) {
        a[s % DEEP] = once(now.w_near + (s + DEEP) * 32);
        b[s % DEEP] = once(now.w_far + (s + DEEP) * 32);
      } else if (more) {
        a[s % DEEP] = once(next.w_near + (s + DEEP - STEPS) * 32);
        b[s % DEEP] = once(next.w_far + (s + DEEP - STEPS) * 32);
      }
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        product(sum[r], wa.x, wb.x, wa.y, wb.y, v[s][r].x, v[s][r].y);
        product(sum[r], wa.z, wb.z, wa.w, wb.w, v[s][r].z, v[s][r].w);
      }
    }
#endif
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
#pragma unroll
      for (int j = 0; j < 4; j++) parts[turn][warp][r][j][lane] = sum[r][j];
#if NORM
      float all = square[r];
      all += __shfl_xor_sync(~0u, all, 1);
      all += __shfl_xor_sync(~0u, all, 2);
      if (t == 0) squares[turn][warp][r * 8 + g] = all;
#endif
    }
    // Parts of two turns: nobody writes what is still read.
    __syncthreads();
    // A warp per eight rows of tokens and column of the pairs that a lane has sums of.
    for (int of = warp; of < ROWS * 2; of += WARPS) {
      const int r = of / 2, odd = of % 2, token = r * 8 + t * 2 + odd;
      if (token >= call.rows) continue;
      float y0 = 0, y1 = 0;
#pragma unroll
      for (int w = 0; w < WARPS; w++) { y0 += parts[turn][w][r][odd][lane]; y1 += parts[turn][w][r][odd + 2][lane]; }
#if NORM
      float all = 0;
#pragma unroll
      for (int w = 0; w < WARPS; w++) all += squares[turn][w][token];
      const float scale = rsqrtf(all / COLUMNS + call.eps);
      y0 *= scale;
      y1 *= scale;
#endif
      finish(call, now, token, y0, y1);
    }
    now = next;
  }
}
