// SPDX-License-Identifier: Apache-2.0
//
// A few items of a block in order: Batcher's bitonic network (AFIPS 1968) in shared memory.

#ifndef NQ_CUDA_CHOICE_SORT_CUH
#define NQ_CUDA_CHOICE_SORT_CUH

#include "cuda/choice/types.cuh"

namespace nq_cuda {
namespace choice {

constexpr int kSorted = 1024;  // most items

// Items 0 to count - 1 of item(i) in ascending order, and the largest number after them up to
// kSorted. For all threads.
template <typename ItemOf>
__device__ void sort_items(Key* items, int count, ItemOf item) {
  int size = 2;
  while (size < count) size *= 2;
  for (int i = threadIdx.x; i < kSorted; i += kThreads) items[i] = i < count ? item(i) : ~Key{0};
  for (int run = 2; run <= size; run *= 2) {
    for (int step = run / 2; step > 0; step /= 2) {
      __syncthreads();
      for (int i = threadIdx.x; i < size / 2; i += kThreads) {
        const int inside = i & (step - 1), low = (i - inside) * 2 + inside, high = low + step;
        const Key a = items[low], b = items[high];
        const bool upwards = (low & run) == 0;
        if ((a > b) == upwards) items[low] = b, items[high] = a;
      }
    }
  }
  __syncthreads();
}

}  // namespace choice
}  // namespace nq_cuda

#endif  // NQ_CUDA_CHOICE_SORT_CUH
