// SPDX-License-Identifier: Apache-2.0

#include "workspace.h"

#include <stdint.h>
#include <stdlib.h>

namespace {

constexpr size_t kAlign = 64;
constexpr int kShelves = 4;
// Larger blocks go back to the system at once.
constexpr size_t kLargestKept = size_t{64} << 20;

// Idle blocks. Each shelf holds at most one, taken and put back by atomic exchange.
void* shelves[kShelves];

size_t& size_of(void* block) { return *static_cast<size_t*>(block); }

void* allocate(size_t bytes) {
  if (bytes > SIZE_MAX - 2 * kAlign) return nullptr;
  const size_t whole = (bytes + 2 * kAlign - 1) / kAlign * kAlign;
  void* block = nullptr;
  if (posix_memalign(&block, kAlign, whole) != 0) return nullptr;
  size_of(block) = whole - kAlign;
  return block;
}

// Frees the idle blocks when the library is unloaded.
__attribute__((destructor)) void clear_shelves() {
  for (void*& shelf : shelves) free(__atomic_exchange_n(&shelf, nullptr, __ATOMIC_ACQ_REL));
}

}  // namespace

Workspace::Workspace(size_t bytes) : block_(nullptr), data_(nullptr) {
  for (void*& shelf : shelves) {
    void* found = __atomic_exchange_n(&shelf, nullptr, __ATOMIC_ACQ_REL);
    if (found == nullptr) continue;
    if (size_of(found) >= bytes) {
      block_ = found;
      break;
    }
    free(found);  // too small now, so likely too small again
  }
  if (block_ == nullptr) block_ = allocate(bytes);
  if (block_ != nullptr) data_ = static_cast<char*>(block_) + kAlign;
}

Workspace::~Workspace() {
  if (block_ == nullptr) return;
  if (size_of(block_) <= kLargestKept) {
    for (void*& shelf : shelves) {
      void* empty = nullptr;
      if (__atomic_compare_exchange_n(&shelf, &empty, block_, false, __ATOMIC_ACQ_REL,
                                      __ATOMIC_RELAXED)) {
        return;
      }
    }
  }
  free(block_);
}
