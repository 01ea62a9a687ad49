// SPDX-License-Identifier: Apache-2.0
//
// The warpgroup product on the host: workspace, choice of tile and cluster, launches. A pass is
// prepare -> stage 1 -> (rounding to bytes) -> stage 2, each launched before the one before it has
// finished (programmatic dependent launch).

#include "cuda/wgmma/kernel.cuh"

namespace nq_cuda {

namespace {

constexpr int64_t kPassRows = 4096;  // more rows are taken in pieces: bounds the workspace
constexpr int kMaxDevices = 64;

// How many clusters of 1, 2, 4 and 8 blocks (by that number) run at once.
struct Limits {
  int clusters[9];
};

struct Choice {
  int n;         // rows of x a tile
  int cluster;   // blocks that share one of the last tiles
  int64_t main;  // tiles that blocks compute alone
  int64_t rest;  // tiles after them that clusters share
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

int largest_steps(const WgmmaStage& stage) {
  int most = 0;
  for (int i = 0; i < stage.count; ++i) most = max(most, stage.parts[i].steps);
  return most;
}

// Estimated cycles of `tiles` tiles, fitted to times measured on an H200. A step of 256 columns
// takes the tensor cores 32 N cycles (16 N for bytes), and some 800 for unpacking and waiting.
int64_t cost(int64_t tiles, int64_t steps, int n, int cluster, bool bytes, const Limits& limits) {
  if (tiles == 0) return 0;
  const int64_t step = max(int64_t{32 * n} / (bytes ? 2 : 1), int64_t{500}) + (n < 128 ? 350 : 50);
  const int64_t each =
      ceil_div(steps, cluster) * step + 5000 + 30 * n + (cluster > 1 ? 1500 + 20 * n : 0);
  return ceil_div(tiles, limits.clusters[cluster]) * each;
}

// Tiles that do not fill the last wave of blocks are computed by clusters, in a launch of their
// own.
Choice choose(const WgmmaStage& stage, bool bytes, const Limits& limits) {
  Choice best = {};
  int64_t least = INT64_MAX;
  const int64_t steps = largest_steps(stage);
  for (int n = 128; n >= 16; n /= 2) {
    if (n > 16 && stage.rows <= n / 2) continue;
    const int64_t tiles = stage.m_tiles * ceil_div(stage.rows, n);
    const int64_t whole = tiles / limits.clusters[1] * limits.clusters[1];
    for (int64_t main : {tiles, whole}) {
      const int64_t rest = tiles - main;
      for (int cluster = main == tiles ? 1 : 2; cluster <= (rest > 0 ? 8 : 1); cluster *= 2) {
        if (rest > limits.clusters[cluster]) continue;
        const int64_t now =
            cost(main, steps, n, 1, bytes, limits) + cost(rest, steps, n, cluster, bytes, limits);
        if (now < least) {
          least = now;
          best = {n, cluster, main, rest};
        }
      }
    }
  }
  return best;
}

// The launch's configuration but for the grid; `attributes` has room for two.
template <int N, bool FIRST, bool BYTES>
nq_status configure(int cluster, cudaLaunchConfig_t* config, cudaLaunchAttribute* attributes) {
  auto kernel = gemm_wgmma_stage<N, FIRST, BYTES>;
  constexpr int shared = WgmmaShape<N, BYTES>::kBytes;
  static bool raised[kMaxDevices];
  int index = 0;
  nq_status status = check(cudaGetDevice(&index), "cudaGetDevice");
  if (status != NQ_OK) return status;
  if (index >= kMaxDevices || !__atomic_load_n(&raised[index], __ATOMIC_ACQUIRE)) {
    status =
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
              "shared memory of gemm_wgmma");
    if (status != NQ_OK) return status;
    if (index < kMaxDevices) __atomic_store_n(&raised[index], true, __ATOMIC_RELEASE);
  }
  config->blockDim = dim3(kWgmmaThreads);
  config->dynamicSmemBytes = shared;
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = cluster;
  attributes[1].val.clusterDim.y = 1;
  attributes[1].val.clusterDim.z = 1;
  config->attrs = attributes;
  config->numAttrs = cluster > 1 ? 2 : 1;
  return NQ_OK;
}

// Asks once per device; threads that race write the same values.
nq_status find_limits(const nq_cuda_device& device, Limits* limits) {
  static Limits known[kMaxDevices];
  static int ready[kMaxDevices];
  int index = 0;
  nq_status status = check(cudaGetDevice(&index), "cudaGetDevice");
  if (status != NQ_OK) return status;
  if (index < kMaxDevices && __atomic_load_n(&ready[index], __ATOMIC_ACQUIRE)) {
    *limits = known[index];
    return NQ_OK;
  }
  // Every kernel of the family fills a multiprocessor: any of them stands for all.
  auto kernel = gemm_wgmma_stage<128, false, false>;
  Limits found = {};
  found.clusters[1] = device.multiprocessors;
  for (int cluster = 2; cluster <= 8; cluster *= 2) {
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute attributes[2];
    status = configure<128, false, false>(cluster, &config, attributes);
    if (status != NQ_OK) return status;
    config.gridDim = dim3(device.multiprocessors / cluster * cluster);
    config.attrs = attributes + 1;
    config.numAttrs = 1;
    status = check(cudaOccupancyMaxActiveClusters(&found.clusters[cluster], kernel, &config),
                   "clusters of gemm_wgmma");
    if (status != NQ_OK) return status;
  }
  if (index < kMaxDevices) {
    known[index] = found;
    __atomic_store_n(&ready[index], 1, __ATOMIC_RELEASE);
  }
  *limits = found;
  return NQ_OK;
}

template <int N, bool FIRST, bool BYTES>
nq_status launch(WgmmaStage& stage, int cluster, int64_t begin, int64_t tiles, const Limits& limits,
                 cudaStream_t stream) {
  if (tiles == 0) return NQ_OK;
  auto kernel = gemm_wgmma_stage<N, FIRST, BYTES>;
  cudaLaunchConfig_t config = {};
  cudaLaunchAttribute attributes[2];
  const nq_status status = configure<N, FIRST, BYTES>(cluster, &config, attributes);
  if (status != NQ_OK) return status;
  if (begin + tiles > 0x7fffffff) return NQ_TOO_LARGE;
  stage.n_tiles = static_cast<int>(ceil_div(stage.rows, N));
  stage.begin = static_cast<int>(begin);
  stage.tiles = static_cast<int>(tiles);
  config.gridDim = dim3(static_cast<unsigned>(
      cluster > 1 ? tiles * cluster : min(tiles, int64_t{limits.clusters[1]})));
  config.stream = stream;
  return check(cudaLaunchKernelEx(&config, kernel, static_cast<const WgmmaStage&>(stage)),
               "gemm_wgmma");
}

template <int N, bool FIRST, bool BYTES>
nq_status launch_both(WgmmaStage& stage, const Choice& choice, const Limits& limits,
                      cudaStream_t stream) {
  const nq_status status = launch<N, FIRST, BYTES>(stage, 1, 0, choice.main, limits, stream);
  if (status != NQ_OK) return status;
  return launch<N, FIRST, BYTES>(stage, choice.cluster, choice.main, choice.rest, limits, stream);
}

template <bool FIRST, bool BYTES>
nq_status launch_stage(WgmmaStage& stage, const nq_cuda_device& device, cudaStream_t stream) {
  stage.m_tiles = 0;
  for (int i = 0; i < stage.count; ++i) {
    stage.parts[i].first_tile = stage.m_tiles;
    stage.m_tiles += static_cast<int>(ceil_div(stage.parts[i].rows, kTileM));
  }
  Limits limits;
  const nq_status status = find_limits(device, &limits);
  if (status != NQ_OK) return status;
  const Choice choice = choose(stage, BYTES, limits);
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
