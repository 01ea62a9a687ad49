// SPDX-License-Identifier: Apache-2.0

#include "arranged_words.h"

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "status.h"

namespace {

constexpr size_t kAlign = 64;

size_t aligned(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

size_t words_of(int64_t columns) { return (static_cast<size_t>(columns) + 31) / 32; }

// Whole pages of words that nobody reads again may go: they are in the file, or if not there, kept
// by the system. Older systems do not know the request, and nothing changes.
void let_go(const void* data, size_t bytes) {
#if defined(MADV_PAGEOUT)
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_PAGEOUT);
#else
  (void)data;
  (void)bytes;
#endif
}

}  // namespace

size_t arranged_bytes(const LinearAttributes& attributes) {
  return aligned(nq_arranged_bytes(attributes.rank, attributes.in_features)) +
         nq_arranged_bytes(attributes.out_features, attributes.rank);
}

ort::Status* arrange_layer(const ort::Api* api, void* block, nq_linear* layer) {
  char* v = static_cast<char*>(block);
  char* u = v + aligned(nq_arranged_bytes(layer->rank, layer->in_features));
  nq_status status = nq_arrange(layer->v_words, layer->rank, layer->in_features, v);
  if (status == NQ_OK) status = nq_arrange(layer->u_words, layer->out_features, layer->rank, u);
  if (status != NQ_OK) return ort::fail(api, ort::kFail, "%s", nq_status_text(status));
  layer->v_words = reinterpret_cast<const int32_t*>(v);
  layer->u_words = reinterpret_cast<const int32_t*>(u);
  layer->layout = NQ_LAYOUT_ARRANGED;
  return nullptr;
}

ort::Status* arrange_constants(const ort::Api* api, const LinearAttributes& attributes,
                               void** block, nq_linear* layer) {
  const size_t bytes = arranged_bytes(attributes);
  if (posix_memalign(block, kAlign, bytes) != 0) {
    *block = nullptr;
    return ort::fail(api, ort::kFail, "%zu bytes for a layer's words are not to be had", bytes);
  }
  const nq_linear before = *layer;
  NQ_ORT_RETURN(arrange_layer(api, *block, layer));
  let_go(before.v_words, static_cast<size_t>(before.rank) * words_of(before.in_features) * 4);
  let_go(before.u_words, static_cast<size_t>(before.out_features) * words_of(before.rank) * 4);
  return nullptr;
}
