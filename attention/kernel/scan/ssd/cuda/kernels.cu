// The passes of SSD.

// C Bt of each chunk and group.
extern "C" __global__ void __launch_bounds__(THREADS) scores(const __grid_constant__ Call k) {
  extern __shared__ float4 space[];
  float *b = (float *)space, *c = b + Q * ALONG(N);
  Place p(k);
  int group = blockIdx.x, warp = threadIdx.x / 32;
  long long stride = (long long)k.groups * k.n, from = p.first * stride + group * k.n;
  load<Q, N>(b, ALONG(N), k.b + from, stride, p.count, k.n);
  load<Q, N>(c, ALONG(N), k.c + from, stride, p.count, k.n);
  __syncthreads();
  float x[4][4] = {};
  int m = warp / 2 * 16, n = warp % 2 * 32;
  product<4, false, true>(x, c, ALONG(N), b, ALONG(N), m, n, N);
  float *to = k.scores + (((long long)p.row * k.chunks + p.chunk) * k.groups + group) * Q * Q;
  EACH(x, 4, m, n, i, j, value, to[i * Q + j] = value)
}

// [N, P] of a head and chunk from tokens' [Q, N] and [Q, P], the second scaled.
__device__ __forceinline__ void add(const Call &k, const Place &p, int head, const float *of_tokens, const float *x,
                                    float *to, float *space, bool back) {
  float *a = (float *)space, *b = a + Q * ACROSS(N), *log = b + Q * ACROSS(P), *entered = log + Q, *left = entered + Q;
  int group = head / (k.heads / k.groups), warp = threadIdx.x / 32, tid = threadIdx.x;
  long long stride = (long long)k.groups * k.n, width = (long long)k.heads * k.p;
  if (tid < Q) {
    bool there = tid < p.count;
    log[tid] = there ? k.log[(p.first + tid) * k.heads + head] : 0.0f;
  }
  load<Q, N>(a, ACROSS(N), of_tokens + p.first * stride + group * k.n, stride, p.count, k.n);
  load<Q, P>(b, ACROSS(P), x + p.first * width + head * k.p, width, p.count, k.p);
  __syncthreads();
  if (warp == 0) {
    float sum = decays(log, entered, left);
    if (tid == 0 && !back) k.whole[p.of_head(k, head)] = sum;
  }
  __syncthreads();
  for (int i = tid; i < Q * P; i += THREADS) {
    int token = i / P;
    float scale = back ? entered[token] : left[token];
    if (!back) scale *= token < p.count ? k.weight[(p.first + token) * k.heads + head] : 0.0f;
    b[token * ACROSS(P) + i % P] *= scale;
  }
  __syncthreads();
  float sum[8][4] = {};
  product<8, true, false>(sum, a, ACROSS(N), b, ACROSS(P), warp * 16, 0, Q);
  to += p.of_head(k, head) * k.n * k.p;
  EACH(sum, 8, warp * 16, 0, n, column, value, if (n < k.n && column < k.p) to[n * k.p + column] = value)
}

// What each chunk adds to the state.
extern "C" __global__ void __launch_bounds__(THREADS) added(const __grid_constant__ Call k) {
  extern __shared__ float4 space[];
  add(k, Place(k), blockIdx.x, k.b, k.x, k.states, (float *)space, false);
}

// What each chunk adds to the gradient of the state before it.
extern "C" __global__ void __launch_bounds__(THREADS) reads(const __grid_constant__ Call k) {
  extern __shared__ float4 space[];
  add(k, Place(k), blockIdx.x, k.c, k.dy, k.carries, (float *)space, true);
}

// Chunks whose numbers a thread asks for together.
#define TOGETHER 8

