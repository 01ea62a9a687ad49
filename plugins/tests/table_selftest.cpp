// SPDX-License-Identifier: Apache-2.0
//
// Checks tables of 8- and 4-bit rows against float64, one instruction set a run (NQ_CPU_ISA), with
// every buffer exactly as large as promised. Exit status as nq_selftest: 0, 1, or 77 to skip.

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <initializer_list>

#include "../kernels/nq_table.h"
#include "expect.h"
#include "random.h"

namespace {

template <class T>
T* make(int64_t count, size_t alignment = alignof(T)) {
  const size_t bytes = static_cast<size_t>(count) * sizeof(T);
  void* data = alignment > alignof(max_align_t) ? aligned_alloc(alignment, (bytes + 63) / 64 * 64)
                                                : malloc(bytes);
  if (data == nullptr) abort();
  return static_cast<T*>(data);
}

int code_of(const int8_t* row, int64_t bits, int64_t column) {
  if (bits == 8) return row[column];
  const int nibble = (static_cast<uint8_t>(row[column / 2]) >> (column % 2 * 4)) & 15;
  return nibble > 7 ? nibble - 16 : nibble;
}

void check(int64_t rows, int64_t columns, int64_t bits, int64_t group, int64_t x_rows) {
  const int64_t bytes = (columns * bits + 7) / 8;
  const int64_t groups = group >= columns ? 1 : (columns - 1) / group + 1;
  int8_t* codes = make<int8_t>(rows * bytes);
  for (int64_t i = 0; i < rows * bytes; ++i) codes[i] = static_cast<int8_t>(random_bits());
  float* scales = make<float>(rows * groups);
  for (int64_t i = 0; i < rows * groups; ++i) scales[i] = 0.5f + 0.25f * random_float();
  float* x = make<float>(x_rows * columns);
  for (int64_t i = 0; i < x_rows * columns; ++i) {
    x[i] = random_float() * (i % 97 == 3 ? 1000.0f : 1.0f);
  }
  const nq_table table = {rows, columns, bits, group, NQ_FLOAT32, codes, scales};
  expect(nq_table_check(&table) == NQ_OK, "a sound table is refused");
  const size_t room = nq_table_workspace(&table, x_rows);
  float* workspace = make<float>(static_cast<int64_t>(room / sizeof(float)), 64);
  float* y = make<float>(x_rows * rows);
  memset(y, 0xff, static_cast<size_t>(x_rows * rows) * sizeof(float));
  expect(nq_table_arrange(&table, x, x_rows, workspace) == NQ_OK, "arrange");
  const int64_t half = rows / 2;
  expect(nq_table_product(&table, workspace, x_rows, 0, half, y) == NQ_OK, "product");
  expect(nq_table_product(&table, workspace, x_rows, half, rows, y) == NQ_OK, "product");
  float* dense = make<float>(columns);
  for (int64_t i = 0; i < rows; ++i) {
    expect(nq_table_gather(&table, &i, 1, dense) == NQ_OK, "gather");
    for (int64_t r = 0; r < x_rows; ++r) {
      double sum = 0.0;
      double row_size = 0.0;
      double x_size = 0.0;
      for (int64_t c = 0; c < columns; ++c) {
        const float wanted = static_cast<float>(code_of(codes + i * bytes, bits, c)) *
                             scales[i * groups + (groups == 1 ? 0 : c / group)];
        if (r == 0) expect(dense[c] == wanted, "a looked-up entry", dense[c]);
        const double value = x[r * columns + c];
        sum += wanted * value;
        row_size += static_cast<double>(wanted) * wanted;
        x_size += value * value;
      }
      // Values in 16 bits: half a unit of each, and an outlier makes the units of its block large.
      const double error = fabs(y[r * rows + i] - sum) / (sqrt(row_size * x_size) + 1e-30);
      expect(error < 5e-5, "a product", error);
    }
  }
  float* alone = make<float>(rows);
  for (int64_t r = 0; r < x_rows; ++r) {
    expect(nq_table_arrange(&table, x + r * columns, 1, workspace) == NQ_OK, "arrange");
    expect(nq_table_product(&table, workspace, 1, 0, rows, alone) == NQ_OK, "product");
    const size_t row_bytes = static_cast<size_t>(rows) * sizeof(float);
    expect(memcmp(alone, y + r * rows, row_bytes) == 0, "a vector alone gives the same bits");
  }
  x[columns / 2] = NAN;
  expect(nq_table_arrange(&table, x, 1, workspace) == NQ_OK, "arrange");
  expect(nq_table_product(&table, workspace, 1, 0, rows, alone) == NQ_OK, "product");
  for (int64_t i = 0; i < rows; ++i) expect(alone[i] != alone[i], "no number gives no number");
  free(alone);
  free(codes);
  free(scales);
  free(x);
  free(workspace);
  free(y);
  free(dense);
}

void check_refusals() {
  const int8_t codes[64] = {};
  const float scales[2] = {};
  const nq_table good = {1, 64, 8, 32, NQ_FLOAT32, codes, scales};
  float y[64];
  expect(nq_table_check(&good) == NQ_OK, "the table that the others are made from");
  nq_table bad = good;
  bad.bits = 5;
  expect(nq_table_check(&bad) == NQ_BAD_ARGUMENT, "5 bits");
  bad = good;
  bad.group = 16;
  expect(nq_table_check(&bad) == NQ_BAD_ARGUMENT, "groups of 16");
  bad = good;
  bad.columns = 32 * (NQ_TABLE_MAX_GROUPS + 1);
  expect(nq_table_check(&bad) == NQ_TOO_LARGE, "too many groups");
  bad = good;
  bad.codes = nullptr;
  expect(nq_table_check(&bad) == NQ_BAD_ARGUMENT, "no codes");
  for (const int64_t index : {int64_t{-1}, int64_t{1}, int64_t{1} << 62}) {
    expect(nq_table_gather(&good, &index, 1, y) == NQ_BAD_ARGUMENT, "an index outside");
  }
  expect(nq_table_product(&good, y, 1, 0, 2, y) == NQ_BAD_ARGUMENT, "rows outside");
}

}  // namespace

int main() {
  const char* isa = nq_cpu_isa();
  if (isa == nullptr) return 77;
  int cases = 0;
  const int64_t sizes[][2] = {{1, 1}, {3, 31}, {65, 33}, {130, 64}, {67, 95}, {70, 130}, {9, 576}};
  for (const auto& size : sizes) {
    for (const int64_t bits : {8, 4}) {
      for (const int64_t group : {32, 64, 128, 1 << 20}) {
        for (const int64_t x_rows : {1, 2, 3, 5, 9}) {
          check(size[0], size[1], bits, group, x_rows);
          ++cases;
        }
      }
    }
  }
  check_refusals();
  printf("tables %s: %d cases, %d failures\n", isa, cases, failures);
  return failures == 0 ? 0 : 1;
}
