// SPDX-License-Identifier: Apache-2.0
//
// The part of nq_cuda_table.h that computes activations: embedding, norms, relu and output head.

#include "table.h"

#include <math.h>
#include <string.h>

#include <vector>

using stand_in::aligned;
using stand_in::check_table;
using stand_in::enqueue;
using stand_in::good;
using stand_in::is_half;
using stand_in::value_of;

namespace {

bool stride_fits(int64_t stride, int64_t columns, int64_t rows) {
  return stride >= columns && (rows == 1 || stride % 8 == 0);
}

// Place of row `row` in its sequence: its sequence's position and how many new tokens it is after.
// Negative where the sequence is idle or the row is nobody's.
int64_t place_of(const nq_cuda_embedding& e, int64_t row) {
  for (int64_t s = 0; s < e.sequences; ++s) {
    const int64_t begin = e.starts != nullptr ? e.starts[s] : s;
    const int64_t end = e.starts != nullptr ? e.starts[s + 1] : s + 1;
    if (row < begin || row >= end) continue;
    return e.positions[s] < 0 ? -1 : e.positions[s] + row - begin;
  }
  return -1;
}

nq_status check_embedding(const nq_cuda_embedding& e) {
  const nq_status status = check_table(e.table, true);
  if (status != NQ_OK) return status;
  if (!is_half(e.type) || e.count < 1 || !good(e.tokens) || !good(e.out)) return NQ_BAD_ARGUMENT;
  if (!stride_fits(e.out_stride, e.table.columns, e.count)) return NQ_BAD_ARGUMENT;
  if (e.sequences < 0 || (e.sequences > 0 && !good(e.positions))) return NQ_BAD_ARGUMENT;
  if (e.learned == nullptr) return NQ_OK;
  const bool usable = aligned(e.learned) && e.learned_rows >= 1 && e.sequences >= 1;
  return usable ? NQ_OK : NQ_BAD_ARGUMENT;
}

void embed(const nq_cuda_embedding& e) {
  for (int64_t row = 0; row < e.count; ++row) {
    const int64_t token = e.tokens[row];
    const int64_t place = e.sequences > 0 ? place_of(e, row) : 0;
    if (place < 0 || token < 0 || token >= e.table.rows) continue;
    const int64_t learned = place + e.learned_offset;
    const bool adds = e.learned != nullptr && learned >= 0 && learned < e.learned_rows;
    for (int64_t c = 0; c < e.table.columns; ++c) {
      double value = static_cast<double>(e.multiplier) * value_of(e.table, token, c);
      if (adds) value += get(e.learned, e.type, learned * e.table.columns + c);
      put(e.out, e.type, row * e.out_stride + c, static_cast<float>(value));
    }
  }
}

struct Norm {
  nq_norm kind;
  float eps;
  const float* weight;
  const float* bias;
};

nq_status check_norm(const Norm& norm) {
  if (norm.kind < NQ_NORM_NONE || norm.kind > NQ_NORM_LAYER) return NQ_BAD_ARGUMENT;
  if (norm.kind == NQ_NORM_NONE) return NQ_OK;
  const bool usable = good(norm.weight) && aligned(norm.bias) && norm.eps >= 0.0f;
  return usable ? NQ_OK : NQ_BAD_ARGUMENT;
}

std::vector<double> normed(const Norm& norm, const void* x, nq_type type, int64_t begin,
                           int64_t columns) {
  std::vector<double> row(static_cast<size_t>(columns));
  double sum = 0.0, squares = 0.0;
  for (int64_t c = 0; c < columns; ++c)
    sum += row[static_cast<size_t>(c)] = get(x, type, begin + c);
  if (norm.kind == NQ_NORM_NONE) return row;
  const double mean = norm.kind == NQ_NORM_LAYER ? sum / static_cast<double>(columns) : 0.0;
  for (double& value : row) squares += (value - mean) * (value - mean);
  const double over = 1.0 / sqrt(squares / static_cast<double>(columns) + norm.eps);
  for (int64_t c = 0; c < columns; ++c) {
    double& value = row[static_cast<size_t>(c)];
    value = (value - mean) * over * norm.weight[c];
    if (norm.bias != nullptr) value += norm.bias[c];
  }
  return row;
}

Norm norm_of(const nq_cuda_output& o) { return {o.norm, o.norm_eps, o.norm_weight, o.norm_bias}; }

nq_status check_output(const nq_cuda_output& o, bool pointers) {
  const nq_status status = check_table(o.table, pointers);
  if (status != NQ_OK) return status;
  if (!is_half(o.x_type) || o.rows < 1 || !(o.soft_cap >= 0.0f)) return NQ_BAD_ARGUMENT;
  if (o.table.bits == 16 && o.table.type != o.x_type) return NQ_BAD_ARGUMENT;
  if (o.rows > NQ_MAX_DIM) return NQ_TOO_LARGE;
  if (!pointers) return NQ_OK;
  if (check_norm(norm_of(o)) != NQ_OK || !good(o.x) || !good(o.logits)) return NQ_BAD_ARGUMENT;
  const int64_t rows = o.ends != nullptr ? 2 : o.rows;
  const bool fits =
      stride_fits(o.x_stride, o.table.columns, rows) && o.logits_stride >= o.table.rows;
  return fits ? NQ_OK : NQ_BAD_ARGUMENT;
}

void head(const nq_cuda_output& o) {
  for (int64_t row = 0; row < o.rows; ++row) {
    int64_t from = row;
    if (o.ends != nullptr) from = o.ends[row] > 0 ? o.ends[row] - 1 : 0;
    const std::vector<double> x =
        normed(norm_of(o), o.x, o.x_type, from * o.x_stride, o.table.columns);
    for (int64_t i = 0; i < o.table.rows; ++i) {
      double sum = 0.0;
      for (int64_t c = 0; c < o.table.columns; ++c) {
        sum += x[static_cast<size_t>(c)] * value_of(o.table, i, c);
      }
      if (o.soft_cap > 0.0f) sum = o.soft_cap * tanh(sum / o.soft_cap);
      o.logits[row * o.logits_stride + i] = static_cast<float>(sum);
    }
  }
}

constexpr size_t kWorkspace = 4096;

}  // namespace

