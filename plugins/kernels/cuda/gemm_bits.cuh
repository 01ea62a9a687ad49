// SPDX-License-Identifier: Apache-2.0
//
// Up to sixteen rows of activations on the one-bit tensor cores, for GPUs from sm_80 to sm_90.
//
// The activations are converted once by a launch of their own (bits_convert) into fixed-point bit
// planes, one scale for each row and slice of columns. In the product, a warp owns whole row tiles
// and walks along the columns: the block's warps share the planes of a column tile, each has its
// own weights, both on their way in a ring of stages. A row of activations and a tile take two
// instructions; at the end of a slice the integers of a quad of lanes are folded into floats.
// Where there are fewer row tiles than the GPU wants, blocks divide the columns (splits), and the
// next launch adds their sums in order.

#ifndef NQ_CUDA_GEMM_BITS_CUH
#define NQ_CUDA_GEMM_BITS_CUH

#include "gemv_convert.cuh"

namespace nq_cuda {

constexpr int kBitsRows = 16;   // most rows of activations of a launch
constexpr int kBitsWarps = 8;   // of a block
constexpr int kBitsStages = 4;  // column tiles on their way

// One half of the layers. `half.parts[i].out` is where results go; with several splits, or in the
// first half, float32 sums go to `sums`, [split][kBitsRows][out_stride].
struct BitsStage {
  GemvStage half;
  int slice_tiles;  // column tiles of a slice
  bool last;        // the second half
  int in_splits[NQ_CUDA_MAX_GROUP];
  int splits[NQ_CUDA_MAX_GROUP];
  float* sums[NQ_CUDA_MAX_GROUP];
  int64_t sums_stride[NQ_CUDA_MAX_GROUP];
};

// Row tiles of a warp: with few rows of activations, the planes are used for two.
__host__ __device__ constexpr int bits_row_tiles(int rows) { return rows > 8 ? 1 : 2; }

__host__ __device__ constexpr int bits_stage_bytes(int rows, int warps) {
  return (rows + warps * bits_row_tiles(rows)) * 512;
}

// The middle vector, added up over the splits of the first half.
template <int KPW>
__device__ __forceinline__ void read_middle(const GemvPart& part, int splits, int row, int column,
                                            float (&values)[KPW][8]) {
#pragma unroll
  for (int k = 0; k < KPW; ++k) {
#pragma unroll
    for (int i = 0; i < 8; ++i) values[k][i] = 0.0f;
  }
#pragma unroll 1
  for (int split = 0; split < splits; ++split) {
    const float* from = static_cast<const float*>(part.in) +
                        (static_cast<int64_t>(split) * kBitsRows + row) * part.in_stride + column;
#pragma unroll
    for (int k = 0; k < KPW; ++k) {
      if (column + k * 256 >= part.columns) continue;
      float more[8];
      unpack_eight(__ldcg(reinterpret_cast<const uint4*>(from + k * 256)),
                   __ldcg(reinterpret_cast<const uint4*>(from + k * 256) + 1), more);
#pragma unroll
      for (int i = 0; i < 8; ++i) values[k][i] += more[i];
    }
  }
}

// Converts one slice of one row: four warps with KPW column tiles each.
template <int KPW, Source SOURCE>
__global__ void __launch_bounds__(128) bits_convert(const __grid_constant__ BitsStage all) {
  __shared__ uint4 scratch[4][KPW * 32];
  __shared__ float facts_of_warp[4][3];
  const GemvStage& stage = all.half;
  const GemvPart& part = stage.parts[blockIdx.z];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int slice = blockIdx.x, row = blockIdx.y;
  const int tile = (slice * 4 + warp) * KPW, column = tile * 256 + lane * 8;
  float factors[KPW][8], values[KPW][8], squares = 0.0f;
  if (SOURCE == Source::kInput) load_factors<KPW>(stage, part, column, factors);
  const Dealer dealer(lane);
  // Only x is read by it; the middle vector comes in splits.
  const SliceReader<KPW, Source::kInput> reader(part, row, column);
  wait_for_predecessors();
  release_dependents();
  if constexpr (SOURCE == Source::kInput) {
    reader.read(stage, part, factors, values, &squares);
    if (stage.input == NQ_INPUT_RMS_NORM) squares = warp_sum(squares);
  } else {
    read_middle<KPW>(part, all.in_splits[blockIdx.z], row, column, values);
  }
  // The largest magnitude of the whole slice; magnitudes order as their bits do.
  uint32_t largest = 0;
#pragma unroll
  for (int k = 0; k < KPW; ++k) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      largest = max(largest, __float_as_uint(values[k][i]) & 0x7fffffffu);
    }
  }
  largest = warp_max(largest);
  if (lane == 0) {
    facts_of_warp[warp][0] = __uint_as_float(largest);
    facts_of_warp[warp][1] = squares;
  }
  __syncthreads();
