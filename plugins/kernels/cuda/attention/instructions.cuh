// SPDX-License-Identifier: Apache-2.0
//
// Tensor-core products of 16-bit floats and the moves of their fragments (PTX ISA: mma.m16n8k16,
// ldmatrix, movmatrix), with what stands in for them before sm_80.

#ifndef NQ_CUDA_ATTENTION_INSTRUCTIONS_CUH
#define NQ_CUDA_ATTENTION_INSTRUCTIONS_CUH

#include "cuda/ptx.cuh"
#include "cuda/values.cuh"

namespace nq_cuda {

// 2^x; 0 for minus infinity.
__device__ __forceinline__ float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Four 8 x 8 matrices of 16-bit values from shared memory: lane l names row l % 8 of matrix l / 8
// and gets, of each, row l / 4, columns 2 (l % 4) and the next.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address));
}

// The same, transposed: column l / 4, rows 2 (l % 4) and the next.
__device__ __forceinline__ void load_transposed(uint32_t (&to)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address));
}

// An 8 x 8 matrix of 16-bit values in a warp's registers, transposed.
__device__ __forceinline__ uint32_t transpose(uint32_t value) {
  uint32_t result;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(value));
  return result;
}

// Differences of two pairs of float16.
__device__ __forceinline__ uint32_t subtract_halves(uint32_t a, uint32_t b) {
  uint32_t result;
  asm("sub.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}

// As cp.async of 16 bytes, or zeros where `present` is false.
__device__ __forceinline__ void copy_async_or_zero(uint32_t shared, const void* global,
                                                   bool present) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
               "r"(present ? 16 : 0)
               : "memory");
#endif
}

#if __CUDA_ARCH__ < 800
// The same product as `multiply` for bfloat16, which has none there: every lane gathers its two
// rows and columns. A call, because its code is long and its speed of no account.
inline __noinline__ __device__ float4 multiply_gathered(uint4 a, uint2 b) {
  const int lane = threadIdx.x % 32, row = lane / 4 * 4, column = lane % 4 * 8;
  float sums[4] = {};
  for (int part = 0; part < 8; ++part) {
    float x[2][2], y[2][2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t low = i == 0 ? a.x : a.y, high = i == 0 ? a.z : a.w;
      const uint32_t u = __shfl_sync(0xffffffffu, part < 4 ? low : high, row + part % 4);
      const uint32_t v = __shfl_sync(0xffffffffu, part < 4 ? b.x : b.y, column + 4 * i + part % 4);
      unpack_pair(u, NQ_BFLOAT16, &x[i][0], &x[i][1]);
      unpack_pair(v, NQ_BFLOAT16, &y[i][0], &y[i][1]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sums[i] += x[i / 2][0] * y[i % 2][0] + x[i / 2][1] * y[i % 2][1];
    }
  }
  return make_float4(sums[0], sums[1], sums[2], sums[3]);
}
#endif

// d += a b, 16 x 8 over 16: a of rows, b of columns, both of the type. SETS: d = a b.
template <nq_type Type, bool SETS = false>
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
  const float c[4] = {SETS ? 0.0f : d[0], SETS ? 0.0f : d[1], SETS ? 0.0f : d[2],
                      SETS ? 0.0f : d[3]};
#if __CUDA_ARCH__ >= 800
  if constexpr (Type == NQ_BFLOAT16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]),
          "f"(c[2]), "f"(c[3]));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]),
          "f"(c[2]), "f"(c[3]));
  }
#else
  if constexpr (Type == NQ_FLOAT16) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b0), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[2]), "r"(a[3]), "r"(b1));
  } else {
    const float4 more = multiply_gathered(make_uint4(a[0], a[1], a[2], a[3]), make_uint2(b0, b1));
    d[0] = c[0] + more.x, d[1] = c[1] + more.y, d[2] = c[2] + more.z, d[3] = c[3] + more.w;
  }
#endif
}

}  // namespace nq_cuda

#endif  // NQ_CUDA_ATTENTION_INSTRUCTIONS_CUH
