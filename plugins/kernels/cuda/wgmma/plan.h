// SPDX-License-Identifier: Apache-2.0
//
// Host-side decisions of the warpgroup product: how many rows a pass takes at a time, where things
// lie in the workspace, and which tiles and clusters compute a stage.

#ifndef NQ_CUDA_WGMMA_PLAN_H
#define NQ_CUDA_WGMMA_PLAN_H

#include "cuda/wgmma/types.cuh"

namespace nq_cuda {

constexpr int64_t kWgmmaRows = 4096;  // more rows are taken in pieces: bounds the workspace

// How many clusters of 1, 2, 4 and 8 blocks (by that number) run at once.
struct WgmmaLimits {
  int clusters[9];
};

struct WgmmaChoice {
  int n;         // rows of x a tile
  int cluster;   // blocks that share one of the last tiles
  int64_t main;  // tiles that blocks compute alone
  int64_t rest;  // tiles after them that clusters share
};

// Bytes of one projection's part of the workspace, in the order in which they lie there.
struct WgmmaRoom {
  int64_t first, middle, middle_bytes, mid_factor, out_factor, range, end;
};

inline WgmmaRoom wgmma_room(const nq_linear& layer, int64_t rows, bool bytes) {
  WgmmaRoom room;
  room.first = 0;
  room.middle = room.first + panel_bytes(rows, layer.in_features, bytes);
  room.middle_bytes = room.middle + panel_bytes(rows, layer.rank, false);
  room.mid_factor = room.middle_bytes + (bytes ? panel_bytes(rows, layer.rank, true) : 0);
  room.out_factor = room.mid_factor + round_up(rows, 128) * 4;
  room.range = room.out_factor + round_up(rows, 128) * 4;
  room.end = room.range + 256;
  return room;
}

inline int most_steps(const WgmmaStage& stage) {
  int most = 0;
  for (int i = 0; i < stage.count; ++i) most = max(most, stage.parts[i].steps);
  return most;
}

// Estimated cycles of `tiles` tiles, fitted to times measured on an H200. A step of 256 columns
// takes the tensor cores 32 N cycles (16 N for bytes), and some 800 for unpacking and waiting.
inline int64_t wgmma_cost(int64_t tiles, int64_t steps, int n, int cluster, bool bytes,
                          const WgmmaLimits& limits) {
  if (tiles == 0) return 0;
  const int64_t step = max(int64_t{32 * n} / (bytes ? 2 : 1), int64_t{500}) + (n < 128 ? 350 : 50);
  const int64_t each =
      ceil_div(steps, cluster) * step + 5000 + 30 * n + (cluster > 1 ? 1500 + 20 * n : 0);
  return ceil_div(tiles, limits.clusters[cluster]) * each;
}

// Tiles that do not fill the last wave of blocks are computed by clusters, in a launch of their
// own.
inline WgmmaChoice choose_tiles(const WgmmaStage& stage, bool bytes, const WgmmaLimits& limits) {
  WgmmaChoice best = {};
  int64_t least = INT64_MAX;
  const int64_t steps = most_steps(stage);
  for (int n = 128; n >= 16; n /= 2) {
    if (n > 16 && stage.rows <= n / 2) continue;
    const int64_t tiles = stage.m_tiles * ceil_div(stage.rows, n);
    const int64_t whole = tiles / limits.clusters[1] * limits.clusters[1];
    for (int64_t main : {tiles, whole}) {
      const int64_t rest = tiles - main;
      for (int cluster = main == tiles ? 1 : 2; cluster <= (rest > 0 ? 8 : 1); cluster *= 2) {
        if (rest > limits.clusters[cluster]) continue;
        const int64_t now = wgmma_cost(main, steps, n, 1, bytes, limits) +
                            wgmma_cost(rest, steps, n, cluster, bytes, limits);
        if (now < least) {
          least = now;
          best = {n, cluster, main, rest};
        }
      }
    }
  }
  return best;
}

}  // namespace nq_cuda

#endif  // NQ_CUDA_WGMMA_PLAN_H
