// SPDX-License-Identifier: Apache-2.0
//
// A row's weighted values: of a warp's tiles, and of all splits once they are there.

#ifndef NQ_CUDA_ATTENTION_SUMS_CUH
#define NQ_CUDA_ATTENTION_SUMS_CUH

#include "cuda/attention/row.cuh"
#include "cuda/attention/score.cuh"

namespace nq_cuda {

// A warp's running softmax for the columns 2 q and 2 q + 1, and its sums: of channels 64 m + 8 g +
// 2 c and the next, for those columns, with g = lane / 4 and q = lane % 4.
template <Core C, int D>
struct RunningSums {
  using Held = Tile<C, D>;
  static constexpr nq_type kType = kProduct<C>;
  float sums[Held::kValueBlocks][4][4] = {};
  float best[2] = {kNothing, kNothing};
  float totals[2] = {0.0f, 0.0f};  // of this lane's tokens

  // Scores of the tile's tokens become their weights.
  __device__ __forceinline__ void weigh(float (&scores)[Held::kGroups][4], const Held& tile) {
    float next[2] = {best[0], best[1]}, parts[Held::kGroups][2];
#pragma unroll
    for (int i = 0; i < Held::kGroups; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        // A value's scale goes into its token's weight, relative to the largest so far; the sum of
        // weights takes it out again.
        if (C == Core::kCodes) scores[i][e] += log2f(tile.value_scales[i][e / 2]);
        next[e % 2] = fmaxf(next[e % 2], scores[i][e]);
      }
#pragma unroll
      for (int below = 0; below < 2; ++below) {
        parts[i][below] = C == Core::kCodes ? reciprocal(tile.value_scales[i][below]) : 1.0f;
      }
    }
    float shift[2], factor[2];
#pragma unroll
    for (int c = 0; c < 2; ++c) {
#pragma unroll
      for (int step = 4; step < 32; step *= 2) {
        next[c] = fmaxf(next[c], __shfl_xor_sync(0xffffffffu, next[c], step));
      }
      shift[c] = next[c] == kNothing ? 0.0f : next[c];
      factor[c] = power_of_two(best[c] - shift[c]);
      totals[c] *= factor[c];
      best[c] = next[c];
    }
#pragma unroll
    for (int i = 0; i < Held::kGroups; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        scores[i][e] = power_of_two(scores[i][e] - shift[e % 2]);
        totals[e % 2] += scores[i][e] * parts[i][e / 2];
      }
    }
#pragma unroll
    for (int m = 0; m < Held::kValueBlocks; ++m) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[m][c][e] *= factor[e % 2];
      }
    }
  }

  // Adds weights times values. bfloat16 weights are two terms: one would be the largest error.
  __device__ __forceinline__ void add(const float (&weights)[Held::kGroups][4], const Held& tile) {
    constexpr int kTerms = kType == NQ_BFLOAT16 ? 2 : 1;
#pragma unroll
    for (int i = 0; i < Held::kGroups; ++i) {
      uint32_t columns[kTerms][2];
#pragma unroll
      for (int below = 0; below < 2; ++below) {
        const float u = weights[i][2 * below], v = weights[i][2 * below + 1];
        const uint32_t near = pack_pair(u, v, kType);
        columns[0][below] = transpose(near);
        if constexpr (kTerms == 2) {
          float near_u, near_v;
          unpack_pair(near, kType, &near_u, &near_v);
          columns[1][below] = transpose(pack_pair(u - near_u, v - near_v, kType));
        }
      }
#pragma unroll
      for (int m = 0; m < Held::kValueBlocks; ++m) {
        uint4 x[4];
#pragma unroll
        for (int n = 0; n < 4; ++n) x[n] = Held::halves(tile.values[i][n][m]);
        const uint32_t words[4][4] = {{x[0].x, x[0].y, x[0].z, x[0].w},
                                      {x[1].x, x[1].y, x[1].z, x[1].w},
                                      {x[2].x, x[2].y, x[2].z, x[2].w},
                                      {x[3].x, x[3].y, x[3].z, x[3].w}};
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const uint32_t rows[4] = {__byte_perm(words[0][c], words[1][c], 0x5410),
                                    __byte_perm(words[0][c], words[1][c], 0x7632),
                                    __byte_perm(words[2][c], words[3][c], 0x5410),
                                    __byte_perm(words[2][c], words[3][c], 0x7632)};
#pragma unroll
          for (int term = 0; term < kTerms; ++term) {
            multiply<kType>(sums[m][c], rows, columns[term][0], columns[term][1]);
          }
        }
      }
    }
  }

  __device__ void leave(Shared<C, D>& shared, int d) {
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
#pragma unroll
    for (int c = 0; c < 2; ++c) {
#pragma unroll
      for (int step = 4; step < 32; step *= 2) {
        totals[c] += __shfl_xor_sync(0xffffffffu, totals[c], step);
      }
      if (g == 0) {
        shared.maxima[warp][2 * q + c] = best[c];
        shared.totals[warp][2 * q + c] = totals[c];
      }
    }
#pragma unroll
    for (int m = 0; m < Held::kValueBlocks; ++m) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int channel = 64 * m + 8 * g + 2 * c;
        if (channel >= d) continue;
#pragma unroll
        for (int column = 0; column < 2; ++column) {
          float* to = &shared.sums[warp][2 * q + column][channel];
          *reinterpret_cast<float2*>(to) = make_float2(sums[m][c][column], sums[m][c][2 + column]);
        }
      }
    }
  }
};

