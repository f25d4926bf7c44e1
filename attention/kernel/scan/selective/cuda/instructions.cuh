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

// A number from memory to shared memory, or zero where it does not count. What a thread sent for comes in the order of
// `sent`, and is there once `arrived` returned, up to the last `but` times.
__device__ __forceinline__ void send_for(float *to, const float *from, bool counts = true) {
  unsigned at = (unsigned)__cvta_generic_to_shared(to);
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(at), "l"(from), "r"(counts ? 4 : 0) : "memory");
}

__device__ __forceinline__ void sent() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int but>
__device__ __forceinline__ void arrived() {
  asm volatile("cp.async.wait_group %0;" ::"n"(but) : "memory");
}
