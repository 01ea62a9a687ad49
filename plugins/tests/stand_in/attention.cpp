// SPDX-License-Identifier: Apache-2.0
//
// nq_cuda_attention.h on the CPU, token by token in float64. Queries, keys and values are rounded
// where the library rounds them: to the attention's type or to the cache's codes.

#include <math.h>

#include <vector>

#include "../../kernels/cuda/attention/check.h"
#include "../typed.h"
#include "stream.h"

namespace {

constexpr size_t kWorkspace = 4096;

// A new token: its row, sequence and place.
struct Token {
  int64_t row, sequence, place;
};

// Where a token lies in the cache, in tokens of one key/value head; -1 if nowhere.
int64_t slot_of(const nq_cuda_attention& a, int64_t sequence, int64_t kv, int64_t place) {
  const nq_cuda_cache& cache = a.cache;
  if (place < 0 || place >= nq_cuda::attention_capacity(cache)) return -1;
  int64_t page = sequence;
  if (cache.page_table != nullptr) {
    page = cache.page_table[sequence * cache.table_stride + place / cache.page_tokens];
  }
  if (page < 0 || page >= cache.pages) return -1;
  return (page * a.kv_heads + kv) * cache.page_tokens + place % cache.page_tokens;
}

std::vector<Token> new_tokens(const nq_cuda_attention& a) {
  std::vector<Token> tokens;
  for (int64_t s = 0; s < a.sequences; ++s) {
    const int64_t begin = a.starts == nullptr ? s * a.max_tokens : a.starts[s];
    const int64_t end = a.starts == nullptr ? begin + a.max_tokens : a.starts[s + 1];
    for (int64_t row = begin; row < end && row < begin + a.max_tokens; ++row) {
      const int64_t place = a.positions[s] + row - begin;
      if (a.positions[s] >= 0 && slot_of(a, s, 0, place) >= 0) tokens.push_back({row, s, place});
    }
  }
  return tokens;
}

// One head, normed and rotated.
std::vector<double> turned(const nq_cuda_attention& a, const void* from, int64_t begin,
                           const float* norm, int64_t place) {
  const int half = a.head_dim / 2;
  std::vector<double> x(static_cast<size_t>(a.head_dim));
  double squares = 0.0;
  for (int i = 0; i < a.head_dim; ++i) {
    x[i] = get(from, a.type, begin + i);
    squares += x[i] * x[i];
  }
  for (int i = 0; norm != nullptr && i < a.head_dim; ++i) {
    x[i] *= norm[i] / sqrt(squares / a.head_dim + a.norm_eps);
  }
  for (int i = 0; a.frequencies != nullptr && i < half; ++i) {
    const float angle = static_cast<float>(place) * a.frequencies[i];
    const double low = x[i], high = x[half + i];
    x[i] = low * cos(angle) - high * sin(angle);
    x[half + i] = high * cos(angle) + low * sin(angle);
  }
  return x;
}

void keep(const nq_cuda_attention& a, const std::vector<double>& x, void* to, void* scales,
          int64_t slot) {
  const int64_t begin = slot * a.head_dim;
  if (a.cache.bits == 16) {
    for (int i = 0; i < a.head_dim; ++i) {
      put(to, a.type, begin + i, static_cast<float>(x[i]));
    }
    return;
  }
  double most = 0.0;
  for (double value : x) most = fmax(most, fabs(value));
  const float wanted = fminf(fmaxf(static_cast<float>(most / 127.0), 0x1p-24f), 65504.0f);
  uint16_t scale = float_to_half(wanted);
  if (half_to_float(scale) < wanted) ++scale;
  static_cast<uint16_t*>(scales)[slot] = scale;
  for (int i = 0; i < a.head_dim; ++i) {
    const double code = fmax(-127.0, fmin(127.0, rint(x[i] / half_to_float(scale))));
    static_cast<int8_t*>(to)[begin + i] = static_cast<int8_t>(code);
  }
}

double kept(const nq_cuda_attention& a, const void* from, const void* scales, int64_t slot, int i) {
  const int64_t at = slot * a.head_dim + i;
  if (a.cache.bits == 16) return get(from, a.type, at);
  return static_cast<const int8_t*>(from)[at] * get(scales, NQ_FLOAT16, slot);
}

void attend(const nq_cuda_attention& a, const Token& token, int64_t head) {
  const int64_t kv = head / (a.heads / a.kv_heads);
  const int64_t oldest = token.place - a.window + 1;
  const int64_t first = a.window == 0 || oldest < 0 ? 0 : oldest;
  const int64_t query = token.row * a.q_stride + head * a.head_dim;
  std::vector<double> scores, sums(static_cast<size_t>(a.head_dim));
  double most = -INFINITY, total = 0.0;
  for (int64_t place = first; place <= token.place; ++place) {
    const int64_t slot = slot_of(a, token.sequence, kv, place);
    double score = 0.0;
    for (int i = 0; i < a.head_dim; ++i) {
      score += get(a.q, a.type, query + i) * kept(a, a.cache.keys, a.cache.key_scales, slot, i);
    }
    score *= a.scale;
    if (a.soft_cap != 0.0f) score = a.soft_cap * tanh(score / a.soft_cap);
    scores.push_back(score);
    most = fmax(most, score);
  }
  for (int64_t place = first; place <= token.place; ++place) {
    const int64_t slot = slot_of(a, token.sequence, kv, place);
    const double weight = exp(scores[static_cast<size_t>(place - first)] - most);
    total += weight;
    for (int i = 0; i < a.head_dim; ++i) {
      sums[i] += weight * kept(a, a.cache.values, a.cache.value_scales, slot, i);
    }
  }
  for (int i = 0; i < a.head_dim; ++i) {
    put(a.y, a.type, token.row * a.y_stride + head * a.head_dim + i,
        static_cast<float>(sums[i] / total));
  }
}

void append(const nq_cuda_attention& a, const Token& token) {
  for (int64_t head = 0; head < a.heads; ++head) {
    const std::vector<double> query =
        turned(a, a.q, token.row * a.q_stride + head * a.head_dim, a.q_norm, token.place);
    for (int i = 0; i < a.head_dim; ++i) {
      put(a.y, a.type, token.row * a.y_stride + head * a.head_dim + i,
          static_cast<float>(query[i]));
    }
  }
  for (int64_t kv = 0; kv < a.kv_heads; ++kv) {
    const int64_t slot = slot_of(a, token.sequence, kv, token.place);
    const std::vector<double> key =
        turned(a, a.k, token.row * a.k_stride + kv * a.head_dim, a.k_norm, token.place);
    std::vector<double> value(static_cast<size_t>(a.head_dim));
    for (int i = 0; i < a.head_dim; ++i) {
      value[i] = get(a.v, a.type, token.row * a.v_stride + kv * a.head_dim + i);
    }
    keep(a, key, a.cache.keys, a.cache.key_scales, slot);
    keep(a, value, a.cache.values, a.cache.value_scales, slot);
  }
}

nq_status append_all(const nq_cuda_attention& a) {
  for (const Token& token : new_tokens(a)) append(a, token);
  return NQ_OK;
}

// The library's counters must be zero whenever it is called, so it is told when they are not.
nq_status attend_all(const nq_cuda_attention& a) {
  for (size_t i = 0; i < kWorkspace; ++i) {
    if (static_cast<const char*>(a.workspace)[i] != 0) return NQ_WORKSPACE;
  }
  for (const Token& token : new_tokens(a)) {
    for (int64_t head = 0; head < a.heads; ++head) attend(a, token, head);
  }
  return NQ_OK;
}

nq_status check(const nq_cuda_attention* a, bool appends, bool attends) {
  if (a == nullptr) return NQ_BAD_ARGUMENT;
  const nq_status status = nq_cuda::check_attention(*a, appends);
  if (status != NQ_OK || !attends) return status;
  const bool there = a->workspace != nullptr && a->workspace_bytes >= kWorkspace;
  return there && reinterpret_cast<uintptr_t>(a->workspace) % 256 == 0 ? NQ_OK : NQ_WORKSPACE;
}

}  // namespace

