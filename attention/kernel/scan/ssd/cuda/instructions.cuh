// The instruction that CUDA C++ has no function for.

// x += a b of a warp, [16, 8] and [8, 8], of the upper 19 bits of each number.
__device__ __forceinline__ void add_product(float (&x)[4], const int (&a)[4], const int (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(x[0]), "+f"(x[1]), "+f"(x[2]), "+f"(x[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

