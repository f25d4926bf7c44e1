// What the kernels of SSD share: the call, tiles in shared memory, products. Q tokens are a chunk; heads have up to
// P channels and N numbers of state, with zeros around what they have.

// Widths of rows in shared memory: what one product reads along rows and another across, in different banks.
#define ALONG(n) ((n) + 4)
#define ACROSS(n) ((n) + 8)

struct Call {
  // [S, t, E], [S, t, H], [S, t, H], [S, t, G N], [S, t, G N], [E], [S, N, E]
  const float *x, *weight, *log, *b, *c, *d, *h;
  // [S, t, E], [S, N, E]
  const float *dy, *dh;
  // C Bt of each chunk, [S, M, G, Q, Q], from the second token to the first.
  float *scores;
  // Of each chunk and head, [S, M, H, N, P]: what it adds to the state, then the state before it; and what it
  // reads of the gradient of that, then the gradient of the state behind it.
  float *states, *carries;
  // Sums of logarithms over chunks, [S, M, H]
  float *whole;
  // [S, t, E], [S, N, E]
  float *y, *behind;
  // Like what they are gradients of. dB, dC and dD come in parts: [parts, S, t, G N] and [S, M, E].
  float *dx, *dweight, *dlog, *db, *dc, *dd, *dh0;
  float *sum_b, *sum_c, *sum_d;
  int rows, len, heads, groups, n, p;
  // M, and workgroups that share the heads of a group.
  int chunks, parts;
};

static_assert(sizeof(Call) == CALL_BYTES, "a call as the host lays it out");

__device__ __forceinline__ int low(float x) { return __float_as_int(x) & 0xffffe000; }

// x += a b in tensor cores, of parts of numbers: 11 bits, the next 11, and the rest is left out.
__device__ __forceinline__ void multiply(float (&x)[4], const float (&a)[4], const float (&b)[2]) {
  int ah[4], al[4], bh[2], bl[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) ah[i] = low(a[i]), al[i] = __float_as_int(a[i] - __int_as_float(ah[i]));
#pragma unroll
  for (int i = 0; i < 2; ++i) bh[i] = low(b[i]), bl[i] = __float_as_int(b[i] - __int_as_float(bh[i]));
  add_product(x, al, bh);
  add_product(x, ah, bl);
  add_product(x, ah, bh);
}

// A warp's part of a product, 16 rows from m on and 8 T columns from n on, summed over k: a is [m, k], or [k, m]
// where it is turned; b is [k, n], or [n, k]. Number 0 of tile i is at (lane / 4, 8 i + lane % 4 * 2), 1 beside
// it, and 2 and 3 eight rows below.
template <int T, bool TURN_A, bool TURN_B>
__device__ __forceinline__ void product(float (&x)[T][4], const float *a, int of_a, const float *b, int of_b, int m,
                                        int n, int depth) {
  int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll 2
  for (int k = 0; k < depth; k += 8) {
    float left[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      int row = m + g + i % 2 * 8, column = k + t + i / 2 * 4;
      left[i] = TURN_A ? a[column * of_a + row] : a[row * of_a + column];
    }
#pragma unroll
    for (int j = 0; j < T; ++j) {
      float right[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        int row = k + t + i * 4, column = n + 8 * j + g;
        right[i] = TURN_B ? b[column * of_b + row] : b[row * of_b + column];
      }
      multiply(x[j], left, right);
    }
  }
}

// For every number of a warp's part: its row, column, and itself.
#define EACH(of, T, m, n, row, column, value, ...)                                                              \
  _Pragma("unroll") for (int j_ = 0; j_ < T; ++j_) _Pragma("unroll") for (int i_ = 0; i_ < 4; ++i_) {           \
    int row = (m) + threadIdx.x % 32 / 4 + i_ / 2 * 8, column = (n) + 8 * j_ + threadIdx.x % 4 * 2 + i_ % 2;    \
    float &value = of[j_][i_];                                                                                  \
    __VA_ARGS__;                                                                                                \
  }

// Rows of up to `width` numbers into a tile of TALL by WIDE, zeros around them.
template <int TALL, int WIDE>
__device__ __forceinline__ void load(float *to, int pitch, const float *from, long long stride, int rows, int width) {
#pragma unroll 16
  for (int i = threadIdx.x; i < TALL * WIDE; i += THREADS) {
    int row = i / WIDE, column = i % WIDE;
    to[row * pitch + column] = row < rows && column < width ? from[row * stride + column] : 0.0f;
  }
}

// Decays of a chunk of a head: from before it to each token and with it, from behind each to the end, and the sum
// of all logarithms. Sums are of what they span alone. `log` is in shared memory; the first warp calls.
__device__ __forceinline__ float decays(const float *log, float *entered, float *left) {
  int lane = threadIdx.x;
  float first = log[2 * lane], second = log[2 * lane + 1];
  float up = first + second, down = up;
#pragma unroll
  for (int i = 1; i < 32; i *= 2) {
    float before = __shfl_up_sync(~0u, up, i), behind = __shfl_down_sync(~0u, down, i);
    if (lane >= i) up += before;
    if (lane + i < 32) down += behind;
  }
  float before = __shfl_up_sync(~0u, up, 1), behind = __shfl_down_sync(~0u, down, 1);
  if (lane == 0) before = 0.0f;
  if (lane == 31) behind = 0.0f;
  entered[2 * lane] = expf(before + first), entered[2 * lane + 1] = expf(up);
  left[2 * lane] = expf(second + behind), left[2 * lane + 1] = expf(behind);
  return __shfl_sync(~0u, down, 0);
}

// Decays from token j to i at (i, j), zero where i is before j.
__device__ __forceinline__ void between(const float *log, float *to, int pitch) {
  int j = threadIdx.x % Q, first = threadIdx.x / Q * (Q / 4);
  float sum = 0.0f;
  for (int k = 0; k < first; ++k) sum += k > j ? log[k] : 0.0f;
#pragma unroll
  for (int i = first; i < first + Q / 4; ++i) {
    sum += i > j ? log[i] : 0.0f;
    to[i * pitch + j] = i < j ? 0.0f : expf(sum);
  }
}

// Where a workgroup is: a chunk of a row.
struct Place {
  int row, chunk, count;
  // First token among those of all rows.
  long long first;

  __device__ Place(const Call &k) : row(blockIdx.z), chunk(blockIdx.y) {
    count = min(Q, k.len - chunk * Q);
    first = (long long)row * k.len + chunk * Q;
  }

  __device__ long long of_head(const Call &k, int head) const {
    return ((long long)row * k.chunks + chunk) * k.heads + head;
  }
};
