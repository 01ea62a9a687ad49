// SPDX-License-Identifier: Apache-2.0
//
// NanoQuantAttention on the CPU, in two phases: rotation and append, then attention. ONNX Runtime's
// GroupQueryAttention spends most of a step's time on products of one row (see docs/notes/cpu.md);
// this operator has its semantics where past and present are one buffer. With slots, each token
// says itself which cache it belongs to, so that sequences of any lengths share a call.

#include "attention_cpu.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "../kernels/nq_attention.h"
#include "phases.h"
#include "plain_op.h"
#include "status.h"
#include "tensors.h"
#include "workspace.h"

namespace {

enum Input : size_t {
  kQuery = 0,
  kKey = 1,
  kValue = 2,
  kPastKey = 3,
  kPastValue = 4,
  kLast = 5,
  kCosines = 6,
  kSines = 7,
  kSlots = 8,  // optional
  kInputs = 9
};
constexpr const char* kNames[kInputs] = {"query", "key",     "value", "past_key", "past_value",
                                         "last",  "cosines", "sines", "slots"};
constexpr size_t kRanks[kInputs] = {3, 3, 3, 4, 4, 1, 2, 2, 1};

constexpr int64_t kMostChannels = 1024;  // of a head

bool is_integer(size_t input) { return input == kLast || input == kSlots; }

// Consecutive tokens of the call that are consecutive in one cache, as many as one piece takes.
struct Stretch {
  int64_t slot;      // the cache
  int64_t position;  // of the first token there
  int64_t token;     // the first token
  int64_t rows;
};

// An operator for each type of the cache, which is in its name: a library that is too old for one
// refuses a graph by it.
struct AttentionOp {
  ort::CustomOp op;  // first: the callbacks get its address
  ort::ElementType cache_type;
};

struct AttentionKernel {
  const ort::Api* api;
  nq_attention attention;
  ort::ElementType cache_type;
};

bool is_cache(size_t input) { return input == kPastKey || input == kPastValue; }

struct Call {
  nq_attention attention;
  int64_t batch, rows, tokens, capacity, caches;
  const float* query;
  const float* key;
  const float* value;
  const int32_t* last;   // [batch]: position of the last valid token; with slots, of each token
  const int32_t* slots;  // [tokens], or null: each row of the batch has its own cache
  const float* cosines;
  const float* sines;
  float* y;
  char* keys;
  char* values;
  float* rotated;  // for each stretch: [kv_heads][rows][group][head_dim]
  Stretch* stretches;
  int64_t count;  // of stretches
};

// Where a head's entry for a position begins in the cache, in bytes.
int64_t place_of(const Call& call, int64_t slot, int64_t head, int64_t position) {
  const nq_attention& a = call.attention;
  const int64_t entry = (slot * a.kv_heads + head) * call.capacity + position;
  return entry * a.head_dim * (a.cache == NQ_FLOAT32 ? 4 : 2);
}

int64_t slot_of(const Call& call, int64_t token) {
  return call.slots != nullptr ? call.slots[token] : token / call.rows;
}

int64_t position_of(const Call& call, int64_t token) {
  if (call.slots != nullptr) return call.last[token];
  const int64_t first = call.last[token / call.rows] + int64_t{1} - call.rows;
  // A prompt padded on the right starts at 0 all the same.
  return (first > 0 ? first : 0) + token % call.rows;
}

// Cuts the tokens into stretches of at most `step`.
void find_stretches(Call* call, int64_t step) {
  call->count = 0;
  for (int64_t token = 0; token < call->tokens; ++token) {
    const int64_t slot = slot_of(*call, token), position = position_of(*call, token);
    Stretch* now = call->count > 0 ? &call->stretches[call->count - 1] : nullptr;
    if (now != nullptr && now->rows < step && now->slot == slot &&
        now->position + now->rows == position) {
      ++now->rows;
    } else {
      call->stretches[call->count++] = {slot, position, token, 1};
    }
  }
}

// Phase 0: queries are rotated, keys are rotated into the cache, values are copied there.
nq_status prepare(const Call& call, int64_t piece) {
  const nq_attention& a = call.attention;
  const Stretch& stretch = call.stretches[piece];
  const int64_t dim = a.head_dim, group = a.heads / a.kv_heads;
  float* rotated = call.rotated + stretch.token * a.heads * dim;
  for (int64_t row = 0; row < stretch.rows; ++row) {
    const int64_t token = stretch.token + row, position = stretch.position + row;
    const float* cosines = call.cosines + position * (dim / 2);
    const float* sines = call.sines + position * (dim / 2);
    for (int64_t h = 0; h < a.kv_heads; ++h) {
      const float* query = call.query + (token * a.heads + h * group) * dim;
      float* out = rotated + (h * stretch.rows + row) * group * dim;
      nq_rotate(query, group, dim, cosines, sines, a.scale, out, dim);
      const int64_t place = place_of(call, stretch.slot, h, position);
      const int64_t from = (token * a.kv_heads + h) * dim;
      alignas(64) float key[kMostChannels];
      nq_rotate(call.key + from, 1, dim, cosines, sines, 1.0f, key, dim);
      nq_keep(&a, key, dim, call.keys + place);
      nq_keep(&a, call.value + from, dim, call.values + place);
    }
  }
  return NQ_OK;
}

// Phase 1: attention of a stretch to one key head.
nq_status attend(const Call& call, int64_t piece) {
  const nq_attention& a = call.attention;
  const Stretch& stretch = call.stretches[piece / a.kv_heads];
  const int64_t head = piece % a.kv_heads;
  const int64_t dim = a.head_dim, group = a.heads / a.kv_heads;
  const Workspace scratch(nq_attend_scratch(&a, stretch.rows, stretch.position + stretch.rows - 1));
  if (scratch.data() == nullptr) return NQ_WORKSPACE;
  const int64_t place = place_of(call, stretch.slot, head, 0);
  const float* queries =
      call.rotated + (stretch.token * a.heads + head * stretch.rows * group) * dim;
  float* y = call.y + (stretch.token * a.heads + head * group) * dim;
  nq_attend(&a, queries, stretch.rows, stretch.position, call.keys + place, call.values + place, y,
            a.heads * dim, scratch.data());
  return NQ_OK;
}

nq_status run_piece(void* data, int phase, int64_t piece) {
  const Call& call = *static_cast<const Call*>(data);
  return phase == 0 ? prepare(call, piece) : attend(call, piece);
}

ort::ElementType type_of(size_t input, ort::ElementType cache_type) {
  if (is_cache(input)) return cache_type;
  return is_integer(input) ? ort::kInt32 : ort::kFloat;
}

ort::Status* read_inputs(const AttentionKernel& kernel, ort::KernelContext* context,
                         TensorShape* shapes, void** data) {
  const ort::Api* api = kernel.api;
  size_t given = 0;
  NQ_ORT_RETURN(
      ort::call<ort::ContextGetInputCount>(api, ort::kKernelContextGetInputCount)(context, &given));
  shapes[kSlots] = {ort::kInt32, 1, {0}};
  data[kSlots] = nullptr;
  for (size_t i = 0; i < kInputs && i < given; ++i) {
    NQ_ORT_RETURN(read_input(api, context, i, &shapes[i], &data[i]));
    if (shapes[i].count != kRanks[i] || shapes[i].type != type_of(i, kernel.cache_type)) {
      return ort::fail(api, ort::kInvalidArgument,
                       "attention: %s has a wrong type or %zu dimensions", kNames[i],
                       shapes[i].count);
    }
  }
  return nullptr;
}

// Compares every position with the capacity, and every slot with the number of caches.
ort::Status* check_places(const ort::Api* api, const Call& call, int64_t limit) {
  const int64_t most = call.capacity < limit ? call.capacity : limit;
  const int64_t count = call.slots != nullptr ? call.tokens : call.batch;
  const int64_t rows = call.slots != nullptr ? 1 : call.rows;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t first = call.last[i] + int64_t{1} - rows;
    if (call.last[i] < 0 || (first > 0 ? first : 0) + rows > most) {
      return ort::fail(api, ort::kInvalidArgument,
                       "attention: %" PRId64
                       " tokens up to position %d do not fit a cache of %" PRId64
                       " slots and tables of %" PRId64,
                       rows, call.last[i], call.capacity, limit);
    }
    if (call.slots != nullptr && (call.slots[i] < 0 || call.slots[i] >= call.caches)) {
      return ort::fail(api, ort::kInvalidArgument,
                       "attention: slot %d is none of the %" PRId64 " caches", call.slots[i],
                       call.caches);
    }
  }
  return nullptr;
}

