// Instructions that CUDA C++ has no functions for.

__device__ __forceinline__ float ex2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The same number, which the compiler does not know any more.
__device__ __forceinline__ int unknown(int x) {
  asm("" : "+r"(x));
  return x;
}

