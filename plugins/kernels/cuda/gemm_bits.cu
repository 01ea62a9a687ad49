// SPDX-License-Identifier: Apache-2.0
//
// The one-bit product for a few rows: workspace, splits and launches. See gemm_bits.cuh.

#include "gemm_bits.cuh"
#include "gemv_half.h"
#include "launch.h"

namespace nq_cuda {

namespace {

constexpr int64_t kStrideStep = 64;  // rows of sums are padded to this

// Slices are four warps of one or two column tiles wide.
int slice_tiles_of(int tiles) { return tiles > 4 ? 8 : 4; }

// How one half is cut, the same for workspace and launch.
struct Cut {
  int column_tiles, slice_tiles, slices;  // of the widest layer
  int splits[NQ_CUDA_MAX_GROUP];
};

// `first` says which half: V (rank x in_features) or U (out_features x rank).
Cut cut(const nq_cuda_pass& pass, bool first, int rows, const nq_cuda_device& device) {
  Cut made = {};
  int blocks = 0;
  for (int i = 0; i < pass.count; ++i) {
    const nq_linear& layer = pass.layers[i];
    made.column_tiles =
        max(made.column_tiles, column_tiles(first ? layer.in_features : layer.rank));
    const int64_t row_tiles = ceil_div(first ? layer.rank : layer.out_features, NQ_CUDA_TILE_ROWS);
    blocks += static_cast<int>(ceil_div(row_tiles, kBitsWarps * bits_row_tiles(rows)));
  }
  made.slice_tiles = slice_tiles_of(made.column_tiles);
  made.slices = static_cast<int>(ceil_div(made.column_tiles, made.slice_tiles));
  const int wanted = max(1, device.multiprocessors / max(1, blocks));
  for (int i = 0; i < pass.count; ++i) {
    const nq_linear& layer = pass.layers[i];
    const int64_t slices =
        ceil_div(column_tiles(first ? layer.in_features : layer.rank), made.slice_tiles);
    const int64_t each = ceil_div(slices, min(static_cast<int64_t>(wanted), slices));
    made.splits[i] = static_cast<int>(ceil_div(slices, each));
  }
  return made;
}

// The kernel's ROWS for a piece of the batch.
int rows_for(int64_t batch) { return batch <= 4 ? 4 : batch <= 8 ? 8 : 16; }

// Where a layer's scratch memory is.
struct Space {
  float *middle, *sums;
  uint4* fragments;
  SliceFacts* facts;
};

struct Plan {
  Cut first, second;
  Space space[NQ_CUDA_MAX_GROUP];
  int64_t middle_stride[NQ_CUDA_MAX_GROUP], sums_stride[NQ_CUDA_MAX_GROUP];
  int64_t bytes;
};

Plan plan(const nq_cuda_pass& pass, int rows, const nq_cuda_device& device) {
  Plan made = {};
  made.first = cut(pass, true, rows, device);
  made.second = cut(pass, false, rows, device);
  const int slices = max(made.first.slices, made.second.slices);
  char* const base = static_cast<char*>(pass.workspace);
  auto take = [&](int64_t bytes) {
    char* const here = base + made.bytes;
    made.bytes += round_up(bytes, 256);
    return here;
  };
  for (int i = 0; i < pass.count; ++i) {
    const nq_linear& layer = pass.layers[i];
    const int columns = max(column_tiles(layer.in_features), column_tiles(layer.rank));
    made.middle_stride[i] = round_up(layer.rank, kStrideStep);
    made.sums_stride[i] = round_up(layer.out_features, kStrideStep);
    Space& space = made.space[i];
    space.middle = reinterpret_cast<float*>(
        take(int64_t{4} * made.first.splits[i] * kBitsRows * made.middle_stride[i]));
    space.fragments = reinterpret_cast<uint4*>(take(int64_t{512} * kBitsRows * columns));
    space.facts = reinterpret_cast<SliceFacts*>(
        take(static_cast<int64_t>(sizeof(SliceFacts)) * kBitsRows * slices));
    const bool direct = made.second.splits[i] == 1;
    space.sums = reinterpret_cast<float*>(
        take(direct ? 0 : int64_t{4} * made.second.splits[i] * kBitsRows * made.sums_stride[i]));
  }
  return made;
}

// One half with its scratch memory and how it is cut.
BitsStage half_of(const nq_cuda_pass& pass, const Plan& plan, bool first, int64_t row, int batch) {
  BitsStage all = {};
  const Cut& cut = first ? plan.first : plan.second;
  all.half = describe_half(pass, first, row, batch);
  all.half.slices = cut.slices;
  all.slice_tiles = cut.slice_tiles;
  all.last = !first;
  for (int i = 0; i < pass.count; ++i) {
    const Space& space = plan.space[i];
    GemvPart& part = all.half.parts[i];
    part.fragments = space.fragments;
    part.facts = space.facts;
    all.splits[i] = cut.splits[i];
    all.in_splits[i] = plan.first.splits[i];
    all.sums[i] = first ? space.middle : space.sums;
    all.sums_stride[i] = first ? plan.middle_stride[i] : plan.sums_stride[i];
    if (!first) {
      part.in = space.middle;
      part.in_stride = plan.middle_stride[i];
    }
  }
  return all;
}

template <Source SOURCE>
nq_status convert(const BitsStage& all, bool overlap, cudaStream_t stream) {
  const Launch how = {
      "one-bit product",
      dim3(static_cast<unsigned>(all.half.slices), static_cast<unsigned>(all.half.batch),
           static_cast<unsigned>(all.half.count)),
      128, 0, overlap};
  return all.slice_tiles > 4 ? launch(how, stream, bits_convert<2, SOURCE>, all)
                             : launch(how, stream, bits_convert<1, SOURCE>, all);
}

template <int ROWS>
nq_status product(BitsStage& all, bool overlap, cudaStream_t stream) {
  constexpr int kShared = kBitsStages * bits_stage_bytes(ROWS, kBitsWarps);
  static_assert(kShared <= 48 * 1024, "what every GPU gives a block without being asked");
  int blocks = 0, widest = 0;
  bool finish = false;
  for (int i = 0; i < all.half.count; ++i) {
    GemvPart& part = all.half.parts[i];
    part.first_block = blocks;
    blocks += static_cast<int>(ceil_div(part.row_tiles, kBitsWarps * bits_row_tiles(ROWS))) *
              all.splits[i];
    widest = max(widest, part.rows);
    finish = finish || (all.last && all.splits[i] > 1);
  }
  const Launch how = {"one-bit product", dim3(static_cast<unsigned>(blocks)), kBitsWarps * 32,
                      kShared, overlap};
  const nq_status status = launch(how, stream, bits_product<ROWS>, all);
  if (status != NQ_OK || !finish) return status;
  const Launch last = {
      "one-bit product",
      dim3(static_cast<unsigned>(ceil_div(widest, 256)), static_cast<unsigned>(all.half.batch),
           static_cast<unsigned>(all.half.count)),
      256, 0, overlap};
  return launch(last, stream, bits_finish, all);
}

nq_status product_of(int rows, BitsStage& all, bool overlap, cudaStream_t stream) {
  if (rows == 4) return product<4>(all, overlap, stream);
  if (rows == 8) return product<8>(all, overlap, stream);
  return product<16>(all, overlap, stream);
}

}  // namespace

size_t gemm_bits_workspace(const nq_cuda_pass& pass, const nq_cuda_device& device) {
  const int64_t most = pass.rows < kBitsRows ? pass.rows : kBitsRows;
  int64_t bytes = plan(pass, rows_for(most), device).bytes;
  // The last piece of a larger batch may be cut differently.
  const int64_t rest = pass.rows % kBitsRows;
  if (pass.rows > kBitsRows && rest > 0) {
    bytes = max(bytes, plan(pass, rows_for(rest), device).bytes);
  }
  return static_cast<size_t>(bytes);
}

nq_status gemm_bits_forward(const nq_cuda_pass& pass, const nq_cuda_device& device,
                            cudaStream_t stream) {
  const bool overlap = may_overlap(device);
  nq_status status = NQ_OK;
  for (int64_t row = 0; status == NQ_OK && row < pass.rows; row += kBitsRows) {
    const int batch = static_cast<int>(pass.rows - row < kBitsRows ? pass.rows - row : kBitsRows);
    const int rows = rows_for(batch);
    const Plan made = plan(pass, rows, device);
    BitsStage all = half_of(pass, made, true, row, batch);
    status = convert<Source::kInput>(all, overlap, stream);
    if (status == NQ_OK) status = product_of(rows, all, overlap, stream);
    if (status != NQ_OK) break;
    all = half_of(pass, made, false, row, batch);
    status = convert<Source::kMiddle>(all, overlap, stream);
    if (status == NQ_OK) status = product_of(rows, all, overlap, stream);
  }
  return status;
}

}  // namespace nq_cuda
