// SPDX-License-Identifier: Apache-2.0
//
// One parallel region a pass, whatever the number of layers: waking a thread costs about as much as
// a small layer. Threads take pieces of the current phase from a counter and wait for each other
// between phases. A piece that is taken is being computed by a thread that runs, so that no thread
// ever waits for one that has not started; one that comes late finds nothing left to do.

#include "linear_passes.h"

#include <sched.h>

#include "status.h"
#include "workspace.h"

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace {

using Stage = nq_status (*)(const nq_pass*, int64_t, int64_t);
constexpr Stage kStages[] = {nq_stage_scale, nq_stage_rank, nq_stage_out};
constexpr int kPhases = 3;

// One phase of one layer: a stage over [0, size), cut into pieces.
struct Part {
  int64_t size;
  int64_t piece;
  int64_t pieces;
};

struct Region {
  nq_pass passes[kMaxLayers];
  Part parts[kPhases][kMaxLayers];
  size_t count;
  int64_t pieces[kPhases];
  // Counters on cache lines of their own.
  struct alignas(64) Counter {
    int64_t value;
  } taken[kPhases], done[kPhases];
  int failed;
};

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

void run_piece(Region* region, int phase, int64_t piece) {
  size_t layer = 0;
  while (piece >= region->parts[phase][layer].pieces) piece -= region->parts[phase][layer++].pieces;
  const Part& part = region->parts[phase][layer];
  const int64_t begin = piece * part.piece;
  const int64_t end = begin + part.piece < part.size ? begin + part.piece : part.size;
  const nq_status status = kStages[phase](&region->passes[layer], begin, end);
  if (status != NQ_OK) {
    __atomic_store_n(&region->failed, static_cast<int>(status), __ATOMIC_RELAXED);
  }
}

// What every thread runs; `index` only counts the threads.
void work(void* data, size_t) {
  Region* region = static_cast<Region*>(data);
  for (int phase = 0; phase < kPhases; ++phase) {
    const int64_t pieces = region->pieces[phase];
    for (;;) {
      const int64_t piece =
          __atomic_fetch_add(&region->taken[phase].value, int64_t{1}, __ATOMIC_RELAXED);
      if (piece >= pieces) break;
      run_piece(region, phase, piece);
      __atomic_fetch_add(&region->done[phase].value, int64_t{1}, __ATOMIC_RELEASE);
    }
    if (phase + 1 == kPhases) return;  // the caller of the region waits for the threads
    for (int spins = 0; __atomic_load_n(&region->done[phase].value, __ATOMIC_ACQUIRE) < pieces;) {
      // The thread that holds the last piece may have lost its core.
      if (++spins < 2000) {
        pause();
      } else {
        sched_yield();
      }
    }
  }
}

// Cuts a stage of `size` entries, `cost` sign-adds each, into pieces of whole steps.
Part cut(int64_t size, int64_t step, int64_t cost) {
  constexpr int64_t kPiece = 1 << 17;  // some microseconds of one core
  constexpr int64_t kMostPieces = 64;
  const int64_t steps = (size + step - 1) / step;
  int64_t each = 1;
  if (cost * step < kPiece) each = (kPiece + cost * step - 1) / (cost * step);
  if (each < (steps + kMostPieces - 1) / kMostPieces) {
    each = (steps + kMostPieces - 1) / kMostPieces;
  }
  return {size, each * step, (steps + each - 1) / each};
}

ort::Status* run_region(const ort::Api* api, const ort::KernelContext* context, Region* region) {
  // Sign-adds that one core does in about the time that it takes to wake another.
  constexpr int64_t kWorthwhile = 3 << 17;
  int64_t total = 0;
  int64_t most = 0;
  for (size_t i = 0; i < region->count; ++i) {
    const nq_pass& pass = region->passes[i];
    const nq_linear& layer = *pass.layer;
    region->parts[0][i] = cut(pass.rows, 1, layer.in_features);
    region->parts[1][i] = cut(layer.rank, NQ_RANGE_STEP, pass.rows * layer.in_features);
    region->parts[2][i] = cut(layer.out_features, NQ_RANGE_STEP, pass.rows * layer.rank);
    total += pass.rows * layer.rank * (layer.in_features + layer.out_features);
  }
  for (int phase = 0; phase < kPhases; ++phase) {
    region->taken[phase].value = region->done[phase].value = region->pieces[phase] = 0;
    for (size_t i = 0; i < region->count; ++i) {
      region->pieces[phase] += region->parts[phase][i].pieces;
    }
    if (region->pieces[phase] > most) most = region->pieces[phase];
  }
  region->failed = NQ_OK;
  if (total < kWorthwhile || most < 2) {
    work(region, 0);
  } else {
    NQ_ORT_RETURN(ort::call<ort::ContextParallelFor>(api, ort::kKernelContextParallelFor)(
        context, work, static_cast<size_t>(most), 0, region));
  }
  if (region->failed != NQ_OK) {
    return ort::fail(api, ort::kFail, "%s", nq_status_text(static_cast<nq_status>(region->failed)));
  }
  return nullptr;
}

size_t bytes_of(nq_type type) { return type == NQ_FLOAT32 ? 4 : 2; }

}  // namespace

ort::Status* run_layers(const ort::Api* api, const ort::KernelContext* context,
                        const nq_linear* layers, size_t count, nq_type type, int64_t rows,
                        const void* x, void* const* y) {
  // Passes of nearly equal height, so that the last one is not a sliver.
  const int64_t passes = (rows - 1) / NQ_PASS_ROWS + 1;
  const int64_t tallest = (rows - 1) / passes + 1;
  size_t offsets[kMaxLayers];
  size_t bytes = 0;
  for (size_t i = 0; i < count; ++i) {
    const nq_status status = nq_linear_check(&layers[i]);
    if (status != NQ_OK) return ort::fail(api, ort::kInvalidArgument, "%s", nq_status_text(status));
    offsets[i] = bytes;
    bytes += (nq_workspace_bytes(&layers[i], tallest) + 63) / 64 * 64;
  }
  const Workspace workspace(bytes);
  if (workspace.data() == nullptr) {
    return ort::fail(api, ort::kFail, "%zu bytes of scratch memory are not to be had", bytes);
  }
  const size_t element = bytes_of(type);
  Region region;
  region.count = count;
  for (int64_t row = 0; row < rows; row += tallest) {
    const size_t at = static_cast<size_t>(row);
    for (size_t i = 0; i < count; ++i) {
      const size_t n = static_cast<size_t>(layers[i].in_features);
      const size_t m = static_cast<size_t>(layers[i].out_features);
      region.passes[i] = {
          &layers[i],
          type,
          rows - row < tallest ? rows - row : tallest,
          static_cast<const char*>(x) + at * n * element,
          static_cast<char*>(y[i]) + at * m * element,
          static_cast<char*>(workspace.data()) + offsets[i],
      };
    }
    NQ_ORT_RETURN(run_region(api, context, &region));
  }
  return nullptr;
}
