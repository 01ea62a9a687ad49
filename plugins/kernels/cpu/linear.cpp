// SPDX-License-Identifier: Apache-2.0
//
// The three stages of a pass, over whichever instruction set is in use. The two intermediate
// matrices are kept as the tables that the products look up. Their rows are padded with zeros to
// whole words, which is what makes the padding bits of the packed words harmless.

#include <string.h>

#include "cpu/isa.h"
#include "cpu/signs/isa.h"

namespace {

int64_t words_of(int64_t columns) { return (columns + 31) / 32; }

// Bytes of one row of an intermediate matrix.
int64_t row_bytes(int64_t columns) { return nq_signs()->table_bytes(words_of(columns)); }

uint8_t* scaled_of(const nq_pass* pass) { return static_cast<uint8_t*>(pass->workspace); }

uint8_t* hidden_of(const nq_pass* pass) {
  return scaled_of(pass) + pass->rows * row_bytes(pass->layer->in_features);
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
void product(const int32_t* packed, int64_t columns, int64_t begin, int64_t count,
             const uint8_t* tables, int64_t x_rows, float* sums) {
  const int64_t row_words = words_of(columns);
  const uint32_t* words = reinterpret_cast<const uint32_t*>(packed) + begin * row_words;
  nq_signs()->multiply({words, row_words, count, tables, x_rows, sums});
}

// Writes columns [first, first + count) of a row of an intermediate matrix of `columns` columns.
// `first` is a multiple of kPanelRows; `values` has room up to the next multiple of 32, which
// becomes zero.
void put_columns(float* values, int64_t first, int64_t count, int64_t columns, uint8_t* row) {
  const int64_t padded = words_of(count) * 32;
  memset(values + count, 0, static_cast<size_t>(padded - count) * sizeof(float));
  nq_signs()->make_tables(values, first, padded, words_of(columns), row);
}

}  // namespace

extern "C" nq_status nq_linear_check(const nq_linear* layer) {
  if (layer == nullptr) return NQ_BAD_ARGUMENT;
  if (layer->layout != NQ_LAYOUT_ARRANGED) return NQ_BAD_LAYOUT;
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

extern "C" size_t nq_arranged_bytes(int64_t rows, int64_t columns) {
  if (rows < 1 || rows > NQ_MAX_DIM || columns < 1 || columns > NQ_MAX_DIM) return 0;
  const int64_t blocks = (rows + kBlockRows - 1) / kBlockRows;
  return static_cast<size_t>(blocks * kBlockRows * words_of(columns)) * 4;
}

extern "C" nq_status nq_arrange(const int32_t* words, int64_t rows, int64_t columns, void* out) {
  if (words == nullptr || out == nullptr || nq_arranged_bytes(rows, columns) == 0) {
    return NQ_BAD_ARGUMENT;
  }
  if (nq_signs() == nullptr) return NQ_NO_ISA;
  nq_signs()->arrange(reinterpret_cast<const uint32_t*>(words), words_of(columns), rows,
                      static_cast<uint32_t*>(out));
  return NQ_OK;
}

extern "C" size_t nq_workspace_bytes(const nq_linear* layer, int64_t rows) {
  if (nq_linear_check(layer) != NQ_OK || rows < 1 || rows > NQ_PASS_ROWS) return 0;
  if (nq_isa() == nullptr) return 0;
  return static_cast<size_t>(rows * (row_bytes(layer->in_features) + row_bytes(layer->rank)));
}

extern "C" int64_t nq_pass_rows(const nq_linear* layer) {
  if (nq_linear_check(layer) != NQ_OK || nq_isa() == nullptr) return 0;
  // The larger of the two intermediate matrices should stay in a second-level cache.
  constexpr int64_t kCache = 1 << 20, kFewest = 16, kMost = NQ_PASS_ROWS;
  const int64_t columns = layer->in_features > layer->rank ? layer->in_features : layer->rank;
  const int64_t rows = kCache / row_bytes(columns) / 4 * 4;
  return rows < kFewest ? kFewest : rows > kMost ? kMost : rows;
}

extern "C" nq_status nq_stage_scale(const nq_pass* pass, int64_t begin, int64_t end) {
  const nq_status status = check_pass(pass, begin, end, pass ? pass->rows : 0, 1);
  if (status != NQ_OK) return status;
  const NqIsa* isa = nq_isa();
  const nq_linear* layer = pass->layer;
  const int64_t columns = layer->in_features;
  const int64_t bytes = row_bytes(columns);
  constexpr int64_t kBlock = 256;
  alignas(64) float scale[kBlock];
  alignas(64) float values[kBlock];
  for (int64_t c = 0; c < columns; c += kBlock) {
    const int64_t count = columns - c < kBlock ? columns - c : kBlock;
    isa->to_float(element(layer->scale_in, layer->scale_type, c), layer->scale_type, count, scale);
    for (int64_t row = begin; row < end; ++row) {
      isa->to_float(element(pass->x, pass->type, row * columns + c), pass->type, count, values);
      for (int64_t i = 0; i < count; ++i) values[i] *= scale[i];
      put_columns(values, c, count, columns, scaled_of(pass) + row * bytes);
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
  const int64_t bytes = row_bytes(layer->rank);
  alignas(64) float sums[NQ_PASS_ROWS * kPanelRows];
  alignas(64) float scale[kPanelRows];
  for (int64_t first = begin; first < end; first += kPanelRows) {
    const int64_t count = end - first < kPanelRows ? end - first : kPanelRows;
    product(layer->v_words, layer->in_features, first, count, scaled_of(pass), pass->rows, sums);
    if (layer->scale_mid != nullptr) {
      isa->to_float(element(layer->scale_mid, layer->scale_type, first), layer->scale_type, count,
                    scale);
    }
    for (int64_t row = 0; row < pass->rows; ++row) {
      float* sum = sums + row * kPanelRows;
      if (layer->scale_mid != nullptr) {
        for (int64_t i = 0; i < count; ++i) sum[i] *= scale[i];
      }
      put_columns(sum, first, count, layer->rank, hidden_of(pass) + row * bytes);
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
  alignas(64) float sums[NQ_PASS_ROWS * kPanelRows];
  alignas(64) float scale[kPanelRows];
  alignas(64) float bias[kPanelRows] = {};
  for (int64_t first = begin; first < end; first += kPanelRows) {
    const int64_t count = end - first < kPanelRows ? end - first : kPanelRows;
    product(layer->u_words, layer->rank, first, count, hidden_of(pass), pass->rows, sums);
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
