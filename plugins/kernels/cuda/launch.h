// SPDX-License-Identifier: Apache-2.0
//
// One way to launch a kernel, with or without overlap with the one before it.

#ifndef NQ_CUDA_LAUNCH_H
#define NQ_CUDA_LAUNCH_H

#include <utility>

#include "cuda/internal.h"

namespace nq_cuda {

// Whether kernels may begin before the one before them has ended (programmatic dependent launch):
// the GPU and the code that it runs are sm_90 or newer. Older PTX compiled for a new GPU would not
// wait where it must.
bool may_overlap(const nq_cuda_device& device);

struct Launch {
  const char* what;  // for the error's text
  dim3 grid;
  int threads;
  size_t shared_bytes;
  bool overlap;
};

template <typename... Expected, typename... Given>
nq_status launch(const Launch& how, cudaStream_t stream, void (*kernel)(Expected...),
                 Given&&... given) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = how.grid;
  config.blockDim = dim3(static_cast<unsigned>(how.threads));
  config.dynamicSmemBytes = how.shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = how.overlap ? 1 : 0;
  return check(cudaLaunchKernelEx(&config, kernel, std::forward<Given>(given)...), how.what);
}

}  // namespace nq_cuda

#endif  // NQ_CUDA_LAUNCH_H
