// SPDX-License-Identifier: Apache-2.0
//
// Checks the kernels of one instruction set (NQ_CPU_ISA) against float64 on the same bits, with
// every buffer exactly as large as promised, so that a sanitizer sees the first byte read or
// written outside. Exit status 0: all is well; 1: a difference; 77: this processor has no such
// kernels.

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <initializer_list>

#include "../kernels/cpu/isa.h"
#include "../kernels/cpu/signs/byte_tables.h"
#include "../kernels/cpu/signs/isa.h"
#include "../kernels/nq_attention.h"
#include "../kernels/nq_kernels.h"
#include "expect.h"
#include "random.h"
#include "typed.h"

namespace {

// An array on the heap, exactly `count` long, so that its neighbours are out of bounds.
template <class T>
struct Array {
  explicit Array(int64_t count)
      : data(static_cast<T*>(malloc(static_cast<size_t>(count) * sizeof(T)))), size(count) {
    if (data == nullptr) abort();
  }
  ~Array() { free(data); }
  Array(Array&& other) : data(other.data), size(other.size) { other.data = nullptr; }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  T& operator[](int64_t i) { return data[i]; }
  T* data;
  int64_t size;
};

int sign_of(const int32_t* words, int64_t row_words, int64_t row, int64_t column) {
  const uint32_t word = static_cast<uint32_t>(words[row * row_words + column / 32]);
  return (word >> (column % 32)) & 1u ? -1 : 1;
}

// Whether the sums are looked up as bytes, rounded to 16 bits.
bool by_bytes() { return nq_signs()->table_bytes(2) == byte_table_bytes(2); }

// Packed rows as the kernels read them.
Array<int32_t> arranged(const Array<int32_t>& words, int64_t rows, int64_t columns) {
  Array<int32_t> out(static_cast<int64_t>(nq_arranged_bytes(rows, columns) / 4));
  expect(nq_arrange(words.data, rows, columns, out.data) == NQ_OK, "rows are arranged");
  return out;
}

struct Case {
  int64_t n, r, m, rows;
  nq_type type, scale_type;
  bool mid, bias, outliers;
};

// Runs the stages over ranges as a thread pool would, last range first.
nq_status run(const nq_pass& pass, int64_t chunk) {
  struct {
    nq_status (*stage)(const nq_pass*, int64_t, int64_t);
    int64_t size, step;
  } stages[] = {{nq_stage_scale, pass.rows, 1},
                {nq_stage_rank, pass.layer->rank, chunk},
                {nq_stage_out, pass.layer->out_features, chunk}};
  for (const auto& stage : stages) {
    const int64_t ranges = (stage.size + stage.step - 1) / stage.step;
    for (int64_t i = ranges - 1; i >= 0; --i) {
      const int64_t begin = i * stage.step;
      const int64_t end = begin + stage.step < stage.size ? begin + stage.step : stage.size;
      const nq_status status = stage.stage(&pass, begin, end);
      if (status != NQ_OK) return status;
    }
  }
  return NQ_OK;
}

void check(const Case& c) {
  const int64_t v_row = (c.n + 31) / 32;
  const int64_t u_row = (c.r + 31) / 32;
  Array<int32_t> v(c.r * v_row);
  Array<int32_t> u(c.m * u_row);
  // Padding bits are as random as the others.
  for (int64_t i = 0; i < v.size; ++i) v[i] = static_cast<int32_t>(random_bits());
  for (int64_t i = 0; i < u.size; ++i) u[i] = static_cast<int32_t>(random_bits());
  const int64_t scale_bytes = bytes_of(c.scale_type);
  Array<char> scale_in(c.n * scale_bytes);
  Array<char> scale_mid(c.r * scale_bytes);
  Array<char> scale_out(c.m * scale_bytes);
  Array<char> bias(c.m * scale_bytes);
  for (int64_t i = 0; i < c.n; ++i) put(scale_in.data, c.scale_type, i, 1.5f + random_float());
  for (int64_t i = 0; i < c.r; ++i) put(scale_mid.data, c.scale_type, i, 1.5f + random_float());
  for (int64_t i = 0; i < c.m; ++i) put(scale_out.data, c.scale_type, i, 1.5f + random_float());
  for (int64_t i = 0; i < c.m; ++i) put(bias.data, c.scale_type, i, random_float());
  Array<char> x(c.rows * c.n * bytes_of(c.type));
  Array<char> y(c.rows * c.m * bytes_of(c.type));
  for (int64_t i = 0; i < c.rows * c.n; ++i) {
    const bool outlier = c.outliers && i % c.n % 97 == 3;
    put(x.data, c.type, i, random_float() * (outlier ? 300.0f : 1.0f) * 0.01f);
  }
  memset(y.data, 0xff, static_cast<size_t>(y.size));  // NaN in every type

  const Array<int32_t> v_arranged = arranged(v, c.r, c.n);
  const Array<int32_t> u_arranged = arranged(u, c.m, c.r);
  const nq_linear layer = {c.n,
                           c.r,
                           c.m,
                           NQ_LAYOUT_ARRANGED,
                           c.scale_type,
                           v_arranged.data,
                           u_arranged.data,
                           scale_in.data,
                           c.mid ? scale_mid.data : nullptr,
                           scale_out.data,
                           c.bias ? bias.data : nullptr};
  expect(nq_linear_check(&layer) == NQ_OK, "the description is accepted");
  const size_t bytes = nq_workspace_bytes(&layer, c.rows);
  void* workspace = aligned_alloc(64, (bytes + 63) / 64 * 64);
  if (workspace == nullptr) abort();
  memset(workspace, 0xff, bytes);
  const nq_pass pass = {&layer, c.type, c.rows, x.data, y.data, workspace};
  expect(run(pass, c.m % 2 ? 64 : 128) == NQ_OK, "the stages succeed");

  Array<double> scaled(c.n);
  Array<double> hidden(c.r);
  // Rounding to bfloat16 alone costs up to 2^-9; over many outputs it averages to 1.7e-3.
  const double bfloat16_limit = c.m < 32 ? 4e-3 : 2.5e-3;
  const double float32_limit = by_bytes() ? 1e-4 : 1e-5;
  const double limit = c.type == NQ_FLOAT32   ? float32_limit
                       : c.type == NQ_FLOAT16 ? 1e-3
                                              : bfloat16_limit;
  for (int64_t row = 0; row < c.rows; ++row) {
    for (int64_t i = 0; i < c.n; ++i) {
      scaled[i] = get(x.data, c.type, row * c.n + i) * get(scale_in.data, c.scale_type, i);
    }
    double power = 0.0;
    for (int64_t k = 0; k < c.n; ++k) power += scaled[k] * scaled[k];
    double hidden_power = 0.0;
    for (int64_t i = 0; i < c.r; ++i) {
      double sum = 0.0;
      for (int64_t k = 0; k < c.n; ++k) sum += sign_of(v.data, v_row, i, k) * scaled[k];
      const double mid = c.mid ? get(scale_mid.data, c.scale_type, i) : 1.0;
      hidden[i] = sum * mid;
      hidden_power += power * mid * mid;
    }
    double error = 0.0;
    double norm = 0.0;
    for (int64_t i = 0; i < c.m; ++i) {
      double sum = 0.0;
      for (int64_t k = 0; k < c.r; ++k) sum += sign_of(u.data, u_row, i, k) * hidden[k];
      const double out = get(scale_out.data, c.scale_type, i);
      sum *= out;
      const double wanted = c.bias ? sum + get(bias.data, c.scale_type, i) : sum;
      const double difference = get(y.data, c.type, row * c.m + i) - wanted;
      error += difference * difference;
      // The two addends, not their sum, and at least what random signs give: a lone output may
      // cancel.
      const double usual = hidden_power * out * out;
      norm += (sum * sum > usual ? sum * sum : usual) + (wanted - sum) * (wanted - sum);
    }
    const double relative = sqrt(error / (norm + 1e-30));
    expect(relative <= limit, "relative error of a row", relative);
  }
  free(workspace);
}

// What tables of bytes have to give, bit for bit: sums of four columns in units of their group's
// scale, rounded to nearest even, added as integers.
float exact_by_bytes(const int32_t* words, const float* x, int64_t columns) {
  float total = 0.0f;
  for (int64_t group = 0; group < columns; group += kGroupColumns) {
    const int64_t end = group + kGroupColumns < columns ? group + kGroupColumns : columns;
    volatile float y[kGroupColumns] = {};  // no compiler may fuse what follows
    float largest = 0.0f;
    for (int64_t k = group; k < end; k += 4) {
      volatile float low = fabsf(x[k]) + fabsf(x[k + 1]);
      volatile float high = fabsf(x[k + 2]) + fabsf(x[k + 3]);
      largest = low + high > largest ? low + high : largest;
    }
    if (largest < kSmallestSum) continue;
    for (int64_t k = group; k < end; ++k) y[k - group] = x[k] * (kLargestSum / largest);
    int64_t sum = 0;
    for (int64_t k = 0; k < end - group; k += 4) {
      const uint32_t bits = static_cast<uint32_t>(words[(group + k) / 32]) >> (k % 32);
      const float first = bits & 1 ? -y[k] : y[k];
      volatile float near = bits & 2 ? first - y[k + 1] : first + y[k + 1];
      const float third = bits & 4 ? -y[k + 2] : y[k + 2];
      volatile float far = bits & 8 ? third - y[k + 3] : third + y[k + 3];
      sum += lrintf(near + far);
    }
    total = fmaf(static_cast<float>(sum), largest / kLargestSum, total);
  }
  return total;
}

// The bits of one product: the same for one row of x and for many, whoever computes which of them,
// and with tables of bytes those of exact_by_bytes, whatever the instruction set.
void check_bits(int64_t rows, int64_t row_words, int64_t x_rows, float outlier) {
  const NqSigns* signs = nq_signs();
  const int64_t columns = row_words * 32;
  const int64_t bytes = signs->table_bytes(row_words);
  Array<int32_t> words(rows * row_words);
  for (int64_t i = 0; i < words.size; ++i) words[i] = static_cast<int32_t>(random_bits());
  Array<float> x(x_rows * columns);
  for (int64_t i = 0; i < x.size; ++i) x[i] = random_float() * (i % 61 == 7 ? outlier : 1.0f);
  for (int64_t i = 0; i < (columns < 64 ? 32 : 64); ++i) x[i] = 0.0f;  // a group of zeros
  void* memory = aligned_alloc(64, static_cast<size_t>(bytes * x_rows));
  if (memory == nullptr) abort();
  uint8_t* tables = static_cast<uint8_t*>(memory);
  memset(tables, 0xff, static_cast<size_t>(bytes * x_rows));
  for (int64_t r = 0; r < x_rows; ++r) {
    for (int64_t c = columns - (columns - 1) % 192 - 1; c >= 0; c -= 192) {
      const int64_t count = columns - c < 192 ? columns - c : 192;
      signs->make_tables(x.data + r * columns + c, c, count, row_words, tables + r * bytes);
    }
  }
  const Array<int32_t> in_order = arranged(words, rows, columns);
  const uint32_t* packed = reinterpret_cast<const uint32_t*>(in_order.data);
  Array<float> all(x_rows * kPanelRows);
  memset(all.data, 0xff, static_cast<size_t>(all.size) * sizeof(float));
  signs->multiply({packed, row_words, rows, tables, x_rows, all.data});
  for (int64_t r = 0; r < x_rows; ++r) {
    Array<float> one(kPanelRows);
    memset(one.data, 0xff, kPanelRows * sizeof(float));
    signs->multiply({packed, row_words, rows, tables + r * bytes, 1, one.data});
    const bool same =
        memcmp(one.data, all.data + r * kPanelRows, static_cast<size_t>(rows) * sizeof(float)) == 0;
    expect(same, "one row of x gives the bits that many give", static_cast<double>(r));
    for (int64_t i = 0; i < rows && by_bytes(); ++i) {
      const float wanted =
          exact_by_bytes(words.data + i * row_words, x.data + r * columns, columns);
      expect(one[i] == wanted, "tables of bytes give the exact sum", one[i] - wanted);
    }
  }
  free(memory);
}

// A value that is no number, or too large for a scale, makes the sums of its own row no numbers.
void check_not_finite() {
  for (const float bad : {NAN, INFINITY, -INFINITY, 3e38f}) {
    Array<int32_t> words(64 * 3);
    for (int64_t i = 0; i < words.size; ++i) words[i] = static_cast<int32_t>(random_bits());
    Array<float> x(96);
    for (int64_t i = 0; i < 96; ++i) x[i] = bad == 3e38f ? bad : 1.0f;
    x[70] = bad;
    const NqSigns* signs = nq_signs();
    alignas(64) uint8_t tables[3 * 512];
    signs->make_tables(x.data, 0, 96, 3, tables);
    const Array<int32_t> in_order = arranged(words, 64, 96);
    const uint32_t* packed = reinterpret_cast<const uint32_t*>(in_order.data);
    float out[kPanelRows];
    signs->multiply({packed, 3, 64, tables, 1, out});
    for (const float value : out) {
      expect(!isfinite(value) || (bad == 3e38f && !by_bytes()), "no number comes of no number");
    }
  }
}

void check_conversions() {
  const NqIsa* isa = nq_isa();
  Array<uint16_t> all(65536);
  Array<float> wide(65536);
  Array<uint16_t> back(65536);
  for (int i = 0; i < 65536; ++i) all[i] = static_cast<uint16_t>(i);
  const nq_type narrow_types[] = {NQ_FLOAT16, NQ_BFLOAT16};
  for (const nq_type type : narrow_types) {
    isa->to_float(all.data, type, 65535, wide.data);  // one short: exercises the tail
    isa->from_float(wide.data, type, 65535, back.data);
    for (int i = 0; i < 65535; ++i) {
      const float value = static_cast<float>(get(all.data, type, i));
      expect(value != value ? wide[i] != wide[i] : value == wide[i], "16 bits to float32", i);
      const float again = static_cast<float>(get(back.data, type, i));
      expect(value != value ? again != again : all[i] == back[i], "there and back", i);
    }
    // Halfway and random values: every implementation rounds like the bitwise one.
    for (int i = 0; i < 65536; ++i)
      wide[i] = bits_to_float(random_bits() & (i % 2 ? ~0u : 0xfffff000u));
    isa->from_float(wide.data, type, 65536, back.data);
    for (int i = 0; i < 65536; ++i) {
      if (wide[i] != wide[i]) continue;
      const uint16_t wanted =
          type == NQ_FLOAT16 ? float_to_half(wide[i]) : float_to_bfloat(wide[i]);
      expect(back[i] == wanted, "rounding to 16 bits", wide[i]);
    }
  }
}

// `rows` tokens from position `first` on, two queries to a key head.
void check_attention(int64_t rows, int64_t first, int64_t dim, int64_t window, nq_type cache) {
  const nq_attention attention = {2, 1, dim, window, 0.2f, cache};
  expect(nq_attention_check(&attention) == NQ_OK, "the attention is accepted");
  const int64_t total = first + rows;
  Array<float> queries(rows * 2 * dim);
  Array<float> keys(total * dim);
  Array<float> values(total * dim);
  Array<float> y(rows * 2 * dim);
  for (int64_t i = 0; i < queries.size; ++i) queries[i] = random_float();
  for (int64_t i = 0; i < keys.size; ++i) keys[i] = random_float();
  for (int64_t i = 0; i < values.size; ++i) values[i] = random_float();
  Array<char> kept_keys(keys.size * bytes_of(cache));
  Array<char> kept_values(values.size * bytes_of(cache));
  nq_keep(&attention, keys.data, keys.size, kept_keys.data);
  nq_keep(&attention, values.data, values.size, kept_values.data);
  for (int64_t i = 0; i < keys.size; ++i) {
    keys[i] = static_cast<float>(get(kept_keys.data, cache, i));
    values[i] = static_cast<float>(get(kept_values.data, cache, i));
  }
  const size_t bytes = nq_attend_scratch(&attention, rows, total - 1);
  void* scratch = aligned_alloc(64, (bytes + 63) / 64 * 64);
  if (scratch == nullptr) abort();
  memset(scratch, 0xff, bytes);
  nq_attend(&attention, queries.data, rows, first, kept_keys.data, kept_values.data, y.data,
            2 * dim, scratch);
  free(scratch);
  Array<double> weights(total);
  for (int64_t q = 0; q < rows * 2; ++q) {
    const int64_t position = first + q / 2;
    const int64_t low = window > 0 && position + 1 > window ? position + 1 - window : 0;
    double sum = 0.0;
    for (int64_t k = low; k <= position; ++k) {
      double score = 0.0;
      for (int64_t d = 0; d < dim; ++d) score += double{queries[q * dim + d]} * keys[k * dim + d];
      sum += weights[k] = exp(score);
    }
    double error = 0.0;
    double norm = 0.0;
    for (int64_t d = 0; d < dim; ++d) {
      double wanted = 0.0;
      for (int64_t k = low; k <= position; ++k) wanted += weights[k] / sum * values[k * dim + d];
      const double difference = y[q / 2 * 2 * dim + q % 2 * dim + d] - wanted;
      error += difference * difference;
      norm += wanted * wanted;
    }
    expect(sqrt(error / norm) <= 1e-5, "relative error of an attended row", sqrt(error / norm));
  }
}

void check_refusals() {
  const int32_t word = 0;
  const float one = 1.0f;
  nq_linear layer = {1,       1,    1,      NQ_LAYOUT_ARRANGED, NQ_FLOAT32, &word, &word, &one,
                     nullptr, &one, nullptr};
  expect(nq_linear_check(nullptr) == NQ_BAD_ARGUMENT, "null is refused");
  layer.rank = 0;
  expect(nq_linear_check(&layer) == NQ_BAD_ARGUMENT, "rank 0 is refused");
  layer.rank = int64_t{1} << 31;
  expect(nq_linear_check(&layer) == NQ_TOO_LARGE, "rank 2^31 is refused");
  layer.rank = 1;
  for (const nq_layout other : {NQ_LAYOUT_ROWS_LSB_FIRST, NQ_LAYOUT_TILES_16X256}) {
    layer.layout = other;
    expect(nq_linear_check(&layer) == NQ_BAD_LAYOUT, "a layout of files is refused");
  }
  layer.layout = NQ_LAYOUT_ARRANGED;
  expect(nq_arrange(nullptr, 1, 1, &layer) == NQ_BAD_ARGUMENT, "no words are refused");
  expect(nq_arrange(&word, 0, 1, &layer) == NQ_BAD_ARGUMENT, "no rows are refused");
  expect(nq_arranged_bytes(1, int64_t{1} << 31) == 0, "2^31 columns are refused");
  expect(nq_workspace_bytes(&layer, 0) == 0, "0 rows need no workspace");
  expect(nq_workspace_bytes(&layer, NQ_PASS_ROWS + 1) == 0, "too many rows have no workspace");
  alignas(64) float workspace[64 * 4];
  float y = 0.0f;
  const nq_pass pass = {&layer, NQ_FLOAT32, 1, &one, &y, workspace};
  expect(nq_stage_rank(&pass, 1, 1) == NQ_BAD_ARGUMENT, "a crooked range is refused");
  expect(nq_stage_out(&pass, 0, 2) == NQ_BAD_ARGUMENT, "a range past the end is refused");
  expect(nq_stage_scale(&pass, -1, 1) == NQ_BAD_ARGUMENT, "a negative range is refused");
}

}  // namespace

