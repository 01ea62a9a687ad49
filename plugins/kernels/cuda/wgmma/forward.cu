// SPDX-License-Identifier: Apache-2.0
//
// The launches of the warpgroup product. A pass is prepare -> stage 1 -> (rounding to bytes) ->
// stage 2, each launched before the one before it has finished (programmatic dependent launch).

#include "cuda/launch.h"
#include "cuda/wgmma/kernel.cuh"
#include "cuda/wgmma/plan.h"

namespace nq_cuda {

namespace {

constexpr const char* kWhat = "the warpgroup product";

// Lets a kernel of the family have the shared memory that it needs.
template <int N, bool FIRST, bool BYTES>
nq_status allow() {
  return allow_shared<gemm_wgmma_stage<N, FIRST, BYTES>>(WgmmaShape<N, BYTES>::kBytes, kWhat);
}

// Asks once for each device. Every kernel of the family fills a multiprocessor, so any of them
// stands for all.
nq_status find_limits(const nq_cuda_device& device, WgmmaLimits* limits) {
  static PerDevice<WgmmaLimits> known;
  return known.get(limits, [&device](int, WgmmaLimits* found) {
    nq_status status = allow<128, false, false>();
    if (status != NQ_OK) return status;
    found->clusters[1] = device.multiprocessors;
    for (int cluster = 2; cluster <= 8; cluster *= 2) {
      LaunchAttributes attributes = {};
      const dim3 grid(device.multiprocessors / cluster * cluster);
      const cudaLaunchConfig_t config =
          configure({kWhat, grid, kWgmmaThreads, WgmmaShape<128, false>::kBytes, false, cluster},
                    nullptr, attributes);
      status = check(cudaOccupancyMaxActiveClusters(&found->clusters[cluster],
                                                    gemm_wgmma_stage<128, false, false>, &config),
                     "clusters of the warpgroup product");
      if (status != NQ_OK) return status;
    }
    return NQ_OK;
  });
}

// Tiles `begin` to `begin + tiles` of the stage, `cluster` blocks to a tile.
template <int N, bool FIRST, bool BYTES>
nq_status launch_tiles(WgmmaStage& stage, int cluster, int64_t begin, int64_t tiles,
                       const WgmmaLimits& limits, cudaStream_t stream) {
  if (tiles == 0) return NQ_OK;
  if (begin + tiles > 0x7fffffff) return NQ_TOO_LARGE;
  const nq_status status = allow<N, FIRST, BYTES>();
  if (status != NQ_OK) return status;
  stage.n_tiles = static_cast<int>(ceil_div(stage.rows, N));
  stage.begin = static_cast<int>(begin);
  stage.tiles = static_cast<int>(tiles);
  const dim3 grid(static_cast<unsigned>(cluster > 1 ? tiles * cluster
                                                    : min(tiles, int64_t{limits.clusters[1]})));
  const Launch how = {kWhat, grid, kWgmmaThreads, WgmmaShape<N, BYTES>::kBytes, true, cluster};
  return launch(how, stream, gemm_wgmma_stage<N, FIRST, BYTES>, stage);
}

template <int N, bool FIRST, bool BYTES>
nq_status launch_both(WgmmaStage& stage, const WgmmaChoice& choice, const WgmmaLimits& limits,
                      cudaStream_t stream) {
  const nq_status status = launch_tiles<N, FIRST, BYTES>(stage, 1, 0, choice.main, limits, stream);
  if (status != NQ_OK) return status;
  return launch_tiles<N, FIRST, BYTES>(stage, choice.cluster, choice.main, choice.rest, limits,
                                       stream);
}

template <bool FIRST, bool BYTES>
nq_status launch_stage(WgmmaStage& stage, const nq_cuda_device& device, cudaStream_t stream) {
  stage.m_tiles = 0;
  for (int i = 0; i < stage.count; ++i) {
    stage.parts[i].first_tile = stage.m_tiles;
    stage.m_tiles += static_cast<int>(ceil_div(stage.parts[i].rows, kTileM));
  }
  WgmmaLimits limits;
  const nq_status status = find_limits(device, &limits);
  if (status != NQ_OK) return status;
  const WgmmaChoice choice = choose_tiles(stage, BYTES, limits);
  switch (choice.n) {
    case 16:
      return launch_both<16, FIRST, BYTES>(stage, choice, limits, stream);
    case 32:
      return launch_both<32, FIRST, BYTES>(stage, choice, limits, stream);
    case 64:
      return launch_both<64, FIRST, BYTES>(stage, choice, limits, stream);
    default:
      return launch_both<128, FIRST, BYTES>(stage, choice, limits, stream);
  }
}

char* offset(void* base, int64_t bytes) { return static_cast<char*>(base) + bytes; }

// Rows [begin, begin + rows) of the pass.
template <bool BYTES>
nq_status forward_rows(const nq_cuda_pass& pass, const nq_cuda_device& device, int64_t begin,
                       int64_t rows, cudaStream_t stream) {
  PanelInput input = {};
  PanelRoundings roundings = {};
  WgmmaStage first = {}, second = {};
  const int64_t y_size = pass.y_type == NQ_FLOAT32 ? 4 : 2;
  const int groups = static_cast<int>(ceil_div(rows, 8));
  input.x = static_cast<const char*>(pass.x) + begin * pass.x_stride * 2;
  input.norm_weight = pass.norm_weight;
  input.stride = pass.x_stride;
  input.norm_eps = pass.norm_eps;
  input.columns = static_cast<int>(pass.layers[0].in_features);
  input.x_type = pass.x_type;
  input.input = pass.input;
  input.scale_type = first.scale_type = second.scale_type = pass.layers[0].scale_type;
  input.rows = roundings.rows = first.rows = second.rows = static_cast<int>(rows);
  input.groups = roundings.groups = first.groups = second.groups = groups;
  input.count = roundings.count = first.count = second.count = pass.count;
  second.y_type = pass.y_type;
  int64_t used = 0;
  for (int i = 0; i < pass.count; ++i) {
    const nq_linear& layer = pass.layers[i];
    const WgmmaRoom room = wgmma_room(layer, rows, BYTES);
    char* base = offset(pass.workspace, used);
    used += room.end;
    float* mid_factor = reinterpret_cast<float*>(base + room.mid_factor);
    float* out_factor = reinterpret_cast<float*>(base + room.out_factor);
    float* range = reinterpret_cast<float*>(base + room.range);
    input.parts[i] = {layer.scale_in,
                      layer.scale_mid,
                      static_cast<int>(layer.rank),
                      base + room.first,
                      mid_factor,
                      out_factor,
                      range};
    WgmmaPart& one = first.parts[i];
    one.signs = layer.v_words;
    one.panel = base + room.first;
    one.scale = layer.scale_mid;
    one.y = base + room.middle;
    one.factor = mid_factor;
    one.range = range;
    one.rows = static_cast<int>(layer.rank);
    one.steps = static_cast<int>(panel_steps(layer.in_features));
    roundings.parts[i] = {base + room.middle, base + room.middle_bytes, out_factor,
                          static_cast<int>(panel_steps(layer.rank))};
    WgmmaPart& two = second.parts[i];
    two.signs = layer.u_words;
    two.panel = base + (BYTES ? room.middle_bytes : room.middle);
    two.scale = layer.scale_out;
    two.bias = layer.bias;
    two.residual = pass.residual[i] == nullptr ? nullptr
                                               : static_cast<const char*>(pass.residual[i]) +
                                                     begin * pass.y_stride[i] * y_size;
    two.y = offset(pass.y[i], begin * pass.y_stride[i] * y_size);
    two.stride = pass.y_stride[i];
    two.factor = out_factor;
    two.range = range + 1;
    two.rows = static_cast<int>(layer.out_features);
    two.steps = static_cast<int>(panel_steps(layer.rank));
  }
  nq_status status = prepare_panels(input, BYTES, stream);
  if (status != NQ_OK) return status;
  status = launch_stage<true, BYTES>(first, device, stream);
  if (status != NQ_OK) return status;
  if (BYTES) status = round_panels(roundings, stream);
  if (status != NQ_OK) return status;
  return launch_stage<false, BYTES>(second, device, stream);
}

}  // namespace

size_t gemm_wgmma_workspace(const nq_cuda_pass& pass, const nq_cuda_device&) {
  const int64_t rows = min(pass.rows, kWgmmaRows);
  int64_t bytes = 0;
  for (int i = 0; i < pass.count; ++i) {
    bytes += wgmma_room(pass.layers[i], rows, pass.precision == NQ_PRECISION_INT8).end;
  }
  return static_cast<size_t>(bytes);
}

nq_status gemm_wgmma_forward(const nq_cuda_pass& pass, const nq_cuda_device& device,
                             cudaStream_t stream) {
  for (int64_t begin = 0; begin < pass.rows; begin += kWgmmaRows) {
    const int64_t rows = min(kWgmmaRows, pass.rows - begin);
    const nq_status status = pass.precision == NQ_PRECISION_INT8
                                 ? forward_rows<true>(pass, device, begin, rows, stream)
                                 : forward_rows<false>(pass, device, begin, rows, stream);
    if (status != NQ_OK) return status;
  }
  return NQ_OK;
}

}  // namespace nq_cuda
