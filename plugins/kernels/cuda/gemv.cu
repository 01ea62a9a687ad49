// SPDX-License-Identifier: Apache-2.0
//
// The matrix-vector family: how a pass is cut into launches and blocks. See gemv_stage.cuh.

#include "gemv_stage.cuh"
#include "internal.h"

namespace nq_cuda {

namespace {

constexpr int kMaxRows = 8;  // rows of activations of one launch
constexpr int kMaxDevices = 64;
constexpr int kReservedShared = 1024;  // of each block, by the driver
constexpr int64_t kRankStep = 64;      // the middle vector's rows are padded to this

struct Limits {
  int shared;    // most bytes of shared memory of one block
  bool chained;  // programmatic dependent launch
};

int64_t middle_stride(const nq_linear& layer) { return round_up(layer.rank, kRankStep); }

int column_tiles(int64_t columns) {
  return static_cast<int>(ceil_div(columns, NQ_CUDA_TILE_COLUMNS));
}

template <int ROWS, int KPW, bool BITS>
nq_status launch(GemvStage& stage, const nq_cuda_device& device, const Limits& limits,
                 cudaStream_t stream) {
  using Shape = GemvShape<ROWS, KPW, BITS>;
  int most_columns = 0, row_tiles = 0;
  for (int i = 0; i < stage.count; ++i) {
    most_columns = max(most_columns, stage.parts[i].column_tiles);
    row_tiles += stage.parts[i].row_tiles;
  }
  // As many warps as there are slices, evenly over the phases that shared memory allows.
  int most_warps = kGemvWarps;
  while (most_warps > 1 && Shape::shared_bytes(most_warps, 1) > limits.shared) --most_warps;
  const int phases = static_cast<int>(ceil_div(most_columns, most_warps * KPW));
  const int warps = static_cast<int>(ceil_div(most_columns, phases * KPW));
  const int blocks = device.multiprocessors * max(1, kGemvWarps / warps);
  stage.tiles_per_block = static_cast<int>(ceil_div(row_tiles, blocks));
  const int tile_bytes = Shape::shared_bytes(warps, 1) - Shape::shared_bytes(warps, 0);
  const int room = (limits.shared - Shape::shared_bytes(warps, 0)) / tile_bytes;
  stage.tiles_per_pass = min(min(stage.tiles_per_block, 16 / ROWS), room);
  int grid = 0;
  for (int i = 0; i < stage.count; ++i) {
    stage.parts[i].first_block = grid;
    grid += static_cast<int>(ceil_div(stage.parts[i].row_tiles, stage.tiles_per_block));
  }

  auto kernel = gemv_stage<ROWS, KPW, BITS>;
  const int shared = Shape::shared_bytes(warps, stage.tiles_per_pass);
  static bool raised[kMaxDevices];
  int index = 0;
  nq_status status = check(cudaGetDevice(&index), "cudaGetDevice");
  if (status != NQ_OK) return status;
  if (index >= kMaxDevices || !__atomic_load_n(&raised[index], __ATOMIC_ACQUIRE)) {
    status = check(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limits.shared),
        "shared memory of gemv");
    if (status != NQ_OK) return status;
    if (index < kMaxDevices) __atomic_store_n(&raised[index], true, __ATOMIC_RELEASE);
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(grid);
  config.blockDim = dim3(warps * 32);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = limits.chained ? 1 : 0;
  return check(cudaLaunchKernelEx(&config, kernel, stage), "gemv");
}

template <int ROWS, bool BITS>
nq_status launch_columns(GemvStage& stage, const nq_cuda_device& device, const Limits& limits,
                         cudaStream_t stream) {
  // Registers hold the fragments of ROWS * KPW tiles.
  constexpr int kMost = BITS ? 8 / ROWS : (ROWS > 4 ? 1 : 2);
  int most = 0;
  for (int i = 0; i < stage.count; ++i) most = max(most, stage.parts[i].column_tiles);
  if constexpr (kMost >= 8) {
    if (most > 4 * kGemvWarps) return launch<ROWS, 8, BITS>(stage, device, limits, stream);
  }
  if constexpr (kMost >= 4) {
    if (most > 2 * kGemvWarps) return launch<ROWS, 4, BITS>(stage, device, limits, stream);
  }
  if constexpr (kMost >= 2) {
    if (most > kGemvWarps) return launch<ROWS, 2, BITS>(stage, device, limits, stream);
  }
  return launch<ROWS, 1, BITS>(stage, device, limits, stream);
}

template <bool BITS>
nq_status launch_rows(GemvStage& stage, const nq_cuda_device& device, const Limits& limits,
                      cudaStream_t stream) {
  if (stage.batch == 1) return launch_columns<1, BITS>(stage, device, limits, stream);
  if (stage.batch == 2) return launch_columns<2, BITS>(stage, device, limits, stream);
  if (stage.batch <= 4) return launch_columns<4, BITS>(stage, device, limits, stream);
  return launch_columns<8, BITS>(stage, device, limits, stream);
}

const void* advance(const void* pointer, int64_t elements, nq_type type) {
  if (pointer == nullptr) return nullptr;
  return static_cast<const char*>(pointer) + elements * (type == NQ_FLOAT32 ? 4 : 2);
}

// The half of the layer through V: x to the middle vector in the workspace, float32.
GemvStage first_half(const nq_cuda_pass& pass, int64_t row, int batch) {
  GemvStage stage = {};
  stage.count = pass.count;
  stage.batch = batch;
  stage.input = pass.input;
  stage.in_type = pass.x_type;
  stage.scale_type = pass.layers[0].scale_type;
  stage.out_type = NQ_FLOAT32;
  stage.norm_weight = pass.norm_weight;
  stage.norm_eps = pass.norm_eps;
  stage.in_vector = true;
  float* middle = static_cast<float*>(pass.workspace);
  for (int i = 0; i < pass.count; ++i) {
    const nq_linear& layer = pass.layers[i];
    GemvPart& part = stage.parts[i];
    part.tiles = reinterpret_cast<const uint4*>(layer.v_words);
    part.in = advance(pass.x, row * pass.x_stride, pass.x_type);
    part.in_stride = pass.x_stride;
    part.in_scale = layer.scale_in;
    part.out_scale = layer.scale_mid;
    part.out = middle;
    part.out_stride = middle_stride(layer);
    part.rows = static_cast<int>(layer.rank);
    part.columns = static_cast<int>(layer.in_features);
    part.row_tiles = static_cast<int>(ceil_div(layer.rank, NQ_CUDA_TILE_ROWS));
    part.column_tiles = column_tiles(layer.in_features);
    middle += kMaxRows * middle_stride(layer);
  }
  return stage;
}

// The half through U: the middle vector to y.
GemvStage second_half(const nq_cuda_pass& pass, int64_t row, int batch) {
  GemvStage stage = {};
  stage.count = pass.count;
  stage.batch = batch;
  stage.input = NQ_INPUT_PLAIN;
  stage.in_type = NQ_FLOAT32;
  stage.scale_type = pass.layers[0].scale_type;
  stage.out_type = pass.y_type;
  stage.in_vector = true;
  const float* middle = static_cast<const float*>(pass.workspace);
  for (int i = 0; i < pass.count; ++i) {
    const nq_linear& layer = pass.layers[i];
    GemvPart& part = stage.parts[i];
    part.tiles = reinterpret_cast<const uint4*>(layer.u_words);
    part.in = middle;
    part.in_stride = middle_stride(layer);
    part.out_scale = layer.scale_out;
    part.bias = layer.bias;
    const int64_t offset = row * pass.y_stride[i];
    part.residual = advance(pass.residual[i], offset, pass.y_type);
    part.out = const_cast<void*>(advance(pass.y[i], offset, pass.y_type));
    part.out_stride = pass.y_stride[i];
    part.rows = static_cast<int>(layer.out_features);
    part.columns = static_cast<int>(layer.rank);
    part.row_tiles = static_cast<int>(ceil_div(layer.out_features, NQ_CUDA_TILE_ROWS));
    part.column_tiles = column_tiles(layer.rank);
    middle += kMaxRows * middle_stride(layer);
  }
  return stage;
}

nq_status limits_of(const nq_cuda_device& device, Limits* limits) {
  int index = 0;
  nq_status status = check(cudaGetDevice(&index), "cudaGetDevice");
  if (status != NQ_OK) return status;
  int bytes = 0;
  status = check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, index),
                 "attribute");
  limits->shared = bytes - kReservedShared;
  limits->chained = device.compute_capability >= 90;
  return status;
}

}  // namespace

size_t gemv_workspace(const nq_cuda_pass& pass, const nq_cuda_device&) {
  int64_t floats = 0;
  for (int i = 0; i < pass.count; ++i) floats += kMaxRows * middle_stride(pass.layers[i]);
  return static_cast<size_t>(floats) * sizeof(float);
}

nq_status gemv_forward(const nq_cuda_pass& pass, const nq_cuda_device& device, bool bits,
                       cudaStream_t stream) {
  Limits limits;
  nq_status status = limits_of(device, &limits);
  for (int64_t row = 0; status == NQ_OK && row < pass.rows; row += kMaxRows) {
    const int batch = static_cast<int>(pass.rows - row < kMaxRows ? pass.rows - row : kMaxRows);
    for (int half = 0; status == NQ_OK && half < 2; ++half) {
      GemvStage stage = half == 0 ? first_half(pass, row, batch) : second_half(pass, row, batch);
      status = bits ? launch_rows<true>(stage, device, limits, stream)
                    : launch_rows<false>(stage, device, limits, stream);
    }
  }
  return status;
}

}  // namespace nq_cuda
