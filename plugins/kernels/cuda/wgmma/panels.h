// SPDX-License-Identifier: Apache-2.0
//
// Activation panels: what the warpgroup product reads instead of x.
//
// A panel holds ceil(columns / 256) steps of `groups` = ceil(rows / 8) groups of 8 rows, as float16
// or signed bytes, in the order that the tensor core's K-major operand has in shared memory (128
// byte swizzle), so that any run of row groups of one block is one plain copy:
//   byte 1024 (block groups + row / 8) + 128 (row mod 8) + 16 (chunk xor (row mod 8)) + ...
// A block is 128 bytes of a row: 64 halves (4 blocks a step) or 128 bytes (2 blocks a step).
//
// Columns are permuted within a step so that a lane unpacks its operand from its own 16 bytes of a
// layout-1 tile. Column 16 u + s of a step is half 16 s + u; column 128 a + 32 q + 8 j + s
// (s < 8, j < 4, q < 4) is byte 32 s + 16 a + 4 q + j. Columns past the matrix are 0.
//
// Ranges. Row i of the first panel is xs * 2^a, |.| < 2^14 (float16) or xs * 127 / max|xs| (bytes),
// xs = scale_in * f(x). Stage 1 gives t = V xs, |t| <= sum|xs|, so t * 2^b with sum|xs| 2^b <= 2^15
// fits float16 whatever the signs are, and 15 + 14 binary digits remain below it. scale_mid is
// applied as scale_mid * 2^-e <= 1.

#ifndef NQ_CUDA_WGMMA_PANELS_H
#define NQ_CUDA_WGMMA_PANELS_H

#include "cuda/internal.h"

namespace nq_cuda {

struct PanelPart {
  const void* scale_in;
  const void* scale_mid;  // or null
  int rank;
  void* panel;
  float* mid_factor;  // [rows]: stage 1 multiplies its sums by this
  float* out_factor;  // [rows]: stage 2 multiplies its sums by this
  float* mid_range;   // {2^-e, 2^e} of scale_mid
};

struct PanelInput {
  const void* x;
  const float* norm_weight;
  int64_t stride;
  float norm_eps;
  int rows;
  int columns;
  int groups;
  nq_type x_type;
  nq_type scale_type;
  nq_input input;
  int count;
  PanelPart parts[NQ_CUDA_MAX_GROUP];
};

// A float16 panel to a byte panel of the same matrix; `factor` is multiplied by the new step.
struct PanelRounding {
  const void* halves;
  void* bytes;
  float* factor;  // [rows]
  int steps;
};

struct PanelRoundings {
  int rows;
  int groups;
  int count;
  PanelRounding parts[NQ_CUDA_MAX_GROUP];
};

inline int64_t panel_steps(int64_t columns) { return ceil_div(columns, NQ_CUDA_TILE_COLUMNS); }

inline int64_t panel_bytes(int64_t rows, int64_t columns, bool bytes) {
  return panel_steps(columns) * ceil_div(rows, 8) * 1024 * (bytes ? 2 : 4);
}

// Writes the first panels and every factor.
nq_status prepare_panels(const PanelInput& input, bool bytes, cudaStream_t stream);

// Rounds panels to bytes, each row by its own largest value.
nq_status round_panels(const PanelRoundings& roundings, cudaStream_t stream);

}  // namespace nq_cuda

#endif  // NQ_CUDA_WGMMA_PANELS_H
