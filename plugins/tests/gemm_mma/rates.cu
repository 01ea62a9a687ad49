// SPDX-License-Identifier: Apache-2.0
//
// What a sign product costs on this GPU's warp-level tensor cores, from registers alone: two int8
// planes with bits as bytes, against float16 with bits as signs on 1.0 and float32 or float16 sums.
// Each variant unpacks its weights as a kernel would, for 32 x 64 outputs a warp.

#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>

namespace {

constexpr int kMF = 2, kNF = 8, kLoops = 512, kThreads = 128;

template <int KIND>
__global__ void __launch_bounds__(kThreads, 2) rate(const uint32_t* words, uint32_t* out) {
  uint32_t acc[kMF][kNF][4] = {};
  uint32_t w[kMF][4], b[kNF][4];
  for (int i = 0; i < kMF * 4; ++i) w[i / 4][i % 4] = words[threadIdx.x + i];
  for (int i = 0; i < kNF * 4; ++i) b[i / 4][i % 4] = words[threadIdx.x + 7 * i + 3] & 0x3fff3fff;
  for (int loop = 0; loop < kLoops; ++loop) {
#pragma unroll
    for (int m = 0; m < kMF; ++m) {
      uint32_t a[2][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        w[m][i] = w[m][i] * 3 + loop;  // keeps the unpacking inside the loop
        if (KIND == 0) {
          a[0][i] = (w[m][i] << 3) & 0x80808080u;
        } else {
          a[0][i] = ((w[m][i] << 3) & 0x80008000u) ^ 0x3c003c00u;
          a[1][i] = ((w[m][i] << 5) & 0x80008000u) ^ 0x3c003c00u;
        }
      }
#pragma unroll
      for (int step = 0; step < 2; ++step) {  // planes, or halves of the 32 columns
#pragma unroll
        for (int n = 0; n < kNF; ++n) {
          uint32_t* c = acc[m][n];
          const uint32_t *x = a[KIND == 0 ? 0 : step], b0 = b[n][2 * step], b1 = b[n][2 * step + 1];
          if (KIND == 0) {
            asm volatile(
                "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
                "{%8,%9}, {%0,%1,%2,%3};"
                : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(b0), "r"(b1));
          } else if (KIND == 1) {
            asm volatile(
                "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
                "{%8,%9}, {%0,%1,%2,%3};"
                : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(b0), "r"(b1));
          } else {
            asm volatile(
                "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0,%1}, {%2,%3,%4,%5}, "
                "{%6,%7}, {%0,%1};"
                : "+r"(c[0]), "+r"(c[1])
                : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(b0), "r"(b1));
          }
        }
      }
    }
  }
  uint32_t total = 0;
  for (int i = 0; i < kMF * kNF * 4; ++i) total ^= acc[i / (kNF * 4)][i / 4 % kNF][i % 4];
  out[blockIdx.x * kThreads + threadIdx.x] = total;
}

template <int KIND>
void show(const char* name, const uint32_t* words, uint32_t* out, int sms) {
  cudaEvent_t begin, end;
  cudaEventCreate(&begin), cudaEventCreate(&end);
  float best = 1e9f;
  for (int i = 0; i < 5; ++i) {
    cudaEventRecord(begin);
    rate<KIND><<<2 * sms, kThreads>>>(words, out);
    cudaEventRecord(end);
    cudaEventSynchronize(end);
    float ms = 0.0f;
    cudaEventElapsedTime(&ms, begin, end);
    best = ms < best ? ms : best;
  }
  const double macs = 2.0 * sms * (kThreads / 32) * kLoops * (kMF * 16.0) * (kNF * 8.0) * 32.0;
  printf("%s: %.0f T sign multiply-adds/s (%s)\n", name, macs / best * 1e-9,
         cudaGetErrorString(cudaGetLastError()));
}

}  // namespace

int main() {
  int sms = 0;
  cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0);
  uint32_t *words, *out;
  cudaMalloc(&words, 4096 * 4), cudaMalloc(&out, 2 * sms * kThreads * 4);
  uint32_t host[4096], state = 1;
  for (uint32_t& word : host) word = state = state * 1664525u + 1013904223u;
  cudaMemcpy(words, host, sizeof host, cudaMemcpyHostToDevice);
  show<0>("two int8 planes", words, out, sms);
  show<1>("float16, float32 sums", words, out, sms);
  show<2>("float16, float16 sums", words, out, sms);
  return 0;
}
