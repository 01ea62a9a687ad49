// SPDX-License-Identifier: Apache-2.0
//
// Attention of one key head over the vector types of the panel kernels: scores, softmax, weighted
// sum of the values. A few queries turn the keys round in registers; more queries share keys that
// are turned round into the panel kernel's tiles. The weighted sum reads the values where they are,
// if the head's width allows it.
//
// A token's result is the same to the bit however many others are computed with it: both ways add
// the channels in the same order, and weights lie in lanes by their absolute position.
//
// V has what panel.h asks for, and: load_turned(rows, column, out), four columns of kLanes rows.

#ifndef NQ_CPU_ATTEND_H
#define NQ_CPU_ATTEND_H

#include <string.h>

#include "cpu/isa.h"
#include "nq_attention.h"

// Keys of one block of scores: what the widest micro-kernel takes.
constexpr int64_t kKeyBlock = kPanelRows;
// The most query vectors that turn the keys round in registers.
constexpr int64_t kDirectQueries = 12;

namespace {

// The first key of the first block: where the window begins, or a little before.
inline int64_t lowest_key(const nq_attention& a, int64_t first) {
  return a.window > 0 && first + 1 > a.window ? (first + 1 - a.window) / 16 * 16 : 0;
}

inline int64_t key_blocks(const nq_attention& a, int64_t first, int64_t rows) {
  return (first + rows - lowest_key(a, first) + kKeyBlock - 1) / kKeyBlock;
}

// Floats of scratch: scores, one tile, sums of values.
inline size_t attend_floats(const nq_attention& a, int64_t rows, int64_t last) {
  const int64_t queries = rows * (a.heads / a.kv_heads);
  const int64_t width = (a.head_dim + kPanelRows - 1) / kPanelRows * kPanelRows;
  const int64_t scores = queries * key_blocks(a, last + 1 - rows, rows) * kKeyBlock;
  const int64_t wide = a.cache == NQ_FLOAT32 ? 0 : kKeyBlock * a.head_dim;
  return static_cast<size_t>(scores + width * kKeyBlock + queries * width + wide);
}

// exp(x) for x <= 0 in single precision: 2^n times a polynomial (Cephes expf, S. Moshier). NaN
// comes out as NaN, by the polynomial; its exponent must be a number, since it becomes an integer.
inline float exponential(float x) {
  const float finite = x > -87.0f ? x : -87.0f;
  x = x < -87.0f ? -87.0f : x;
  const float n = (finite * 1.44269504f + 12582912.0f) - 12582912.0f;
  const float f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * f * f + f + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) * (1 << 23);
  float power;
  memcpy(&power, &bits, sizeof power);
  return p * power;
}

// Widen is NqIsa::to_float of the instruction set.
template <class V, class P, void (*Widen)(const void*, nq_type, int64_t, float*)>
struct Attend {
  static constexpr int64_t kWidth = P::kWidth;

  // Entries [begin, begin + count) of the cache, `dim` numbers each, as floats: where they are, or
  // widened into `wide`. As many further on are fetched meanwhile: the hardware's prefetchers stop
  // at every page.
  static const float* entries(const nq_attention& a, const void* cache, int64_t begin,
                              int64_t count, float* wide) {
    const int64_t first = begin * a.head_dim, numbers = count * a.head_dim;
    if (a.cache == NQ_FLOAT32) return static_cast<const float*>(cache) + first;
    const uint16_t* from = static_cast<const uint16_t*>(cache) + first;
    for (int64_t i = 0; i < numbers; i += 32) __builtin_prefetch(from + numbers + i);
    Widen(from, a.cache, numbers, wide);
    return wide;
  }

