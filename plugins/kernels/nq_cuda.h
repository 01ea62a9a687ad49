// SPDX-License-Identifier: Apache-2.0
//
// The binary linear layer on an NVIDIA GPU, as a small C interface that knows no framework.
//
//   y = scale_out * (U (scale_mid * (V (scale_in * f(x))))) + bias (+ residual)
//
// Everything runs on the caller's stream, in the caller's workspace, and allocates nothing, so a
// pass can be captured into a CUDA graph. The workspace needs no initial contents and must not be
// shared by passes that may overlap (several streams: one each). Results do not depend on the
// stream, on replay or on what else runs.
//
// Sign matrices and scales are constants: kernels may read them ahead of stream order, so they must
// be complete (synchronized) before the first pass, and stay until the last one has finished.

#ifndef NQ_CUDA_H
#define NQ_CUDA_H

#include "nq_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
  NQ_CUDA_MAX_GROUP = 4,   // most projections that one pass computes from the same x
  NQ_CUDA_TILE_ROWS = 16,  // rows and columns of a tile of layout 1
  NQ_CUDA_TILE_COLUMNS = 256,
  NQ_CUDA_TILE_WORDS = 128
};

// What f(x) is, applied before scale_in.
typedef enum nq_input {
  NQ_INPUT_PLAIN = 0,
  NQ_INPUT_RMS_NORM = 1,  // x / sqrt(mean(x^2) + norm_eps) * norm_weight
  NQ_INPUT_SILU = 2,      // silu(x[0:n]) * x[n:2n]; rows of x hold 2 n values, n a multiple of 8
  NQ_INPUT_GELU = 3       // the same with the tanh form of gelu
} nq_input;

// How exact the arithmetic is.
typedef enum nq_precision {
  NQ_PRECISION_EXACT = 0,  // 16-bit fixed point or float16 operands, float32 or integer sums
  NQ_PRECISION_INT8 = 1    // activations rounded to 8 bits a row where that is faster
} nq_precision;

// Which kernels run. AUTO chooses by rows and GPU; the others are for tests and measurements and
// give NQ_NO_KERNEL where the GPU or the shape does not allow them.
typedef enum nq_algorithm {
  NQ_ALGORITHM_AUTO = 0,
  NQ_ALGORITHM_GEMV_BITS = 1,   // bit planes on the one-bit tensor cores, sm_80 to sm_90
  NQ_ALGORITHM_GEMV_BYTES = 2,  // bytes on the int8 tensor cores, any GPU
  NQ_ALGORITHM_GEMM_MMA = 3,    // warp-level tensor-core product, any GPU
  NQ_ALGORITHM_GEMM_WGMMA = 4   // warpgroup product, sm_90 only
} nq_algorithm;

// One pass over `rows` rows. All pointers are device pointers, aligned to 16 bytes, and so are the
// strides in bytes. Layers are in layout 1 (nq_cuda_make_tiles).
typedef struct nq_cuda_pass {
  const nq_linear* layers;  // `count` of them (host array), with one in_features between them
  int32_t count;            // 1 to NQ_CUDA_MAX_GROUP
  nq_type x_type;           // NQ_FLOAT16 or NQ_BFLOAT16
  nq_type y_type;           // x_type or NQ_FLOAT32
  nq_input input;
  nq_precision precision;
  nq_algorithm algorithm;
  int64_t rows;
  const void* x;               // [rows][in_features], or [rows][2 in_features] for gated inputs
  int64_t x_stride;            // elements from one row to the next
  float norm_eps;              // NQ_INPUT_RMS_NORM only
  const float* norm_weight;    // [in_features]; NQ_INPUT_RMS_NORM only
  void* y[NQ_CUDA_MAX_GROUP];  // [rows][out_features of the layer]
  int64_t y_stride[NQ_CUDA_MAX_GROUP];      // elements from one row to the next
  const void* residual[NQ_CUDA_MAX_GROUP];  // like y, of y_type; or null. May be y itself.
  void* workspace;
  size_t workspace_bytes;  // at least nq_cuda_workspace_bytes(pass); aligned to 256
} nq_cuda_pass;

// What a device is and what this build has for it.
typedef struct nq_cuda_device {
  int32_t compute_capability;  // 10 major + minor
  int32_t multiprocessors;
  int32_t one_bit_tensor_cores;  // 1 where NQ_ALGORITHM_GEMV_BITS runs
  int32_t warpgroup_mma;         // 1 where NQ_ALGORITHM_GEMM_WGMMA runs
} nq_cuda_device;

// Describes the current device. NQ_NO_KERNEL when this build has no code for it.
nq_status nq_cuda_describe(nq_cuda_device* device);

// int32 words that a rows x columns sign matrix takes in layout 1; 0 when a size is invalid.
int64_t nq_cuda_tile_words(int64_t rows, int64_t columns);

// Layout 0 words [rows][ceil(columns / 32)] to layout 1, both on the device, and back. Enqueued on
// `stream` (a cudaStream_t); bits past the last column are ignored and written as 0.
nq_status nq_cuda_make_tiles(const int32_t* words, int64_t rows, int64_t columns, int32_t* tiles,
                             void* stream);
nq_status nq_cuda_unmake_tiles(const int32_t* tiles, int64_t rows, int64_t columns, int32_t* words,
                               void* stream);

// For callers without a CUDA runtime of their own: a copy of `rows` rows of `width` bytes between
// two pitches in bytes, enqueued on `stream`; and the wait for everything that `stream` holds.
nq_status nq_cuda_copy_rows(const void* from, size_t from_pitch, void* to, size_t to_pitch,
                            size_t width, size_t rows, void* stream);
nq_status nq_cuda_synchronize(void* stream);

// Bytes of workspace that the pass needs on the current device; pointers, strides and stream are
// not looked at. 0 when the description is invalid.
size_t nq_cuda_workspace_bytes(const nq_cuda_pass* pass);

// Bytes of workspace that suffice for 1 to `rows` rows of the pass, whatever the algorithm and on
// every GPU that this build has code for. Needs no device. 0 when the description is invalid.
size_t nq_cuda_workspace_bound(const nq_cuda_pass* pass);

// Enqueues the pass on `stream` (a cudaStream_t, null for the default one).
nq_status nq_cuda_forward(const nq_cuda_pass* pass, void* stream);

// The CUDA error behind the last NQ_CUDA_ERROR of this thread, "" if there was none.
const char* nq_cuda_error_text(void);

#ifdef __cplusplus
}
#endif

#endif  // NQ_CUDA_H
