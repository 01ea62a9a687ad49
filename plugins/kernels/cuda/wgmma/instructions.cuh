// SPDX-License-Identifier: Apache-2.0
//
// sm_90a instructions of the warpgroup product: asynchronous matrix multiply, mbarriers, bulk
// copies, clusters. Semantics: PTX ISA 9.0, "Asynchronous Warpgroup Level Matrix Instructions",
// "mbarrier", "cp.async.bulk". Shared-memory addresses are 32-bit.

#ifndef NQ_CUDA_WGMMA_INSTRUCTIONS_CUH
#define NQ_CUDA_WGMMA_INSTRUCTIONS_CUH

#include <cstdint>

#include "cuda/ptx.cuh"

namespace nq_cuda {

__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Makes barrier_init visible to the copy engine and to the cluster.
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;\n fence.proxy.async.shared::cta;" ::
                   : "memory");
}

// Global memory written by ordinary stores is about to be read by the copy engine.
__device__ __forceinline__ void global_to_async_fence() {
  asm volatile("fence.proxy.async.global;" ::: "memory");
}

// Copies `bytes` (a multiple of 16) into shared memory and counts them on `barrier`.
__device__ __forceinline__ void bulk_copy(uint32_t shared, const void* global, uint32_t bytes,
                                          uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared),
      "l"(global), "r"(bytes), "r"(barrier)
      : "memory");
}

// Arrives at `barrier` when this thread's copies so far have landed.
__device__ __forceinline__ void async_copies_arrive(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// Waits for all of this thread's copies.
__device__ __forceinline__ void async_copies_wait() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// Joins `threads` threads; barrier 0 belongs to __syncthreads().
__device__ __forceinline__ void named_barrier(int index, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(index), "r"(threads) : "memory");
}

__device__ __forceinline__ void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;\n barrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
}

__device__ __forceinline__ int rank_in_cluster() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}

__device__ __forceinline__ int cluster_size() {
  uint32_t size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return static_cast<int>(size);
}

// Four words from the same place of another block of the cluster.
__device__ __forceinline__ uint4 cluster_load(uint32_t shared, int rank) {
  uint32_t remote;
  uint4 value;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(shared), "r"(rank));
  asm volatile("ld.shared::cluster.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(remote)
               : "memory");
  return value;
}

template <int REGISTERS>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

template <int REGISTERS>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// Stores two transposed 8 x 8 matrices of 16-bit values, one 16-byte row per address of lanes 0-15.
__device__ __forceinline__ void store_transposed(uint32_t shared, uint32_t first, uint32_t second) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(shared),
               "r"(first), "r"(second)
               : "memory");
}

__device__ __forceinline__ void load_transposed(uint32_t shared, uint32_t* first,
                                                uint32_t* second) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(*first), "=r"(*second)
               : "r"(shared)
               : "memory");
}

// Four 8 x 8 matrices of 16-bit values (8 rows of 16 bytes), one row per lane's address.
__device__ __forceinline__ uint4 load_matrices(uint32_t shared) {
  uint4 value;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(shared)
               : "memory");
  return value;
}

// d (16 x 8) += a (16 x 32 bytes) b (32 bytes x 8), within a warp.
__device__ __forceinline__ void multiply(float* d, const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void multiply(int* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int N>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// Matrix descriptor of a K-major operand in the 128-byte swizzle: groups of 8 rows of 128 bytes,
// one group every 1024 bytes.
__device__ __forceinline__ uint64_t swizzled_operand(uint32_t shared) {
  return (1ull << 62) | (64ull << 32) | (1ull << 16) | ((shared & 0x3ffffu) >> 4);
}

#define NQ_D0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define NQ_D1 NQ_D0 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define NQ_D3 \
  NQ_D1 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NQ_D7                                                                          \
  NQ_D3                                                                                \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NQ_O0(c, i) \
  c(d[i]), c(d[i + 1]), c(d[i + 2]), c(d[i + 3]), c(d[i + 4]), c(d[i + 5]), c(d[i + 6]), c(d[i + 7])
#define NQ_O1(c, i) NQ_O0(c, i), NQ_O0(c, i + 8)
#define NQ_O3(c, i) NQ_O1(c, i), NQ_O1(c, i + 16)
#define NQ_O7(c, i) NQ_O3(c, i), NQ_O3(c, i + 32)

// d (64 x n) += a (64 x 32 bytes, registers) b^T (n rows of 32 bytes, shared memory).
#define NQ_WGMMA(n, list, operands, a0, a1, a2, a3, b)                                            \
  __device__ __forceinline__ void wgmma(float (&d)[n / 2], const uint32_t (&a)[4],                \
                                        uint64_t operand) {                                       \
    asm volatile(                                                                                 \
        "{\n.reg .pred add;\nsetp.eq.u32 add, 0, 0;\n"                                            \
        "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.f16.f16 {" list "}, {" a0 ", " a1 ", " a2 \
        ", " a3 "}, " b ", add, 1, 1, 0;\n}"                                                      \
        : operands("+f", 0)                                                                       \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(operand)                                \
        : "memory");                                                                              \
  }                                                                                               \
  __device__ __forceinline__ void wgmma(int (&d)[n / 2], const uint32_t (&a)[4],                  \
                                        uint64_t operand) {                                       \
    asm volatile(                                                                                 \
        "{\n.reg .pred add;\nsetp.eq.u32 add, 0, 0;\n"                                            \
        "wgmma.mma_async.sync.aligned.m64n" #n "k32.s32.s8.s8 {" list "}, {" a0 ", " a1 ", " a2   \
        ", " a3 "}, " b ", add;\n}"                                                               \
        : operands("+r", 0)                                                                       \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(operand)                                \
        : "memory");                                                                              \
  }

NQ_WGMMA(16, NQ_D0, NQ_O0, "%8", "%9", "%10", "%11", "%12")
NQ_WGMMA(32, NQ_D1, NQ_O1, "%16", "%17", "%18", "%19", "%20")
NQ_WGMMA(64, NQ_D3, NQ_O3, "%32", "%33", "%34", "%35", "%36")
NQ_WGMMA(128, NQ_D7, NQ_O7, "%64", "%65", "%66", "%67", "%68")

#undef NQ_WGMMA
#undef NQ_O7
#undef NQ_O3
#undef NQ_O1
#undef NQ_O0
#undef NQ_D7
#undef NQ_D3
#undef NQ_D1
#undef NQ_D0

}  // namespace nq_cuda

#endif  // NQ_CUDA_WGMMA_INSTRUCTIONS_CUH
