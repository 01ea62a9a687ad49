// SPDX-License-Identifier: Apache-2.0
//
// Where a decode step begins and ends on an NVIDIA GPU: rows of the embedding table, norms, the
// output head, and the choice of the next token. Same rules as nq_cuda.h: the caller's stream and
// memory, no allocation, capturable into a CUDA graph, deterministic. Pointers are device pointers,
// aligned to 16 bytes, unless it says otherwise.
//
// Sequences are those of nq_cuda_attention.h: `positions` int64 [sequences] are the tokens that a
// sequence's cache held before, `starts` int32 [sequences + 1] its new tokens' rows, or null for
// one row each. A sequence with a negative position is idle: what is its own is left alone.

#ifndef NQ_CUDA_TABLE_H
#define NQ_CUDA_TABLE_H

#include "nq_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
  NQ_CUDA_HEAD_ROWS = 16,        // most rows of x that one read of the table serves
  NQ_CUDA_TABLE_COLUMNS = 16384  // most columns of a table
};

// A table as it lies in a file (docs/FORMAT.md): row i, column c = code(i, c) * scale(i, c div
// group). 16 bits: values of `type`. 8 bits: int8 codes. 4 bits: two codes a byte, the even column
// in the low half, a row starts at a byte. Rows whose bytes are a multiple of 16 are read fastest.
typedef struct nq_cuda_table {
  int64_t rows;
  int64_t columns;     // at most NQ_CUDA_TABLE_COLUMNS
  int64_t group;       // columns that share a scale: a multiple of 32, or `columns` or more
  int32_t bits;        // 16, 8 or 4
  nq_type type;        // 16 bits only: NQ_FLOAT16 or NQ_BFLOAT16
  nq_type scale_type;  // 8 and 4 bits only: any
  const void* codes;   // [rows][ceil(columns * bits / 8) bytes]
  const void* scales;  // [rows][ceil(columns / group)]; 8 and 4 bits only
} nq_cuda_table;

// out[i] = multiplier * table[tokens[i]] (+ learned[learned_offset + place of row i]), in float32
// and rounded once. A token outside the table leaves its row alone; a place outside `learned` adds
// nothing. Codes, scales and learned positions may be pinned host memory.
typedef struct nq_cuda_embedding {
  nq_cuda_table table;
  nq_type type;           // of out and learned: NQ_FLOAT16 or NQ_BFLOAT16
  float multiplier;       // 1 for none
  int64_t count;          // rows of out
  const int64_t* tokens;  // [count]
  void* out;              // [count][columns]
  int64_t out_stride;     // elements from one row to the next
  const void* learned;    // [learned_rows][columns] (OPT), or null
  int64_t learned_rows;
  int64_t learned_offset;
  int64_t sequences;         // 0 and null where nothing is learned and no sequence idle
  const int64_t* positions;  // [sequences]: row starts[s] + t has place positions[s] + t
  const int32_t* starts;     // [sequences + 1], or null
} nq_cuda_embedding;

// An ordinary launch: nothing before it overlaps what follows.
nq_status nq_cuda_embed(const nq_cuda_embedding* embedding, void* stream);

// RMS: x / sqrt(mean(x^2) + eps) * weight. Layer: (x - mean) / sqrt(variance + eps) * weight +
// bias.
typedef enum nq_norm { NQ_NORM_NONE = 0, NQ_NORM_RMS = 1, NQ_NORM_LAYER = 2 } nq_norm;

// out = norm(x), or residual + norm(x). x, residual and out may be the same memory.
typedef struct nq_cuda_normalization {
  nq_norm norm;  // NQ_NORM_NONE: out = x, or residual + x
  nq_type type;  // of x, residual and out: NQ_FLOAT16 or NQ_BFLOAT16
  int64_t rows;
  int64_t columns;
  float eps;
  const float* weight;   // [columns]
  const float* bias;     // [columns], or null
  const void* x;         // [rows][columns]
  const void* residual;  // [rows][columns], or null
  void* out;             // [rows][columns]
  int64_t x_stride;      // elements from one row to the next
  int64_t residual_stride;
  int64_t out_stride;
} nq_cuda_normalization;

