// SPDX-License-Identifier: Apache-2.0
//
// Threads take pieces of the current phase from a counter and wait for each other between phases. A
// piece that is taken is being computed by a thread that runs, so that no thread ever waits for one
// that has not started; one that comes late finds nothing left to do.

#include "phases.h"

#include <sched.h>

#include "status.h"

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace {

struct Region {
  const Phases* phases;
  int failed;
  // Counters on cache lines of their own.
  struct alignas(64) Counter {
    int64_t value;
  } taken[kMostPhases], done[kMostPhases];
};

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// What every thread runs; the index only counts them.
void work(void* data, size_t) {
  constexpr int kSpins = 2000;  // some tens of microseconds
  Region* region = static_cast<Region*>(data);
  const Phases& phases = *region->phases;
  for (int phase = 0; phase < phases.count; ++phase) {
    const int64_t pieces = phases.pieces[phase];
    int64_t* taken = &region->taken[phase].value;
    int64_t* done = &region->done[phase].value;
    for (;;) {
      const int64_t piece = __atomic_fetch_add(taken, int64_t{1}, __ATOMIC_RELAXED);
      if (piece >= pieces) break;
      const nq_status status = phases.run(phases.data, phase, piece);
      if (status != NQ_OK) {
        __atomic_store_n(&region->failed, static_cast<int>(status), __ATOMIC_RELAXED);
      }
      __atomic_fetch_add(done, int64_t{1}, __ATOMIC_RELEASE);
    }
    if (phase + 1 == phases.count) return;  // whoever opened the region waits for its threads
    for (int spins = 0; __atomic_load_n(done, __ATOMIC_ACQUIRE) < pieces; ++spins) {
      // The thread that holds the last piece may have lost its core.
      if (spins < kSpins) {
        pause();
      } else {
        sched_yield();
      }
    }
  }
}

}  // namespace

ort::Status* run_phases(const ort::Api* api, const ort::KernelContext* context,
                        const Phases& phases, bool parallel) {
  Region region = {};
  region.phases = &phases;
  region.failed = NQ_OK;
  int64_t most = 1;
  for (int phase = 0; phase < phases.count; ++phase) {
    if (phases.pieces[phase] > most) most = phases.pieces[phase];
  }
  if (!parallel || most == 1) {
    work(&region, 0);
  } else {
    NQ_ORT_RETURN(ort::call<ort::ContextParallelFor>(api, ort::kKernelContextParallelFor)(
        context, work, static_cast<size_t>(most < 64 ? most : 64), 0, &region));
  }
  if (region.failed == NQ_OK) return nullptr;
  return ort::fail(api, ort::kFail, "%s", nq_status_text(static_cast<nq_status>(region.failed)));
}