// Compares every shape with the query's and the cache's.
ort::Status* check_inputs(const AttentionKernel& kernel, const TensorShape* shapes, void** data,
                          Call* call) {
  const ort::Api* api = kernel.api;
  const nq_attention& a = kernel.attention;
  const int64_t batch = shapes[kQuery].dims[0], rows = shapes[kQuery].dims[1];
  const int64_t tokens = batch * rows;
  const int64_t capacity = shapes[kPastKey].dims[2], limit = shapes[kCosines].dims[0];
  const bool slots = shapes[kSlots].dims[0] != 0;
  const int64_t caches = slots ? shapes[kPastKey].dims[0] : batch;
  const int64_t wanted[kInputs][4] = {
      {batch, rows, a.heads * a.head_dim},
      {batch, rows, a.kv_heads * a.head_dim},
      {batch, rows, a.kv_heads * a.head_dim},
      {caches, a.kv_heads, capacity, a.head_dim},
      {caches, a.kv_heads, capacity, a.head_dim},
      {slots ? tokens : batch},
      {limit, a.head_dim / 2},
      {limit, a.head_dim / 2},
      {slots ? tokens : 0},
  };
  for (size_t i = 0; i < kInputs; ++i) {
    for (size_t d = 0; d < kRanks[i]; ++d) {
      if (shapes[i].dims[d] != wanted[i][d]) {
        return ort::fail(api, ort::kInvalidArgument,
                         "attention: dimension %zu of %s is %" PRId64 ", not %" PRId64, d,
                         kNames[i], shapes[i].dims[d], wanted[i][d]);
      }
    }
  }
  call->attention = a;
  call->batch = batch;
  call->rows = rows;
  call->tokens = tokens;
  call->capacity = capacity;
  call->caches = caches;
  call->query = static_cast<const float*>(data[kQuery]);
  call->key = static_cast<const float*>(data[kKey]);
  call->value = static_cast<const float*>(data[kValue]);
  call->last = static_cast<const int32_t*>(data[kLast]);
  call->slots = slots ? static_cast<const int32_t*>(data[kSlots]) : nullptr;
  call->cosines = static_cast<const float*>(data[kCosines]);
  call->sines = static_cast<const float*>(data[kSines]);
  return check_places(api, *call, limit);
}

