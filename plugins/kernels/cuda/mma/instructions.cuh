// SPDX-License-Identifier: Apache-2.0
//
// The few instructions of the warp-level product, with what stands in for them before sm_80.

#ifndef NQ_CUDA_MMA_INSTRUCTIONS_CUH
#define NQ_CUDA_MMA_INSTRUCTIONS_CUH

#include <cstdint>

namespace nq_cuda {
namespace mma {

// Sixteen bytes into shared memory, in the background where the GPU can.
__device__ __forceinline__ void copy16(uint32_t to, const void* from) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
#else
  const uint4 v = __ldg(static_cast<const uint4*>(from));
  asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z),
               "r"(v.w)
               : "memory");
#endif
}

__device__ __forceinline__ void copies_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int PENDING>
__device__ __forceinline__ void copies_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

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

// Bits as bytes of 0 and -128: a left shift and a mask, which run on two different pipes.
__device__ __forceinline__ void unpack(uint32_t (&a)[4], const uint4& w, int step) {
  a[0] = (w.x << (7 - step)) & 0x80808080u;
  a[1] = (w.y << (7 - step)) & 0x80808080u;
  a[2] = (w.z << (7 - step)) & 0x80808080u;
  a[3] = (w.w << (7 - step)) & 0x80808080u;
}

}  // namespace mma
}  // namespace nq_cuda

#endif  // NQ_CUDA_MMA_INSTRUCTIONS_CUH
