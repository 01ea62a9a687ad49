// SPDX-License-Identifier: Apache-2.0
//
// The C interface: checks what the caller says and chooses the kernels.

#include "cuda/internal.h"
#include "cuda/mma/plan.h"

namespace nq_cuda {

namespace {

// Where one family takes over from another, from times on an H200 (docs/notes/gpu.md).
constexpr int64_t kFewRows = 4;           // the matrix-vector kernels win,
constexpr int64_t kFewRowsSmall = 8;      // up to here for layers of at most
constexpr int64_t kSmallBytes = 1 << 19;  // so many packed bytes.
constexpr int64_t kWarpRows = 512;        // The warp-level product beats the warpgroups' while
constexpr int64_t kWarpWork = 1ll << 35;  // rows^2 times packed bytes stay below this.
// A row of x with fewer columns rounds its float16 operands without averaging over terms.
constexpr int64_t kFewColumns = 64;

bool is_type(int value) { return value >= NQ_FLOAT32 && value <= NQ_BFLOAT16; }

int64_t size_of(nq_type type) { return type == NQ_FLOAT32 ? 4 : 2; }

bool gated(nq_input input) { return input == NQ_INPUT_SILU || input == NQ_INPUT_GELU; }

// Everything that does not depend on pointers.
nq_status check_shape(const nq_cuda_pass& pass) {
  if (pass.layers == nullptr || pass.count < 1 || pass.count > NQ_CUDA_MAX_GROUP) {
    return NQ_BAD_ARGUMENT;
  }
  if (pass.rows < 1) return NQ_BAD_ARGUMENT;
  if (pass.rows > NQ_MAX_DIM) return NQ_TOO_LARGE;
  if (pass.x_type != NQ_FLOAT16 && pass.x_type != NQ_BFLOAT16) return NQ_BAD_ARGUMENT;
  if (pass.y_type != NQ_FLOAT32 && pass.y_type != pass.x_type) return NQ_BAD_ARGUMENT;
  if (pass.input < NQ_INPUT_PLAIN || pass.input > NQ_INPUT_GELU) return NQ_BAD_ARGUMENT;
  if (pass.precision < NQ_PRECISION_EXACT || pass.precision > NQ_PRECISION_INT8) {
    return NQ_BAD_ARGUMENT;
  }
  if (pass.algorithm < NQ_ALGORITHM_AUTO || pass.algorithm > NQ_ALGORITHM_GEMM_WGMMA) {
    return NQ_BAD_ARGUMENT;
  }
  for (int32_t i = 0; i < pass.count; ++i) {
    const nq_linear& layer = pass.layers[i];
    if (layer.in_features < 1 || layer.rank < 1 || layer.out_features < 1) return NQ_BAD_ARGUMENT;
    if (layer.in_features > NQ_MAX_DIM || layer.rank > NQ_MAX_DIM ||
        layer.out_features > NQ_MAX_DIM) {
      return NQ_TOO_LARGE;
    }
    if (layer.in_features != pass.layers[0].in_features) return NQ_BAD_ARGUMENT;
    if (layer.layout != NQ_LAYOUT_TILES_16X256) return NQ_BAD_LAYOUT;
    if (!is_type(layer.scale_type) || layer.scale_type != pass.layers[0].scale_type) {
      return NQ_BAD_ARGUMENT;
    }
  }
  return NQ_OK;
}

// Rows of x and y must begin at multiples of 16 bytes, but for a single row.
bool stride_fits(int64_t stride, int64_t needed, nq_type type, int64_t rows) {
  return stride >= needed && (rows == 1 || stride * size_of(type) % 16 == 0);
}

nq_status check_pointers(const nq_cuda_pass& pass) {
  const int64_t in = pass.layers[0].in_features * (gated(pass.input) ? 2 : 1);
  if (pass.x == nullptr || !aligned(pass.x)) return NQ_BAD_ARGUMENT;
  if (!stride_fits(pass.x_stride, in, pass.x_type, pass.rows)) return NQ_BAD_ARGUMENT;
  // The second half of a gated row begins at a multiple of 16 bytes too.
  if (gated(pass.input) && pass.layers[0].in_features % 8 != 0) return NQ_BAD_ARGUMENT;
  if (pass.input == NQ_INPUT_RMS_NORM &&
      (pass.norm_weight == nullptr || !aligned(pass.norm_weight) || !(pass.norm_eps >= 0.0f))) {
    return NQ_BAD_ARGUMENT;
  }
  for (int32_t i = 0; i < pass.count; ++i) {
    const nq_linear& layer = pass.layers[i];
    const void* needed[] = {layer.v_words, layer.u_words, layer.scale_in, layer.scale_out,
                            pass.y[i]};
    for (const void* pointer : needed) {
      if (pointer == nullptr || !aligned(pointer)) return NQ_BAD_ARGUMENT;
    }
    if (!aligned(layer.scale_mid) || !aligned(layer.bias) || !aligned(pass.residual[i])) {
      return NQ_BAD_ARGUMENT;
    }
    if (!stride_fits(pass.y_stride[i], layer.out_features, pass.y_type, pass.rows)) {
      return NQ_BAD_ARGUMENT;
    }
  }
  return NQ_OK;
}

nq_algorithm automatic(const nq_cuda_pass& pass, const nq_cuda_device& device) {
  int64_t bytes = 0, narrowest = NQ_MAX_DIM;
  for (int32_t i = 0; i < pass.count; ++i) {
    const nq_linear& layer = pass.layers[i];
    bytes += (layer.in_features + layer.out_features) * layer.rank / 8;
    narrowest = min(narrowest, min(layer.in_features, layer.rank));
  }
  if (pass.rows <= kFewRows || (pass.rows <= kFewRowsSmall && bytes <= kSmallBytes)) {
    return device.one_bit_tensor_cores ? NQ_ALGORITHM_GEMV_BITS : NQ_ALGORITHM_GEMV_BYTES;
  }
  const bool few = pass.rows <= kWarpRows && pass.rows * pass.rows * bytes <= kWarpWork;
  const bool warpgroups = device.warpgroup_mma && !few && narrowest >= kFewColumns;
  return warpgroups ? NQ_ALGORITHM_GEMM_WGMMA : NQ_ALGORITHM_GEMM_MMA;
}

nq_status choose(const nq_cuda_pass& pass, const nq_cuda_device& device, nq_algorithm* chosen) {
  *chosen = pass.algorithm == NQ_ALGORITHM_AUTO ? automatic(pass, device) : pass.algorithm;
  if (*chosen == NQ_ALGORITHM_GEMV_BITS && !device.one_bit_tensor_cores) return NQ_NO_KERNEL;
  if (*chosen == NQ_ALGORITHM_GEMM_WGMMA && !device.warpgroup_mma) return NQ_NO_KERNEL;
  return NQ_OK;
}

size_t workspace_of(nq_algorithm algorithm, const nq_cuda_pass& pass,
                    const nq_cuda_device& device) {
  switch (algorithm) {
    case NQ_ALGORITHM_GEMM_MMA:
      return gemm_mma_workspace(pass, device);
    case NQ_ALGORITHM_GEMM_WGMMA:
      return gemm_wgmma_workspace(pass, device);
    default:
      return gemv_workspace(pass, device);
  }
}

// The largest of the families' needs, which do not depend on the GPU.
size_t bound_of(const nq_cuda_pass& pass) {
  nq_cuda_device any = {};
  any.multiprocessors = 1 << 20;
  nq_cuda_pass piece = pass;
  const int64_t most = mma::most_rows(pass);
  if (piece.rows > most) piece.rows = most;
  size_t bound = gemm_mma_workspace(piece, any);
  for (const size_t other : {gemv_workspace(pass, any), gemm_wgmma_workspace(pass, any)}) {
    if (other > bound) bound = other;
  }
  return bound;
}

}  // namespace

}  // namespace nq_cuda

