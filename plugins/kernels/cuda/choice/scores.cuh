// SPDX-License-Identifier: Apache-2.0
//
// The scores that a sequence's choice is made from: its logits after the repetition penalty (CTRL,
// arXiv:1909.05858, section 4.1).

#ifndef NQ_CUDA_CHOICE_SCORES_CUH
#define NQ_CUDA_CHOICE_SCORES_CUH

#include "cuda/choice/types.cuh"

namespace nq_cuda {
namespace choice {

struct Scores {
  const float* logits;
  uint32_t* seen;  // a bit a token; null without a penalty
  float penalty;

  __device__ __forceinline__ Scores(const nq_cuda_choice& c, int64_t sequence, bool sampled)
      : logits(c.logits + sequence * c.logits_stride), seen(nullptr), penalty(1.0f) {
    if (!sampled) return;
    penalty = c.sampling[sequence].repetition_penalty;
    if (penalty == 1.0f) return;
    seen = words_of(state_of(c, sequence), Layout(c.vocabulary).seen);
  }

  __device__ __forceinline__ float operator()(int64_t token) const {
    const float logit = logits[token];
    if (seen == nullptr || (seen[token / 32] >> (token % 32) & 1u) == 0) return logit;
    return logit < 0.0f ? logit * penalty : logit / penalty;
  }

  // Takes note of the tokens so far, those of every `step`-th place from `first` on.
  __device__ void note(const nq_cuda_choice& c, int64_t sequence, int64_t place, int64_t first,
                       int64_t step) const {
    const int64_t* history = c.history + sequence * c.capacity;
    for (int64_t i = first; seen != nullptr && i < place; i += step) {
      const int64_t token = history[i];
      if (token >= 0 && token < c.vocabulary) atomicOr(seen + token / 32, 1u << (token % 32));
    }
  }

  // Leaves no bit of them behind; the last block of the last kernel that reads scores calls it.
  __device__ void forget(const nq_cuda_choice& c, int64_t sequence, int64_t place) const {
    const int64_t* history = c.history + sequence * c.capacity;
    for (int64_t i = threadIdx.x; seen != nullptr && i < place; i += blockDim.x) {
      const int64_t token = history[i];
      if (token >= 0 && token < c.vocabulary) seen[token / 32] = 0;
    }
  }
};

}  // namespace choice
}  // namespace nq_cuda

#endif  // NQ_CUDA_CHOICE_SCORES_CUH