int main() {
  const char* isa = nq_cpu_isa();
  if (isa == nullptr) {
    printf("%s\n", nq_status_text(NQ_NO_ISA));
    return 77;
  }
  const int64_t shapes[][3] = {{1, 1, 1},     {31, 1, 33},     {32, 64, 64},   {33, 65, 63},
                               {130, 257, 5}, {576, 280, 192}, {96, 300, 129}, {1024, 32, 70}};
  const int64_t heights[] = {1, 2, 5, 7, 13, 192};
  int cases = 0;
  for (const auto& shape : shapes) {
    for (const int64_t rows : heights) {
      if (rows == 192 && shape[0] * shape[1] > 40000) continue;
      for (int kind = 0; kind < 9; ++kind) {
        const Case c = {shape[0],       shape[1],          shape[2],
                        rows,           nq_type(kind % 3), nq_type(kind / 3),
                        cases % 2 == 0, cases % 3 != 0,    cases % 4 == 0};
        if (rows > 13 && kind % 4 != 0) continue;
        check(c);
        ++cases;
      }
    }
  }
  // Long sums, where float32 accumulation shows; every type.
  for (int kind = 0; kind < 3; ++kind) {
    check({11008, 70, 40, 1, nq_type(kind), NQ_FLOAT32, true, false, true});
    check({11008, 70, 40, 3, nq_type(kind), NQ_BFLOAT16, false, true, true});
    cases += 2;
  }
  const int64_t products[][3] = {{1, 1, 3},   {64, 2, 1},  {33, 3, 5},  {64, 18, 4},
                                 {17, 33, 9}, {63, 64, 2}, {64, 71, 3}, {31, 5, 40}};
  for (const auto& p : products) {
    for (const float outlier : {1.0f, 1e3f, 1e-20f}) check_bits(p[0], p[1], p[2], outlier);
  }
  check_not_finite();
  const int64_t attended[][4] = {{1, 0, 16, 0},   {1, 70, 64, 0},   {5, 63, 80, 0},
                                 {9, 120, 96, 0}, {40, 30, 144, 0}, {40, 30, 64, 9}};
  for (const auto& c : attended) {
    for (const nq_type cache : {NQ_FLOAT32, NQ_FLOAT16}) {
      check_attention(c[0], c[1], c[2], c[3], cache);
    }
  }
  check_conversions();
  check_refusals();
  printf("%s: %d cases, %d failures\n", isa, cases, failures);
  return failures == 0 ? 0 : 1;
}
