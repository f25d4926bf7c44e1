// Many tensors in a launch: a workgroup has a part of one of them, of EACH numbers.

struct Call {
  // Of each tensor. Steps of AdamW: weight, gradient, both moments, and where new weight and moments go. Sums of
  // squares: the tensor; of the first one alone, where parts go and where sums go.
  float *of[ADDRESSES][MANY];
  long long len[MANY];
  // Factor of the gradient, learning rate, beta1, beta2, eps, what decay leaves, corrections of both moments.
  float by[NUMBERS][MANY];
  // The first workgroup of each, and of none.
  int start[MANY + 1];
  int count;
  // Whether new weights and moments are the old ones.
  int undone;
};

static_assert(sizeof(Call) == CALL_BYTES, "a call as the host lays it out");

// Which tensor the workgroup has a part of.
__device__ __forceinline__ int tensor_of(const Call &k) {
  int low = 0, high = k.count - 1;
  while (low < high) {
    int middle = (low + high + 1) / 2;
    if (k.start[middle] <= (int)blockIdx.x) low = middle;
    else high = middle - 1;
  }
  return low;
}

struct Step {
  float scale, lr, beta1, beta2, eps, keep, c1, c2;
  bool undone;
  __device__ __forceinline__ Step(const Call &k, int i)
      : scale(k.by[0][i]), lr(k.by[1][i]), beta1(k.by[2][i]), beta2(k.by[3][i]), eps(k.by[4][i]), keep(k.by[5][i]),
        c1(k.by[6][i]), c2(k.by[7][i]), undone(k.undone != 0) {}
  __device__ __forceinline__ void take(float &w, float g, float &m, float &v) const {
    if (undone) return;
    g *= scale;
    m = m * beta1 + g * (1.0f - beta1);
    v = v * beta2 + g * g * (1.0f - beta2);
    w = w * keep - m / c1 / (sqrtf(v / c2) + eps) * lr;
  }
};

// One step of AdamW (1711.05101). What is written may be what is read.
extern "C" __global__ void __launch_bounds__(THREADS) steps(const __grid_constant__ Call k) {
  int i = tensor_of(k);
  Step step(k, i);
  const float *w = k.of[0][i], *g = k.of[1][i], *m = k.of[2][i], *v = k.of[3][i];
  float *new_w = k.of[4][i], *new_m = k.of[5][i], *new_v = k.of[6][i];
  long long first = (long long)(blockIdx.x - k.start[i]) * EACH, len = k.len[i];
  bool in_runs = true;
  for (int of = 0; of < ADDRESSES; ++of) in_runs = in_runs && (unsigned long long)k.of[of][i] % 16 == 0;
#pragma unroll 2
  for (int turn = 0; turn < EACH / (4 * THREADS); ++turn) {
    long long at = first + 4 * (turn * THREADS + threadIdx.x);
    if (in_runs && at + 4 <= len) {
      float4 a = *(const float4 *)(w + at), b = *(const float4 *)(g + at);
      float4 c = *(const float4 *)(m + at), d = *(const float4 *)(v + at);
      step.take(a.x, b.x, c.x, d.x);
      step.take(a.y, b.y, c.y, d.y);
      step.take(a.z, b.z, c.z, d.z);
      step.take(a.w, b.w, c.w, d.w);
      *(float4 *)(new_w + at) = a, *(float4 *)(new_m + at) = c, *(float4 *)(new_v + at) = d;
    } else {
      for (long long end = at + 4 < len ? at + 4 : len; at < end; ++at) {
        float a = w[at], c = m[at], d = v[at];
        step.take(a, g[at], c, d);
        new_w[at] = a, new_m[at] = c, new_v[at] = d;
      }
    }
  }
}

// Sum over a workgroup, in the same order every time; the first thread has it.
__device__ __forceinline__ float over_all(float x) {
  extern __shared__ float4 space[];
  float *sums = (float *)space;
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) x += __shfl_xor_sync(~0u, x, apart);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
  __syncthreads();
  if (threadIdx.x != 0) return x;
  x = 0.0f;
  for (int warp = 0; warp < THREADS / 32; ++warp) x += sums[warp];
  return x;
}

// Of each part of EACH numbers.
extern "C" __global__ void __launch_bounds__(THREADS) squares(const __grid_constant__ Call k) {
  int i = tensor_of(k);
  const float *x = k.of[0][i];
  long long first = (long long)(blockIdx.x - k.start[i]) * EACH, len = k.len[i];
  float sum = 0.0f;
#pragma unroll
  for (int turn = 0; turn < EACH / (4 * THREADS); ++turn) {
    long long at = first + 4 * (turn * THREADS + threadIdx.x);
    if (at + 4 <= len) {
      float4 a = *(const float4 *)(x + at);
      sum += a.x * a.x + a.y * a.y + (a.z * a.z + a.w * a.w);
    } else {
      for (; at < len; ++at) sum += x[at] * x[at];
    }
  }
  sum = over_all(sum);
  if (threadIdx.x == 0) k.of[1][0][blockIdx.x] = sum;
}

// Of a tensor's parts: a workgroup per tensor.
extern "C" __global__ void __launch_bounds__(THREADS) sums(const __grid_constant__ Call k) {
  int i = blockIdx.x;
  float sum = 0.0f;
  for (int part = k.start[i] + threadIdx.x; part < k.start[i + 1]; part += THREADS) sum += k.of[1][0][part];
  sum = over_all(sum);
  if (threadIdx.x == 0) k.of[2][0][i] = sum;
}