#pragma unroll
  for (int other = 0; other < 4; ++other) {
    largest = max(largest, __float_as_uint(facts_of_warp[other][0]));
  }
  const float bound = __uint_as_float(largest);
  int total = 0;
  deal_slice<KPW, true>(values, bound, shared_address(scratch[warp]), dealer, &total);
  total = warp_sum(total);
  if (lane == 0) facts_of_warp[warp][2] = __uint_as_float(static_cast<uint32_t>(total));
  __syncthreads();
  if (threadIdx.x == 0) {
    SliceFacts facts = {bound * (1.0f / kFixedMax), 0, 0.0f, 0.0f};
    for (int other = 0; other < 4; ++other) {
      facts.total += static_cast<int>(__float_as_uint(facts_of_warp[other][2]));
      facts.squares += facts_of_warp[other][1];
    }
    part.facts[row * stage.slices + slice] = facts;
  }
#pragma unroll
  for (int k = 0; k < KPW; ++k) {
    if (tile + k < part.column_tiles) {
      part.fragments[(static_cast<int64_t>(row) * part.column_tiles + tile + k) * 32 + lane] =
          scratch[warp][k * 32 + lane];
    }
  }
}

// Adds `values[r]` of four rows r over the four lanes of a quad; lane q gets row q's sum.
__device__ __forceinline__ int scatter_rows(const int (&values)[4], int q) {
  const bool upper = q & 2, odd = q & 1;
  int keep0 = upper ? values[2] : values[0], keep1 = upper ? values[3] : values[1];
  keep0 += __shfl_xor_sync(0xffffffffu, upper ? values[0] : values[2], 2);
  keep1 += __shfl_xor_sync(0xffffffffu, upper ? values[1] : values[3], 2);
  return (odd ? keep1 : keep0) + __shfl_xor_sync(0xffffffffu, odd ? keep0 : keep1, 1);
}

template <int ROWS>
__global__ void __launch_bounds__(kBitsWarps * 32, 1)
    bits_product(const __grid_constant__ BitsStage all) {
  constexpr int kTiles = bits_row_tiles(ROWS);
  extern __shared__ uint4 shared[];
  const GemvStage& stage = all.half;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  const int g = lane >> 2, q = lane & 3;

  int index = 0;
  while (index + 1 < stage.count &&
         static_cast<int>(blockIdx.x) >= stage.parts[index + 1].first_block) {
    ++index;
  }
  const GemvPart& part = stage.parts[index];
  const int splits = all.splits[index], inside = blockIdx.x - part.first_block;
  const int split = inside % splits, first_tile = (inside / splits * warps + warp) * kTiles;
  const int column_tiles = part.column_tiles, slice_tiles = all.slice_tiles;
  const int slices = (column_tiles + slice_tiles - 1) / slice_tiles;
  const int slices_here = (slices + splits - 1) / splits;
  const int begin = split * slices_here * slice_tiles;
  const int end = min(column_tiles, begin + slices_here * slice_tiles);

  const uint32_t stage_bytes = (ROWS + warps * kTiles) * 512;
  const uint32_t planes = shared_address(shared);
  const uint32_t weights = planes + (ROWS + warp * kTiles) * 512 + lane * 16;
  const uint64_t policy = read_once_policy();
  auto ask_weights = [&](int k, int slot) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      if (first_tile + t < part.row_tiles) {
        copy_async_16(
            weights + slot * stage_bytes + t * 512,
            part.tiles + (static_cast<int64_t>(first_tile + t) * column_tiles + k) * 32 + lane,
            policy);
      }
    }
  };
  auto ask_planes = [&](int k, int slot) {
    for (int row = warp; row < stage.batch; row += warps) {
      copy_async_16(planes + slot * stage_bytes + row * 512 + lane * 16,
                    part.fragments + (static_cast<int64_t>(row) * column_tiles + k) * 32 + lane, 0);
    }
  };
#pragma unroll
  for (int slot = 0; slot < kBitsStages - 1; ++slot) {
    if (begin + slot < end) ask_weights(begin + slot, slot);
  }
  wait_for_predecessors();
  release_dependents();
#pragma unroll
  for (int slot = 0; slot < kBitsStages - 1; ++slot) {
    if (begin + slot < end) ask_planes(begin + slot, slot);
    copy_async_commit();
  }

  int d[kTiles][2 * ROWS][4] = {};
  float sums[kTiles][ROWS / 4][2] = {};
  float scales[ROWS / 4], squares[ROWS / 4] = {};
  int totals[ROWS / 4];
  int slot = 0;
