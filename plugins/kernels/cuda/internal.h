// SPDX-License-Identifier: Apache-2.0
//
// What the files of this folder share on the host side: the device, error recording, and one
// "workspace" and one "forward" per family of kernels, between which api.cu chooses.

#ifndef NQ_CUDA_INTERNAL_H
#define NQ_CUDA_INTERNAL_H

#include <cuda_runtime.h>

#include "nq_cuda.h"

namespace nq_cuda {

// Remembers the error's text for nq_cuda_error_text() and returns NQ_CUDA_ERROR, or NQ_OK.
nq_status check(cudaError_t error, const char* what);

// The current device, described once per process and device.
nq_status describe(nq_cuda_device* device);

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
