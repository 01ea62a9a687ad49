// SPDX-License-Identifier: Apache-2.0
//
// From a product of query and key to the score in powers of two that the softmax takes.

#ifndef NQ_CUDA_ATTENTION_SCORE_CUH
#define NQ_CUDA_ATTENTION_SCORE_CUH

#include "cuda/attention/instructions.cuh"
#include "nq_cuda_attention.h"

namespace nq_cuda {

// The score of what is not seen.
constexpr float kNothing = -__builtin_huge_valf();

// Scores of two queries whose products carry factors of their own.
struct Score {
  static constexpr float kLog2E = 1.4426950408889634f;
  float factors[2], cap, steepness;

  __device__ Score(const nq_cuda_attention& a, float first, float second)
      : cap(a.soft_cap * kLog2E), steepness(0.0f) {
    const float factor = a.soft_cap == 0.0f ? a.scale * kLog2E : a.scale;
    factors[0] = factor * first;
    factors[1] = factor * second;
    if (a.soft_cap != 0.0f) steepness = 2.0f * kLog2E / a.soft_cap;
  }

  __device__ __forceinline__ float operator()(float product, int query) const {
    const float score = product * factors[query];
    if (cap == 0.0f) return score;
    // c tanh(s / c) = c - 2 c / (exp(2 s / c) + 1); tanh.approx would be 5e-4 off.
    return cap - 2.0f * cap * reciprocal(power_of_two(score * steepness) + 1.0f);
  }
};

}  // namespace nq_cuda

#endif  // NQ_CUDA_ATTENTION_SCORE_CUH
