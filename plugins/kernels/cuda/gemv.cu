// SPDX-License-Identifier: Apache-2.0
#include "internal.h"
namespace nq_cuda {
size_t gemv_workspace(const nq_cuda_pass&, const nq_cuda_device&) { return 256; }
nq_status gemv_forward(const nq_cuda_pass&, const nq_cuda_device&, bool, cudaStream_t) {
  return NQ_NO_KERNEL;
}
}  // namespace nq_cuda
