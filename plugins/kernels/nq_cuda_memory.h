// SPDX-License-Identifier: Apache-2.0
//
// What a program without a CUDA runtime of its own needs of one: devices, memory, copies, streams,
// events and graphs. The Python runtime (nanoquant_edge/runtimes/cuda) is such a program.
//
// Streams, events and graphs are opaque pointers; a null stream is the default one. Every function
// acts on the calling thread's current device. Functions that take a stream only enqueue; what they
// read and write must stay until the stream has come past it (nq_cuda_synchronize).

#ifndef NQ_CUDA_MEMORY_H
#define NQ_CUDA_MEMORY_H

#include "nq_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

// Number of GPUs that this process sees; 0, and NQ_OK, where there is no GPU. NQ_CUDA_ERROR where
// the driver is missing or too old: nq_cuda_error_text() says which.
nq_status nq_cuda_device_count(int32_t* count);

// Makes a device the calling thread's current one.
nq_status nq_cuda_set_device(int32_t device);

// The device's name, cut to `bytes` including the final zero.
nq_status nq_cuda_device_name(int32_t device, char* name, size_t bytes);

// Bytes free and in all on the current device. Where GPU and processor share memory (Jetson), what
// the system could give back (file caches) does not count as free.
nq_status nq_cuda_memory_info(size_t* free_bytes, size_t* total_bytes);

// Device memory, aligned to 256 bytes, with unknown contents. Freeing waits for all of the device's
// work; freeing null does nothing. Not while a stream is being captured.
nq_status nq_cuda_allocate(size_t bytes, void** memory);
nq_status nq_cuda_free(void* memory);

// Host memory that the device can copy from and read at full speed, at the same address.
nq_status nq_cuda_allocate_pinned(size_t bytes, void** memory);
nq_status nq_cuda_free_pinned(void* memory);

// A copy between any two places, of the host or the device, enqueued on `stream`. A copy from
// pageable host memory has read it when the call returns.
nq_status nq_cuda_copy(void* to, const void* from, size_t bytes, void* stream);

// Sets bytes of device memory.
nq_status nq_cuda_fill(void* memory, uint8_t value, size_t bytes, void* stream);

// Streams do not wait for the default stream, nor it for them.
nq_status nq_cuda_stream_create(void** stream);
nq_status nq_cuda_stream_destroy(void* stream);

// Events mark a place in a stream and keep its time.
nq_status nq_cuda_event_create(void** event);
nq_status nq_cuda_event_record(void* event, void* stream);
nq_status nq_cuda_event_synchronize(void* event);  // waits until the stream has come past it
nq_status nq_cuda_event_elapsed(void* begin, void* end, float* milliseconds);
nq_status nq_cuda_event_destroy(void* event);

// Everything that this thread enqueues on `stream` between begin and end is kept instead of done,
// and becomes a graph that may be launched any number of times, with the same addresses. When end
// fails, the stream is usable again. Kernels should have run once before they are captured: loading
// their code is not allowed while capturing.
nq_status nq_cuda_capture_begin(void* stream);
nq_status nq_cuda_capture_end(void* stream, void** graph);
nq_status nq_cuda_graph_launch(void* graph, void* stream);
nq_status nq_cuda_graph_destroy(void* graph);

#ifdef __cplusplus
}
#endif

#endif  // NQ_CUDA_MEMORY_H
