// SPDX-License-Identifier: Apache-2.0
//
// Heads in registers: their norm, their rotation, and how they are stored. A head is spread over a
// few neighbouring threads, each with eight channels of its lower half and the eight that they are
// rotated with, so that everything moves 16 bytes at a time.

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

// Cosines and sines of one position, shared by a block.
template <int D>
struct Rotation {
  __align__(16) float cosines[D / 2], sines[D / 2];

  // A barrier must follow.
  __device__ void fill(const nq_cuda_attention& a, int64_t position) {
    for (int i = threadIdx.x; i < a.head_dim / 2; i += blockDim.x) {
      cosines[i] = 1.0f;
      sines[i] = 0.0f;
      if (a.frequencies == nullptr) continue;
      // The angle is rounded to float32, as PyTorch's tables are.
      sincosf(static_cast<float>(position) * a.frequencies[i], &sines[i], &cosines[i]);
    }
  }
};

// Threads of a head with room for D channels.
template <int D>
constexpr int kSpread = D <= 64    ? 4
                        : D <= 128 ? 8
                                   : 16;

// A thread's part of a head: channels first to first + 7 and those half a head on. All threads of a
// warp take part in every call, since they exchange sums; `present` ones have channels.
template <int D>
struct HeadPart {
  int first, half;
  bool present;
  float values[2][8];  // of the lower and of the upper half

  __device__ HeadPart(const nq_cuda_attention& a, const void* x, int64_t begin, bool wanted)
      : first(threadIdx.x % kSpread<D> * 8), half(a.head_dim / 2), present(wanted && first < half) {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      uint4 words = make_uint4(0, 0, 0, 0);
      const uint16_t* from = static_cast<const uint16_t*>(x) + begin + side * half + first;
      if (present) words = *reinterpret_cast<const uint4*>(from);
      unpack_eight(words, a.type, values[side]);
    }
  }

  // Over the threads of the head.
  template <typename Combine>
  static __device__ __forceinline__ float over_head(float value, Combine combine) {
#pragma unroll
    for (int step = 1; step < kSpread<D>; step *= 2) {
      value = combine(value, __shfl_xor_sync(0xffffffffu, value, step));
    }
    return value;
  }

  // x / sqrt(mean(x^2) + eps) * weight; nothing without a weight.
  __device__ void norm(const nq_cuda_attention& a, const float* weight) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 16; ++i) sum += values[i / 8][i % 8] * values[i / 8][i % 8];
    sum = over_head(sum, [](float u, float v) { return u + v; });
    if (weight == nullptr || !present) return;
    const float factor = rsqrtf(sum / a.head_dim + a.norm_eps);
#pragma unroll
    for (int side = 0; side < 2; ++side) {
#pragma unroll
      for (int i = 0; i < 8; ++i) values[side][i] *= factor * weight[side * half + first + i];
    }
  }

  __device__ void rotate(const Rotation<D>& by) {
    if (!present) return;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float low = values[0][i], high = values[1][i];
      const float cosine = by.cosines[first + i], sine = by.sines[first + i];
      values[0][i] = low * cosine - high * sine;
      values[1][i] = high * cosine + low * sine;
    }
  }

  __device__ float largest() const {
    float most = 0.0f;
#pragma unroll
    for (int i = 0; i < 16; ++i) most = fmaxf(most, fabsf(values[i / 8][i % 8]));
    return over_head(most, [](float u, float v) { return fmaxf(u, v); });
  }

  // As the type holds them.
  __device__ void round_to(nq_type type) {
#pragma unroll
    for (int i = 0; i < 16; i += 2) {
      float* pair = &values[i / 8][i % 8];
      unpack_pair(pack_pair(pair[0], pair[1], type), type, &pair[0], &pair[1]);
    }
  }

  // To the head that begins at `to`, in a 16-bit type.
  __device__ void store(void* to, int64_t begin, nq_type type, float factor = 1.0f) const {
    if (!present) return;
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const float* from = values[side];
      uint16_t* at = static_cast<uint16_t*>(to) + begin + side * half + first;
      *reinterpret_cast<uint4*>(at) =
          make_uint4(pack_pair(from[0] * factor, from[1] * factor, type),
                     pack_pair(from[2] * factor, from[3] * factor, type),
                     pack_pair(from[4] * factor, from[5] * factor, type),
                     pack_pair(from[6] * factor, from[7] * factor, type));
    }
  }

  // As codes of a scale.
  __device__ void store_codes(void* to, int64_t begin, float scale) const {
    if (!present) return;
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      uint32_t words[2] = {0, 0};
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        words[i / 4] |= static_cast<uint32_t>(static_cast<uint8_t>(code_of(values[side][i], scale)))
                        << (8 * (i % 4));
      }
      *reinterpret_cast<uint2*>(static_cast<char*>(to) + begin + side * half + first) =
          make_uint2(words[0], words[1]);
    }
  }
};

// Whether this thread is the one that writes what a head has once.
template <int D>
__device__ __forceinline__ bool leads_head() {
  return threadIdx.x % kSpread<D> == 0;
}

}  // namespace nq_cuda

#endif  // NQ_CUDA_ATTENTION_HEAD_CUH
