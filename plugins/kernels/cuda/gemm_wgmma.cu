// SPDX-License-Identifier: Apache-2.0
//
// The warpgroup product on the host: workspace, choice of tile and cluster, launches. A pass is
// prepare -> stage 1 -> (rounding to bytes) -> stage 2, each launched before the one before it has
// finished (programmatic dependent launch).

#include "gemm_wgmma.cuh"

namespace nq_cuda {

namespace {

constexpr int64_t kPassRows = 4096;  // more rows are taken in pieces: bounds the workspace
constexpr int kMaxDevices = 64;

struct Choice {
  int n;        // rows of x a tile
  int cluster;  // blocks that share a tile
};

// Bytes of one projection's part of the workspace, in the order in which they lie there.
struct Room {
  int64_t first, middle, middle_bytes, mid_factor, out_factor, range, end;
};

Room room_of(const nq_linear& layer, int64_t rows, bool bytes) {
  Room room;
  room.first = 0;
  room.middle = room.first + panel_bytes(rows, layer.in_features, bytes);
  room.middle_bytes = room.middle + panel_bytes(rows, layer.rank, false);
  room.mid_factor = room.middle_bytes + (bytes ? panel_bytes(rows, layer.rank, true) : 0);
  room.out_factor = room.mid_factor + round_up(rows, 128) * 4;
  room.range = room.out_factor + round_up(rows, 128) * 4;
  room.end = room.range + 256;
  return room;
}

// Nanoseconds of a stage, a fit to times measured on an H200 (rows 16 to 512, ranks 992 to 6336):
// every step of 256 columns, every tile, and the exchange within a cluster.
int64_t cost(const WgmmaStage& stage, int n, int cluster, bool bytes, int multiprocessors) {
  int64_t most = 0, tiles = 0;
  const int64_t columns = ceil_div(stage.rows, n);
  for (int i = 0; i < stage.count; ++i) {
    const WgmmaPart& part = stage.parts[i];
    tiles += ceil_div(part.rows, kTileM) * columns;
    most = max(most, int64_t{part.steps});
  }
  const int64_t blocks = tiles * cluster;
  // Clusters of 4 and 8 leave some multiprocessors of a GPU's parts over: 100 of 132 were seen to
  // run at once, 128 were not.
  if (cluster > 1 && blocks > (cluster == 2 ? multiprocessors : multiprocessors * 13 / 16)) {
    return INT64_MAX;
  }
  const int64_t exact = n == 16 ? 1130 : (n == 32 ? 1510 : (n == 64 ? 1670 : 2320));
  const int64_t rounded = n == 16 ? 910 : (n == 32 ? 920 : (n == 64 ? 930 : 1350));
  const int64_t each = ceil_div(most, cluster) * (bytes ? rounded : exact) + 3000 + 26 * n +
                       (cluster > 1 ? 800 + 40 * n : 0);
  return ceil_div(blocks, multiprocessors) * each;
}

Choice choose(const WgmmaStage& stage, bool bytes, int multiprocessors) {
  Choice best = {16, 1};
  int64_t least = INT64_MAX;
  for (int n = 128; n >= 16; n /= 2) {
    if (n > 16 && stage.rows <= n / 2) continue;
    for (int cluster = 1; cluster <= 8; cluster *= 2) {
      const int64_t now = cost(stage, n, cluster, bytes, multiprocessors);
      if (now < least) {
        least = now;
        best = {n, cluster};
      }
    }
  }
  return best;
}

template <int N, bool FIRST, bool BYTES>
nq_status launch(WgmmaStage& stage, int cluster, int multiprocessors, cudaStream_t stream) {
  auto kernel = gemm_wgmma_stage<N, FIRST, BYTES>;
  constexpr int kShared = WgmmaShape<N, BYTES>::kBytes;
  static bool raised[kMaxDevices];
  int index = 0;
  nq_status status = check(cudaGetDevice(&index), "cudaGetDevice");
  if (status != NQ_OK) return status;
  if (index >= kMaxDevices || !__atomic_load_n(&raised[index], __ATOMIC_ACQUIRE)) {
    status =
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
              "shared memory of gemm_wgmma");
    if (status != NQ_OK) return status;
    if (index < kMaxDevices) __atomic_store_n(&raised[index], true, __ATOMIC_RELEASE);
  }
  stage.n_tiles = static_cast<int>(ceil_div(stage.rows, N));
  const int64_t tiles = int64_t{stage.m_tiles} * stage.n_tiles;
  if (tiles > 0x7fffffff / 8) return NQ_TOO_LARGE;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(
      static_cast<unsigned>(cluster > 1 ? tiles * cluster : min(tiles, int64_t{multiprocessors})));
  config.blockDim = dim3(kWgmmaThreads);
  config.dynamicSmemBytes = kShared;
  config.stream = stream;
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = cluster;
  attributes[1].val.clusterDim.y = 1;
  attributes[1].val.clusterDim.z = 1;
  config.attrs = attributes;
  config.numAttrs = cluster > 1 ? 2 : 1;
  return check(cudaLaunchKernelEx(&config, kernel, static_cast<const WgmmaStage&>(stage)),
               "gemm_wgmma");
}

template <bool FIRST, bool BYTES>
nq_status launch_stage(WgmmaStage& stage, const nq_cuda_device& device, cudaStream_t stream) {
  stage.m_tiles = 0;
  for (int i = 0; i < stage.count; ++i) {
    stage.parts[i].first_tile = stage.m_tiles;
    stage.m_tiles += static_cast<int>(ceil_div(stage.parts[i].rows, kTileM));
  }
  const Choice choice = choose(stage, BYTES, device.multiprocessors);
  switch (choice.n) {
    case 16:
      return launch<16, FIRST, BYTES>(stage, choice.cluster, device.multiprocessors, stream);
    case 32:
      return launch<32, FIRST, BYTES>(stage, choice.cluster, device.multiprocessors, stream);
    case 64:
      return launch<64, FIRST, BYTES>(stage, choice.cluster, device.multiprocessors, stream);
    default:
      return launch<128, FIRST, BYTES>(stage, choice.cluster, device.multiprocessors, stream);
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
    const Room room = room_of(layer, rows, BYTES);
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
  const int64_t rows = min(pass.rows, kPassRows);
  int64_t bytes = 0;
  for (int i = 0; i < pass.count; ++i) {
    bytes += room_of(pass.layers[i], rows, pass.precision == NQ_PRECISION_INT8).end;
  }
  return static_cast<size_t>(bytes);
}

nq_status gemm_wgmma_forward(const nq_cuda_pass& pass, const nq_cuda_device& device,
                             cudaStream_t stream) {
  for (int64_t begin = 0; begin < pass.rows; begin += kPassRows) {
    const int64_t rows = min(kPassRows, pass.rows - begin);
    const nq_status status = pass.precision == NQ_PRECISION_INT8
                                 ? forward_rows<true>(pass, device, begin, rows, stream)
                                 : forward_rows<false>(pass, device, begin, rows, stream);
    if (status != NQ_OK) return status;
  }
  return NQ_OK;
}

}  // namespace nq_cuda
