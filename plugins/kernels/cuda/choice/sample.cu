// SPDX-License-Identifier: Apache-2.0
//
// Draws by temperature, top-k, top-p, min-p and repetition penalty, in four launches over all
// sequences; a sequence leaves out those that it does not need:
//
//   note      takes note of the tokens that the penalty is for
//   highest   finds the highest score (greedy.cu); sequences at temperature 0 end here
//   spread    runs the race of all tokens, or where top-k or top-p restricts it, makes a histogram
//             of the distances below the highest score and finds the last bin of a candidate
//   finish    lists the candidates, and its last block selects those that are left and lets them
//             race; more candidates than the list holds are read from the logits again and again

#include "cuda/choice/race.cuh"
#include "cuda/choice/scores.cuh"
#include "cuda/choice/select.cuh"
#include "cuda/choice/sort.cuh"

namespace nq_cuda {
namespace choice {

namespace {

// How one sequence is drawn.
struct Draw {
  int64_t sequence, place;
  State* state;
  nq_cuda_sampling by;
  bool top_k, top_p, drawn;  // drawn: its token is not chosen yet
  float highest;

  __device__ Draw(const nq_cuda_choice& c, int64_t of)
      : sequence(of), place(next_place(c, of)), state(state_of(c, of)), drawn(false) {
    if (place < 0) return;
    by = c.sampling[of];
    highest = __ldcg(&state->highest);
    top_k = by.top_k > 0 && by.top_k < c.vocabulary;
    top_p = by.top_p < 1.0f;
    drawn = highest == highest;
  }

