// SPDX-License-Identifier: Apache-2.0
//
// What only the shared library adds: a description of itself, and words for a status.

#include "nq_cuda.h"

extern "C" const char* nq_cuda_info(void) {
  return "{\"version\": \"" NQ_VERSION "\", \"architectures\": \"" NQ_ARCHITECTURES "\"}";
}
