// SPDX-License-Identifier: Apache-2.0
//
// Streams of the stand-in: work is done at once, or kept while the stream is being captured.

#ifndef NQ_STAND_IN_STREAM_H
#define NQ_STAND_IN_STREAM_H

#include <stdint.h>

#include <functional>

#include "../../kernels/nq_cuda_memory.h"

#define NQ_EXPORT extern "C" __attribute__((visibility("default")))

namespace stand_in {

using Work = std::function<nq_status()>;

// What every function that takes a stream ends with. The work must hold copies of what the caller
// gave by pointer on the host (structures, arrays of layers): a graph runs it again later.
nq_status enqueue(void* stream, Work work);

// Whether 16 bytes may be read or written there at once, as the real library asks.
inline bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

}  // namespace stand_in

#endif  // NQ_STAND_IN_STREAM_H
