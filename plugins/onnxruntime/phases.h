// SPDX-License-Identifier: Apache-2.0
//
// Work in phases, each cut into pieces, as one parallel region on the session's own threads: waking
// a thread costs about as much as a small layer, so a node does it once.

#ifndef NQ_ORT_PHASES_H
#define NQ_ORT_PHASES_H

#include "../kernels/nq_kernels.h"
#include "ort_abi.h"

constexpr int kMostPhases = 3;

struct Phases {
  // Does one piece of a phase; pieces of one phase run in any order, and at once.
  nq_status (*run)(void* data, int phase, int64_t piece);
  void* data;
  int count;
  int64_t pieces[kMostPhases];
};

// Runs all phases, each after the one before it; on this thread alone unless `parallel`. The first
// failure seen is returned, the other pieces run all the same.
ort::Status* run_phases(const ort::Api* api, const ort::KernelContext* context,
                        const Phases& phases, bool parallel);

#endif  // NQ_ORT_PHASES_H
