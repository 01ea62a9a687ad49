// SPDX-License-Identifier: Apache-2.0
//
// The highest score of each sequence, the first of equals, and the greedy choice.

#include "cuda/choice/scores.cuh"

namespace nq_cuda {
namespace choice {

namespace {

template <bool SAMPLED>
__global__ void __launch_bounds__(kThreads) highest(const nq_cuda_choice c) {
  release_dependents();
  wait_for_predecessors();
  const int64_t sequence = blockIdx.y, place = next_place(c, sequence);
  if (place < 0) return;
  const Scores scores(c, sequence, SAMPLED);
  // Larger scores have larger keys, and of equal scores the first place has the largest.
  Key best = 0;
#pragma unroll 8
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < c.vocabulary;
       i += stride_of_grid()) {
    const Key key =
        static_cast<Key>(ordered(scores(i))) << 32 | (0xffffffffu - static_cast<uint32_t>(i));
    best = key > best ? key : best;
  }
  best = block_most(best);
  State* state = state_of(c, sequence);
  if (threadIdx.x == 0) atomicMax(&state->best, best);
  if (!arrive_last(state)) return;
  const Key key = __ldcg(&state->best);
  const float score = unordered(static_cast<uint32_t>(key >> 32));
  const bool finite = score - score == 0.0f;
  const bool draws = SAMPLED && finite && c.sampling[sequence].temperature > 0.0f;
  if (SAMPLED && !draws) scores.forget(c, sequence, place);
  __syncthreads();
  if (threadIdx.x != 0) return;
  state->best = 0;
  state->highest = draws ? score : __uint_as_float(0x7fc00000u);
  if (draws) return;
  const int64_t token = 0xffffffffu - static_cast<uint32_t>(key);
  commit(c, sequence, place, finite ? token : -1);
}

}  // namespace

nq_status check_choice(const nq_cuda_choice* choice) {
  if (choice == nullptr) return NQ_BAD_ARGUMENT;
  const nq_cuda_choice& c = *choice;
  const void* needed[] = {c.logits, c.tokens, c.history, c.positions};
  for (const void* pointer : needed) {
    if (pointer == nullptr || !aligned(pointer)) return NQ_BAD_ARGUMENT;
  }
  if (c.sequences < 1 || c.vocabulary < 1 || c.capacity < 1) return NQ_BAD_ARGUMENT;
  if (c.logits_stride < c.vocabulary) return NQ_BAD_ARGUMENT;
  if (c.sequences > 0xffff || c.vocabulary > kMostVocabulary) return NQ_TOO_LARGE;
  if (c.workspace == nullptr || !aligned(c.workspace) ||
      c.workspace_bytes < nq_cuda_choice_workspace_bytes(c.sequences, c.vocabulary)) {
    return NQ_WORKSPACE;
  }
  return NQ_OK;
}

nq_status find_highest(const nq_cuda_choice& c, bool sampled, bool overlap, cudaStream_t stream) {
  const dim3 grid = grid_of(c);
  const Launch how = {"greedy choice", grid, kThreads, 0, overlap};
  return sampled ? launch(how, stream, highest<true>, c) : launch(how, stream, highest<false>, c);
}

}  // namespace choice
}  // namespace nq_cuda

using namespace nq_cuda;

extern "C" size_t nq_cuda_choice_workspace_bytes(int64_t sequences, int64_t vocabulary) {
  if (sequences < 1 || sequences > 0xffff || vocabulary < 1 ||
      vocabulary > choice::kMostVocabulary) {
    return 0;
  }
  return static_cast<size_t>(sequences * choice::Layout(vocabulary).words * 4);
}

extern "C" nq_status nq_cuda_choose(const nq_cuda_choice* choice, void* stream) {
  const nq_status status = choice::check_choice(choice);
  if (status != NQ_OK) return status;
  return choice::find_highest(*choice, false, false, static_cast<cudaStream_t>(stream));
}
