// SPDX-License-Identifier: Apache-2.0
//
// The few instructions of the warp-level product, with what stands in for them before sm_80.

#ifndef NQ_CUDA_MMA_INSTRUCTIONS_CUH
#define NQ_CUDA_MMA_INSTRUCTIONS_CUH

#include <cstdint>

namespace nq_cuda {
namespace mma {

// acc += A B, 16 x 8 x 32; FIRST sets it instead. Four sm_75 instructions take the same fragments.
template <bool FIRST>
__device__ __forceinline__ void multiply(int (&acc)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%10,%11,%12,%13};"
      : "=r"(acc[0]), "=r"(acc[1]), "=r"(acc[2]), "=r"(acc[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(FIRST ? 0 : acc[0]),
        "r"(FIRST ? 0 : acc[1]), "r"(FIRST ? 0 : acc[2]), "r"(FIRST ? 0 : acc[3]));
#else
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int* to = acc + 2 * half;
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%4,%5};"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(a[half]), "r"(b0), "r"(FIRST ? 0 : to[0]), "r"(FIRST ? 0 : to[1]));
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
                 : "+r"(to[0]), "+r"(to[1])
                 : "r"(a[2 + half]), "r"(b1));
  }
#endif
}

// blockIdx.x, read anew each time.
__device__ __forceinline__ uint32_t block_index() {
  uint32_t block;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(block));
  return block;
}

}  // namespace mma
}  // namespace nq_cuda

#endif  // NQ_CUDA_MMA_INSTRUCTIONS_CUH
