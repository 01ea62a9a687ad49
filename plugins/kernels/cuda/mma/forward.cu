// SPDX-License-Identifier: Apache-2.0
//
// Any number of rows on any GPU from sm_75 on: four launches a piece of rows, planes and product
// for each of the two sign matrices.
//
// Why int8 and not float16 operands: by NVIDIA's architecture papers float16 products with float32
// sums run at half the int8 rate on data-center, Jetson and workstation GPUs and at a quarter of it
// on GeForce. Two planes cost two int8 products, so they are level on the former, twice as fast on
// the latter, and more exact than float16 on all. Seen on sm_90 from registers alone, unpacking
// included (plugins/tests/gemm_mma/rates.cu): 270 T sign multiply-adds/s against 232 for float16
// with float32 sums and 250 with float16 sums.
//
// From sm_90 on a launch may begin before the one before it has ended; what a kernel does before it
// waits touches constants only. No kernel asks for its successor sooner: with that, 16 rows of long
// layers took up to a third longer on sm_90, presumably because blocks that only wait crowd some
// multiprocessors and the launch after them piles up on the others.

#include "cuda/launch.h"
#include "cuda/mma/kernel.cuh"
#include "cuda/mma/plan.h"
#include "cuda/mma/prepare.cuh"

namespace nq_cuda {

namespace mma {
namespace {

template <typename S, int PLANES>
nq_status launch_product(const ProductParams& params, int64_t blocks, const nq_cuda_device& device,
                         cudaStream_t stream) {
  static_assert(S::kSharedBytes <= 64 << 10, "what every GPU from sm_75 on has");
  const Launch how = {"the warp-level product", dim3(static_cast<unsigned>(blocks)), S::kThreads,
                      S::kSharedBytes, may_overlap(device)};
  return launch_with_shared<product<S, PLANES>>(how, S::kSharedBytes, stream, params);
}

template <int PLANES>
nq_status launch_shape(int shape, const ProductParams& params, int64_t blocks,
                       const nq_cuda_device& device, cudaStream_t stream) {
  switch (shape) {
    case 0:
      return launch_product<Shape<2, 8, 4, 1, 2>, PLANES>(params, blocks, device, stream);
    case 1:
      return launch_product<Shape<1, 8, 4, 1, 2>, PLANES>(params, blocks, device, stream);
    case 2:
      return launch_product<Shape<2, 4, 2, 2, 2>, PLANES>(params, blocks, device, stream);
    case 3:
      return launch_product<Shape<2, 2, 2, 4, 2>, PLANES>(params, blocks, device, stream);
    case 4:
      return launch_product<Shape<2, 2, 1, 4, 3>, PLANES>(params, blocks, device, stream);
    default:
      return launch_product<Shape<1, 2, 1, 4, 3>, PLANES>(params, blocks, device, stream);
  }
}

nq_status run_product(ProductParams* params, int planes, const nq_cuda_device& device,
                      cudaStream_t stream) {
  Problem problem = {};
  problem.count = params->count;
  problem.rows = params->rows;
  problem.planes = planes;
  for (int i = 0; i < params->count; ++i) {
    problem.weight_rows[i] = params->layer[i].out_columns;
    problem.k_tiles[i] = params->layer[i].k_tiles;
  }
  const int index = choose_shape(problem, device);
  const BlockShape& shape = kShapes[index];
  params->row_tiles = static_cast<int>(ceil_div(params->rows, shape.rows));
  int64_t tiles = 0;
  for (int i = 0; i < params->count; ++i) {
    params->layer[i].first_tile = static_cast<int>(tiles);
    tiles += ceil_div(params->layer[i].out_columns, shape.weight_rows);
  }
  const int64_t blocks = tiles * params->row_tiles;
  if (blocks > NQ_MAX_DIM) return NQ_TOO_LARGE;
  return planes == 2 ? launch_shape<2>(index, *params, blocks, device, stream)
                     : launch_shape<1>(index, *params, blocks, device, stream);
}

nq_status run_prepare(PrepareParams* params, int count, const nq_cuda_device& device,
                      cudaStream_t stream) {
  params->max_k_tiles = 0;
  for (int i = 0; i < count; ++i) {
    const int tiles = params->layer[i].k_tiles;
    params->max_k_tiles = tiles > params->max_k_tiles ? tiles : params->max_k_tiles;
  }
  // Whole tiles of rows, so that products never read what nobody wrote.
  const int64_t blocks = params->rows_padded / kRowGroup * params->max_k_tiles;
  if (blocks > NQ_MAX_DIM) return NQ_TOO_LARGE;
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(count));
  return launch({"the planes", grid, 256, 0, may_overlap(device)}, stream, prepare, *params);
}

struct Piece {
  const nq_cuda_pass& pass;
  const Plan& plan;
  int64_t row0;
  int64_t rows;