#pragma unroll 1
  for (int k = begin; k < end; ++k) {
    if ((k - begin) % slice_tiles == 0) {
#pragma unroll
      for (int i = 0; i < ROWS / 4; ++i) {
        uint4 facts = make_uint4(0, 0, 0, 0);
        if (4 * i + q < stage.batch) {
          facts = __ldcg(reinterpret_cast<const uint4*>(part.facts + (4 * i + q) * stage.slices +
                                                        k / slice_tiles));
        }
        scales[i] = __uint_as_float(facts.x);
        totals[i] = static_cast<int>(facts.y);
      }
    }
    copy_async_wait<kBitsStages - 2>();
    __syncthreads();  // everyone's planes are here, and the oldest slot is read no more
    const int ahead = k + kBitsStages - 1, free = slot == 0 ? kBitsStages - 1 : slot - 1;
    if (ahead < end) {
      ask_weights(ahead, free);
      ask_planes(ahead, free);
    }
    copy_async_commit();
    uint4 a[kTiles];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      a[t] = make_uint4(0, 0, 0, 0);
      if (first_tile + t < part.row_tiles) {
        a[t] = load_shared_16(weights + slot * stage_bytes + t * 512);
      }
    }
#pragma unroll
    for (int row = 0; row < ROWS; ++row) {
      const uint4 b = load_shared_16(planes + slot * stage_bytes + row * 512 + lane * 16);
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        mma_bits(d[t][2 * row], a[t], b.x, b.y);
        mma_bits(d[t][2 * row + 1], a[t], b.z, b.w);
      }
    }
    slot = slot + 1 == kBitsStages ? 0 : slot + 1;
    if ((k + 1 - begin) % slice_tiles != 0 && k + 1 != end) continue;
    // This lane has planes 2 q, 2 q + 1, 8 + 2 q, 9 + 2 q; plane 15 is the sign's.
    const int sign = q == 3 ? -512 : 512;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int i = 0; i < ROWS / 4; ++i) {
#pragma unroll
        for (int below = 0; below < 2; ++below) {
          int each[4];
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            int* const low = d[t][2 * (4 * i + r)] + 2 * below;
            int* const high = d[t][2 * (4 * i + r) + 1] + 2 * below;
            each[r] = (low[0] + 2 * low[1] + 256 * high[0] + sign * high[1]) << (2 * q);
            low[0] = low[1] = high[0] = high[1] = 0;
          }
          sums[t][i][below] +=
              scales[i] * static_cast<float>(totals[i] - 2 * scatter_rows(each, q));
        }
      }
    }
  }
  copy_async_wait<0>();

  const bool norm = stage.input == NQ_INPUT_RMS_NORM;
  const bool direct = all.last && splits == 1;
#pragma unroll
  for (int i = 0; i < ROWS / 4; ++i) {
    const int row = 4 * i + q;
    if (row >= stage.batch) continue;
    float factor = 1.0f;
    if (norm) {
      for (int s = 0; s < slices; ++s) {
        squares[i] += part.facts[row * stage.slices + s].squares;
      }
      factor = rsqrtf(squares[i] / static_cast<float>(part.columns) + stage.norm_eps);
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int below = 0; below < 2; ++below) {
        const int out_row = (first_tile + t) * 16 + 8 * below + g;
        if (out_row >= part.padded_rows) continue;
        float value = 0.0f;
        if (out_row < part.rows) {
          value = sums[t][i][below] * factor;
          if (part.out_scale != nullptr && (!all.last || direct)) {
            value *= load_value(part.out_scale, out_row, stage.scale_type);
          }
        }
        if (direct) {
          const int64_t place = row * part.out_stride + out_row;
          if (part.bias != nullptr) value += load_value(part.bias, out_row, stage.scale_type);
          if (part.residual != nullptr) value += load_value(part.residual, place, stage.out_type);
          store_value(part.out, place, stage.out_type, value);
        } else {
          all.sums[index][(static_cast<int64_t>(split) * kBitsRows + row) * all.sums_stride[index] +
                          out_row] = value;
        }
      }
    }
  }
}

// Adds the splits of the second half and finishes the outputs.
__global__ void __launch_bounds__(256) bits_finish(const __grid_constant__ BitsStage all) {
  const GemvStage& stage = all.half;
  const GemvPart& part = stage.parts[blockIdx.z];
  const int out_row = blockIdx.x * 256 + threadIdx.x, row = blockIdx.y;
  if (all.splits[blockIdx.z] == 1 || out_row >= part.rows) return;
  float scale = 1.0f, bias = 0.0f, value = 0.0f;
  if (part.out_scale != nullptr) scale = load_value(part.out_scale, out_row, stage.scale_type);
  if (part.bias != nullptr) bias = load_value(part.bias, out_row, stage.scale_type);
  wait_for_predecessors();
  release_dependents();
  for (int split = 0; split < all.splits[blockIdx.z]; ++split) {
    value += __ldcg(all.sums[blockIdx.z] +
                    (static_cast<int64_t>(split) * kBitsRows + row) * all.sums_stride[blockIdx.z] +
                    out_row);
  }
  const int64_t place = row * part.out_stride + out_row;
  value = value * scale + bias;
  if (part.residual != nullptr) value += load_value(part.residual, place, stage.out_type);
  store_value(part.out, place, stage.out_type, value);
}

}  // namespace nq_cuda

#endif  // NQ_CUDA_GEMM_BITS_CUH
