// SPDX-License-Identifier: Apache-2.0
//
// Streams, events and graphs, for callers that have no CUDA runtime of their own.

#include "cuda/internal.h"
#include "nq_cuda_memory.h"

using nq_cuda::check;

namespace {

cudaStream_t stream_of(void* stream) { return static_cast<cudaStream_t>(stream); }

cudaEvent_t event_of(void* event) { return static_cast<cudaEvent_t>(event); }

}  // namespace

extern "C" nq_status nq_cuda_stream_create(void** stream) {
  if (stream == nullptr) return NQ_BAD_ARGUMENT;
  cudaStream_t made = nullptr;
  const nq_status status =
      check(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "making a stream");
  *stream = made;
  return status;
}

extern "C" nq_status nq_cuda_stream_destroy(void* stream) {
  if (stream == nullptr) return NQ_OK;
  return check(cudaStreamDestroy(stream_of(stream)), "giving back a stream");
}

extern "C" nq_status nq_cuda_event_create(void** event) {
  if (event == nullptr) return NQ_BAD_ARGUMENT;
  cudaEvent_t made = nullptr;
  const nq_status status = check(cudaEventCreate(&made), "making an event");
  *event = made;
  return status;
}

extern "C" nq_status nq_cuda_event_record(void* event, void* stream) {
  return check(cudaEventRecord(event_of(event), stream_of(stream)), "recording an event");
}

extern "C" nq_status nq_cuda_event_synchronize(void* event) {
  return check(cudaEventSynchronize(event_of(event)), "waiting for an event");
}

extern "C" nq_status nq_cuda_event_elapsed(void* begin, void* end, float* milliseconds) {
  if (milliseconds == nullptr) return NQ_BAD_ARGUMENT;
  return check(cudaEventElapsedTime(milliseconds, event_of(begin), event_of(end)),
               "time between events");
}

extern "C" nq_status nq_cuda_event_destroy(void* event) {
  return event == nullptr ? NQ_OK
                          : check(cudaEventDestroy(event_of(event)), "giving back an event");
}

extern "C" nq_status nq_cuda_capture_begin(void* stream) {
  // Other threads of the process may allocate meanwhile.
  return check(cudaStreamBeginCapture(stream_of(stream), cudaStreamCaptureModeThreadLocal),
               "beginning a capture");
}

extern "C" nq_status nq_cuda_capture_end(void* stream, void** graph) {
  if (graph == nullptr) return NQ_BAD_ARGUMENT;
  *graph = nullptr;
  cudaGraph_t captured = nullptr;
  const nq_status ended =
      check(cudaStreamEndCapture(stream_of(stream), &captured), "ending a capture");
  if (ended != NQ_OK) {
    (void)cudaGetLastError();
    return ended;
  }
  cudaGraphExec_t made = nullptr;
  const nq_status status = check(cudaGraphInstantiate(&made, captured, 0), "making a graph");
  (void)cudaGraphDestroy(captured);
  *graph = made;
  return status;
}

extern "C" nq_status nq_cuda_graph_launch(void* graph, void* stream) {
  if (graph == nullptr) return NQ_BAD_ARGUMENT;
  return check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), stream_of(stream)),
               "launching a graph");
}

extern "C" nq_status nq_cuda_graph_destroy(void* graph) {
  if (graph == nullptr) return NQ_OK;
  return check(cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)), "giving back a graph");
}
