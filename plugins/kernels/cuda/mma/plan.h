// SPDX-License-Identifier: Apache-2.0
//
// Host-side decisions of the warp-level product: how many rows a piece takes, where things lie in
// the workspace, and which block shape computes a stage.

#ifndef NQ_CUDA_MMA_PLAN_H
#define NQ_CUDA_MMA_PLAN_H

#include "cuda/internal.h"

namespace nq_cuda {
namespace mma {

// Block shapes, in the order in which forward.cu instantiates them.
struct BlockShape {
  int weight_rows;  // of the sign matrix
  int rows;         // of x
  int splits;       // of the columns, inside the block
  int per_sm;       // blocks for which a multiprocessor has registers
};
constexpr BlockShape kShapes[] = {{128, 64, 1, 2}, {64, 64, 1, 3}, {64, 32, 2, 2},
                                  {64, 16, 4, 2},  {32, 16, 4, 3}, {16, 16, 4, 4}};
constexpr int kShapeCount = sizeof kShapes / sizeof kShapes[0];

// Scratch of one piece of rows, as offsets from the workspace's start. Both stages' planes share
// one region: the first stage's are dead when the second's are written.
struct Plan {
  int64_t piece;        // rows computed at a time
  int64_t rows_padded;  // of a piece
  int planes;
  size_t planes_at[2][NQ_CUDA_MAX_GROUP];
  size_t scale_at[2][NQ_CUDA_MAX_GROUP];
  size_t sum_at[2][NQ_CUDA_MAX_GROUP];
  size_t squares_at;
  size_t middle_at[NQ_CUDA_MAX_GROUP];  // float32 results of the first stage
  size_t bytes;
};

constexpr int64_t kPieceBytes = 64 << 20;  // planes and middles of a piece stay about below this
constexpr int64_t kAlign = 256;

inline int64_t k_tiles(int64_t columns) { return ceil_div(columns, NQ_CUDA_TILE_COLUMNS); }

inline int planes_of(const nq_cuda_pass& pass) {
  return pass.precision == NQ_PRECISION_INT8 ? 1 : 2;
}

// Most rows of a piece. No row count needs a larger workspace than this one, or than all rows
// where they are fewer: a piece is never longer, and within a piece more rows need more.
inline int64_t most_rows(const nq_cuda_pass& pass) {
  int64_t row_bytes = 0;
  for (int i = 0; i < pass.count; ++i) {
    row_bytes += k_tiles(pass.layers[0].in_features) * NQ_CUDA_TILE_COLUMNS * planes_of(pass) +
                 pass.layers[i].rank * 4;
  }
  const int64_t fit = kPieceBytes / row_bytes / 64 * 64;
  return fit < 64 ? 64 : fit;
}

inline Plan make_plan(const nq_cuda_pass& pass) {
  Plan plan = {};
  plan.planes = planes_of(pass);
  const int64_t in_tiles = k_tiles(pass.layers[0].in_features);
  // Equal pieces, so that the last one is not a sliver.
  const int64_t pieces = ceil_div(pass.rows, most_rows(pass));
  plan.rows_padded = round_up(ceil_div(pass.rows, pieces), 64);
  plan.piece = plan.rows_padded < pass.rows ? plan.rows_padded : pass.rows;

  int64_t shared_end = 0;
  for (int stage = 0; stage < 2; ++stage) {
    int64_t at = 0;
    const auto take = [&at](int64_t bytes) {
      const int64_t here = at;
      at = round_up(at + bytes, kAlign);
      return static_cast<size_t>(here);
    };
    for (int i = 0; i < pass.count; ++i) {
      const int64_t tiles = stage == 0 ? in_tiles : k_tiles(pass.layers[i].rank);
      plan.planes_at[stage][i] =
          take(plan.rows_padded * tiles * NQ_CUDA_TILE_COLUMNS * plan.planes);
      plan.scale_at[stage][i] = take(plan.rows_padded * tiles * 4);
      plan.sum_at[stage][i] = take(plan.rows_padded * tiles * 4);
    }
    shared_end = at > shared_end ? at : shared_end;
  }
  int64_t at = shared_end;
  plan.squares_at = static_cast<size_t>(at);
  if (pass.input == NQ_INPUT_RMS_NORM) at += round_up(plan.rows_padded * in_tiles * 4, kAlign);
  for (int i = 0; i < pass.count; ++i) {
    plan.middle_at[i] = static_cast<size_t>(at);
    at += round_up(plan.piece * round_up(pass.layers[i].rank, 4) * 4, kAlign);
  }
  plan.bytes = static_cast<size_t>(at);
  return plan;
}

// One stage's product for the choice of a block shape: weight rows and groups of each layer.
struct Problem {
  int64_t weight_rows[NQ_CUDA_MAX_GROUP];
  int64_t k_tiles[NQ_CUDA_MAX_GROUP];
  int count;
  int64_t rows;
  int planes;
};

// What a multiprocessor does in a cycle and holds at once, by compute capability.
struct Multiprocessor {
  double multiply;  // cycles of a 16 x 8 x 32 product
  int blocks;       // for which there is shared memory, 52 KB each
};

inline Multiprocessor multiprocessor(int cc) {
  if (cc == 90) return {1.5, 4};
  if (cc >= 100 && cc < 120) return {2.0, 4};
  if (cc == 80 || cc == 87) return {2.0, 3};
  return {4.0, cc < 80 ? 1 : 2};
}

// Cycles that a shape takes: tensor instructions and epilogues of the busiest multiprocessor, the
// chain of a block's steps, and a fixed part of every wave. The constants are fitted to every shape
// forced on nine layers and four row counts on sm_90, where the choices then cost half a per cent
// on average.
inline double estimated_cycles(const Problem& problem, const BlockShape& shape,
                               const nq_cuda_device& device) {
  constexpr double kStep = 660.0, kWave = 2460.0, kOutput = 0.5;
  const Multiprocessor sm = multiprocessor(device.compute_capability);
  int64_t blocks = 0;
  double products = 0.0, steps = 0.0;
  for (int i = 0; i < problem.count; ++i) {
    const int64_t mine =
        ceil_div(problem.weight_rows[i], shape.weight_rows) * ceil_div(problem.rows, shape.rows);
    blocks += mine;
    products += static_cast<double>(mine * problem.k_tiles[i]) * 8 * problem.planes *
                (shape.weight_rows / 16) * (shape.rows / 8);
    const double chain =
        static_cast<double>(ceil_div(problem.k_tiles[i], shape.splits) * problem.planes);
    steps = chain > steps ? chain : steps;
  }
  const int64_t busiest = ceil_div(blocks, device.multiprocessors);
  const int64_t waves = ceil_div(busiest, shape.per_sm < sm.blocks ? shape.per_sm : sm.blocks);
  const double share = static_cast<double>(busiest) / static_cast<double>(blocks);
  return share * products * sm.multiply + static_cast<double>(waves) * (steps * kStep + kWave) +
         static_cast<double>(busiest) * shape.weight_rows * shape.rows * kOutput;
}

inline int choose_shape(const Problem& problem, const nq_cuda_device& device) {
  int best = 0;
  double least = 0.0;
  for (int i = 0; i < kShapeCount; ++i) {
    const double cycles = estimated_cycles(problem, kShapes[i], device);
    if (i == 0 || cycles < least) best = i, least = cycles;
  }
  return best;
}

}  // namespace mma
}  // namespace nq_cuda

#endif  // NQ_CUDA_MMA_PLAN_H
