// SPDX-License-Identifier: Apache-2.0
//
// The matrix-vector family: how a pass is cut into launches and blocks. See kernel.cuh.

#include "cuda/gemv/describe.h"
#include "cuda/gemv/kernel.cuh"
#include "cuda/launch.h"

namespace nq_cuda {

namespace {

constexpr int kReservedShared = 1024;  // of each block, by the driver
constexpr int64_t kRankStep = 64;      // the middle vector's rows are padded to this

struct Limits {
  int shared;    // most bytes of shared memory of one block
  bool overlap;  // see may_overlap
};

int64_t middle_stride(const nq_linear& layer) { return round_up(layer.rank, kRankStep); }

int widest(const GemvStage& stage) {
  int columns = 0;
  for (int i = 0; i < stage.count; ++i) columns = max(columns, stage.parts[i].column_tiles);
  return columns;
}

template <int ROWS, int KPW, bool BITS, bool FIRST>
nq_status run(GemvStage& stage, const nq_cuda_device& device, const Limits& limits,
              cudaStream_t stream) {
  using Shape = GemvShape<ROWS, KPW>;
  constexpr Source kSource = FIRST ? Source::kInput : Source::kMiddle;
  stage.slices = static_cast<int>(ceil_div(widest(stage), KPW));
  // One row is converted by each block again, unless its slices are so long that this costs more
  // than a launch.
  constexpr bool kConverted = ROWS > 1 || (FIRST && KPW > 2);
  if constexpr (kConverted) {
    const dim3 grid(static_cast<unsigned>(ceil_div(stage.slices * KPW, kConvertWarps)), stage.batch,
                    stage.count);
    const nq_status status = launch({"gemv", grid, kConvertWarps * 32, 0, limits.overlap}, stream,
                                    gemv_convert<KPW, BITS, kSource>, stage);
    if (status != NQ_OK) return status;
  }
  int row_tiles = 0;
  for (int i = 0; i < stage.count; ++i) row_tiles += stage.parts[i].row_tiles;
  // As many warps as there are slices, evenly over the phases that shared memory makes necessary.
  int most = kGemvWarps;
  while (most > 1 && Shape::shared_bytes(most, 1) > limits.shared) --most;
  const int phases = static_cast<int>(ceil_div(stage.slices, most));
  const int warps = static_cast<int>(ceil_div(stage.slices, phases));
  const int blocks = device.multiprocessors * max(1, kGemvWarps / warps);
  stage.tiles_per_block = static_cast<int>(ceil_div(row_tiles, blocks));
  const int tile_bytes = Shape::shared_bytes(warps, 1) - Shape::shared_bytes(warps, 0);
  const int room = (limits.shared - Shape::shared_bytes(warps, 0)) / tile_bytes;
  stage.tiles_per_pass = min(min(stage.tiles_per_block, 16), room);
  int grid = 0;
  for (int i = 0; i < stage.count; ++i) {
    stage.parts[i].first_block = grid;
    grid += static_cast<int>(ceil_div(stage.parts[i].row_tiles, stage.tiles_per_block));
  }
  constexpr Source kFrom = kConverted ? Source::kFragments : kSource;
  const int shared = Shape::shared_bytes(warps, stage.tiles_per_pass);
  const Launch how = {"gemv", dim3(static_cast<unsigned>(grid)), warps * 32,
                      static_cast<size_t>(shared), limits.overlap};
  return phases == 1 ? launch_with_shared<gemv_stage<ROWS, KPW, BITS, kFrom, false>>(
                           how, limits.shared, stream, stage)
                     : launch_with_shared<gemv_stage<ROWS, KPW, BITS, kFrom, true>>(
                           how, limits.shared, stream, stage);
}

template <int ROWS, bool BITS, bool FIRST>
nq_status run_columns(GemvStage& stage, const nq_cuda_device& device, const Limits& limits,
                      cudaStream_t stream) {
  // Registers hold the fragments of all rows and KPW column tiles.
  constexpr int kMost = BITS ? 8 / ROWS : (ROWS > 4 ? 1 : 2);
  const int columns = widest(stage);
  if constexpr (kMost >= 8) {
    if (columns > 4 * kGemvWarps) return run<ROWS, 8, BITS, FIRST>(stage, device, limits, stream);
  }
  if constexpr (kMost >= 4) {
    if (columns > 2 * kGemvWarps) return run<ROWS, 4, BITS, FIRST>(stage, device, limits, stream);
  }
  if constexpr (kMost >= 2) {
    if (columns > kGemvWarps) return run<ROWS, 2, BITS, FIRST>(stage, device, limits, stream);
  }
  return run<ROWS, 1, BITS, FIRST>(stage, device, limits, stream);
}

template <bool BITS, bool FIRST>
nq_status run_rows(GemvStage& stage, const nq_cuda_device& device, const Limits& limits,
                   cudaStream_t stream) {
  if (stage.batch == 1) return run_columns<1, BITS, FIRST>(stage, device, limits, stream);
  if (stage.batch == 2) return run_columns<2, BITS, FIRST>(stage, device, limits, stream);
  if (stage.batch <= 4) return run_columns<4, BITS, FIRST>(stage, device, limits, stream);
  return run_columns<8, BITS, FIRST>(stage, device, limits, stream);
}

// The workspace: for each projection its middle vectors, fragments and slice facts.
struct Space {
  float* middle;
  uint4* fragments;
  SliceFacts* facts;
};

// Slices are counted for the widest matrix of the group, and so are every layer's facts.
int64_t most_slices(const nq_cuda_pass& pass) {
  int64_t columns = 0;
  for (int i = 0; i < pass.count; ++i) {
    const nq_linear& layer = pass.layers[i];
    columns = max(columns, static_cast<int64_t>(column_tiles(layer.in_features)));
    columns = max(columns, static_cast<int64_t>(column_tiles(layer.rank)));
  }
  return columns;
}

int64_t space_bytes(const nq_linear& layer, int64_t slices, void* base, Space* space) {
  const int64_t columns = max(column_tiles(layer.in_features), column_tiles(layer.rank));
  const int64_t middle = kGemvRows * middle_stride(layer) * static_cast<int64_t>(sizeof(float));
  const int64_t fragments = kGemvRows * columns * kFragmentWords * 4;
  const int64_t facts = round_up(kGemvRows * slices * sizeof(SliceFacts), 256);
  char* const bytes = static_cast<char*>(base);
  if (space != nullptr) {
    space->middle = reinterpret_cast<float*>(bytes);
    space->fragments = reinterpret_cast<uint4*>(bytes + middle);
    space->facts = reinterpret_cast<SliceFacts*>(bytes + middle + fragments);
  }
  return middle + fragments + facts;
}

// One half with its scratch memory: the middle vectors are the first's output, the second's input.
GemvStage half_of(const nq_cuda_pass& pass, bool first, int64_t row, int batch) {
  GemvStage stage = describe_half(pass, first, row, batch);
  char* base = static_cast<char*>(pass.workspace);
  const int64_t slices = most_slices(pass);
  for (int i = 0; i < pass.count; ++i) {
    const nq_linear& layer = pass.layers[i];
    GemvPart& part = stage.parts[i];
    Space space;
    base += space_bytes(layer, slices, base, &space);
    part.fragments = space.fragments;
    part.facts = space.facts;
    if (first) {
      part.out = space.middle;
      part.out_stride = middle_stride(layer);
    } else {
      part.in = space.middle;
      part.in_stride = middle_stride(layer);
    }
  }
  return stage;
}

nq_status limits_of(const nq_cuda_device& device, Limits* limits) {
  limits->overlap = may_overlap(device);
  const nq_status status = shared_limit(&limits->shared);
  limits->shared -= kReservedShared;
  return status;
}

}  // namespace

size_t gemv_workspace(const nq_cuda_pass& pass, const nq_cuda_device&) {
  int64_t bytes = 0;
  for (int i = 0; i < pass.count; ++i) {
    bytes += space_bytes(pass.layers[i], most_slices(pass), nullptr, nullptr);
  }
  return static_cast<size_t>(bytes);
}

nq_status gemv_forward(const nq_cuda_pass& pass, const nq_cuda_device& device, bool bits,
                       cudaStream_t stream) {
  Limits limits;
  nq_status status = limits_of(device, &limits);
  for (int64_t row = 0; status == NQ_OK && row < pass.rows; row += kGemvRows) {
    const int batch = static_cast<int>(pass.rows - row < kGemvRows ? pass.rows - row : kGemvRows);
    GemvStage stage = half_of(pass, true, row, batch);
    status = bits ? run_rows<true, true>(stage, device, limits, stream)
                  : run_rows<false, true>(stage, device, limits, stream);
    if (status != NQ_OK) break;
    stage = half_of(pass, false, row, batch);
    status = bits ? run_rows<true, false>(stage, device, limits, stream)
                  : run_rows<false, false>(stage, device, limits, stream);
  }
  return status;
}

}  // namespace nq_cuda