  // Turns scores into weights whose sum is returned. Blocks of a query lie `pitch` floats apart;
  // the query sees keys [low, high) of them.
  static float soften(float* scores, int64_t pitch, int64_t blocks, int64_t low, int64_t high) {
    float most[16];
    float sum[16] = {};
    for (int l = 0; l < 16; ++l) most[l] = -3.0e38f;
    for (int64_t b = 0; b < blocks; ++b) {
      float* block = scores + b * pitch;
      const int64_t begin = low - b * kKeyBlock;
      const int64_t end = high - b * kKeyBlock;
      for (int64_t j = 0; j < kKeyBlock && j < begin; ++j) block[j] = -3.0e38f;
      for (int64_t j = end < 0 ? 0 : end; j < kKeyBlock; ++j) block[j] = -3.0e38f;
      for (int64_t j = 0; j < kKeyBlock; j += 16) {
        for (int l = 0; l < 16; ++l) most[l] = block[j + l] > most[l] ? block[j + l] : most[l];
      }
    }
    for (int l = 1; l < 16; ++l) most[0] = most[l] > most[0] ? most[l] : most[0];
    const float largest = most[0];
    for (int64_t b = 0; b < blocks; ++b) {
      float* block = scores + b * pitch;
      for (int64_t j = 0; j < kKeyBlock; j += 16) {
        for (int l = 0; l < 16; ++l) {
          const float weight = block[j + l] < -2.9e38f ? 0.0f : exponential(block[j + l] - largest);
          block[j + l] = weight;
          sum[l] += weight;
        }
      }
    }
    for (int l = 8; l > 0; l /= 2) {
      for (int i = 0; i < l; ++i) sum[i] += sum[i + l];
    }
    return sum[0];
  }

  // sum[q][i] = query q times key i, for kQueries queries and kLanes keys.
  template <int kQueries>
  static void turned(const float* queries, int64_t dim, const float* const* keys, float* scores) {
    typename V::Floats sum[kQueries];
    for (int q = 0; q < kQueries; ++q) sum[q] = V::zero();
    for (int64_t d = 0; d < dim; d += 4) {
      typename V::Floats columns[4];
      V::load_turned(keys, d, columns);
      for (int i = 0; i < 4; ++i) {
        for (int q = 0; q < kQueries; ++q) {
          sum[q] = V::fma(queries[q * dim + d + i], columns[i], sum[q]);
        }
      }
    }
    for (int q = 0; q < kQueries; ++q) V::store(scores + q * kKeyBlock, sum[q]);
  }

  template <int kQueries>
  static void some_turned(int64_t number, const float* queries, int64_t dim,
                          const float* const* keys, float* scores) {
    if (number == kQueries) {
      turned<kQueries>(queries, dim, keys, scores);
    } else if constexpr (kQueries > 1) {
      some_turned<kQueries - 1>(number, queries, dim, keys, scores);
    }
  }

  // scores[q * kKeyBlock + j] = query q times key j, for `count` keys. Keys further on and the same
  // slots' values, if there are any, are fetched meanwhile.
  static void direct(const float* queries, int64_t number, int64_t dim, const float* keys,
                     const float* values, int64_t count, float* scores) {
    constexpr int64_t kAhead = 2048;  // floats
    constexpr int64_t kTogether = 4;  // queries
    for (int64_t part = 0; part < count; part += V::kLanes) {
      // Keys past the last repeat it: their scores are masked.
      const float* rows[V::kLanes];
      for (int64_t i = 0; i < V::kLanes; ++i) {
        const int64_t j = part + i < count ? part + i : count - 1;
        rows[i] = keys + j * dim;
        for (int64_t d = 0; d < dim && values != nullptr; d += 16) {
          __builtin_prefetch(rows[i] + kAhead + d);
          __builtin_prefetch(values + j * dim + d);
        }
      }
      for (int64_t q = 0; q < number; q += kTogether) {
        some_turned<kTogether>(number - q < kTogether ? number - q : kTogether, queries + q * dim,
                               dim, rows, scores + q * kKeyBlock + part);
      }
    }
  }