// Asks for the outputs. Where the caller has not bound past and present to one buffer, the past is
// copied.
ort::Status* make_outputs(const ort::Api* api, ort::KernelContext* context,
                          const TensorShape* shapes, void** data, Call* call) {
  const TensorShape* like[] = {&shapes[kQuery], &shapes[kPastKey], &shapes[kPastKey]};
  void* out[3] = {};
  for (size_t i = 0; i < 3; ++i) {
    NQ_ORT_RETURN(make_output(api, context, i, *like[i], &out[i]));
  }
  call->y = static_cast<float*>(out[0]);
  call->keys = static_cast<char*>(out[1]);
  call->values = static_cast<char*>(out[2]);
  const size_t bytes = static_cast<size_t>(place_of(*call, call->caches, 0, 0));
  if (out[1] != data[kPastKey] && bytes != 0) memcpy(out[1], data[kPastKey], bytes);
  if (out[2] != data[kPastValue] && bytes != 0) memcpy(out[2], data[kPastValue], bytes);
  return nullptr;
}

ort::Status* compute(void* state, ort::KernelContext* context) {
  constexpr int64_t kWorthwhile = 1 << 17;  // multiply-adds that are worth a second thread
  constexpr int64_t kQueries = 192;         // most query vectors of a piece
  const AttentionKernel& kernel = *static_cast<const AttentionKernel*>(state);
  const ort::Api* api = kernel.api;
  TensorShape shapes[kInputs];
  void* data[kInputs];
  Call call;
  NQ_ORT_RETURN(read_inputs(kernel, context, shapes, data));
  NQ_ORT_RETURN(check_inputs(kernel, shapes, data, &call));
  NQ_ORT_RETURN(make_outputs(api, context, shapes, data, &call));
  if (call.tokens == 0) return nullptr;
  const nq_attention& a = call.attention;
  int64_t longest = 0;
  for (int64_t token = 0; token < call.tokens; ++token) {
    const int64_t end = position_of(call, token) + 1;
    if (end > longest) longest = end;
  }
  const Workspace rotated(static_cast<size_t>(call.tokens * a.heads * a.head_dim) * sizeof(float));
  const Workspace stretches(static_cast<size_t>(call.tokens) * sizeof(Stretch));
  if (rotated.data() == nullptr || stretches.data() == nullptr) {
    return ort::fail(api, ort::kFail, "attention: no scratch memory");
  }
  call.rotated = static_cast<float*>(rotated.data());
  call.stretches = static_cast<Stretch*>(stretches.data());
  // Scores of a piece stay near the core: some hundred thousand at most.
  const int64_t group = a.heads / a.kv_heads;
  int64_t queries = (int64_t{1} << 18) / longest;
  if (queries > kQueries) queries = kQueries;
  find_stretches(&call, queries / group > 1 ? queries / group : 1);
  const Phases phases = {run_piece, &call, 2, {call.count, call.count * a.kv_heads}};
  const int64_t work = call.tokens * a.heads * a.head_dim * longest * 2;
  return run_phases(api, context, phases, work >= kWorthwhile);
}

