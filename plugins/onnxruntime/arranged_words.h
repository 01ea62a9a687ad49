// SPDX-License-Identifier: Apache-2.0
//
// The packed words of a layer, in the order that this processor's kernels read. They are arranged
// once, when the session is made, and the file's own are not needed any more.

#ifndef NQ_ORT_ARRANGED_WORDS_H
#define NQ_ORT_ARRANGED_WORDS_H

#include <stddef.h>

#include "linear_inputs.h"

// Bytes that both matrices of a layer take.
size_t arranged_bytes(const LinearAttributes& attributes);

// Arranges the words that the description points to into `block`, which is aligned to 64, and lets
// it point there.
ort::Status* arrange_layer(const ort::Api* api, void* block, nq_linear* layer);

// The same into a block of its own, to be freed by the caller also after an error; the pages of the
// words that were read may leave memory.
ort::Status* arrange_constants(const ort::Api* api, const LinearAttributes& attributes,
                               void** block, nq_linear* layer);

#endif  // NQ_ORT_ARRANGED_WORDS_H