  // The same by tiles of transposed keys.
  static void tiled(const float* queries, int64_t number, int64_t dim, const float* keys,
                    int64_t count, float* tile, float* scores) {
    for (int64_t part = 0; part < kKeyBlock; part += kWidth) {
      for (int64_t j = 0; j < kWidth; ++j) {
        const float* key = keys + (part + j < count ? part + j : count - 1) * dim;
        for (int64_t d = 0; d < dim; ++d) tile[d * kWidth + j] = key[d];
      }
      P::multiply(queries, dim, number, static_cast<int>(dim), tile, kWidth, scores + part, true);
    }
  }

  static void run(const nq_attention* attention, const float* queries, int64_t rows, int64_t first,
                  const void* keys, const void* values, float* y, int64_t y_stride,
                  float* scratch) {
    const nq_attention& a = *attention;
    const int64_t dim = a.head_dim;
    const int64_t group = a.heads / a.kv_heads;
    const int64_t number = rows * group;
    const int64_t blocks = key_blocks(a, first, rows);
    const int64_t low = lowest_key(a, first);
    const int64_t total = first + rows - low;
    const int64_t width = (dim + kPanelRows - 1) / kPanelRows * kPanelRows;
    const int64_t pitch = number * kKeyBlock;
    float* scores = scratch;
    float* tile = scores + blocks * pitch;
    float* sums = tile + width * kKeyBlock;
    float* wide = sums + number * width;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t at = b * kKeyBlock;
      const int64_t count = total - at < kKeyBlock ? total - at : kKeyBlock;
      const float* from = entries(a, keys, low + at, count, wide);
      if (number <= kDirectQueries) {
        const float* there = nullptr;
        if (a.cache == NQ_FLOAT32) there = static_cast<const float*>(values) + (low + at) * dim;
        direct(queries, number, dim, from, there, count, scores + b * pitch);
      } else {
        tiled(queries, number, dim, from, count, tile, scores + b * pitch);
      }
    }
    for (int64_t q = 0; q < number; ++q) {
      const int64_t position = first + q / group;
      const int64_t begin = a.window > 0 && position + 1 > a.window ? position + 1 - a.window : 0;
      const float sum =
          soften(scores + q * kKeyBlock, pitch, blocks, begin - low, position + 1 - low);
      const float factor = 1.0f / sum;
      for (int64_t b = 0; b < blocks; ++b) {
        float* block = scores + b * pitch + q * kKeyBlock;
        for (int64_t j = 0; j < kKeyBlock; ++j) block[j] *= factor;
      }
    }
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t at = b * kKeyBlock;
      const int64_t count = total - at < kKeyBlock ? total - at : kKeyBlock;
      const float* from = entries(a, values, low + at, count, wide);
      for (int64_t part = 0; part < dim; part += kWidth) {
        const float* panel = from + part;
        int64_t step = dim;
        if (dim % kWidth != 0) {
          const int64_t columns = dim - part < kWidth ? dim - part : kWidth;
          for (int64_t j = 0; j < count; ++j) {
            for (int64_t d = 0; d < columns; ++d) tile[j * kWidth + d] = from[j * dim + part + d];
            for (int64_t d = columns; d < kWidth; ++d) tile[j * kWidth + d] = 0.0f;
          }
          panel = tile;
          step = kWidth;
        }
        float* out = sums + part / kPanelRows * number * kPanelRows + part % kPanelRows;
        P::multiply(scores + b * pitch, kKeyBlock, number, static_cast<int>(count), panel, step,
                    out, b == 0);
      }
    }
    for (int64_t q = 0; q < number; ++q) {
      float* out = y + q / group * y_stride + q % group * dim;
      for (int64_t part = 0; part < dim; part += kPanelRows) {
        const int64_t columns = dim - part < kPanelRows ? dim - part : kPanelRows;
        memcpy(out + part, sums + (part / kPanelRows * number + q) * kPanelRows,
               static_cast<size_t>(columns) * sizeof(float));
      }
    }
  }
};

}  // namespace

#endif  // NQ_CPU_ATTEND_H
