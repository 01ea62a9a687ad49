// SPDX-License-Identifier: Apache-2.0

#include "cpu/attend.h"
#include "cpu/isa.h"
#include "nq_attention.h"

extern "C" nq_status nq_attention_check(const nq_attention* attention) {
  if (attention == nullptr) return NQ_BAD_ARGUMENT;
  const nq_attention& a = *attention;
  const bool good = a.kv_heads >= 1 && a.heads >= a.kv_heads && a.heads <= 65536 &&
                    a.heads % a.kv_heads == 0 && a.head_dim >= 16 && a.head_dim <= 1024 &&
                    a.head_dim % 16 == 0 && a.window >= 0 && a.scale > 0.0f &&
                    (a.cache == NQ_FLOAT32 || a.cache == NQ_FLOAT16);
  return good ? NQ_OK : NQ_BAD_ARGUMENT;
}

extern "C" void nq_rotate(const float* x, int64_t heads, int64_t head_dim, const float* cosines,
                          const float* sines, float scale, float* out, int64_t out_stride) {
  const int64_t half = head_dim / 2;
  for (int64_t h = 0; h < heads; ++h) {
    const float* from = x + h * head_dim;
    float* to = out + h * out_stride;
    for (int64_t i = 0; i < half; ++i) {
      const float a = from[i] * scale;
      const float b = from[half + i] * scale;
      to[i] = a * cosines[i] - b * sines[i];
      to[half + i] = b * cosines[i] + a * sines[i];
    }
  }
}

extern "C" void nq_keep(const nq_attention* attention, const float* x, int64_t count, void* out) {
  nq_isa()->from_float(x, attention->cache, count, out);
}

extern "C" size_t nq_attend_scratch(const nq_attention* attention, int64_t rows, int64_t last) {
  return attend_floats(*attention, rows, last) * sizeof(float);
}

extern "C" void nq_attend(const nq_attention* attention, const float* queries, int64_t rows,
                          int64_t first, const void* keys, const void* values, float* y,
                          int64_t y_stride, void* scratch) {
  nq_isa()->attend(attention, queries, rows, first, keys, values, y, y_stride,
                   static_cast<float*>(scratch));
}