  template <typename T>
  T* at(size_t offset) const {
    return reinterpret_cast<T*>(static_cast<char*>(pass.workspace) + offset);
  }

  void fill_common(int stage, int i, PrepareLayer* prepared, ProductLayer* product) const {
    prepared->planes = at<int8_t>(plan.planes_at[stage][i]);
    prepared->scale = at<float>(plan.scale_at[stage][i]);
    prepared->sum = at<float>(plan.sum_at[stage][i]);
    prepared->k_tiles = static_cast<int>(k_tiles(prepared->columns));
    product->planes = prepared->planes;
    product->scale = prepared->scale;
    product->sum = prepared->sum;
    product->k_tiles = prepared->k_tiles;
  }

  nq_status run(int stage, const nq_cuda_device& device, cudaStream_t stream) const {
    PrepareParams prepared = {};
    ProductParams params = {};
    const int64_t x_at = row0 * pass.x_stride * 2;
    const int64_t y_size = pass.y_type == NQ_FLOAT32 ? 4 : 2;
    const bool norm = pass.input == NQ_INPUT_RMS_NORM;
    for (int i = 0; i < pass.count; ++i) {
      const nq_linear& linear = pass.layers[i];
      PrepareLayer& from = prepared.layer[i];
      ProductLayer& to = params.layer[i];
      const int64_t middle_stride = round_up(linear.rank, 4);
      if (stage == 0) {
        from.x = static_cast<const char*>(pass.x) + x_at;
        from.x_stride = pass.x_stride;
        from.columns = linear.in_features;
        from.scale_in = linear.scale_in;
        to.tiles = reinterpret_cast<const uint4*>(linear.v_words);
        to.out = at<float>(plan.middle_at[i]);
        to.out_stride = middle_stride;
        to.out_columns = linear.rank;
        to.out_scale = linear.scale_mid;
      } else {
        const int64_t y_at = row0 * pass.y_stride[i] * y_size;
        from.x = at<float>(plan.middle_at[i]);
        from.x_stride = middle_stride;
        from.columns = linear.rank;
        to.tiles = reinterpret_cast<const uint4*>(linear.u_words);
        to.out = static_cast<char*>(pass.y[i]) + y_at;
        to.out_stride = pass.y_stride[i];
        to.out_columns = linear.out_features;
        to.out_scale = linear.scale_out;
        to.bias = linear.bias;
        if (pass.residual[i] != nullptr) {
          to.residual = static_cast<const char*>(pass.residual[i]) + y_at;
        }
      }
      fill_common(stage, i, &from, &to);
    }
    prepared.x_type = stage == 0 ? pass.x_type : NQ_FLOAT32;
    prepared.scale_type = pass.layers[0].scale_type;
    prepared.input = stage == 0 ? pass.input : NQ_INPUT_PLAIN;
    prepared.norm_weight = pass.norm_weight;
    prepared.norm_eps = pass.norm_eps;
    if (norm && stage == 0) prepared.squares_out = at<float>(plan.squares_at);
    if (norm && stage == 1) prepared.squares_in = at<float>(plan.squares_at);
    prepared.norm_columns = pass.layers[0].in_features;
    prepared.norm_tiles = static_cast<int>(k_tiles(pass.layers[0].in_features));
    prepared.rows = rows;
    prepared.rows_padded = plan.rows_padded;
    prepared.planes = plan.planes;
    params.count = pass.count;
    params.rows = rows;
    params.rows_padded = plan.rows_padded;
    params.scale_type = pass.layers[0].scale_type;
    params.out_type = stage == 0 ? NQ_FLOAT32 : pass.y_type;
    const nq_status status = run_prepare(&prepared, pass.count, device, stream);
    if (status != NQ_OK) return status;
    return run_product(&params, plan.planes, device, stream);
  }
};

}  // namespace
}  // namespace mma

size_t gemm_mma_workspace(const nq_cuda_pass& pass, const nq_cuda_device&) {
  return mma::make_plan(pass).bytes;
}

nq_status gemm_mma_forward(const nq_cuda_pass& pass, const nq_cuda_device& device,
                           cudaStream_t stream) {
  const mma::Plan plan = mma::make_plan(pass);
  for (int64_t row0 = 0; row0 < pass.rows; row0 += plan.piece) {
    const int64_t left = pass.rows - row0;
    const mma::Piece piece = {pass, plan, row0, left < plan.piece ? left : plan.piece};
    for (int stage = 0; stage < 2; ++stage) {
      const nq_status status = piece.run(stage, device, stream);
      if (status != NQ_OK) return status;
    }
  }
  return NQ_OK;
}

}  // namespace nq_cuda
