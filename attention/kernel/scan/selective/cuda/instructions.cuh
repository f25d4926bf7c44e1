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

// Without a branch: what comes before and behind it may change places.
__device__ __forceinline__ void store_if(bool is, float *to, float x) {
  asm volatile("{.reg .pred is; setp.ne.s32 is, %2, 0; @is st.global.f32 [%0], %1;}" ::"l"(to), "f"(x), "r"((int)is)
               : "memory");
}

// Of kernels behind each other, the next may begin before the one before it ends, where it is launched so: once all
// workgroups of that have begun. It writes, and reads what that one writes, behind `before_ended`, which all call but
// the first.
__device__ __forceinline__ void next_may_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ void before_ended() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// A number from memory to shared memory, or zero where it does not count. What a thread sent for comes in the order of
// `sent`, and is there once `arrived` returned, up to the last `but` times.
__device__ __forceinline__ void send_for(float *to, const float *from, bool counts = true) {
  unsigned at = (unsigned)__cvta_generic_to_shared(to);
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(at), "l"(from), "r"(counts ? 4 : 0) : "memory");
}

// Four side by side.
__device__ __forceinline__ void send_for_four(float *to, const float *from) {
  unsigned at = (unsigned)__cvta_generic_to_shared(to);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
}

__device__ __forceinline__ void sent() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int but>
__device__ __forceinline__ void arrived() {
  asm volatile("cp.async.wait_group %0;" ::"n"(but) : "memory");
}
