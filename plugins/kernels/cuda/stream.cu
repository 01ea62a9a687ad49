// SPDX-License-Identifier: Apache-2.0
//
// Copies and waits on a stream, for callers that have no CUDA runtime of their own.

#include "cuda/internal.h"

extern "C" nq_status nq_cuda_copy_rows(const void* from, size_t from_pitch, void* to,
                                       size_t to_pitch, size_t width, size_t rows, void* stream) {
  if (from == nullptr || to == nullptr || from_pitch < width || to_pitch < width) {
    return NQ_BAD_ARGUMENT;
  }
  return nq_cuda::check(
      cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, width, rows, cudaMemcpyDeviceToDevice,
                        static_cast<cudaStream_t>(stream)),
      "copy of rows");
}

extern "C" nq_status nq_cuda_synchronize(void* stream) {
  return nq_cuda::check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "synchronize");
}
