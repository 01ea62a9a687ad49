// SPDX-License-Identifier: Apache-2.0
//
// nq_cuda_memory.h over host memory: new memory holds 0xff, what is allocated counts against an
// invented device, and a captured stream keeps its calls.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <chrono>
#include <map>
#include <mutex>
#include <vector>

#include "stream.h"

namespace {

using Clock = std::chrono::steady_clock;
using Graph = std::vector<stand_in::Work>;

struct Stream {
  Graph* recording = nullptr;
};

Stream g_default;
std::mutex g_lock;
std::map<void*, size_t> g_sizes;  // of device memory
size_t g_used = 0;

Stream& stream_of(void* stream) {
  return stream == nullptr ? g_default : *static_cast<Stream*>(stream);
}

size_t setting(const char* name, size_t otherwise) {
  const char* given = getenv(name);
  return given == nullptr ? otherwise : strtoull(given, nullptr, 10);
}

size_t total() { return setting("NQ_STAND_IN_MEMORY", size_t{1} << 30); }

nq_status take(size_t bytes, void** memory) {
  if (memory == nullptr || bytes < 1) return NQ_BAD_ARGUMENT;
  const size_t rounded = (bytes + 255) / 256 * 256;
  *memory = aligned_alloc(256, rounded);
  if (*memory == nullptr) return NQ_CUDA_ERROR;
  memset(*memory, 0xff, rounded);
  return NQ_OK;
}

}  // namespace

namespace stand_in {

nq_status enqueue(void* stream, Work work) {
  Stream& on = stream_of(stream);
  if (on.recording == nullptr) return work();
  on.recording->push_back(std::move(work));
  return NQ_OK;
}

}  // namespace stand_in

NQ_EXPORT nq_status nq_cuda_device_count(int32_t* count) {
  *count = static_cast<int32_t>(setting("NQ_STAND_IN_DEVICES", 1));
  return NQ_OK;
}

NQ_EXPORT nq_status nq_cuda_set_device(int32_t device) {
  const size_t count = setting("NQ_STAND_IN_DEVICES", 1);
  return device >= 0 && static_cast<size_t>(device) < count ? NQ_OK : NQ_CUDA_ERROR;
}

NQ_EXPORT nq_status nq_cuda_device_name(int32_t, char* name, size_t bytes) {
  snprintf(name, bytes, "stand-in");
  return NQ_OK;
}

NQ_EXPORT nq_status nq_cuda_memory_info(size_t* free_bytes, size_t* total_bytes) {
  const std::lock_guard<std::mutex> guard(g_lock);
  *total_bytes = total();
  *free_bytes = *total_bytes > g_used ? *total_bytes - g_used : 0;
  return NQ_OK;
}

NQ_EXPORT nq_status nq_cuda_allocate(size_t bytes, void** memory) {
  const std::lock_guard<std::mutex> guard(g_lock);
  if (bytes > total() || g_used > total() - bytes) return NQ_CUDA_ERROR;
  const nq_status status = take(bytes, memory);
  if (status != NQ_OK) return status;
  g_sizes[*memory] = bytes;
  g_used += bytes;
  return NQ_OK;
}

NQ_EXPORT nq_status nq_cuda_free(void* memory) {
  if (memory == nullptr) return NQ_OK;
  const std::lock_guard<std::mutex> guard(g_lock);
  const auto found = g_sizes.find(memory);
  if (found == g_sizes.end()) return NQ_CUDA_ERROR;
  g_used -= found->second;
  memset(memory, 0xff, found->second);
  g_sizes.erase(found);
  free(memory);
  return NQ_OK;
}

NQ_EXPORT nq_status nq_cuda_allocate_pinned(size_t bytes, void** memory) {
  return take(bytes, memory);
}

NQ_EXPORT nq_status nq_cuda_free_pinned(void* memory) {
  free(memory);
  return NQ_OK;
}

NQ_EXPORT nq_status nq_cuda_copy(void* to, const void* from, size_t bytes, void* stream) {
  if (bytes == 0) return NQ_OK;
  if (to == nullptr || from == nullptr) return NQ_BAD_ARGUMENT;
  return stand_in::enqueue(stream, [=]() {
    memmove(to, from, bytes);
    return NQ_OK;
  });
}

NQ_EXPORT nq_status nq_cuda_fill(void* memory, uint8_t value, size_t bytes, void* stream) {
  if (bytes == 0) return NQ_OK;
  if (memory == nullptr) return NQ_BAD_ARGUMENT;
  return stand_in::enqueue(stream, [=]() {
    memset(memory, value, bytes);
    return NQ_OK;
  });
}

NQ_EXPORT nq_status nq_cuda_stream_create(void** stream) {
  *stream = new Stream;
  return NQ_OK;
}

NQ_EXPORT nq_status nq_cuda_stream_destroy(void* stream) {
  delete static_cast<Stream*>(stream);
  return NQ_OK;
}

NQ_EXPORT nq_status nq_cuda_synchronize(void* stream) {
  return stream_of(stream).recording == nullptr ? NQ_OK : NQ_CUDA_ERROR;
}

NQ_EXPORT nq_status nq_cuda_event_create(void** event) {
  *event = new Clock::time_point;
  return NQ_OK;
}

NQ_EXPORT nq_status nq_cuda_event_record(void* event, void* stream) {
  return stand_in::enqueue(stream, [=]() {
    *static_cast<Clock::time_point*>(event) = Clock::now();
    return NQ_OK;
  });
}

NQ_EXPORT nq_status nq_cuda_event_synchronize(void*) { return NQ_OK; }

NQ_EXPORT nq_status nq_cuda_event_elapsed(void* begin, void* end, float* milliseconds) {
  const auto passed =
      *static_cast<Clock::time_point*>(end) - *static_cast<Clock::time_point*>(begin);
  *milliseconds = std::chrono::duration<float, std::milli>(passed).count();
  return NQ_OK;
}

NQ_EXPORT nq_status nq_cuda_event_destroy(void* event) {
  delete static_cast<Clock::time_point*>(event);
  return NQ_OK;
}

NQ_EXPORT nq_status nq_cuda_capture_begin(void* stream) {
  if (stream == nullptr || stream_of(stream).recording != nullptr) return NQ_CUDA_ERROR;
  stream_of(stream).recording = new Graph;
  return NQ_OK;
}

NQ_EXPORT nq_status nq_cuda_capture_end(void* stream, void** graph) {
  *graph = stream_of(stream).recording;
  stream_of(stream).recording = nullptr;
  return *graph == nullptr ? NQ_CUDA_ERROR : NQ_OK;
}

NQ_EXPORT nq_status nq_cuda_graph_launch(void* graph, void* stream) {
  if (graph == nullptr || stream_of(stream).recording != nullptr) return NQ_BAD_ARGUMENT;
  for (const stand_in::Work& work : *static_cast<Graph*>(graph)) {
    const nq_status status = work();
    if (status != NQ_OK) return status;
  }
  return NQ_OK;
}

NQ_EXPORT nq_status nq_cuda_graph_destroy(void* graph) {
  delete static_cast<Graph*>(graph);
  return NQ_OK;
}
