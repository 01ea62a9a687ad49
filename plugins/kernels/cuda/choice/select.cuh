// SPDX-License-Identifier: Apache-2.0
//
// The k-th item, or the item at which a share of the probability is reached, by histograms of a few
// bits of the keys at a time: no sort, and exact.
//
// A token's key is its distance t below the highest score in steps of 2^-27, so a bin of the first
// 11 bits is 1/64 wide. Tokens from t = 32 on, less likely than exp(-32) of the most likely one,
// have no key and count as impossible. Masses are integers, sums of exp(-t) in steps of 2^-40, so
// that no sum depends on the order of its terms.

#ifndef NQ_CUDA_CHOICE_SELECT_CUH
#define NQ_CUDA_CHOICE_SELECT_CUH

#include "cuda/choice/types.cuh"

namespace nq_cuda {
namespace choice {

constexpr uint32_t kNoKey = 0xffffffffu;
constexpr int kFirstShift = 21;  // of a key, to its bin
constexpr float kKeyStep = 0x1p-27f;
constexpr float kDeficitSteps = 0x1p18f;  // 2^20 tokens' deficits of at most 1/64 fit 32 bits

__device__ __forceinline__ uint32_t key_of(float distance) {
  return distance < 32.0f ? static_cast<uint32_t>(distance * 0x1p27f) : kNoKey;
}

// How much less than a token at the near edge of its first bin it weighs.
__device__ __forceinline__ uint32_t deficit_of(float distance, uint32_t key) {
  const float edge = static_cast<float>(key >> kFirstShift) * 0x1p-6f;
  return static_cast<uint32_t>((1.0f - expf(edge - distance)) * kDeficitSteps + 0.5f);
}

__device__ __forceinline__ Key mass_of(uint32_t count, uint32_t deficit, float edge) {
  const float tokens = static_cast<float>(count) - static_cast<float>(deficit) / kDeficitSteps;
  const Key mass = static_cast<Key>(tokens * expf(-edge) * 0x1p40f);
  return count > 0 && mass == 0 ? 1 : mass;
}

// Of one token, in the middle of its key's step.
__device__ __forceinline__ float distance_of_key(uint32_t key) {
  return (static_cast<float>(key) + 0.5f) * kKeyStep;
}
__device__ __forceinline__ Key mass_of_key(uint32_t key) {
  return mass_of(1, 0, distance_of_key(key));
}

struct Bins {
  uint32_t counts[kBins];
  uint32_t deficits[kBins];
};

// A bin of a histogram by its running total of counts or masses.
struct Found {
  uint32_t bin;
  uint32_t count;  // of the items in it
  Key before;      // total of the bins before it
  Key total;       // of all bins
};

__device__ __forceinline__ Key shuffle_up(Key value, int step) {
  const uint32_t high = __shfl_up_sync(0xffffffffu, static_cast<uint32_t>(value >> 32), step);
  const uint32_t low = __shfl_up_sync(0xffffffffu, static_cast<uint32_t>(value), step);
  return static_cast<Key>(high) << 32 | low;
}

__device__ __forceinline__ Key share_of(float share, Key total) {
  return static_cast<Key>(ceil(static_cast<double>(share) * static_cast<double>(total)));
}

struct Running {
  Key before, total;  // of the threads before this one, and of all
};

// Sums over the block's threads in their order. For all threads, which may write to what they read
// before as soon as it returns.
__device__ __forceinline__ Running block_total(Key mine) {
  __shared__ Key of_warp[kWarps];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  Key upto = mine;
  for (int step = 1; step < 32; step *= 2) {
    const Key other = shuffle_up(upto, step);
    if (lane >= step) upto += other;
  }
  __syncthreads();  // nobody reads what an earlier call left
  if (lane == 31) of_warp[warp] = upto;
  __syncthreads();
  Running running = {upto - mine, 0};
  for (int i = 0; i < kWarps; ++i) {
    if (i < warp) running.before += of_warp[i];
    running.total += of_warp[i];
  }
  return running;
}

// The first bin at which the running total reaches the target, which is at least 1 and counts as
// the whole total where it is more; with `share` the target is that share of the total. weight(bin)
// is what a bin counts; some bin must count. For all threads.
template <typename Weight>
__device__ Found find_bin(const uint32_t* counts, Key target, float share, Weight weight) {
  constexpr int kEach = kBins / kThreads;
  __shared__ Found found;
  const int first = threadIdx.x * kEach;
  Key weights[kEach], mine = 0;
  for (int i = 0; i < kEach; ++i) mine += weights[i] = weight(first + i);
  Key before, total;
  {
    const Running running = block_total(mine);
    before = running.before, total = running.total;
  }
  if (share < 1.0f) target = share_of(share, total);
  target = min(max(target, Key{1}), total);
  for (int i = 0; i < kEach; ++i) {
    if (before < target && before + weights[i] >= target) {
      found = {static_cast<uint32_t>(first + i), counts[first + i], before, total};
    }
    before += weights[i];
  }
  __syncthreads();
  const Found result = found;
  __syncthreads();
  return result;
}

// Keys of `count` items, in bins of the bits from `shift` on, of those items whose higher bits are
// `prefix`. key(i) is an item's key, kNoKey for none; deficit(i, key) its deficit. For all threads.
template <typename KeyOf, typename DeficitOf>
__device__ void fill_bins(Bins* bins, int64_t count, uint32_t prefix, int shift, int bits,
                          KeyOf key, DeficitOf deficit) {
  for (int i = threadIdx.x; i < kBins; i += kThreads) bins->counts[i] = bins->deficits[i] = 0;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < count; i += kThreads) {
    const uint32_t k = key(i);
    if (k == kNoKey || (shift + bits < 32 && k >> (shift + bits) != prefix)) continue;
    const uint32_t bin = k >> shift & ((1u << bits) - 1u);
    atomicAdd(bins->counts + bin, 1u);
    if (shift == kFirstShift) atomicAdd(bins->deficits + bin, deficit(i, k));
  }
  __syncthreads();
}

// An item found by its rank or its share of the mass.
struct Selected {
  uint32_t key;    // of the item
  uint32_t count;  // of the items with this key
  Key before;      // items, or mass, of the keys below it
  Key target;      // what was asked for, in items or mass
};

// The key at which the running count of items in the order of their keys reaches `target`. Keys are
// below 2^(shift + 11).
template <typename KeyOf>
__device__ Selected select_count(Bins* bins, int64_t count, Key target, int shift, KeyOf key) {
  Selected s = {0, 0, 0, target};
  for (int width = 11; width > 0; width = min(shift, 11), shift -= width) {
    fill_bins(bins, count, s.key, shift, width, key, [](int64_t, uint32_t) { return 0u; });
    const Found found = find_bin(bins->counts, s.target - s.before, 1.0f,
                                 [&](int bin) -> Key { return bins->counts[bin]; });
    s.key = s.key << width | found.bin;
    s.before += found.before;
    s.count = found.count;
  }
  return s;
}

// The key at which the running mass reaches `share` of the whole, or `target` if that is not 0.
template <typename KeyOf, typename DeficitOf>
__device__ Selected select_mass(Bins* bins, int64_t count, Key target, float share, KeyOf key,
                                DeficitOf deficit) {
  Selected s = {0, 0, 0, target};
  int shift = kFirstShift;
  for (int width = 11; width > 0; width = min(shift, 11), shift -= width) {
    fill_bins(bins, count, s.key, shift, width, key, deficit);
    // Without deficits a bin's tokens weigh what one in its middle does: it is 2^-17 wide or less.
    const float middle = shift == kFirstShift ? 0.0f : 0.5f * static_cast<float>(1u << shift);
    const auto weight = [&](int bin) {
      const uint32_t edge = (s.key << width | static_cast<uint32_t>(bin)) << shift;
      return mass_of(bins->counts[bin], bins->deficits[bin],
                     (static_cast<float>(edge) + middle) * kKeyStep);
    };
    const bool by_share = shift == kFirstShift && target == 0;
    const Found found =
        find_bin(bins->counts, s.target - s.before, by_share ? share : 1.0f, weight);
    if (by_share) s.target = share_of(share, found.total);
    s.key = s.key << width | found.bin;
    s.before += found.before;
    s.count = found.count;
  }
  return s;
}

}  // namespace choice
}  // namespace nq_cuda

#endif  // NQ_CUDA_CHOICE_SELECT_CUH