NQ_EXPORT nq_status nq_cuda_embed(const nq_cuda_embedding* embedding, void* stream) {
  if (embedding == nullptr) return NQ_BAD_ARGUMENT;
  const nq_status status = check_embedding(*embedding);
  if (status != NQ_OK) return status;
  return enqueue(stream, [e = *embedding]() {
    embed(e);
    return NQ_OK;
  });
}

NQ_EXPORT nq_status nq_cuda_norm(const nq_cuda_normalization* normalization, void* stream) {
  if (normalization == nullptr) return NQ_BAD_ARGUMENT;
  const nq_cuda_normalization n = *normalization;
  const Norm norm = {n.norm, n.eps, n.weight, n.bias};
  if (!is_half(n.type) || n.rows < 1 || n.columns < 1 || check_norm(norm) != NQ_OK || !good(n.x) ||
      !good(n.out) || !aligned(n.residual) || !stride_fits(n.x_stride, n.columns, n.rows) ||
      !stride_fits(n.out_stride, n.columns, n.rows)) {
    return NQ_BAD_ARGUMENT;
  }
  if (n.residual != nullptr && !stride_fits(n.residual_stride, n.columns, n.rows)) {
    return NQ_BAD_ARGUMENT;
  }
  return enqueue(stream, [n, norm]() {
    for (int64_t row = 0; row < n.rows; ++row) {
      const std::vector<double> y = normed(norm, n.x, n.type, row * n.x_stride, n.columns);
      for (int64_t c = 0; c < n.columns; ++c) {
        double value = y[static_cast<size_t>(c)];
        if (n.residual != nullptr) value += get(n.residual, n.type, row * n.residual_stride + c);
        put(n.out, n.type, row * n.out_stride + c, static_cast<float>(value));
      }
    }
    return NQ_OK;
  });
}

NQ_EXPORT nq_status nq_cuda_activate(nq_type type, const void* x, int64_t count, void* out,
                                     void* stream) {
  if (!is_half(type) || !good(x) || !good(out) || count < 1) return NQ_BAD_ARGUMENT;
  return enqueue(stream, [=]() {
    for (int64_t i = 0; i < count; ++i) {
      const double value = get(x, type, i);
      put(out, type, i, value < 0.0 ? 0.0f : static_cast<float>(value));
    }
    return NQ_OK;
  });
}

NQ_EXPORT size_t nq_cuda_head_workspace_bytes(const nq_cuda_output* output) {
  return output != nullptr && check_output(*output, false) == NQ_OK ? kWorkspace : 0;
}

NQ_EXPORT nq_status nq_cuda_head(const nq_cuda_output* output, void* stream) {
  if (output == nullptr) return NQ_BAD_ARGUMENT;
  const nq_status status = check_output(*output, true);
  if (status != NQ_OK) return status;
  if (output->workspace == nullptr || reinterpret_cast<uintptr_t>(output->workspace) % 256 != 0 ||
      output->workspace_bytes < kWorkspace) {
    return NQ_WORKSPACE;
  }
  return enqueue(stream, [o = *output]() {
    memset(o.workspace, 0xff, o.workspace_bytes);
    head(o);
    return NQ_OK;
  });
}
