// SPDX-License-Identifier: Apache-2.0
//
// The three stages of a pass, over whichever instruction set is in use. Rows of x go through the
// lookup kernels, and the two intermediate matrices then hold their tables; where the instruction
// set has no lookup kernel for many rows, those go through the panel kernel, which expands the
// signs once for all of them. Rows of the intermediate matrices are padded with zeros to whole
// words, which is what makes the padding bits of the packed words harmless.

#include <string.h>

#include "cpu/isa.h"

namespace {

int64_t words_of(int64_t columns) { return (columns + 31) / 32; }

// Floats from one row of an intermediate matrix to the next. A stride that is a multiple of a page
// would put the same column of all rows into one cache set.
int64_t stride_of(int64_t columns) {
  const int64_t padded = words_of(columns) * 32;
  return padded % 1024 == 0 ? padded + 32 : padded;
}

bool by_lookup(const NqIsa* isa, int64_t rows) {
  return rows <= kLookupRows || isa->lookup_panel != nullptr;
}

// Floats of one row of an intermediate matrix: its tables, or its values and a gap.
int64_t row_floats(const NqIsa* isa, int64_t columns, int64_t rows) {
  return by_lookup(isa, rows) ? words_of(columns) * isa->lookup_floats : stride_of(columns);
}

float* scaled_of(const nq_pass* pass) { return static_cast<float*>(pass->workspace); }

float* hidden_of(const nq_pass* pass) {
  return scaled_of(pass) + pass->rows * row_floats(nq_isa(), pass->layer->in_features, pass->rows);
}

const void* element(const void* base, nq_type type, int64_t index) {
  return static_cast<const char*>(base) + index * (type == NQ_FLOAT32 ? 4 : 2);
}

nq_status check_pass(const nq_pass* pass, int64_t begin, int64_t end, int64_t limit, int64_t step) {
  if (pass == nullptr || pass->x == nullptr || pass->y == nullptr || pass->workspace == nullptr) {
    return NQ_BAD_ARGUMENT;
  }
  if (pass->type < NQ_FLOAT32 || pass->type > NQ_BFLOAT16) return NQ_BAD_ARGUMENT;
  if (pass->rows < 1 || pass->rows > NQ_PASS_ROWS) return NQ_TOO_LARGE;
  if (begin < 0 || end < begin || end > limit || begin % step != 0) return NQ_BAD_ARGUMENT;
  return nq_isa() == nullptr ? NQ_NO_ISA : NQ_OK;
}

// sums[row * kPanelRows + i] = signs of packed rows [begin, begin + count) times every row of x.
void product(const NqIsa* isa, const int32_t* packed, int64_t columns, int64_t begin, int64_t count,
             const float* x, int64_t x_rows, float* sums, float* tile) {
  const int64_t row_words = words_of(columns);
  const uint32_t* words = reinterpret_cast<const uint32_t*>(packed) + begin * row_words;
  if (!by_lookup(isa, x_rows)) {
    isa->panel(words, row_words, count, x, stride_of(columns), x_rows, sums, tile);
    return;
  }
  if (x_rows > 1 && isa->lookup_panel != nullptr) {
    isa->lookup_panel(words, row_words, count, x, x_rows, sums, tile);
    return;
  }
  for (int64_t row = 0; row < x_rows; ++row) {
    isa->gemv(words, row_words, count, x + row * row_words * isa->lookup_floats,
              sums + row * kPanelRows);
  }
}

// Writes columns [first, first + count) of a row of an intermediate matrix, which begins at `row`.
// `first` is a multiple of 32; `values` has room up to the next multiple, which becomes zero.
void put_columns(const NqIsa* isa, float* values, int64_t first, int64_t count, bool tables,
                 float* row) {
  const int64_t padded = words_of(count) * 32;
  memset(values + count, 0, static_cast<size_t>(padded - count) * sizeof(float));
  if (tables) {
    isa->lookup(values, padded, row + first / 32 * isa->lookup_floats);
  } else {
    memcpy(row + first, values, static_cast<size_t>(padded) * sizeof(float));
  }
}

}  // namespace

extern "C" nq_status nq_linear_check(const nq_linear* layer) {
  if (layer == nullptr) return NQ_BAD_ARGUMENT;
  if (layer->layout != NQ_LAYOUT_ROWS_LSB_FIRST) return NQ_BAD_LAYOUT;
  const int64_t sizes[] = {layer->in_features, layer->rank, layer->out_features};
  for (int64_t size : sizes) {
    if (size < 1) return NQ_BAD_ARGUMENT;
    if (size > NQ_MAX_DIM) return NQ_TOO_LARGE;
  }
  if (layer->scale_type < NQ_FLOAT32 || layer->scale_type > NQ_BFLOAT16) return NQ_BAD_ARGUMENT;
  const bool whole = layer->v_words != nullptr && layer->u_words != nullptr &&
                     layer->scale_in != nullptr && layer->scale_out != nullptr;
  return whole ? NQ_OK : NQ_BAD_ARGUMENT;
}

extern "C" size_t nq_workspace_bytes(const nq_linear* layer, int64_t rows) {
  if (nq_linear_check(layer) != NQ_OK || rows < 1 || rows > NQ_PASS_ROWS) return 0;
  const NqIsa* isa = nq_isa();
  if (isa == nullptr) return 0;
  const int64_t row =
      row_floats(isa, layer->in_features, rows) + row_floats(isa, layer->rank, rows);
  return static_cast<size_t>(row * rows) * sizeof(float);
}

