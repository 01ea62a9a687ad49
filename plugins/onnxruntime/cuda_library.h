// SPDX-License-Identifier: Apache-2.0
//
// The CUDA kernels, loaded when the first node for a GPU is made. They stay a library of their own,
// so that a board without a GPU neither carries nor loads them.

#ifndef NQ_ORT_CUDA_LIBRARY_H
#define NQ_ORT_CUDA_LIBRARY_H

#include "../kernels/nq_cuda.h"

// Its functions; see nq_cuda.h.
struct CudaLibrary {
  decltype(&nq_cuda_describe) describe;
  decltype(&nq_cuda_tile_words) tile_words;
  decltype(&nq_cuda_make_tiles) make_tiles;
  decltype(&nq_cuda_copy_rows) copy_rows;
  decltype(&nq_cuda_synchronize) synchronize;
  decltype(&nq_cuda_workspace_bytes) workspace_bytes;
  decltype(&nq_cuda_forward) forward;
  decltype(&nq_cuda_error_text) error_text;
};

// Loads libnanoquant_cuda.so from the folder of this library, once, and no other. Where that fails,
// `why` says why, and the result is null; a later call tries again.
const CudaLibrary* cuda_library(char* why, size_t size);

#endif  // NQ_ORT_CUDA_LIBRARY_H
