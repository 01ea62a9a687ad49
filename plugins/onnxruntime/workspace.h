// SPDX-License-Identifier: Apache-2.0
//
// Scratch memory for the kernels. A few blocks are kept for the whole process and lent to whoever
// computes, so that a layer neither pays the page faults of a fresh block at every call nor holds
// one of its own while the other layers run.

#ifndef NQ_ORT_WORKSPACE_H
#define NQ_ORT_WORKSPACE_H

#include <stddef.h>

// A block of at least `bytes` bytes, aligned to 64; null when memory is exhausted.
class Workspace {
 public:
  explicit Workspace(size_t bytes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  void* data() const { return data_; }

 private:
  void* block_;  // a 64-byte header with the block's size, then the data
  void* data_;
};

#endif  // NQ_ORT_WORKSPACE_H