extern "C" int64_t nq_pass_rows(const nq_linear* layer) {
  const NqIsa* isa = nq_isa();
  if (nq_linear_check(layer) != NQ_OK || isa == nullptr) return 0;
  if (isa->lookup_panel == nullptr) return NQ_PASS_ROWS;
  // The larger of the two intermediate matrices should stay in a second-level cache.
  constexpr int64_t kCache = 1 << 20, kFewest = 16;
  const int64_t columns = layer->in_features > layer->rank ? layer->in_features : layer->rank;
  const int64_t bytes = words_of(columns) * isa->lookup_floats * 4;
  const int64_t rows = kCache / bytes / 4 * 4;
  constexpr int64_t kMost = NQ_PASS_ROWS;
  return rows < kFewest ? kFewest : rows > kMost ? kMost : rows;
}

extern "C" nq_status nq_stage_scale(const nq_pass* pass, int64_t begin, int64_t end) {
  const nq_status status = check_pass(pass, begin, end, pass ? pass->rows : 0, 1);
  if (status != NQ_OK) return status;
  const NqIsa* isa = nq_isa();
  const nq_linear* layer = pass->layer;
  const int64_t columns = layer->in_features;
  const int64_t floats = row_floats(isa, columns, pass->rows);
  constexpr int64_t kBlock = 256;
  alignas(64) float scale[kBlock];
  alignas(64) float values[kBlock];
  for (int64_t c = 0; c < columns; c += kBlock) {
    const int64_t count = columns - c < kBlock ? columns - c : kBlock;
    isa->to_float(element(layer->scale_in, layer->scale_type, c), layer->scale_type, count, scale);
    for (int64_t row = begin; row < end; ++row) {
      isa->to_float(element(pass->x, pass->type, row * columns + c), pass->type, count, values);
      for (int64_t i = 0; i < count; ++i) values[i] *= scale[i];
      put_columns(isa, values, c, count, by_lookup(isa, pass->rows),
                  scaled_of(pass) + row * floats);
    }
  }
  return NQ_OK;
}

extern "C" nq_status nq_stage_rank(const nq_pass* pass, int64_t begin, int64_t end) {
  const nq_status status =
      check_pass(pass, begin, end, pass && pass->layer ? pass->layer->rank : 0, NQ_RANGE_STEP);
  if (status != NQ_OK) return status;
  const NqIsa* isa = nq_isa();
  const nq_linear* layer = pass->layer;
  const int64_t floats = row_floats(isa, layer->rank, pass->rows);
  alignas(64) float tile[kTileFloats];
  alignas(64) float sums[NQ_PASS_ROWS * kPanelRows];
  alignas(64) float scale[kPanelRows];
  for (int64_t first = begin; first < end; first += kPanelRows) {
    const int64_t count = end - first < kPanelRows ? end - first : kPanelRows;
    product(isa, layer->v_words, layer->in_features, first, count, scaled_of(pass), pass->rows,
            sums, tile);
    if (layer->scale_mid != nullptr) {
      isa->to_float(element(layer->scale_mid, layer->scale_type, first), layer->scale_type, count,
                    scale);
    }
    for (int64_t row = 0; row < pass->rows; ++row) {
      float* sum = sums + row * kPanelRows;
      if (layer->scale_mid != nullptr) {
        for (int64_t i = 0; i < count; ++i) sum[i] *= scale[i];
      }
      put_columns(isa, sum, first, count, by_lookup(isa, pass->rows),
                  hidden_of(pass) + row * floats);
    }
  }
  return NQ_OK;
}

extern "C" nq_status nq_stage_out(const nq_pass* pass, int64_t begin, int64_t end) {
  const nq_status status = check_pass(
      pass, begin, end, pass && pass->layer ? pass->layer->out_features : 0, NQ_RANGE_STEP);
  if (status != NQ_OK) return status;
  const NqIsa* isa = nq_isa();
  const nq_linear* layer = pass->layer;
  alignas(64) float tile[kTileFloats];
  alignas(64) float sums[NQ_PASS_ROWS * kPanelRows];
  alignas(64) float scale[kPanelRows];
  alignas(64) float bias[kPanelRows] = {};
  for (int64_t first = begin; first < end; first += kPanelRows) {
    const int64_t count = end - first < kPanelRows ? end - first : kPanelRows;
    product(isa, layer->u_words, layer->rank, first, count, hidden_of(pass), pass->rows, sums,
            tile);
    isa->to_float(element(layer->scale_out, layer->scale_type, first), layer->scale_type, count,
                  scale);
    if (layer->bias != nullptr) {
      isa->to_float(element(layer->bias, layer->scale_type, first), layer->scale_type, count, bias);
    }
    for (int64_t row = 0; row < pass->rows; ++row) {
      float* sum = sums + row * kPanelRows;
      for (int64_t i = 0; i < count; ++i) sum[i] = sum[i] * scale[i] + bias[i];
      const int64_t at = row * layer->out_features + first;
      isa->from_float(sum, pass->type, count, const_cast<void*>(element(pass->y, pass->type, at)));
    }
  }
  return NQ_OK;
}
