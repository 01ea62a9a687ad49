// SPDX-License-Identifier: Apache-2.0
//
// What the files of this folder share on the host side: errors, the device and what is known of
// it, and for each family of kernels its workspace and its pass, between which api.cu chooses.

#ifndef NQ_CUDA_INTERNAL_H
#define NQ_CUDA_INTERNAL_H

#include <cuda_runtime.h>

#include "nq_cuda.h"

namespace nq_cuda {

// Remembers the error's text for nq_cuda_error_text() and returns NQ_CUDA_ERROR, or NQ_OK.
nq_status check(cudaError_t error, const char* what);

// The current device.
nq_status describe(nq_cuda_device* device);

// One value for each device, found when it is first asked for. A static one needs no constructor.
template <typename T>
class PerDevice {
 public:
  // The current device's value; `find(index, &value)` finds it out. Threads that race find the
  // same; `ready_` is set last.
  template <typename Find>
  nq_status get(T* value, Find find) {
    int index = 0;
    nq_status status = check(cudaGetDevice(&index), "cudaGetDevice");
    if (status != NQ_OK) return status;
    const bool kept = index < kMost;
    if (kept && __atomic_load_n(&ready_[index], __ATOMIC_ACQUIRE)) {
      *value = known_[index];
      return NQ_OK;
    }
    T found = {};
    status = find(index, &found);
    if (status != NQ_OK) return status;
    *value = found;
    if (kept) {
      known_[index] = found;
      __atomic_store_n(&ready_[index], true, __ATOMIC_RELEASE);
    }
    return NQ_OK;
  }

 private:
  static constexpr int kMost = 64;  // a device beyond these is asked every time
  T known_[kMost];
  bool ready_[kMost];
};

// Whether 16 bytes may be read or written there at once.
inline bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Each family: scratch bytes for a valid pass, and the pass itself. A family may return
// NQ_NO_KERNEL for what it cannot compute; api.cu has checked everything else before.

// 1 to 8 rows at a time; more rows are taken in pieces of 8. `bits` chooses the one-bit cores.
size_t gemv_workspace(const nq_cuda_pass& pass, const nq_cuda_device& device);
nq_status gemv_forward(const nq_cuda_pass& pass, const nq_cuda_device& device, bool bits,
                       cudaStream_t stream);

// Any number of rows, any GPU.
size_t gemm_mma_workspace(const nq_cuda_pass& pass, const nq_cuda_device& device);
nq_status gemm_mma_forward(const nq_cuda_pass& pass, const nq_cuda_device& device,
                           cudaStream_t stream);

// Any number of rows, sm_90.
#ifdef NQ_HAVE_WGMMA
size_t gemm_wgmma_workspace(const nq_cuda_pass& pass, const nq_cuda_device& device);
nq_status gemm_wgmma_forward(const nq_cuda_pass& pass, const nq_cuda_device& device,
                             cudaStream_t stream);
#else
inline size_t gemm_wgmma_workspace(const nq_cuda_pass&, const nq_cuda_device&) { return 0; }
inline nq_status gemm_wgmma_forward(const nq_cuda_pass&, const nq_cuda_device&, cudaStream_t) {
  return NQ_NO_KERNEL;
}
#endif

}  // namespace nq_cuda

#endif  // NQ_CUDA_INTERNAL_H