ort::Status* prepare_kernel(const ort::Api* api, const ort::KernelInfo* info,
                            AttentionKernel* kernel) {
  kernel->api = api;
  nq_attention& a = kernel->attention;
  a.cache = kernel_type(kernel->cache_type);
  NQ_ORT_RETURN(read_integer(api, info, "num_heads", 1, 65536, &a.heads));
  NQ_ORT_RETURN(read_integer(api, info, "kv_num_heads", 1, 65536, &a.kv_heads));
  NQ_ORT_RETURN(read_integer(api, info, "head_dim", 16, kMostChannels, &a.head_dim));
  NQ_ORT_RETURN(read_integer(api, info, "window", 0, NQ_MAX_DIM, &a.window));
  ort::Status* status =
      ort::call<ort::InfoGetFloat>(api, ort::kKernelInfoGetAttributeFloat)(info, "scale", &a.scale);
  if (status != nullptr) {
    ort::call<ort::ReleaseStatus>(api, ort::kReleaseStatus)(status);
    return ort::fail(api, ort::kInvalidGraph, "attention: attribute 'scale' is missing");
  }
  if (nq_attention_check(&a) != NQ_OK) {
    return ort::fail(api, ort::kInvalidGraph,
                     "attention: %" PRId64 " heads on %" PRId64 " of %" PRId64
                     " channels, scale %g, cannot be computed",
                     a.heads, a.kv_heads, a.head_dim, static_cast<double>(a.scale));
  }
  return nullptr;
}

ort::ElementType cache_of(const ort::CustomOp* op) {
  return reinterpret_cast<const AttentionOp*>(op)->cache_type;
}

ort::Status* create(const ort::CustomOp* op, const ort::Api* api, const ort::KernelInfo* info,
                    void** state) {
  return make_state<AttentionKernel>(api, state, free, [=](AttentionKernel* kernel) {
    kernel->cache_type = cache_of(op);
    return prepare_kernel(api, info, kernel);
  });
}

const char* name(const ort::CustomOp* op) {
  return cache_of(op) == ort::kFloat ? "NanoQuantAttention" : "NanoQuantAttentionHalfCache";
}
ort::ElementType input_type(const ort::CustomOp* op, size_t index) {
  return type_of(index, cache_of(op));
}
ort::ElementType output_type(const ort::CustomOp* op, size_t index) {
  return index == 0 ? ort::kFloat : cache_of(op);
}

ort::Characteristic input_characteristic(const ort::CustomOp*, size_t index) {
  return index == kSlots ? ort::kOptional : ort::kRequired;
}

constexpr AttentionOp make_op(ort::ElementType cache_type) {
  ort::CustomOp op = plain_op({name, always<kInputs>, input_type, always<3>, output_type},
                              {create, compute, free, cpu_provider});
  op.GetInputCharacteristic = input_characteristic;
  return AttentionOp{op, cache_type};
}

const AttentionOp kOps[] = {make_op(ort::kFloat), make_op(ort::kFloat16)};

}  // namespace

int attention_op_count() { return static_cast<int>(sizeof kOps / sizeof kOps[0]); }

const ort::CustomOp* attention_op(int index) { return &kOps[index].op; }
