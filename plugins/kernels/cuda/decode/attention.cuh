// SPDX-License-Identifier: Apache-2.0
//
// What the attention kernels share: one head's norm and rotation by a warp, the checks of a call,
// and its launch, which may overlap the kernel before it.

#ifndef NQ_CUDA_DECODE_ATTENTION_CUH
#define NQ_CUDA_DECODE_ATTENTION_CUH

#include "cuda/attention/check.h"
#include "cuda/launch.h"
#include "cuda/ptx.cuh"
#include "cuda/values.cuh"
#include "nq_cuda_attention.h"

namespace nq_cuda {

__device__ __forceinline__ float warp_max(float value) {
  for (int step = 16; step > 0; step /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, step));
  }
  return value;
}

// Cosines and sines of one position; lane l has the channel pairs l, l + 32, ...
template <int D>
struct Rotation {
  float cosine[D / 64], sine[D / 64];

  __device__ Rotation(const float* frequencies, int64_t position, int lane) {
#pragma unroll
    for (int j = 0; j < D / 64; ++j) {
      // The angle is rounded to float32, as PyTorch's tables are.
      sincosf(static_cast<float>(position) * frequencies[lane + 32 * j], &sine[j], &cosine[j]);
    }
  }
};

// One head in a warp's registers: channel pairs (i, i + D / 2).
template <nq_type Type, int D>
struct Head {
  float low[D / 64], high[D / 64];

  __device__ Head(const void* x, int64_t begin, int lane) {
#pragma unroll
    for (int j = 0; j < D / 64; ++j) {
      low[j] = load_value(x, begin + lane + 32 * j, Type);
      high[j] = load_value(x, begin + lane + 32 * j + D / 2, Type);
    }
  }

  // x / sqrt(mean(x^2) + eps) * weight; nothing without a weight.
  __device__ void norm(const float* weight, float eps, int lane) {
    if (weight == nullptr) return;
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < D / 64; ++j) sum += low[j] * low[j] + high[j] * high[j];
    const float factor = rsqrtf(warp_sum(sum) / D + eps);
#pragma unroll
    for (int j = 0; j < D / 64; ++j) {
      low[j] *= factor * weight[lane + 32 * j];
      high[j] *= factor * weight[lane + 32 * j + D / 2];
    }
  }

  __device__ void rotate(const Rotation<D>& by) {
#pragma unroll
    for (int j = 0; j < D / 64; ++j) {
      const float a = low[j], b = high[j];
      low[j] = a * by.cosine[j] - b * by.sine[j];
      high[j] = b * by.cosine[j] + a * by.sine[j];
    }
  }

  __device__ void store(void* y, int64_t begin, nq_type type, int lane, float scale = 1.0f) const {
#pragma unroll
    for (int j = 0; j < D / 64; ++j) {
      store_value(y, begin + lane + 32 * j, type, low[j] * scale);
      store_value(y, begin + lane + 32 * j + D / 2, type, high[j] * scale);
    }
  }
};

template <typename Kernel>
nq_status launch_overlapping(Kernel kernel, dim3 grid, int threads, const nq_cuda_device& device,
                             cudaStream_t stream, const nq_cuda_attention& attention) {
  return launch({"attention", grid, threads, 0, may_overlap(device)}, stream, kernel, attention);
}

// What these kernels do not compute yet.
inline nq_status check_supported(const nq_cuda_attention& a, bool appends) {
  const nq_status status = check_attention(a, appends);
  if (status != NQ_OK) return status;
  const bool known = a.head_dim == 64 || a.head_dim == 128 || a.head_dim == 256;
  return known && a.cache.bits == 16 && a.cache.page_table == nullptr && a.starts == nullptr &&
                 a.window == 0 && a.soft_cap == 0.0f && a.frequencies != nullptr
             ? NQ_OK
             : NQ_NO_KERNEL;
}

}  // namespace nq_cuda

#endif  // NQ_CUDA_DECODE_ATTENTION_CUH
