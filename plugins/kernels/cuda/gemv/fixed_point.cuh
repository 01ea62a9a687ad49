// SPDX-License-Identifier: Apache-2.0
//
// A warp turns 256 activations into 16-bit fixed point and deals the bits out as B fragments of the
// tensor cores: as sixteen bit planes for mma.m16n8k256.b1, or as two planes of bytes for
// mma.m16n8k32.s8. Lane l starts with columns 8 l to 8 l + 7, so the 32 columns of word w of a
// tile's row (nq_kernels.h, layout 1) come from the lanes 4 w to 4 w + 3.

#ifndef NQ_CUDA_GEMV_FIXED_POINT_CUH
#define NQ_CUDA_GEMV_FIXED_POINT_CUH

#include <cstdint>

#include "cuda/ptx.cuh"

namespace nq_cuda {

// The largest integer whose two balanced base-256 digits are both signed bytes: 127 * 256 + 127.
constexpr float kFixedMax = 32639.0f;

// 1.5 * 2^23: added to a float of magnitude under 2^22, it leaves the rounded integer in the low
// bits of the sum's representation.
constexpr float kRoundMagic = 12582912.0f;
constexpr uint32_t kRoundMagicBits = 0x4b400000u;

// Words of the fragments of one row of activations and one column tile.
constexpr int kFragmentWords = 128;

// Bit i of byte j becomes bit j of byte i, over the eight bytes of (low, high).
__device__ __forceinline__ void transpose_bits(uint32_t& low, uint32_t& high) {
  uint32_t t = (low ^ (low >> 7)) & 0x00aa00aau;
  low ^= t ^ (t << 7);
  t = (high ^ (high >> 7)) & 0x00aa00aau;
  high ^= t ^ (t << 7);
  t = (low ^ (low >> 14)) & 0x0000ccccu;
  low ^= t ^ (t << 14);
  t = (high ^ (high >> 14)) & 0x0000ccccu;
  high ^= t ^ (t << 14);
  t = (low ^ (high << 4)) & 0xf0f0f0f0u;
  low ^= t;
  high ^= t >> 4;
}

// What dealing needs to know of a lane, to be made before the values are there.
struct Dealer {
  uint32_t first_mix, second_mix;  // byte selectors of the two exchanges
  int low_slot, step_slot;         // places in the fragments, in bytes: bits, bytes

  __device__ __forceinline__ explicit Dealer(int lane) {
    first_mix = lane & 1 ? 0x3715 : 0x6240;
    second_mix = lane & 2 ? 0x3276 : 0x5410;
    const int j = lane & 3, q = (lane >> 2) & 3, half = lane >> 4;
    low_slot = ((j * 4 + q) * 4 + half) * 4;
    step_slot = (((j >> 1) * 8 + q) * 4 + (j & 1) * 2 + half) * 4;
    keep(first_mix), keep(second_mix), keep(low_slot), keep(step_slot);
  }

  // Byte j of the four lanes 4 w to 4 w + 3 gathers in lane 4 w + j.
  __device__ __forceinline__ uint32_t gather(uint32_t value) const {
    uint32_t other = __shfl_xor_sync(0xffffffffu, value, 1);
    value = __byte_perm(value, other, first_mix);
    other = __shfl_xor_sync(0xffffffffu, value, 2);
    return __byte_perm(value, other, second_mix);
  }
};

// Deals the fixed-point values `fixed` (two's complement in the low 16 bits) out to `fragments`,
// a shared-memory address.
//
// Bits: word 4 l + 2 h + i of the result belongs to lane l of mma.m16n8k256, i says which of its
// two B registers, and column g of the fragment is plane 8 h + g, bit 8 h + g of the values.
//
// Bytes: with digit d (0 low, 1 high), lane part q and step s, word 4 (8 (s / 2) + 4 d + q) +
// 2 (s mod 2) + i is B register i of mma.m16n8k32 in step s, which takes the columns 8 b + s of
// every word, for a lane with l mod 4 = q.
template <bool BITS>
__device__ __forceinline__ void deal(const uint32_t (&fixed)[8], uint32_t fragments,
                                     const Dealer& dealer) {
  uint32_t planes[4];
  const uint32_t p01 = __byte_perm(fixed[0], fixed[1], 0x5410);
  const uint32_t p23 = __byte_perm(fixed[2], fixed[3], 0x5410);
  const uint32_t p45 = __byte_perm(fixed[4], fixed[5], 0x5410);
  const uint32_t p67 = __byte_perm(fixed[6], fixed[7], 0x5410);
  planes[0] = __byte_perm(p01, p23, 0x6420);
  planes[1] = __byte_perm(p45, p67, 0x6420);
  if (BITS) {
    planes[2] = __byte_perm(p01, p23, 0x7531);
    planes[3] = __byte_perm(p45, p67, 0x7531);
    transpose_bits(planes[0], planes[1]);
    transpose_bits(planes[2], planes[3]);
  } else {
    // The high digit takes the carry of a low digit that counts as negative.
    const uint32_t c01 = __vadd2(p01, 0x00800080u), c23 = __vadd2(p23, 0x00800080u);
    const uint32_t c45 = __vadd2(p45, 0x00800080u), c67 = __vadd2(p67, 0x00800080u);
    planes[2] = __byte_perm(c01, c23, 0x7531);
    planes[3] = __byte_perm(c45, c67, 0x7531);
  }
  // Lane 4 w + j now gathers word w of plane (step and digit) 4 i + j for each i.
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int slot = BITS ? dealer.low_slot + (i & 1) * 256 + (i >> 1) * 8
                          : dealer.step_slot + (i & 1) * 256 + (i >> 1) * 64;
    store_shared(fragments + slot, dealer.gather(planes[i]));
  }
}

}  // namespace nq_cuda

#endif  // NQ_CUDA_GEMV_FIXED_POINT_CUH
