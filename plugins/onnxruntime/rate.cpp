// SPDX-License-Identifier: Apache-2.0
//
// What one core of this processor can do at most, for the floor line of `nq-edge bench`.

#include <stdlib.h>
#include <time.h>

#include "../kernels/nq_kernels.h"

namespace {

double now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

}  // namespace

// Sign-adds a second of one core on a matrix that its cache holds, the best of a few milliseconds;
// 0 where there is no instruction set or no memory. Not for use beside other work.
extern "C" __attribute__((visibility("default"))) double nq_ort_sign_rate(void) {
  constexpr int64_t kIn = 1024, kRank = 512, kOut = 64;
  constexpr double kSeconds = 0.005;
  constexpr size_t kWords = (kRank * kIn + kOut * kRank) / 32;
  constexpr size_t kFloats = kIn + kRank + 2 * kOut + kIn;
  int32_t* words = static_cast<int32_t*>(malloc(kWords * sizeof(int32_t)));
  float* floats = static_cast<float*>(malloc(kFloats * sizeof(float)));
  double rate = 0.0;
  nq_linear layer = {kIn,        kRank,   kOut,    NQ_LAYOUT_ARRANGED,
                     NQ_FLOAT32, words,   nullptr, nullptr,
                     nullptr,    nullptr, nullptr};
  void* workspace = nullptr;
  if (words != nullptr && floats != nullptr) {
    for (size_t i = 0; i < kWords; ++i) words[i] = static_cast<int32_t>(i * 2654435761u);
    for (size_t i = 0; i < kFloats; ++i) floats[i] = 1.0f;
    layer.u_words = words + kRank * kIn / 32;
    layer.scale_in = floats;
    layer.scale_out = floats + kIn;
    const size_t bytes = nq_workspace_bytes(&layer, 1);
    if (bytes != 0 && posix_memalign(&workspace, 64, bytes) == 0) {
      const nq_pass pass = {
          &layer, NQ_FLOAT32, 1, floats + kIn + kRank + 2 * kOut, floats + kIn + kRank, workspace};
      nq_stage_scale(&pass, 0, 1);
      const double end = now() + kSeconds;
      for (double start = now(); start < end;) {
        nq_stage_rank(&pass, 0, kRank);
        const double stop = now();
        const double found = static_cast<double>(kIn * kRank) / (stop - start);
        if (found > rate) rate = found;
        start = stop;
      }
    }
  }
  free(workspace);
  free(words);
  free(floats);
  return rate;
}