  __device__ __forceinline__ float distance(float score) const {
    return (highest - score) / by.temperature;
  }
  __device__ __forceinline__ bool likely(float distance) const {
    return by.min_p <= 0.0f || expf(-distance) >= by.min_p;
  }
  __device__ __forceinline__ uint32_t* words(int64_t at) const { return words_of(state, at); }
};

// The choice is made: for all threads of the last block that works on the sequence.
__device__ void end(const nq_cuda_choice& c, const Draw& draw, const Scores& scores, Key best) {
  scores.forget(c, draw.sequence, draw.place);
  if (threadIdx.x != 0) return;
  draw.state->best = 0;
  draw.state->highest = __uint_as_float(0x7fc00000u);
  commit(c, draw.sequence, draw.place, winner(best));
}

__global__ void __launch_bounds__(kThreads) note(const nq_cuda_choice c) {
  release_dependents();
  const int64_t sequence = blockIdx.y, place = next_place(c, sequence);
  if (place < 0) return;
  const Scores scores(c, sequence, true);
  scores.note(c, sequence, place, static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x,
              stride_of_grid());
}

__device__ void race_all(const nq_cuda_choice& c, const Draw& draw, const Scores& scores) {
  Key best = 0;
  for (int64_t pair = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
       pair * 2 < c.vocabulary; pair += stride_of_grid()) {
    const uint4 random =
        philox(draw.by.seed, static_cast<uint64_t>(draw.place), static_cast<uint32_t>(pair));
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      const int64_t token = pair * 2 + odd;
      if (token >= c.vocabulary) break;
      const float distance = draw.distance(scores(token));
      if (!draw.likely(distance)) continue;
      const Key mine =
          entry(arrival(odd ? random.z : random.x, odd ? random.w : random.y, distance), token);
      best = mine > best ? mine : best;
    }
  }
  best = block_most(best);
  if (threadIdx.x == 0) atomicMax(&draw.state->best, best);
  if (arrive_last(draw.state)) end(c, draw, scores, __ldcg(&draw.state->best));
}

// Every block's histogram into the sequence's, and by the last block the last bin of a candidate.
__device__ void cut_off(const nq_cuda_choice& c, const Draw& draw, const Scores& scores,
                        Bins* bins) {
  for (int i = threadIdx.x; i < kBins; i += kThreads) bins->counts[i] = bins->deficits[i] = 0;
  __syncthreads();
#pragma unroll 4
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < c.vocabulary;
       i += stride_of_grid()) {
    const float distance = draw.distance(scores(i));
    const uint32_t key = key_of(distance);
    if (key == kNoKey) continue;
    atomicAdd(bins->counts + (key >> kFirstShift), 1u);
    atomicAdd(bins->deficits + (key >> kFirstShift), deficit_of(distance, key));
  }
  __syncthreads();
  const Layout layout(c.vocabulary);
  uint32_t* counts = draw.words(layout.counts);
  uint32_t* deficits = draw.words(layout.deficits);
  for (int i = threadIdx.x; i < kBins; i += kThreads) {
    if (bins->counts[i] == 0) continue;
    atomicAdd(counts + i, bins->counts[i]);
    atomicAdd(deficits + i, bins->deficits[i]);
  }
  if (!arrive_last(draw.state)) return;
  for (int i = threadIdx.x; i < kBins; i += kThreads) {
    bins->counts[i] = __ldcg(counts + i);
    bins->deficits[i] = __ldcg(deficits + i);
    counts[i] = deficits[i] = 0;
  }
  __syncthreads();
  const auto weight = [&](int bin) -> Key {
    if (draw.top_k) return bins->counts[bin];
    return mass_of(bins->counts[bin], bins->deficits[bin], static_cast<float>(bin) * 0x1p-6f);
  };
  const Found found = find_bin(bins->counts, static_cast<Key>(draw.by.top_k),
                               draw.top_k ? 1.0f : draw.by.top_p, weight);
  // With top-k the bins before have been counted already.
  uint32_t before = 0;
  for (int i = threadIdx.x; i < static_cast<int>(found.bin); i += kThreads) {
    before += bins->counts[i];
  }
  __shared__ unsigned candidates;
  if (threadIdx.x == 0) candidates = found.count;
  __syncthreads();
  atomicAdd(&candidates, before);
  __syncthreads();
  if (threadIdx.x != 0) return;
  draw.state->cut = found.bin;
  draw.state->mass = found.total;
  draw.state->some = candidates <= kListed;
}

__global__ void __launch_bounds__(kThreads) spread(const nq_cuda_choice c) {
  __shared__ Bins bins;
  release_dependents();
  wait_for_predecessors();
  const Draw draw(c, blockIdx.y);
  if (!draw.drawn) return;
  const Scores scores(c, blockIdx.y, true);
  if (draw.top_k || draw.top_p) {
    cut_off(c, draw, scores, &bins);
  } else {
    race_all(c, draw, scores);
  }
}

// Selects among `count` items, of which item i has the distance `distance(i)` and is the token
// `token(i)`, and returns the winner's entry in thread 0.
template <typename DistanceOf, typename TokenOf>
__device__ Key race_selected(const Draw& draw, Bins* bins, int64_t count, DistanceOf distance,
                             TokenOf token) {
  uint32_t last = kNoKey - 1;
  const auto key = [&](int64_t i) {
    const uint32_t found = key_of(distance(i));
    return found <= last ? found : kNoKey;
  };
  const auto deficit = [&](int64_t i, uint32_t k) { return deficit_of(distance(i), k); };
  if (draw.top_k) {
    last = select_count(bins, count, static_cast<Key>(draw.by.top_k), kFirstShift, key).key;
  }
  // Of tokens that are equally likely, top-p keeps those with the largest numbers.
  const auto number = [&](int64_t i) {
    return static_cast<uint32_t>(kMostVocabulary - 1 - token(i));
  };
  uint32_t last_number = kMostVocabulary;
  if (draw.top_p) {
    const Key target =
        draw.top_k ? 0 : max(share_of(draw.by.top_p, __ldcg(&draw.state->mass)), Key{1});
    const Selected at = select_mass(bins, count, target, draw.by.top_p, key, deficit);
    last = at.key;
    const Key each = mass_of_key(last);
    const Key missing = at.target > at.before ? at.target - at.before : 1;
    const Key kept = (missing + each - 1) / each;
    if (kept < at.count) {
      last_number = select_count(bins, count, kept, 9, [&](int64_t i) {
                      return key(i) == last ? number(i) : kNoKey;
                    }).key;
    }
  }
  Key best = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) {
    const float far = distance(i);
    const uint32_t k = key_of(far);
    if (k > last || (k == last && number(i) > last_number) || !draw.likely(far)) continue;
    const Key mine = entry_of(draw.by.seed, draw.place, token(i), far);
    best = mine > best ? mine : best;
  }
  return block_most(best);
}

