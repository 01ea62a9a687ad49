// SPDX-License-Identifier: Apache-2.0
//
// One head in a warp's registers: its norm, its rotation, and how it is stored. D is the room for
// its channels; it may have fewer.

#ifndef NQ_CUDA_ATTENTION_HEAD_CUH
#define NQ_CUDA_ATTENTION_HEAD_CUH

#include "cuda/attention/cache.cuh"

namespace nq_cuda {

__device__ __forceinline__ float warp_max(float value) {
  for (int step = 16; step > 0; step /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, step));
  }
  return value;
}

template <int D>
constexpr int kPairs = (D / 2 + 31) / 32;  // channel pairs of a lane

// Cosines and sines of one position; lane l has the channel pairs l, l + 32, ...
template <int D>
struct Rotation {
  float cosine[kPairs<D>], sine[kPairs<D>];

  __device__ Rotation(const nq_cuda_attention& a, int64_t position, int lane) {
#pragma unroll
    for (int j = 0; j < kPairs<D>; ++j) {
      const int pair = lane + 32 * j;
      cosine[j] = 1.0f;
      sine[j] = 0.0f;
      if (a.frequencies == nullptr || pair >= a.head_dim / 2) continue;
      // The angle is rounded to float32, as PyTorch's tables are.
      sincosf(static_cast<float>(position) * a.frequencies[pair], &sine[j], &cosine[j]);
    }
  }
};

// Channel pairs (i, i + head_dim / 2); zeros past the last.
template <int D>
struct Head {
  float low[kPairs<D>], high[kPairs<D>];

  __device__ Head(const nq_cuda_attention& a, const void* x, int64_t begin, int lane) {
    const int half = a.head_dim / 2;
#pragma unroll
    for (int j = 0; j < kPairs<D>; ++j) {
      const int pair = lane + 32 * j;
      low[j] = pair < half ? load_value(x, begin + pair, a.type) : 0.0f;
      high[j] = pair < half ? load_value(x, begin + pair + half, a.type) : 0.0f;
    }
  }

  // x / sqrt(mean(x^2) + eps) * weight; nothing without a weight.
  __device__ void norm(const nq_cuda_attention& a, const float* weight, int lane) {
    if (weight == nullptr) return;
    const int half = a.head_dim / 2;
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < kPairs<D>; ++j) sum += low[j] * low[j] + high[j] * high[j];
    const float factor = rsqrtf(warp_sum(sum) / a.head_dim + a.norm_eps);
#pragma unroll
    for (int j = 0; j < kPairs<D>; ++j) {
      const int pair = lane + 32 * j;
      if (pair >= half) continue;
      low[j] *= factor * weight[pair];
      high[j] *= factor * weight[pair + half];
    }
  }

  __device__ void rotate(const Rotation<D>& by) {
#pragma unroll
    for (int j = 0; j < kPairs<D>; ++j) {
      const float a = low[j], b = high[j];
      low[j] = a * by.cosine[j] - b * by.sine[j];
      high[j] = b * by.cosine[j] + a * by.sine[j];
    }
  }

  __device__ float largest() const {
    float most = 0.0f;
#pragma unroll
    for (int j = 0; j < kPairs<D>; ++j) most = fmaxf(most, fmaxf(fabsf(low[j]), fabsf(high[j])));
    return warp_max(most);
  }

  // Calls put(channel, value) for this lane's channels.
  template <typename Put>
  __device__ void each(int head_dim, int lane, Put put) const {
#pragma unroll
    for (int j = 0; j < kPairs<D>; ++j) {
      const int pair = lane + 32 * j;
      if (pair >= head_dim / 2) continue;
      put(pair, low[j]);
      put(pair + head_dim / 2, high[j]);
    }
  }

  __device__ void store(void* to, int64_t begin, nq_type type, int head_dim, int lane) const {
    each(head_dim, lane, [=](int i, float value) { store_value(to, begin + i, type, value); });
  }

  // As codes; returns their scale.
  __device__ __half store_codes(void* to, int64_t begin, int head_dim, int lane) const {
    const __half scale = scale_of(largest());
    const float divisor = __half2float(scale);
    int8_t* codes = static_cast<int8_t*>(to) + begin;
    each(head_dim, lane, [=](int i, float value) { codes[i] = code_of(value, divisor); });
    return scale;
  }
};

}  // namespace nq_cuda

#endif  // NQ_CUDA_ATTENTION_HEAD_CUH
