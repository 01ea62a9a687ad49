// SPDX-License-Identifier: Apache-2.0
//
// Tables of bytes for lookups that a byte permutation does, 16 or more at once (T-MAC, arXiv
// 2407.00088, looks up bytes so). The sixteen sums that four neighbouring columns can have are
// rounded to 16 bits, in units of one scale for each group of 64 columns, and are kept as two
// planes of bytes, low and high, whose lookups are added as integers: exactly, in any order.
//
// A unit is the largest sum of the group over kLargestSum. For values of one size an error of
// rounding is then 2.4e-5 of the product; where one value outweighs the rest of its group, which is
// the worst case, 3.5e-5. Fewer bits do not hold 1e-4 after two products: 14 lose four times that.
//
// Tables of a word (32 columns) are kWordBytes bytes: for the low halves of its four bytes, then
// for the high ones, four tables of low bytes and four of high bytes (biased by 128, so that both
// are unsigned). Scales of all groups follow after the last word.

#ifndef NQ_CPU_SIGNS_BYTE_TABLES_H
#define NQ_CPU_SIGNS_BYTE_TABLES_H

#include <stdint.h>

namespace {

constexpr int kWordBytes = 256;    // of tables
constexpr int kPlaneBytes = 64;    // of one plane of half a word's tables
constexpr int kGroupColumns = 64;  // that share a scale
constexpr int kGroupWords = kGroupColumns / 32;
constexpr int kWordLookups = 8;
constexpr float kLargestSum = 32766.0f;  // rounded sums stay in 16 bits, whichever way they round
// Groups whose sums are all smaller count as zero: one over them is not a number.
constexpr float kSmallestSum = 1e-30f;
// What the biased bytes of one lookup are too large by.
constexpr int kLookupBias = 128 * 256;

inline int64_t byte_table_bytes(int64_t words) {
  const int64_t scales = (words + kGroupWords - 1) / kGroupWords * 4;
  return words * kWordBytes + (scales + 63) / 64 * 64;
}

inline float* byte_table_scales(uint8_t* row, int64_t words) {
  return reinterpret_cast<float*>(row + words * kWordBytes);
}

inline const float* byte_table_scales(const uint8_t* row, int64_t words) {
  return reinterpret_cast<const float*>(row + words * kWordBytes);
}

// V has: Floats, whose 128-bit lanes belong to kTables neighbouring tables; quads(x, half, part),
// four columns in each lane: of table `part` * kTables + lane of that half of the word x points to;
// each(q, i), lanes filled with their i-th value; signed0 and signed1, (a, -a, a, -a) and
// (a, a, -a, -a) lane by lane, the latter plus b; scaled, add, subtract; put(a, b, c, d, low,
// high), the sums of entries 0-3, 4-7, 8-11 and 12-15 of each table rounded to nearest even and
// split; largest(x, columns), the largest sum of magnitudes of four columns: not finite if one is
// not.
template <class V>
struct ByteTables {
  using Floats = typename V::Floats;

  // Entry i of a table adds column c where bit c of i is 0 and subtracts it where it is 1.
  static void half_word(const float* x, int half, float inverse, uint8_t* out) {
    for (int part = 0; part < 4 / V::kTables; ++part) {
      const Floats q = V::scaled(V::quads(x, half, part), inverse);
      const Floats near = V::signed1(V::template each<1>(q), V::signed0(V::template each<0>(q)));
      const Floats third = V::template each<2>(q);
      const Floats fourth = V::template each<3>(q);
      const Floats sum = V::add(fourth, third);
      const Floats difference = V::subtract(fourth, third);
      uint8_t* low = out + part * V::kTables * 16;
      V::put(V::add(near, sum), V::add(near, difference), V::subtract(near, difference),
             V::subtract(near, sum), low, low + kPlaneBytes);
    }
  }

  // What a group's values are multiplied by; puts its unit into `scale`.
  static float inverse(float largest, float* scale) {
    *scale = largest * 0.0f;  // of what is not finite: not a number
    if (!(largest >= kSmallestSum) || *scale != 0.0f) return 0.0f;
    *scale = largest / kLargestSum;
    return kLargestSum / largest;
  }

  // See NqSigns::make_tables. A group's unit takes a chain of dependent operations: those of four
  // groups run side by side.
  static void make(const float* x, int64_t first, int64_t columns, int64_t words, uint8_t* row) {
    constexpr int kGroups = 4;
    float* scales = byte_table_scales(row, words) + first / kGroupColumns;
    uint8_t* out = row + first / 32 * kWordBytes;
    for (int64_t c = 0; c < columns; c += kGroups * kGroupColumns) {
      const int64_t left =
          columns - c < kGroups * kGroupColumns ? columns - c : kGroups * kGroupColumns;
      float inverses[kGroups];
      for (int g = 0; g * kGroupColumns < left; ++g) {
        const int64_t at = g * kGroupColumns;
        const int64_t count = left - at < kGroupColumns ? left - at : kGroupColumns;
        inverses[g] = inverse(V::largest(x + c + at, count), scales++);
      }
      for (int64_t w = 0; w < left; w += 32, out += kWordBytes) {
        half_word(x + c + w, 0, inverses[w / kGroupColumns], out);
        half_word(x + c + w, 1, inverses[w / kGroupColumns], out + kWordBytes / 2);
      }
    }
  }
};

}  // namespace

#endif  // NQ_CPU_SIGNS_BYTE_TABLES_H