using namespace nq_cuda;

extern "C" size_t nq_cuda_workspace_bytes(const nq_cuda_pass* pass) {
  nq_cuda_device device;
  nq_algorithm algorithm;
  if (pass == nullptr || check_shape(*pass) != NQ_OK || describe(&device) != NQ_OK ||
      choose(*pass, device, &algorithm) != NQ_OK) {
    return 0;
  }
  return workspace_of(algorithm, *pass, device);
}

extern "C" size_t nq_cuda_workspace_bound(const nq_cuda_pass* pass) {
  if (pass == nullptr || check_shape(*pass) != NQ_OK) return 0;
  return bound_of(*pass);
}

extern "C" nq_status nq_cuda_forward(const nq_cuda_pass* pass, void* stream) {
  if (pass == nullptr) return NQ_BAD_ARGUMENT;
  nq_status status = check_shape(*pass);
  if (status != NQ_OK) return status;
  status = check_pointers(*pass);
  if (status != NQ_OK) return status;
  nq_cuda_device device;
  status = describe(&device);
  if (status != NQ_OK) return status;
  nq_algorithm algorithm;
  status = choose(*pass, device, &algorithm);
  if (status != NQ_OK) return status;
  if (pass->workspace == nullptr || reinterpret_cast<uintptr_t>(pass->workspace) % 256 != 0 ||
      pass->workspace_bytes < workspace_of(algorithm, *pass, device)) {
    return NQ_WORKSPACE;
  }
  cudaStream_t queue = static_cast<cudaStream_t>(stream);
  switch (algorithm) {
    case NQ_ALGORITHM_GEMM_MMA:
      return gemm_mma_forward(*pass, device, queue);
    case NQ_ALGORITHM_GEMM_WGMMA:
      return gemm_wgmma_forward(*pass, device, queue);
    default:
      return gemv_forward(*pass, device, algorithm == NQ_ALGORITHM_GEMV_BITS, queue);
  }
}
