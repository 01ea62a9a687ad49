// SPDX-License-Identifier: Apache-2.0
//
// The one way in which kernels are launched: with or without overlap with the kernel before, in
// clusters of blocks, and with more shared memory than a kernel gets unasked.

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
  size_t shared_bytes;  // of dynamic shared memory
  bool overlap;         // may begin before the kernel before it has ended
  int cluster = 1;      // blocks of a cluster; more than one on sm_90 only
};

using LaunchAttributes = cudaLaunchAttribute[2];

// The launch in CUDA's words, which point into `attributes`.
inline cudaLaunchConfig_t configure(const Launch& how, cudaStream_t stream,
                                    LaunchAttributes& attributes) {
  cudaLaunchConfig_t config = {};
  config.gridDim = how.grid;
  config.blockDim = dim3(static_cast<unsigned>(how.threads));
  config.dynamicSmemBytes = how.shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  if (how.overlap) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  if (how.cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = static_cast<unsigned>(how.cluster);
    attribute.val.clusterDim.y = 1;
    attribute.val.clusterDim.z = 1;
  }
  return config;
}

template <typename... Expected, typename... Given>
nq_status launch(const Launch& how, cudaStream_t stream, void (*kernel)(Expected...),
                 Given&&... given) {
  LaunchAttributes attributes = {};
  const cudaLaunchConfig_t config = configure(how, stream, attributes);
  return check(cudaLaunchKernelEx(&config, kernel, std::forward<Given>(given)...), how.what);
}

// Most bytes of shared memory that a block may have on the current device.
nq_status shared_limit(int* bytes);

// Lets a kernel's blocks have up to `bytes` of dynamic shared memory on the current device. Without
// it they get at most 48 KB.
nq_status raise_shared_limit(const void* kernel, int bytes, const char* what);

// The same, once for each device.
template <auto KERNEL>
nq_status allow_shared(int bytes, const char* what) {
  static PerDevice<bool> raised;
  bool value;
  return raised.get(&value, [&](int, bool* found) {
    *found = true;
    return raise_shared_limit(reinterpret_cast<const void*>(KERNEL), bytes, what);
  });
}

// Launches a kernel whose blocks may ask for up to `most_shared` bytes of dynamic shared memory.
template <auto KERNEL, typename... Given>
nq_status launch_with_shared(const Launch& how, int most_shared, cudaStream_t stream,
                             Given&&... given) {
  const nq_status status = allow_shared<KERNEL>(most_shared, how.what);
  if (status != NQ_OK) return status;
  return launch(how, stream, KERNEL, std::forward<Given>(given)...);
}

}  // namespace nq_cuda

#endif  // NQ_CUDA_LAUNCH_H
