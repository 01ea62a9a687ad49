// SPDX-License-Identifier: Apache-2.0
//
// What the launches of attention share: which template serves a description, how many pieces its
// work is cut into, and the rows of a sequence.

#ifndef NQ_CUDA_ATTENTION_RUN_H
#define NQ_CUDA_ATTENTION_RUN_H

#include <type_traits>

#include "cuda/attention/cache.cuh"
#include "cuda/launch.h"

namespace nq_cuda {

// Calls `use` with the room for channels that a head of `head_dim` gets, as a constant.
template <typename Use>
nq_status for_room(int head_dim, Use use) {
  if (head_dim <= 64) return use(std::integral_constant<int, 64>());
  if (head_dim <= 96) return use(std::integral_constant<int, 96>());
  if (head_dim <= 128) return use(std::integral_constant<int, 128>());
  return use(std::integral_constant<int, 256>());
}

// And with the core.
template <typename Use>
nq_status for_core(const nq_cuda_attention& a, Use use) {
  if (a.cache.bits == 8) return use(std::integral_constant<Core, Core::kCodes>());
  if (a.type == NQ_BFLOAT16) return use(std::integral_constant<Core, Core::kBfloat>());
  return use(std::integral_constant<Core, Core::kHalf>());
}

// The new tokens of a sequence that have a place in the cache; none of an idle one.
struct NewTokens {
  int64_t first_row;
  int position, count;

  __device__ NewTokens(const nq_cuda_attention& a, int sequence)
      : first_row(static_cast<int64_t>(sequence) * a.max_tokens), position(0), count(0) {
    int64_t rows = a.max_tokens;
    if (a.starts != nullptr) {
      first_row = a.starts[sequence];
      rows = min(a.starts[sequence + 1] - first_row, rows);
    }
    const nq_cuda_cache& cache = a.cache;
    const int64_t held = a.positions[sequence], pages = cache.page_table ? cache.table_stride : 1;
    const int64_t capacity = pages * cache.page_tokens;
    if (held < 0 || held >= capacity) return;
    position = static_cast<int>(held);
    count = static_cast<int>(min(rows, capacity - held));
  }
};

// The workspace: counters, zero between calls, then the partial results of blocks that share a row.
constexpr int kCounters = 1024;
constexpr int kMostCores = 192;  // multiprocessors that are reckoned with
constexpr int kMostSplits = 64;  // pieces that the cached tokens of a row are cut into

inline nq_status check_workspace(const nq_cuda_attention& a) {
  const bool there = a.workspace != nullptr && reinterpret_cast<uintptr_t>(a.workspace) % 256 == 0;
  return there && a.workspace_bytes >= nq_cuda_attend_workspace_bytes(&a) ? NQ_OK : NQ_WORKSPACE;
}

// Splits such that `units` blocks become about `wanted`, each of at least `chunk` tokens.
inline int splits_of(const nq_cuda_attention& a, int64_t units, int64_t wanted, int chunk) {
  const int64_t capacity = attention_capacity(a.cache);
  const int64_t seen =
      a.window == 0 ? capacity : static_cast<int64_t>(a.window) + a.max_tokens + chunk;
  const int64_t most = ceil_div(seen < capacity ? seen : capacity, chunk);
  int64_t splits = ceil_div(wanted, units);
  if (splits > most) splits = most;
  if (splits > kMostSplits) splits = kMostSplits;
  return units > kCounters ? 1 : static_cast<int>(splits);
}

// Most blocks that share rows, for up to `units` blocks without splits: each has at most so many
// splits, and all together are fewer than twice the wanted ones.
inline int64_t most_blocks(const nq_cuda_attention& a, int64_t units, int64_t wanted, int chunk) {
  const int64_t chunks = ceil_div(attention_capacity(a.cache), chunk);
  const int64_t splits = chunks < kMostSplits ? chunks : kMostSplits;
  return units * splits < 2 * wanted ? units * splits : 2 * wanted;
}

inline int cores_of(const nq_cuda_device& device) {
  return device.multiprocessors < kMostCores ? device.multiprocessors : kMostCores;
}

// Bytes of partial results that nq_cuda_attend and nq_cuda_attend_many may write, on any GPU and
// for any fewer sequences and tokens.
size_t attend_one_workspace(const nq_cuda_attention& a);
size_t attend_many_workspace(const nq_cuda_attention& a);

// One token a row of y whose queries are rotated and whose keys are in the cache already, for GPUs
// older than sm_80; in attend.cu.
nq_status attend_each(const nq_cuda_attention& a, const nq_cuda_device& device,
                      cudaStream_t stream);

}  // namespace nq_cuda

#endif  // NQ_CUDA_ATTENTION_RUN_H
