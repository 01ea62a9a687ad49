// SPDX-License-Identifier: Apache-2.0
//
// Plain words for a status, for the CPU and the CUDA library alike.

#include "nq_kernels.h"

extern "C" const char* nq_status_text(nq_status status) {
  switch (status) {
    case NQ_OK:
      return "ok";
    case NQ_BAD_ARGUMENT:
      return "a size, range, type or pointer is invalid";
    case NQ_BAD_LAYOUT:
      return "the packed word order is unknown to this build";
    case NQ_TOO_LARGE:
      return "a dimension is larger than the kernels take";
    case NQ_NO_ISA:
      return "NQ_CPU_ISA names an instruction set that is unknown or that this processor lacks";
    case NQ_NO_KERNEL:
      return "this build has no kernel for this GPU or for what was asked of it";
    case NQ_CUDA_ERROR:
      return "a CUDA call failed";
    case NQ_WORKSPACE:
      return "the workspace is missing, too small or not aligned";
  }
  return "unknown status";
}
