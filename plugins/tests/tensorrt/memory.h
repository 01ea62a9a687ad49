// SPDX-License-Identifier: Apache-2.0
//
// Buffers and streams of the conformance runner: on the GPU, or in plain memory when the plugin is
// the one over the stand-in kernels. Plain buffers are fenced, so that a byte written outside
// shows; on the GPU every buffer is an allocation of exactly its size, for compute-sanitizer.

#ifndef NQ_TESTS_TENSORRT_MEMORY_H
#define NQ_TESTS_TENSORRT_MEMORY_H

#include <cuda_runtime_api.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

namespace conformance {

#ifdef NQ_ON_GPU
constexpr bool kOnGpu = true;
#else
constexpr bool kOnGpu = false;
#endif

#ifdef NQ_ON_GPU
inline void cuda(cudaError_t error) {
  if (error == cudaSuccess) return;
  printf("FAILED: %s\n", cudaGetErrorString(error));
  exit(1);
}
#endif

class Buffer {
 public:
  explicit Buffer(size_t bytes) : bytes_(bytes) {
#ifdef NQ_ON_GPU
    cuda(cudaMalloc(&at_, bytes > 0 ? bytes : 1));
#else
    fenced_ = static_cast<uint8_t*>(aligned_alloc(256, (bytes + 3 * kFence - 1) / 256 * 256));
    memset(fenced_, kMark, bytes + 2 * kFence);
    at_ = fenced_ + kFence;
#endif
    fill(0xff);  // NaN in every type
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
#ifdef NQ_ON_GPU
    cuda(cudaFree(at_));
#else
    for (size_t i = 0; i < kFence; ++i) {
      if (fenced_[i] == kMark && fenced_[kFence + bytes_ + i] == kMark) continue;
      printf("FAILED: a byte outside a buffer of %zu was written\n", bytes_);
      exit(1);
    }
    free(fenced_);
#endif
  }
  void* at() const { return at_; }
  size_t bytes() const { return bytes_; }
  void fill(int value) {
#ifdef NQ_ON_GPU
    cuda(cudaMemset(at_, value, bytes_));
    cuda(cudaDeviceSynchronize());  // the plugin's streams do not wait for the default one
#else
    memset(at_, value, bytes_);
#endif
  }
  void upload(const void* from) {
    if (bytes_ == 0) return;
#ifdef NQ_ON_GPU
    cuda(cudaMemcpy(at_, from, bytes_, cudaMemcpyHostToDevice));
    cuda(cudaDeviceSynchronize());
#else
    memcpy(at_, from, bytes_);
#endif
  }
  std::vector<uint8_t> download() const {
    std::vector<uint8_t> bytes(bytes_);
    if (bytes_ == 0) return bytes;
#ifdef NQ_ON_GPU
    cuda(cudaMemcpy(bytes.data(), at_, bytes_, cudaMemcpyDeviceToHost));
#else
    memcpy(bytes.data(), at_, bytes_);
#endif
    return bytes;
  }

 private:
  static constexpr size_t kFence = 256;
  static constexpr uint8_t kMark = 0xa5;
  size_t bytes_;
  uint8_t* fenced_ = nullptr;
  void* at_ = nullptr;
};

inline cudaStream_t new_stream() {
  cudaStream_t stream = nullptr;
#ifdef NQ_ON_GPU
  cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
#endif
  return stream;
}

inline void finish(cudaStream_t stream) {
#ifdef NQ_ON_GPU
  cuda(cudaStreamSynchronize(stream));
#else
  (void)stream;
#endif
}

inline void end_stream(cudaStream_t stream) {
#ifdef NQ_ON_GPU
  cuda(cudaStreamDestroy(stream));
#else
  (void)stream;
#endif
}

// Captures what `work` enqueues into a graph and runs that twice; in plain memory only runs it.
template <typename Work>
bool through_graph(cudaStream_t stream, const Work& work) {
#ifdef NQ_ON_GPU
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t ready = nullptr;
  cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  const bool good = work();
  cuda(cudaStreamEndCapture(stream, &graph));
  if (!good) return false;
  cuda(cudaGraphInstantiate(&ready, graph, 0));
  for (int i = 0; i < 2; ++i) cuda(cudaGraphLaunch(ready, stream));
  cuda(cudaStreamSynchronize(stream));
  cuda(cudaGraphExecDestroy(ready));
  cuda(cudaGraphDestroy(graph));
  return true;
#else
  (void)stream;
  return work();
#endif
}

}  // namespace conformance

#endif  // NQ_TESTS_TENSORRT_MEMORY_H
