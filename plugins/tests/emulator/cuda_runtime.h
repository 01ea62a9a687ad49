// SPDX-License-Identifier: Apache-2.0
//
// The part of CUDA's language and runtime that the emulated kernels use. Found before the real one.

#ifndef NQ_EMULATOR_CUDA_RUNTIME_H
#define NQ_EMULATOR_CUDA_RUNTIME_H

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
// One thread of the host plays all threads, block after block.
#define __shared__ thread_local

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

template <typename A, typename B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}
template <typename A, typename B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}

#include "machine.h"

// Set by the machine before a thread goes on.
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

inline size_t __cvta_generic_to_shared(const void* pointer) {
  return nq_emulator::shared_address(pointer);
}
inline float __uint_as_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}
inline float __int_as_float(int bits) { return __uint_as_float(static_cast<uint32_t>(bits)); }
inline int __float_as_int(float value) { return static_cast<int>(__float_as_uint(value)); }
inline int __float2int_rn(float value) { return static_cast<int>(lrintf(value)); }
inline float __expf(float x) { return expf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline uint32_t __funnelshift_l(uint32_t low, uint32_t high, int shift) {
  return shift == 0 ? high : high << shift | low >> (32 - shift);
}
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t byte = both >> (8 * (selector >> (4 * i) & 7)) & 0xff;
    const uint32_t sign = byte & 0x80 ? 0xffu : 0u;
    result |= (selector >> (4 * i) & 8 ? sign : byte) << (8 * i);
  }
  return result;
}
inline uint32_t __vadd2(uint32_t a, uint32_t b) {
  return ((a & 0xffff0000u) + (b & 0xffff0000u)) | ((a + b) & 0xffffu);
}
template <typename T>
T __ldg(const T* from) {
  return *from;
}
template <typename T>
T __ldcg(const T* from) {
  return *from;
}
inline void __syncthreads() { nq_emulator::sync_block(); }
inline void __syncwarp() { nq_emulator::sync_warp(); }
template <typename T>
T __shfl_xor_sync(uint32_t, T value, int mask) {
  static_assert(sizeof(T) == 4, "32-bit values");
  uint32_t bits;
  memcpy(&bits, &value, 4);
  bits = nq_emulator::exchange(&bits, 1)[nq_emulator::lane() ^ mask][0];
  memcpy(&value, &bits, 4);
  return value;
}
template <typename T>
T __shfl_sync(uint32_t, T value, int lane) {
  static_assert(sizeof(T) == 4, "32-bit values");
  uint32_t bits;
  memcpy(&bits, &value, 4);
  bits = nq_emulator::exchange(&bits, 1)[lane][0];
  memcpy(&value, &bits, 4);
  return value;
}
template <typename T>
T __shfl_up_sync(uint32_t, T value, int step) {
  static_assert(sizeof(T) == 4, "32-bit values");
  const int lane = nq_emulator::lane();
  uint32_t bits;
  memcpy(&bits, &value, 4);
  bits = nq_emulator::exchange(&bits, 1)[lane >= step ? lane - step : lane][0];
  memcpy(&value, &bits, 4);
  return value;
}

// Threads take turns, so that nothing comes between reading and writing.
inline void __threadfence() {}
template <typename T, typename V>
T atomicAdd(T* at, V value) {
  const T before = *at;
  *at = before + value;
  return before;
}
template <typename T, typename V>
T atomicMax(T* at, V value) {
  const T before = *at;
  if (value > before) *at = value;
  return before;
}
template <typename T, typename V>
T atomicOr(T* at, V value) {
  const T before = *at;
  *at = before | value;
  return before;
}

inline int __any_sync(uint32_t, int value) {
  const uint32_t bits = value != 0;
  const auto all = nq_emulator::exchange(&bits, 1);
  int any = 0;
  for (int i = 0; i < 32; ++i) any |= static_cast<int>(all[i][0]);
  return any;
}
inline int __clz(int value) {
  return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value));
}

// Runtime.
using cudaStream_t = struct nq_emulated_stream*;
using cudaEvent_t = struct nq_emulated_event*;
using cudaGraph_t = struct nq_emulated_graph*;
using cudaGraphExec_t = struct nq_emulated_graph*;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorNoDevice = 100
};
enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor,
  cudaDevAttrL2CacheSize
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaMemcpyKind { cudaMemcpyDeviceToDevice, cudaMemcpyDefault };
enum { cudaHostAllocPortable = 1, cudaStreamNonBlocking = 1, cudaStreamCaptureModeThreadLocal = 1 };
struct cudaDeviceProp {
  char name[256];
};
enum cudaLaunchAttributeID {
  cudaLaunchAttributeProgrammaticStreamSerialization,
  cudaLaunchAttributeClusterDimension
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int programmaticStreamSerializationAllowed;
    dim3 clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};
struct cudaFuncAttributes {
  int ptxVersion;
};

inline const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaSuccess ? "cudaSuccess" : "cudaErrorInvalidConfiguration";
}
inline const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* index) {
  *index = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel) {
  attributes->ptxVersion = nq_emulator::compute_capability();
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int bytes) {
  return static_cast<size_t>(bytes) <= nq_emulator::shared_limit() ? cudaSuccess
                                                                   : cudaErrorInvalidValue;
}

// Memory, streams, events and graphs: runtime.cpp.
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes);
cudaError_t cudaMalloc(void** memory, size_t bytes);
cudaError_t cudaFree(void* memory);
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void* memory);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaEventCreate(cudaEvent_t* event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, int mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t graph, unsigned flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph);

namespace nq_emulator {
// Does the work, or keeps it while the stream is being captured.
cudaError_t enqueue(cudaStream_t stream, std::function<cudaError_t()> work);
}  // namespace nq_emulator

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t rows, cudaMemcpyKind kind, cudaStream_t stream);

template <typename... Expected, typename... Given>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Expected...),
                               Given&&... given) {
  const dim3 grid = config->gridDim, block = config->blockDim;
  const size_t shared_bytes = config->dynamicSmemBytes;
  const std::tuple<std::decay_t<Expected>...> arguments(given...);
  return nq_emulator::enqueue(config->stream, [=]() {
    const bool ran = nq_emulator::run(grid, block, shared_bytes, [&]() {
      std::apply([&](const auto&... values) { kernel(values...); }, arguments);
    });
    return ran ? cudaSuccess : cudaErrorInvalidConfiguration;
  });
}

#endif  // NQ_EMULATOR_CUDA_RUNTIME_H