__device__ __forceinline__ void hand_on(const Call &k, const float *first, float *states, float *last, bool reverse) {
  int number = blockIdx.x * THREADS + threadIdx.x, head = blockIdx.y, row = blockIdx.z;
  if (number >= k.n * k.p) return;
  long long width = (long long)k.heads * k.p, of_chunk = width * k.n;
  long long at = ((long long)row * k.n + number / k.p) * width + head * k.p + number % k.p;
  states += (long long)row * k.chunks * of_chunk + (long long)head * k.n * k.p + number;
  const float *whole = k.whole + (long long)row * k.chunks * k.heads + head;
  float h = first[at];
  for (int from = 0; from < k.chunks; from += TOGETHER) {
    float new_[TOGETHER], decay[TOGETHER];
#pragma unroll
    for (int i = 0; i < TOGETHER; ++i) {
      int c = min(from + i, k.chunks - 1), chunk = reverse ? k.chunks - 1 - c : c;
      new_[i] = states[chunk * of_chunk], decay[i] = whole[(long long)chunk * k.heads];
    }
#pragma unroll
    for (int i = 0; i < TOGETHER; ++i) {
      int c = from + i, chunk = reverse ? k.chunks - 1 - c : c;
      if (c < k.chunks) {
        states[chunk * of_chunk] = h;
        h = fmaf(expf(decay[i]), h, new_[i]);
      }
    }
  }
  last[at] = h;
}

extern "C" __global__ void __launch_bounds__(THREADS) pass(const __grid_constant__ Call k) {
  hand_on(k, k.h, k.states, k.behind, false);
}

extern "C" __global__ void __launch_bounds__(THREADS) pass_back(const __grid_constant__ Call k) {
  hand_on(k, k.dh, k.carries, k.dh0, true);
}

// y of a chunk and head: what its tokens give to each other, and what they read of the state before.
extern "C" __global__ void __launch_bounds__(THREADS) outputs(const __grid_constant__ Call k) {
  extern __shared__ float4 space[];
  float *mixed = (float *)space, *x = mixed + Q * ALONG(Q), *c = x + Q * ACROSS(P), *h = c + Q * ALONG(N);
  float *log = h + N * ACROSS(P), *entered = log + Q, *left = entered + Q, *weight = left + Q;
  Place p(k);
  int head = blockIdx.x, group = head / (k.heads / k.groups), warp = threadIdx.x / 32, tid = threadIdx.x;
  long long stride = (long long)k.groups * k.n, width = (long long)k.heads * k.p;
  if (tid < Q) {
    bool there = tid < p.count;
    log[tid] = there ? k.log[(p.first + tid) * k.heads + head] : 0.0f;
    weight[tid] = there ? k.weight[(p.first + tid) * k.heads + head] : 0.0f;
  }
  const float *scores = k.scores + (((long long)p.row * k.chunks + p.chunk) * k.groups + group) * Q * Q;
  load<Q, P>(x, ACROSS(P), k.x + p.first * width + head * k.p, width, p.count, k.p);
  load<Q, N>(c, ALONG(N), k.c + p.first * stride + group * k.n, stride, p.count, k.n);
  load<N, P>(h, ACROSS(P), k.states + p.of_head(k, head) * k.n * k.p, k.p, k.n, k.p);
  __syncthreads();
  if (warp == 0) decays(log, entered, left);
  between(log, mixed, ALONG(Q));
  __syncthreads();
  int m = warp / 2 * 16, n = warp % 2 * 32;
  float y[4][4] = {};
  product<4, false, false>(y, c, ALONG(N), h, ACROSS(P), m, n, N);
#pragma unroll 4
  for (int i = tid; i < Q * Q; i += THREADS) mixed[i / Q * ALONG(Q) + i % Q] *= scores[i] * weight[i % Q];
  EACH(y, 4, m, n, i, column, value, value *= entered[i])
  __syncthreads();
  product<4, false, false>(y, mixed, ALONG(Q), x, ACROSS(P), m, n, Q);
  float *to = k.y + p.first * width + head * k.p;
  EACH(y, 4, m, n, i, column, value, if (i < p.count && column < k.p) {
    if (SKIP_D) value = fmaf(k.d[head * k.p + column], x[i * ACROSS(P) + column], value);
    to[i * width + column] = value;
  })
}

