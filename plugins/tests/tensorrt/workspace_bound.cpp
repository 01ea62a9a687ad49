// SPDX-License-Identifier: Apache-2.0
//
// Engines set workspace aside for their largest number of rows, and every smaller one must fit into
// it: compares the warp-level product's plans of many row counts with the plan that the bound
// stands on (api.cu). The other kernels need the same for any row count, or grow with it.

#include <stdio.h>

#include "cuda/mma/plan.h"

namespace {

size_t need(nq_cuda_pass pass, int64_t rows) {
  pass.rows = rows;
  return nq_cuda::mma::make_plan(pass).bytes;
}

}  // namespace

int main() {
  // in_features, ranks, projections; the last takes few rows at a time, the first all of them.
  const struct {
    int64_t n, rank[4];
    int32_t count;
  } layers[] = {{64, {40}, 1},
                {576, {280, 65, 65}, 3},
                {8192, {1600, 1600}, 2},
                {28672, {6336}, 1},
                {131072, {65536, 1, 33, 9000}, 4}};
  int plans = 0, above = 0;
  for (const auto& layer : layers) {
    nq_linear linears[NQ_CUDA_MAX_GROUP] = {};
    nq_cuda_pass pass = {};
    pass.layers = linears;
    pass.count = layer.count;
    for (int32_t i = 0; i < layer.count; ++i) {
      linears[i].in_features = layer.n;
      linears[i].rank = layer.rank[i];
    }
    for (const nq_precision precision : {NQ_PRECISION_EXACT, NQ_PRECISION_INT8}) {
      pass.precision = precision;
      const int64_t most = nq_cuda::mma::most_rows(pass);
      for (const int64_t limit : {int64_t{1}, int64_t{63}, int64_t{300}, int64_t{5000}}) {
        const size_t bound = need(pass, limit < most ? limit : most);
        for (int64_t rows = 1; rows <= limit; ++rows) {
          ++plans;
          if (need(pass, rows) > bound) ++above;
        }
      }
    }
  }
  printf("%d plans, %d above their bound\n", plans, above);
  return above == 0 ? 0 : 1;
}
