// SPDX-License-Identifier: Apache-2.0
//
// How fast the kernels of one instruction set (NQ_CPU_ISA) are on one core, the best of many
// repetitions: billions of sign-adds a second for one matrix of a layer, weights and tables in the
// cache; and a head from memory, in bytes of its table a second, beside what a plain sum of the
// same bytes reaches.
//
//   nq_cpu_rates [rows of x]...

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "../kernels/nq_kernels.h"
#include "../kernels/nq_table.h"

namespace {

double now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

template <class T>
T* array(int64_t count) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 64, static_cast<size_t>(count) * sizeof(T)) != 0) abort();
  return static_cast<T*>(memory);
}

// Random signs as the kernels read them.
int32_t* arranged(int64_t rows, int64_t columns) {
  int32_t* words = array<int32_t>(rows * ((columns + 31) / 32));
  for (int64_t i = 0; i < rows * ((columns + 31) / 32); ++i) words[i] = rand() ^ (rand() << 16);
  int32_t* out = array<int32_t>(static_cast<int64_t>(nq_arranged_bytes(rows, columns) / 4));
  if (nq_arrange(words, rows, columns, out) != NQ_OK) abort();
  free(words);
  return out;
}

void measure(int64_t out, int64_t in, int64_t rows) {
  const int64_t rank = 64;  // rows of the second product: the first is the one that is measured
  const nq_type kind = NQ_FLOAT32;
  int32_t* v = arranged(out, in);
  int32_t* u = arranged(rank, out);
  float* ones = array<float>(in + out + rank);
  for (int64_t i = 0; i < in + out + rank; ++i) ones[i] = 1.0f;
  float* x = array<float>(rows * in);
  for (int64_t i = 0; i < rows * in; ++i) x[i] = static_cast<float>(rand()) * 1e-9f;
  float* y = array<float>(rows * rank);
  const nq_linear layer = {in,      out,  rank,   NQ_LAYOUT_ARRANGED, kind, v, u, ones,
                           nullptr, ones, nullptr};
  char* workspace = array<char>(static_cast<int64_t>(nq_workspace_bytes(&layer, rows)));
  const nq_pass pass = {&layer, kind, rows, x, y, workspace};
  double scale = 1e9;
  double product = 1e9;
  const int repetitions = 20 + static_cast<int>(1e8 / static_cast<double>(out * in * rows));
  for (int i = 0; i < repetitions; ++i) {
    const double start = now();
    nq_stage_scale(&pass, 0, rows);
    const double middle = now();
    nq_stage_rank(&pass, 0, out);
    const double end = now();
    if (middle - start < scale) scale = middle - start;
    if (end - middle < product) product = end - middle;
  }
  printf("%-8s %5lld x %-5lld %4lld rows  prepare %8.2f us  product %9.2f us  %7.1f G/s\n",
         nq_cpu_isa(), static_cast<long long>(out), static_cast<long long>(in),
         static_cast<long long>(rows), scale * 1e6, product * 1e6,
         static_cast<double>(out * in * rows) / product * 1e-9);
  free(v);
  free(u);
  free(ones);
  free(x);
  free(y);
  free(workspace);
}

// Several tables take turns, so that none is still in a cache.
void measure_head(int64_t bits, int64_t group) {
  constexpr int64_t kRows = 49152, kColumns = 576, kTables = 4, kRepetitions = 40;
  const int64_t row = kColumns * bits / 8, bytes = kRows * row;
  int8_t* codes = array<int8_t>(kTables * bytes);
  for (int64_t i = 0; i < kTables * bytes; ++i) codes[i] = static_cast<int8_t>(i * 37 >> 3);
  const int64_t groups = group >= kColumns ? 1 : kColumns / group;
  uint16_t* scales = array<uint16_t>(kRows * groups);
  for (int64_t i = 0; i < kRows * groups; ++i) scales[i] = 0x2000;
  float* x = array<float>(kColumns);
  for (int64_t i = 0; i < kColumns; ++i) x[i] = static_cast<float>(rand()) * 1e-9f;
  float* y = array<float>(kRows);
  double read = 1e9, product = 1e9;
  uint64_t total = 0;
  for (int64_t i = 0; i < kRepetitions; ++i) {
    const int8_t* from = codes + i % kTables * bytes;
    const double start = now();
    uint64_t sum[8] = {};
    for (int64_t at = 0; at < bytes; at += 64) {
      uint64_t line[8];
      __builtin_memcpy(line, from + at, sizeof line);
      for (int k = 0; k < 8; ++k) sum[k] += line[k];
    }
    for (const uint64_t part : sum) total += part;
    const double stop = now();
    if (stop - start < read) read = stop - start;
    const nq_table table = {
        kRows, kColumns, bits, group, NQ_FLOAT16, codes + (i + 2) % kTables * bytes, scales};
    char* workspace = array<char>(static_cast<int64_t>(nq_table_workspace(&table, 1)));
    const double begin = now();
    nq_table_arrange(&table, x, 1, workspace);
    nq_table_product(&table, workspace, 1, 0, kRows, y);
    const double end = now();
    if (end - begin < product) product = end - begin;
    free(workspace);
  }
  const double size = static_cast<double>(bytes) * 1e-9;
  printf("%-8s head of %lld bits, groups of %-3lld  %8.0f us  %5.1f GB/s  (a plain sum %5.1f)%s\n",
         nq_cpu_isa(), static_cast<long long>(bits), static_cast<long long>(group), product * 1e6,
         size / product, size / read, total == 1 ? " " : "");
  free(codes);
  free(scales);
  free(x);
  free(y);
}

}  // namespace

int main(int count, char** arguments) {
  if (nq_cpu_isa() == nullptr) return 77;
  const int64_t shapes[][2] = {{256, 576},   {384, 576},   {1536, 384}, {384, 1536},
                               {2048, 2048}, {1311, 8960}, {8960, 1311}};
  for (const auto& shape : shapes) {
    if (count < 2) measure(shape[0], shape[1], 1);
    for (int i = 1; i < count; ++i) {
      const int64_t rows = atoll(arguments[i]);
      if (rows < 1 || rows > NQ_PASS_ROWS) return 2;
      measure(shape[0], shape[1], rows);
    }
  }
  if (count < 2) {
    measure_head(8, 576);
    measure_head(4, 32);
  }
  return 0;
}