NQ_EXPORT size_t nq_cuda_attend_workspace_bytes(const nq_cuda_attention* a) {
  return a != nullptr && nq_cuda::check_attention_shape(*a) == NQ_OK ? kWorkspace : 0;
}

NQ_EXPORT nq_status nq_cuda_rotary_append(const nq_cuda_attention* a, void* stream) {
  const nq_status status = check(a, true, false);
  if (status != NQ_OK) return status;
  return stand_in::enqueue(stream, [a = *a] { return append_all(a); });
}

NQ_EXPORT nq_status nq_cuda_attend_many(const nq_cuda_attention* a, void* stream) {
  const nq_status status = check(a, false, true);
  if (status != NQ_OK) return status;
  return stand_in::enqueue(stream, [a = *a] { return attend_all(a); });
}

NQ_EXPORT nq_status nq_cuda_attend(const nq_cuda_attention* a, void* stream) {
  const nq_status status = check(a, true, true);
  if (status != NQ_OK) return status;
  if (a->max_tokens != 1 || a->starts != nullptr) return NQ_BAD_ARGUMENT;
  nq_cuda_attention rotated = *a;
  rotated.q = a->y;
  rotated.q_stride = a->y_stride;
  return stand_in::enqueue(stream, [a = *a, rotated] {
    const nq_status appended = append_all(a);
    return appended == NQ_OK ? attend_all(rotated) : appended;
  });
}
