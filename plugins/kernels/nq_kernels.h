// SPDX-License-Identifier: Apache-2.0
//
// The binary linear layer as a small C interface that knows no framework.
//
//   y = scale_out * (U (scale_mid * (V (scale_in * x)))) + bias
//
// V is rank x in_features, U is out_features x rank; both hold signs only, one bit each. Layout 0:
// int32 words, row-major, column c of a row is bit (c mod 32) of word (c div 32), bit 0 is +1 and
// bit 1 is -1. Bits past the last column of a row may hold anything: they never count.
//
// Nothing here allocates, throws or starts threads. The caller owns the workspace and the parallel
// loop, and calls the three stages of a pass in order, each over any disjoint ranges that together
// cover it, finishing one stage before it starts the next. All arithmetic between x and y is
// float32, or where it is faster 16-bit fixed point within 1e-4 of it (cpu/signs/byte_tables.h). A
// row of y does not depend on the others.

#ifndef NQ_KERNELS_H
#define NQ_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum nq_status {
  NQ_OK = 0,
  NQ_BAD_ARGUMENT =
      1,              // a null pointer, a size below 1, a range outside the matrix, an unknown enum
  NQ_BAD_LAYOUT = 2,  // the word order is not one this build reads
  NQ_TOO_LARGE = 3,   // a dimension above NQ_MAX_DIM or more rows than one pass takes
  NQ_NO_ISA = 4,      // NQ_CPU_ISA names an instruction set that is unknown or absent here
  NQ_NO_KERNEL = 5,   // this build has no code for this GPU, or the forced algorithm cannot run
  NQ_CUDA_ERROR = 6,  // a CUDA call failed: nq_cuda_error_text() says which
  NQ_WORKSPACE = 7    // the workspace is missing, too small or not aligned
} nq_status;

typedef enum nq_type { NQ_FLOAT32 = 0, NQ_FLOAT16 = 1, NQ_BFLOAT16 = 2 } nq_type;

// Word orders. Numbers are part of the operator's schema: never reuse one.
//
// Layout 1, for tensor cores: tiles of 16 rows x 256 columns, tile (i, j) at word
// 128 (i ceil(columns / 256) + j). With w the eight layout-0 words of a row in that tile, lane l of
// a warp (g = l / 4, q = l mod 4) owns the tile's words 4 l to 4 l + 3: w[q] of row g, w[q] of row
// g + 8, w[4 + q] of row g, w[4 + q] of row g + 8; this is the A fragment of the PTX instruction
// mma.m16n8k256.b1. Rows and columns past the matrix are 0.
//
// Layout 2 is what the CPU kernels read, and never leaves the process: nq_arrange makes it of
// layout 0 in the order that suits the instruction set in use.
typedef enum nq_layout {
  NQ_LAYOUT_ROWS_LSB_FIRST = 0,
  NQ_LAYOUT_TILES_16X256 = 1,
  NQ_LAYOUT_ARRANGED = 2
} nq_layout;

enum {
  NQ_MAX_DIM = 0x7fffffff,  // largest in_features, rank or out_features
  NQ_PASS_ROWS = 192,       // most rows of x that one pass takes
  NQ_RANGE_STEP = 64        // ranges over rank and output rows begin at multiples of this
};

// One layer. Scales share `scale_type`; scale_mid and bias may be null.
typedef struct nq_linear {
  int64_t in_features;
  int64_t rank;
  int64_t out_features;
  nq_layout layout;
  nq_type scale_type;
  const int32_t* v_words;  // [rank][ceil(in_features / 32)]
  const int32_t* u_words;  // [out_features][ceil(rank / 32)]
  const void* scale_in;    // [in_features]
  const void* scale_mid;   // [rank] or null
  const void* scale_out;   // [out_features]
  const void* bias;        // [out_features] or null
} nq_linear;

// One pass of that layer over up to NQ_PASS_ROWS rows; x is [rows][in_features], y
// [rows][out_features], both dense and of type `type`.
typedef struct nq_pass {
  const nq_linear* layer;
  nq_type type;
  int64_t rows;
  const void* x;
  void* y;
  void* workspace;  // nq_workspace_bytes(layer, rows) bytes, aligned to 64
} nq_pass;

// Name of the instruction set in use: "scalar", "avx2", "avx512", "avx512vbmi" (with VNNI) or
// "neon"; chosen once per process, the best the processor has unless the environment variable
// NQ_CPU_ISA names another. Null when that name cannot be honoured.
const char* nq_cpu_isa(void);

// Bytes that a packed matrix takes in layout 2; 0 when the sizes are invalid.
size_t nq_arranged_bytes(int64_t rows, int64_t columns);

// A packed matrix of layout 0 in layout 2.
nq_status nq_arrange(const int32_t* words, int64_t rows, int64_t columns, void* out);

// Says whether the CPU kernels can use the description: sizes, layout 2, pointers.
nq_status nq_linear_check(const nq_linear* layer);

// Rows that one pass of this layer should take: what suits the processor's caches.
int64_t nq_pass_rows(const nq_linear* layer);

// Bytes of scratch memory that a pass of `rows` rows needs; 0 when the arguments are invalid.
size_t nq_workspace_bytes(const nq_linear* layer, int64_t rows);

// Stage 0 over rows [begin, end) of x: scale_in * x.
nq_status nq_stage_scale(const nq_pass* pass, int64_t begin, int64_t end);

// Stage 1 over rank rows [begin, end): scale_mid * (V x). `begin` is a multiple of NQ_RANGE_STEP.
nq_status nq_stage_rank(const nq_pass* pass, int64_t begin, int64_t end);

// Stage 2 over output rows [begin, end): y. `begin` is a multiple of NQ_RANGE_STEP.
nq_status nq_stage_out(const nq_pass* pass, int64_t begin, int64_t end);

// Plain words for a status.
const char* nq_status_text(nq_status status);

#ifdef __cplusplus
}
#endif

#endif  // NQ_KERNELS_H