nq_status nq_cuda_norm(const nq_cuda_normalization* normalization, void* stream);

// out[i] = max(x[i], 0) for i in [0, count), of a 16-bit type; may be in place.
nq_status nq_cuda_activate(nq_type type, const void* x, int64_t count, void* out, void* stream);

// logits[r][i] = table row i times norm(row r of x), then c tanh(that / c) with a soft cap c.
typedef struct nq_cuda_output {
  nq_cuda_table table;  // 16 bits: of x_type
  nq_type x_type;       // NQ_FLOAT16 or NQ_BFLOAT16
  nq_norm norm;
  float norm_eps;
  float soft_cap;            // 0 for none
  const float* norm_weight;  // [columns]
  const float* norm_bias;    // [columns], or null
  int64_t rows;
  const void* x;        // [..][columns]
  int64_t x_stride;     // elements from one row to the next
  const int32_t* ends;  // [rows], any alignment: row r is x row ends[r] - 1, that is the last new
                        // token of a sequence with ends = starts + 1; below 1 counts as 1. Or null:
                        // row r is x row r
  float* logits;        // [rows][table.rows]
  int64_t logits_stride;
  void* workspace;  // any contents, aligned to 256 bytes
  size_t workspace_bytes;
} nq_cuda_output;

// Bytes of workspace that 1 to `rows` rows need, on any GPU; pointers are not looked at and no
// device is needed. 0 when the description is invalid.
size_t nq_cuda_head_workspace_bytes(const nq_cuda_output* output);

nq_status nq_cuda_head(const nq_cuda_output* output, void* stream);

// How the next token of one sequence is drawn, in the order in which it applies; the meaning is
// that of nanoquant_edge/runtimes/sampling.py.
typedef struct nq_cuda_sampling {
  float temperature;         // 0: the most likely token
  int32_t top_k;             // 0: all
  float top_p;               // 1: all
  float min_p;               // 0: all
  float repetition_penalty;  // of tokens in the history, applied first (also at temperature 0); 1:
                             // none
  uint32_t reserved;         // 0
  uint64_t seed;             // with the token's place it determines the draw
} nq_cuda_sampling;

// The next token of each sequence and what follows from it. With n new tokens (1, or starts[s + 1]
// - starts[s]) and p = positions[s] + n: tokens[s] becomes the token, history[s][p] that token, and
// positions[s] p. history[s][0 .. p - 1] are the sequence's tokens so far, prompt included; only
// the repetition penalty reads them. Left alone: a sequence that is idle, that has no new tokens,
// or whose p is outside the history. The token is -1 where logits are NaN or +inf, or all are -inf.
typedef struct nq_cuda_choice {
  int64_t sequences;
  int64_t vocabulary;
  const float* logits;  // [sequences][vocabulary]; left as they are
  int64_t logits_stride;
  int64_t* tokens;   // [sequences]
  int64_t* history;  // [sequences][capacity]
  int64_t capacity;
  int64_t* positions;                // [sequences]
  const int32_t* starts;             // [sequences + 1], or null
  const nq_cuda_sampling* sampling;  // [sequences]; nq_cuda_sample only
  void* workspace;                   // zero before the first use; every call leaves it ready
  size_t workspace_bytes;
} nq_cuda_choice;

// Bytes of workspace for nq_cuda_choose and nq_cuda_sample; needs no device. 0 when a size is
// invalid.
size_t nq_cuda_choice_workspace_bytes(int64_t sequences, int64_t vocabulary);

// The first of the largest logits. Ordinary launches, like those of nq_cuda_sample: what comes
// before them is complete when what follows starts.
nq_status nq_cuda_choose(const nq_cuda_choice* choice, void* stream);

// A draw by each sequence's own parameters. Random numbers are Philox4x32-10 (Salmon et al., SC11)
// of (seed, place, token), so a draw depends on nothing else that runs.
nq_status nq_cuda_sample(const nq_cuda_choice* choice, void* stream);

#ifdef __cplusplus
}
#endif

#endif  // NQ_CUDA_TABLE_H