// Sums of a row's numbers that the lanes of a warp have, `part` of the columns: into to[part][row].
#define ROW_SUMS(all, T, m, n, of, to)                                                                           \
  _Pragma("unroll") for (int half = 0; half < 2; ++half) {                                                      \
    int row = (m) + threadIdx.x % 32 / 4 + half * 8;                                                            \
    float sum = 0.0f;                                                                                           \
    _Pragma("unroll") for (int j_ = 0; j_ < T; ++j_) _Pragma("unroll") for (int i_ = 0; i_ < 2; ++i_) {         \
      int column = (n) + 8 * j_ + threadIdx.x % 4 * 2 + i_;                                                     \
      sum = fmaf(of, all[j_][2 * half + i_], sum);                                                               \
    }                                                                                                           \
    sum += __shfl_xor_sync(~0u, sum, 1);                                                                        \
    sum += __shfl_xor_sync(~0u, sum, 2);                                                                        \
    if (threadIdx.x % 4 == 0) to[row] = sum;                                                                    \
  }

// All gradients of a chunk, for some heads of a group one after the other.
extern "C" __global__ void __launch_bounds__(THREADS, 1) gradients(const __grid_constant__ Call k) {
  extern __shared__ float4 space[];
  float *x = (float *)space, *dy = x + Q * ALONG(P), *mixed = dy + Q * ALONG(P), *pairs = mixed + Q * ACROSS(Q);
  float *b = pairs + Q * (Q + 1), *c = b + Q * ALONG(N), *h = c + Q * ALONG(N), *carry = h + N * ALONG(P);
  float *log = carry + N * ACROSS(P), *entered = log + Q, *left = entered + Q, *weight = left + Q;
  float *ends = weight + Q, *passed = ends + 2 * Q, *of_weight = passed + 2 * Q, *crossing = of_weight + 2 * Q;
  float *below = crossing + Q, *products = below + 4 * Q;
  Place p(k);
  int group = blockIdx.x / k.parts, part = blockIdx.x % k.parts, each = k.heads / k.groups;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, tid = threadIdx.x;
  long long stride = (long long)k.groups * k.n, width = (long long)k.heads * k.p;
  load<Q, N>(b, ALONG(N), k.b + p.first * stride + group * k.n, stride, p.count, k.n);
  load<Q, N>(c, ALONG(N), k.c + p.first * stride + group * k.n, stride, p.count, k.n);
  int m = warp / 2 * 16, n = warp % 2 * 32, wide = warp % 2 * 64;
  const float *all = k.scores + (((long long)p.row * k.chunks + p.chunk) * k.groups + group) * Q * Q;
  float scores[4][4], dscores[4][4] = {}, db[8][4] = {}, dc[8][4] = {};
  EACH(scores, 4, m, n, i, j, value, value = all[i * Q + j])

  int first = group * each + part * each / k.parts, end = group * each + (part + 1) * each / k.parts;
  for (int head = first; head < end; ++head) {
    __syncthreads();
    if (tid < Q) {
      bool there = tid < p.count;
      log[tid] = there ? k.log[(p.first + tid) * k.heads + head] : 0.0f;
      weight[tid] = there ? k.weight[(p.first + tid) * k.heads + head] : 0.0f;
    }
    load<Q, P>(x, ALONG(P), k.x + p.first * width + head * k.p, width, p.count, k.p);
    load<Q, P>(dy, ALONG(P), k.dy + p.first * width + head * k.p, width, p.count, k.p);
    load<N, P>(h, ALONG(P), k.states + p.of_head(k, head) * k.n * k.p, k.p, k.n, k.p);
    load<N, P>(carry, ACROSS(P), k.carries + p.of_head(k, head) * k.n * k.p, k.p, k.n, k.p);
    __syncthreads();
    float whole = 0.0f;
    if (warp == 0) whole = decays(log, entered, left);
    between(log, mixed, ACROSS(Q));
    // The state before and the gradient behind: how much the chunk's decay counts.
    float both = 0.0f;
#pragma unroll 8
    for (int i = tid; i < N * P; i += THREADS) both = fmaf(h[i / P * ALONG(P) + i % P], carry[i / P * ACROSS(P) + i % P], both);
#pragma unroll
    for (int i = 16; i > 0; i /= 2) both += __shfl_xor_sync(~0u, both, i);
    if (lane == 0) products[warp] = both;
    __syncthreads();

    // Within the chunk.
    {
      float dmixed[4][4] = {};
      product<4, false, true>(dmixed, dy, ALONG(P), x, ALONG(P), m, n, P);
      EACH(dmixed, 4, m, n, i, j, value, {
        float decay = mixed[i * ACROSS(Q) + j], of_pair = decay * scores[j_][i_];
        value *= weight[j];
        dscores[j_][i_] = fmaf(value, decay, dscores[j_][i_]);
        mixed[i * ACROSS(Q) + j] = of_pair;
        // A pair of tokens passes the decays behind the first, up to the second.
        pairs[i * (Q + 1) + j] = i > j ? value * of_pair : 0.0f;
      })
    }
    // To and from states.
    {
      float of_c[8][4] = {};
      product<8, false, true>(of_c, dy, ALONG(P), h, ALONG(P), m, wide, P);
      EACH(of_c, 8, m, wide, i, column, value, { value *= entered[i]; dc[j_][i_] += value; })
      float *to = ends + warp % 2 * Q;
      ROW_SUMS(of_c, 8, m, wide, c[row * ALONG(N) + column], to)
    }
    {
      float of_b[8][4] = {};
      product<8, false, true>(of_b, x, ALONG(P), carry, ACROSS(P), m, wide, P);
      EACH(of_b, 8, m, wide, j, column, value, db[j_][i_] = fmaf(value, left[j] * weight[j], db[j_][i_]))
    }
    float input[4][4] = {};
    product<4, false, false>(input, b, ALONG(N), carry, ACROSS(P), m, n, N);
    EACH(input, 4, m, n, j, column, value, value *= left[j])
    {
      float *to = passed + warp % 2 * Q;
      ROW_SUMS(input, 4, m, n, x[row * ALONG(P) + column], to)
    }
    __syncthreads();
    product<4, true, false>(input, mixed, ACROSS(Q), dy, ALONG(P), m, n, Q);
    {
      float *to = of_weight + warp % 2 * Q;
      ROW_SUMS(input, 4, m, n, x[row * ALONG(P) + column], to)
    }
    float *dx = k.dx + p.first * width + head * k.p;
    EACH(input, 4, m, n, j, column, value, if (j < p.count && column < k.p) {
      float of_skip = SKIP_D ? k.d[head * k.p + column] * dy[j * ALONG(P) + column] : 0.0f;
      dx[j * width + column] = fmaf(value, weight[j], of_skip);
    })
    // Sums of pairs from each row on: first of four rows' parts, then within these.
    int column = tid % Q, from = tid / Q * (Q / 4);
    float sum = 0.0f, skipped = 0.0f;
#pragma unroll
    for (int i = from; i < from + Q / 4; ++i) {
      sum += pairs[i * (Q + 1) + column];
      if (SKIP_D && column < P) skipped = fmaf(dy[i * ALONG(P) + column], x[i * ALONG(P) + column], skipped);
    }
    below[tid] = sum;
    __syncthreads();
    sum = 0.0f;
    for (int part = tid / Q + 1; part < 4; ++part) sum += below[part * Q + column];
#pragma unroll
    for (int i = from + Q / 4 - 1; i >= from; --i) {
      sum += pairs[i * (Q + 1) + column];
      pairs[i * (Q + 1) + column] = column < i ? sum : 0.0f;
    }
    __syncthreads();
    below[tid] = skipped;
    {
      int row = tid / 4;
      float of_row = 0.0f;
#pragma unroll
      for (int i = 0; i < Q / 4; ++i) of_row += pairs[row * (Q + 1) + tid % 4 * (Q / 4) + i];
      of_row += __shfl_xor_sync(~0u, of_row, 1);
      of_row += __shfl_xor_sync(~0u, of_row, 2);
      if (tid % 4 == 0) crossing[row] = of_row;
    }
    __syncthreads();
    if (SKIP_D && tid < k.p) {
      float all = (below[tid] + below[Q + tid]) + (below[2 * Q + tid] + below[3 * Q + tid]);
      k.dd[((long long)p.row * k.chunks + p.chunk) * width + head * k.p + tid] = all;
    }
    if (warp == 0) {
      // A token's decay is passed by what ends at it or later, and by what comes from before it.
      float up[2], down[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        int t = 2 * lane + i;
        down[i] = ends[t] + ends[Q + t];
        up[i] = weight[t] * (passed[t] + passed[Q + t]);
      }
      float before = up[0] + up[1], behind = down[0] + down[1];
#pragma unroll
      for (int i = 1; i < 32; i *= 2) {
        float less = __shfl_up_sync(~0u, before, i), more = __shfl_down_sync(~0u, behind, i);
        if (lane >= i) before += less;
        if (lane + i < 32) behind += more;
      }
      float less = __shfl_up_sync(~0u, before, 1), more = __shfl_down_sync(~0u, behind, 1);
      if (lane == 0) less = 0.0f;
      if (lane == 31) more = 0.0f;
      float of_chunk = lane < 8 ? products[lane] : 0.0f;
#pragma unroll
      for (int i = 4; i > 0; i /= 2) of_chunk += __shfl_xor_sync(~0u, of_chunk, i);
      of_chunk = __shfl_sync(~0u, of_chunk, 0) * expf(whole);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        int t = 2 * lane + i;
        if (t < p.count) {
          float of_state = i == 0 ? less + behind : less + up[0] + down[1] + more;
          k.dlog[(p.first + t) * k.heads + head] = crossing[t] + of_state + of_chunk;
          k.dweight[(p.first + t) * k.heads + head] = of_weight[t] + of_weight[Q + t];
        }
      }
    }
  }
  __syncthreads();
  EACH(dscores, 4, m, n, i, j, value, mixed[i * ACROSS(Q) + j] = value)
  __syncthreads();
  product<8, true, false>(db, mixed, ACROSS(Q), c, ALONG(N), m, wide, Q);
  product<8, false, false>(dc, mixed, ACROSS(Q), b, ALONG(N), m, wide, Q);
  long long at = (long long)part * k.rows * k.len * stride + p.first * stride + group * k.n;
  EACH(db, 8, m, wide, i, column, value, if (i < p.count && column < k.n) k.db[at + i * stride + column] = value)
  EACH(dc, 8, m, wide, i, column, value, if (i < p.count && column < k.n) k.dc[at + i * stride + column] = value)
}

// dB, dC and dD; parts in their order.
extern "C" __global__ void __launch_bounds__(THREADS) sums(const __grid_constant__ Call k) {
  long long i = (long long)blockIdx.x * THREADS + threadIdx.x, shared = (long long)k.rows * k.len * k.groups * k.n;
  if (i < shared) {
    float b = 0.0f, c = 0.0f;
    for (int part = 0; part < k.parts; ++part) b += k.db[part * shared + i], c += k.dc[part * shared + i];
    k.sum_b[i] = b, k.sum_c[i] = c;
    return;
  }
  i -= shared;
  int width = k.heads * k.p;
  if (SKIP_D && i < width) {
    float sum = 0.0f;
#pragma unroll 16
    for (int part = 0; part < k.rows * k.chunks; ++part) sum += k.dd[(long long)part * width + i];
    k.sum_d[i] = sum;
  }
}
