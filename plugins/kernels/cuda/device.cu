// SPDX-License-Identifier: Apache-2.0
//
// Which GPU this is, what a kernel may ask of it, and the last CUDA error of a thread in words.

#include <cstdio>

#include "cuda/launch.h"

namespace nq_cuda {

namespace {

thread_local char g_error[256] = "";

// Exists only to ask whether this build holds code that the device can run.
__global__ void probe() {}

nq_status describe_now(int index, nq_cuda_device* device) {
  int major = 0, minor = 0, count = 0;
  nq_status status =
      check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index), "attribute");
  if (status != NQ_OK) return status;
  status =
      check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index), "attribute");
  if (status != NQ_OK) return status;
  status =
      check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, index), "attribute");
  if (status != NQ_OK) return status;
  cudaFuncAttributes attributes;
  const cudaError_t usable = cudaFuncGetAttributes(&attributes, probe);
  if (usable != cudaSuccess) {
    (void)cudaGetLastError();
    check(usable, "this build has no code for the device");
    return NQ_NO_KERNEL;
  }
  device->compute_capability = 10 * major + minor;
  device->multiprocessors = count;
  device->one_bit_tensor_cores = major == 8 || major == 9;
#ifdef NQ_HAVE_WGMMA
  device->warpgroup_mma = major == 9;
#else
  device->warpgroup_mma = 0;
#endif
  return NQ_OK;
}

}  // namespace

nq_status check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return NQ_OK;
  snprintf(g_error, sizeof g_error, "%s: %s (%s)", what, cudaGetErrorName(error),
           cudaGetErrorString(error));
  return NQ_CUDA_ERROR;
}

bool may_overlap(const nq_cuda_device& device) {
  static int version = 0;  // of the code; racing threads find the same
  int known = __atomic_load_n(&version, __ATOMIC_RELAXED);
  if (known == 0) {
    cudaFuncAttributes attributes = {};
    if (cudaFuncGetAttributes(&attributes, probe) != cudaSuccess) return false;
    known = attributes.ptxVersion;
    __atomic_store_n(&version, known, __ATOMIC_RELAXED);
  }
  return known >= 90 && device.compute_capability >= 90;
}

nq_status shared_limit(int* bytes) {
  static PerDevice<int> known;
  return known.get(bytes, [](int index, int* found) {
    return check(cudaDeviceGetAttribute(found, cudaDevAttrMaxSharedMemoryPerBlockOptin, index),
                 "attribute");
  });
}

nq_status raise_shared_limit(const void* kernel, int bytes, const char* what) {
  char text[100];
  snprintf(text, sizeof text, "shared memory of %s", what);
  return check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
               text);
}

nq_status describe(nq_cuda_device* device) {
  static PerDevice<nq_cuda_device> known;
  return known.get(device, describe_now);
}

}  // namespace nq_cuda

extern "C" const char* nq_cuda_error_text(void) { return nq_cuda::g_error; }

extern "C" nq_status nq_cuda_describe(nq_cuda_device* device) {
  if (device == nullptr) return NQ_BAD_ARGUMENT;
  return nq_cuda::describe(device);
}
