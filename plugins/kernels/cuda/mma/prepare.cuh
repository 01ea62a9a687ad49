// SPDX-License-Identifier: Apache-2.0
//
// Activations to planes of 8-bit digits: one warp per row and group of 256 columns, one block per
// fragment block of 8 rows. Nothing here needs a whole row: the norm's factor is applied after the
// first product, which is linear in it.

#ifndef NQ_CUDA_MMA_PREPARE_CUH
#define NQ_CUDA_MMA_PREPARE_CUH

#include "cuda/mma/types.cuh"
#include "cuda/ptx.cuh"

namespace nq_cuda {
namespace mma {

__device__ __forceinline__ float gate(float g, nq_input input) {
  if (input == NQ_INPUT_SILU) return g / (1.0f + expf(-g));
  const float inner = 0.7978845608028654f * (g + 0.044715f * g * g * g);
  return 0.5f * g * (1.0f + tanhf(inner));
}

// f(x) scale_in for the lane's eight columns; `squares` becomes the sum of x^2 under the norm.
__device__ __forceinline__ void input_values(const PrepareParams& p, const PrepareLayer& layer,
                                             int64_t row, int64_t column, float (&v)[8],
                                             float* squares) {
  const int64_t valid = layer.columns - column;
  const int64_t at = row * layer.x_stride + column;
  load_values<8>(layer.x, p.x_type, at, valid, v);
  float other[8];
  if (p.input == NQ_INPUT_RMS_NORM) {
    load_values<8>(p.norm_weight, NQ_FLOAT32, column, valid, other);
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      total += v[i] * v[i];
      v[i] *= other[i];
    }
    *squares = total;
  } else if (p.input != NQ_INPUT_PLAIN) {
    const char* half = static_cast<const char*>(layer.x) + layer.columns * 2;
    load_values<8>(half, p.x_type, at, valid, other);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = i < valid ? gate(v[i], p.input) * other[i] : 0.0f;
  }
  if (layer.scale_in != nullptr) {
    load_values<8>(layer.scale_in, p.scale_type, column, valid, other);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] *= other[i];
  }
}

// 1 / sqrt(mean(x^2) + eps) of a row from its groups' sums; 1 without a norm.
__device__ __forceinline__ float norm_factor(const PrepareParams& p, int64_t row, int lane) {
  if (p.squares_in == nullptr) return 1.0f;
  float total = 0.0f;
  for (int k = lane; k < p.norm_tiles; k += 32) total += p.squares_in[k * p.rows_padded + row];
  total = warp_sum(total);
  return 1.0f / sqrtf(total / static_cast<float>(p.norm_columns) + p.norm_eps);
}

// A lane holds one byte for each of eight k-steps (low word: steps 0 to 3); its quad holds the four
// bytes of each step's word. Afterwards lane b of the quad has the words of steps 2 b and 2 b + 1.
__device__ __forceinline__ uint2 transpose_quad(uint32_t low, uint32_t high, int lane) {
  const bool upper = lane & 2, odd = lane & 1;
  const uint32_t got = __shfl_xor_sync(0xffffffffu, upper ? low : high, 2);
  const uint32_t first = upper ? got : low;    // of lane (lane & 1) of the quad
  const uint32_t second = upper ? high : got;  // of lane (lane & 1) + 2
  const uint32_t keep = __byte_perm(first, second, odd ? 0x7632 : 0x5410);
  const uint32_t send = __byte_perm(first, second, odd ? 0x5410 : 0x7632);
  const uint32_t came = __shfl_xor_sync(0xffffffffu, send, 1);
  const uint32_t even_lanes = odd ? came : keep, odd_lanes = odd ? keep : came;
  return make_uint2(__byte_perm(even_lanes, odd_lanes, 0x6240),
                    __byte_perm(even_lanes, odd_lanes, 0x7351));
}

// Lane l has columns 8 l to 8 l + 7 of the group, that is byte l mod 4 of quad (l / 4) mod 4 in
// half l / 16; writes the row's 256 bytes of one fragment block, eight bytes a lane.
__device__ __forceinline__ void store_plane(uint32_t low, uint32_t high, int8_t* block, int row,
                                            int lane) {
  const uint2 words = transpose_quad(low, high, lane);
  const bool second = lane >= 16;
  const uint32_t came = __shfl_xor_sync(0xffffffffu, second ? words.x : words.y, 16);
  const uint2 pair = second ? make_uint2(came, words.y) : make_uint2(words.x, came);
  const int quad = lane / 4 % 4, chunk = lane % 4;
  *reinterpret_cast<uint2*>(block + chunk * 512 + (row * 4 + quad) * 16 + second * 8) = pair;
}

__device__ __forceinline__ uint32_t pack_bytes(const int (&q)[8], int from) {
  const uint32_t low = __byte_perm(q[from], q[from + 1], 0x0040);
  const uint32_t high = __byte_perm(q[from + 2], q[from + 3], 0x0040);
  return __byte_perm(low, high, 0x5410);
}

__global__ void __launch_bounds__(256) prepare(const __grid_constant__ PrepareParams p) {
  wait_for_predecessors();
  const PrepareLayer& layer = p.layer[blockIdx.y];
  const int k_tile = static_cast<int>(blockIdx.x % p.max_k_tiles);
  if (k_tile >= layer.k_tiles) return;
  const int64_t group = blockIdx.x / p.max_k_tiles;
  const int lane = threadIdx.x % 32, inside = threadIdx.x / 32;
  const int64_t row = group * kRowGroup + inside;
  float v[8] = {};
  float squares = 0.0f, factor = 1.0f;
  if (row < p.rows) {
    input_values(p, layer, row, static_cast<int64_t>(k_tile) * kTileColumns + lane * 8, v,
                 &squares);
    factor = norm_factor(p, row, lane);
  }
  // Bits of |v| order like |v| and put NaN above infinity, so a NaN reaches the scale.
  uint32_t bits = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) bits = max(bits, __float_as_uint(v[i]) & 0x7fffffffu);
  const float largest = __uint_as_float(warp_max(bits));
  const float limit = p.planes == 2 ? kTwoPlaneLimit : kOnePlaneLimit;
  // Below this the reciprocal leaves float32; such a group counts as zeros.
  const float inverse = largest > 1e-33f ? limit / largest : 0.0f;
  int q[8], total = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    q[i] = __float2int_rn(v[i] * inverse);
    total += q[i];
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(0xffffffffu, total, step);

  int8_t* block = layer.planes + (group * layer.k_tiles + k_tile) * p.planes * kBlockBytes;
  if (p.planes == 2) {
    int high[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) high[i] = (q[i] + 128) >> 8;  // the low digit is q - 256 high
    store_plane(pack_bytes(high, 0), pack_bytes(high, 4), block, inside, lane);
    block += kBlockBytes;
  }
  store_plane(pack_bytes(q, 0), pack_bytes(q, 4), block, inside, lane);
  const int64_t at = k_tile * p.rows_padded + row;
  if (p.squares_out != nullptr && blockIdx.y == 0) {
    squares = warp_sum(squares);
    if (lane == 0) p.squares_out[at] = squares;
  }
  if (lane == 0) {
    const float step = largest / limit * factor;
    layer.scale[at] = step;
    layer.sum[at] = step * static_cast<float>(total);
  }
}

}  // namespace mma
}  // namespace nq_cuda

#endif  // NQ_CUDA_MMA_PREPARE_CUH
