// SPDX-License-Identifier: Apache-2.0
//
// Devices and memory, for callers that have no CUDA runtime of their own.

#include <cstdio>

#include "cuda/internal.h"
#include "nq_cuda_memory.h"

using nq_cuda::check;

extern "C" nq_status nq_cuda_device_count(int32_t* count) {
  if (count == nullptr) return NQ_BAD_ARGUMENT;
  int found = 0;
  const cudaError_t error = cudaGetDeviceCount(&found);
  *count = error == cudaSuccess ? found : 0;
  if (error == cudaSuccess) return NQ_OK;
  (void)cudaGetLastError();
  return error == cudaErrorNoDevice ? NQ_OK : check(error, "counting devices");
}

extern "C" nq_status nq_cuda_set_device(int32_t device) {
  return check(cudaSetDevice(device), "choosing a device");
}

extern "C" nq_status nq_cuda_device_name(int32_t device, char* name, size_t bytes) {
  if (name == nullptr || bytes < 1) return NQ_BAD_ARGUMENT;
  cudaDeviceProp properties;
  const nq_status status = check(cudaGetDeviceProperties(&properties, device), "name of a device");
  snprintf(name, bytes, "%s", status == NQ_OK ? properties.name : "");
  return status;
}

extern "C" nq_status nq_cuda_memory_info(size_t* free_bytes, size_t* total_bytes) {
  if (free_bytes == nullptr || total_bytes == nullptr) return NQ_BAD_ARGUMENT;
  return check(cudaMemGetInfo(free_bytes, total_bytes), "size of the device's memory");
}

extern "C" nq_status nq_cuda_allocate(size_t bytes, void** memory) {
  if (memory == nullptr || bytes < 1) return NQ_BAD_ARGUMENT;
  *memory = nullptr;
  const nq_status status = check(cudaMalloc(memory, bytes), "device memory");
  // Too little memory is no fault of the device: later calls must not find it.
  if (status != NQ_OK) (void)cudaGetLastError();
  return status;
}

extern "C" nq_status nq_cuda_free(void* memory) {
  return check(cudaFree(memory), "freeing device memory");
}

extern "C" nq_status nq_cuda_allocate_pinned(size_t bytes, void** memory) {
  if (memory == nullptr || bytes < 1) return NQ_BAD_ARGUMENT;
  *memory = nullptr;
  const nq_status status =
      check(cudaHostAlloc(memory, bytes, cudaHostAllocPortable), "pinned host memory");
  if (status != NQ_OK) (void)cudaGetLastError();
  return status;
}

extern "C" nq_status nq_cuda_free_pinned(void* memory) {
  return memory == nullptr ? NQ_OK : check(cudaFreeHost(memory), "freeing pinned host memory");
}

extern "C" nq_status nq_cuda_copy(void* to, const void* from, size_t bytes, void* stream) {
  if (bytes == 0) return NQ_OK;
  if (to == nullptr || from == nullptr) return NQ_BAD_ARGUMENT;
  return check(
      cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, static_cast<cudaStream_t>(stream)),
      "copy");
}

extern "C" nq_status nq_cuda_fill(void* memory, uint8_t value, size_t bytes, void* stream) {
  if (bytes == 0) return NQ_OK;
  if (memory == nullptr) return NQ_BAD_ARGUMENT;
  return check(cudaMemsetAsync(memory, value, bytes, static_cast<cudaStream_t>(stream)), "fill");
}