// Adds up what the splits of a row left in the workspace, and writes the row.
template <Core C, int D>
__device__ void finish(const nq_cuda_attention& a, const Share& share, const float* results,
                       Shared<C, D>& shared) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, d = a.head_dim;
  const int threads = blockDim.x;
  const int64_t each = partial_floats(a);
  // Four channels a thread; where threads are left, several share a column and its splits. The
  // first splits' sums are on their way while the weights are computed.
  constexpr int kAhead = 8;
  const int columns = share.heads * d / 4, parts = max(1, threads / columns);
  const int items = columns * parts;
  const auto sums_of = [&](int item, int round) {
    const int split = item / columns + round * parts;
    if (item >= items || split >= share.splits) return make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    return __ldcg(reinterpret_cast<const float4*>(results + split * each) + item % columns);
  };
  float4 ahead[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) ahead[i] = sums_of(threadIdx.x, i);

  for (int q = warp; q < share.heads; q += threads / 32) {
    const float* maxima = results + kColumns * d + q;
    float high[2], part[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int split = lane + 32 * i;
      high[i] = split < share.splits ? __ldcg(maxima + split * each) : kNothing;
      part[i] = split < share.splits ? __ldcg(maxima + split * each + kColumns) : 0.0f;
    }
    const float most = warp_max(fmaxf(high[0], high[1]));
    const float weights[2] = {power_of_two(high[0] - most), power_of_two(high[1] - most)};
    const float whole = warp_sum(weights[0] * part[0] + weights[1] * part[1]);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      shared.weights[q * kMostSplits + lane + 32 * i] = weights[i] / whole;
    }
  }
  __syncthreads();
  float4* sums = reinterpret_cast<float4*>(&shared.sums[0][0][0]);
  for (int item = threadIdx.x; item < items; item += threads) {
    const float* weights = shared.weights + item % columns * 4 / d * kMostSplits + item / columns;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (int begin = 0; begin * parts < share.splits; begin += kAhead) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int round = begin + i;
        if (item / columns + round * parts >= share.splits) continue;
        const bool is_ahead = begin == 0 && item < threads;
        const float4 value = is_ahead ? ahead[i] : sums_of(item, round);
        const float weight = weights[round * parts];
        sum.x += weight * value.x, sum.y += weight * value.y;
        sum.z += weight * value.z, sum.w += weight * value.w;
      }
    }
    sums[item] = sum;
  }
  __syncthreads();
  const int64_t begin =
      share.row * a.y_stride +
      (static_cast<int64_t>(share.kv) * (a.heads / a.kv_heads) + share.first_head) * d;
  for (int column = threadIdx.x; column < columns; column += threads) {
    float4 sum = sums[column];
    for (int part = 1; part < parts; ++part) {
      const float4 more = sums[part * columns + column];
      sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
    }
    *reinterpret_cast<uint2*>(static_cast<uint16_t*>(a.y) + begin + 4 * column) =
        make_uint2(pack_pair(sum.x, sum.y, a.type), pack_pair(sum.z, sum.w, a.type));
  }
}

}  // namespace nq_cuda

#endif  // NQ_CUDA_ATTENTION_SUMS_CUH