// The same for up to kSorted items, which are sorted: fewer steps than histograms take.
template <typename DistanceOf, typename TokenOf>
__device__ Key race_sorted(const Draw& draw, Key* items, int count, DistanceOf distance,
                           TokenOf token) {
  sort_items(items, count, [&](int i) {
    const Key number = static_cast<Key>(kMostVocabulary - 1 - token(i));
    return static_cast<Key>(key_of(distance(i))) << 32 | number;
  });
  constexpr int kEach = kSorted / kThreads;
  const int first = threadIdx.x * kEach;
  int kept = count;
  if (draw.top_k && draw.by.top_k < count) {
    // Equals of the last one stay.
    const uint32_t last = static_cast<uint32_t>(items[draw.by.top_k - 1] >> 32);
    int mine = 0;
    for (int i = first; i < first + kEach; ++i) {
      mine += i < count && static_cast<uint32_t>(items[i] >> 32) <= last;
    }
    kept = static_cast<int>(block_total(static_cast<Key>(mine)).total);
  }
  Key masses[kEach], target = 0, before = 0;
  if (draw.top_p) {
    Key mine = 0;
    for (int i = 0; i < kEach; ++i) {
      const uint32_t key = static_cast<uint32_t>(items[first + i] >> 32);
      masses[i] = first + i < kept ? mass_of_key(key) : 0;
      mine += masses[i];
    }
    const Running running = block_total(mine);
    before = running.before;
    const Key whole = draw.top_k ? running.total : __ldcg(&draw.state->mass);
    target = max(share_of(draw.by.top_p, whole), Key{1});
  }
  Key best = 0;
  for (int i = 0; i < kEach; ++i) {
    if (first + i >= kept) break;
    if (draw.top_p) {
      if (before >= target) break;
      before += masses[i];
    }
    const Key item = items[first + i];
    const float far = distance_of_key(static_cast<uint32_t>(item >> 32));
    if (!draw.likely(far)) continue;
    const int64_t id = kMostVocabulary - 1 - static_cast<int64_t>(item & 0xffffffffu);
    const Key mine = entry_of(draw.by.seed, draw.place, id, far);
    best = mine > best ? mine : best;
  }
  return block_most(best);
}

__global__ void __launch_bounds__(kThreads) finish(const nq_cuda_choice c) {
  __shared__ __align__(16) Bins bins;
  wait_for_predecessors();
  const Draw draw(c, blockIdx.y);
  if (!draw.drawn) return;
  const Scores scores(c, blockIdx.y, true);
  const Layout layout(c.vocabulary);
  uint32_t* distances = draw.words(layout.distances);
  uint32_t* tokens = draw.words(layout.tokens);
  const bool some = __ldcg(&draw.state->some) != 0;
  const uint32_t cut = __ldcg(&draw.state->cut);
  if (some) {
#pragma unroll 4
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < c.vocabulary;
         i += stride_of_grid()) {
      const float distance = draw.distance(scores(i));
      const uint32_t key = key_of(distance);
      if (key == kNoKey || key >> kFirstShift > cut) continue;
      const uint32_t at = atomicAdd(&draw.state->listed, 1u);
      distances[at] = __float_as_uint(distance);
      tokens[at] = static_cast<uint32_t>(i);
    }
  }
  if (!arrive_last(draw.state)) return;
  Key best;
  const int count = static_cast<int>(__ldcg(&draw.state->listed));
  if (some && count <= kSorted) {
    static_assert(sizeof bins >= kSorted * sizeof(Key), "items take the histogram's place");
    best = race_sorted(
        draw, reinterpret_cast<Key*>(&bins), count,
        [&](int i) { return __uint_as_float(__ldcg(distances + i)); },
        [&](int i) -> int64_t { return __ldcg(tokens + i); });
  } else if (some) {
    best = race_selected(
        draw, &bins, count, [&](int64_t i) { return __uint_as_float(__ldcg(distances + i)); },
        [&](int64_t i) -> int64_t { return __ldcg(tokens + i); });
  } else {
    best = race_selected(
        draw, &bins, c.vocabulary, [&](int64_t i) { return draw.distance(scores(i)); },
        [](int64_t i) { return i; });
  }
  if (threadIdx.x == 0) draw.state->listed = 0;
  end(c, draw, scores, best);
}

}  // namespace

}  // namespace choice
}  // namespace nq_cuda

using namespace nq_cuda;

extern "C" nq_status nq_cuda_sample(const nq_cuda_choice* choice, void* stream) {
  nq_status status = choice::check_choice(choice);
  if (status != NQ_OK) return status;
  if (choice->sampling == nullptr || !aligned(choice->sampling)) return NQ_BAD_ARGUMENT;
  nq_cuda_device device;
  status = describe(&device);
  if (status != NQ_OK) return status;
  const nq_cuda_choice& c = *choice;
  const bool overlap = may_overlap(device);
  cudaStream_t queue = static_cast<cudaStream_t>(stream);
  const dim3 grid = choice::grid_of(c);
  const dim3 few(8, static_cast<unsigned>(c.sequences));
  status = launch({"sampling's history", few, choice::kThreads, 0, false}, queue, choice::note, c);
  if (status != NQ_OK) return status;
  status = choice::find_highest(c, true, overlap, queue);
  if (status != NQ_OK) return status;
  status =
      launch({"sampling's spread", grid, choice::kThreads, 0, overlap}, queue, choice::spread, c);
  if (status != NQ_OK) return status;
  return launch({"sampling's draw", grid, choice::kThreads, 0, overlap}, queue, choice::finish, c);
}
