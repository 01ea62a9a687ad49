// SPDX-License-Identifier: Apache-2.0
//
// nq_cuda_attend_many: any number of new tokens a sequence, whose keys and values are in the cache.
// See many.cuh for the order of the work.

#include "cuda/attention/many.cuh"

namespace nq_cuda {

namespace {

// Query rows as they are in memory; zeros past the last row and channel.
template <Core C, int D, int T, int N>
__device__ void fetch_queries(const nq_cuda_attention& a, const Region& region, uint32_t to) {
  using S = Sizes<C, D, T, N>;
  for (int index = threadIdx.x; index < S::kRows * (D / 8); index += kManyThreads) {
    const int row = index / (D / 8), piece = index % (D / 8), at = region.first_row + row;
    const bool present = at <= region.last_row && 8 * piece < a.head_dim;
    const uint16_t* from = static_cast<const uint16_t*>(a.q);
    if (present) from += region.offset(at, a.q_stride, a.head_dim) + 8 * piece;
    copy_async_or_zero(to + (row * S::kWidth + 8 * piece) * 2, from, present);
  }
}

// Codes are multiplied in float16: queries of a warp's rows are brought into its range by powers of
// two, which `scales` keeps.
template <int D>
__device__ void convert_queries(uint16_t* queries, int rows, nq_type type, float* scales,
                                int lane) {
  for (int row = 0; row < rows; ++row) {
    uint32_t* words = reinterpret_cast<uint32_t*>(queries + row * (D + 8));
    float low[D / 64 + 1], high[D / 64 + 1], most = 0.0f;
#pragma unroll
    for (int j = 0; j <= (D - 1) / 64; ++j) {
      low[j] = high[j] = 0.0f;
      if (lane + 32 * j < D / 2) unpack_pair(words[lane + 32 * j], type, &low[j], &high[j]);
      most = fmaxf(most, fmaxf(fabsf(low[j]), fabsf(high[j])));
    }
    for (int step = 16; step > 0; step /= 2) {
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
    }
    const float scale = range_of(most), factor = 1.0f / scale;
#pragma unroll
    for (int j = 0; j <= (D - 1) / 64; ++j) {
      if (lane + 32 * j >= D / 2) continue;
      words[lane + 32 * j] = pack_pair(low[j] * factor, high[j] * factor, NQ_FLOAT16);
    }
    if (lane == 0) scales[row] = scale;
  }
  __syncwarp();
}

// Finished rows through the warp's own part of the queries' memory, so that stores are whole.
template <Core C, int D, int T, int N>
__device__ void store_rows(const nq_cuda_attention& a, const Region& region,
                           const Rows<C, D, T, N>& rows, uint16_t* mine, int first_row, int lane) {
  using S = Sizes<C, D, T, N>;
#pragma unroll
  for (int t = 0; t < T; ++t) {
#pragma unroll
    for (int below = 0; below < 2; ++below) {
      const float factor = 1.0f / rows.totals[t][below];
      uint16_t* row = mine + (16 * t + 8 * below + lane / 4) * S::kWidth + 2 * (lane % 4);
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        const float* pair = &rows.sums[t][n][2 * below];
        *reinterpret_cast<uint32_t*>(row + 8 * n) =
            pack_pair(pair[0] * factor, pair[1] * factor, a.type);
      }
    }
  }
  __syncwarp();
  const Tokens cached(a, region.sequence, region.kv);
  for (int index = lane; index < 16 * T * (D / 8); index += 32) {
    const int row = index / (D / 8), channel = index % (D / 8) * 8, at = first_row + row;
    if (at > region.last_row || channel >= a.head_dim || !cached.has(region.place_of(at))) continue;
    *reinterpret_cast<uint4*>(static_cast<uint16_t*>(a.y) +
                              region.offset(at, a.y_stride, a.head_dim) + channel) =
        *reinterpret_cast<const uint4*>(mine + row * S::kWidth + channel);
  }
}

// Floats of a split's result: rows of sums, then each row's largest score and total.
__host__ __device__ inline int64_t split_floats(const nq_cuda_attention& a, int rows) {
  return static_cast<int64_t>(rows) * (a.head_dim + 2);
}

template <Core C, int D, int T, int N>
__device__ void leave_rows(const Rows<C, D, T, N>& rows, float factor, float* to, int d,
                           int row_in_block, int lane) {
  using S = Sizes<C, D, T, N>;
#pragma unroll
  for (int t = 0; t < T; ++t) {
#pragma unroll
    for (int below = 0; below < 2; ++below) {
      const int row = row_in_block + 16 * t + 8 * below + lane / 4;
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        const int channel = 8 * n + 2 * (lane % 4);
        if (channel >= d) continue;
        const float* pair = &rows.sums[t][n][2 * below];
        *reinterpret_cast<float2*>(to + row * d + channel) = make_float2(pair[0], pair[1]);
      }
      if (lane % 4 != 0) continue;
      to[S::kRows * d + row] = rows.best[t][below] * factor;
      to[S::kRows * (d + 1) + row] = rows.totals[t][below];
    }
  }
}

// Adds up the splits of a block's rows and writes them.
[[maybe_unused]] __device__ void finish_rows(const nq_cuda_attention& a, const Region& region,
                                             const float* results, float* weights, int rows) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, d = a.head_dim;
  const int64_t each = split_floats(a, rows);
  const int present = region.last_row - region.first_row + 1;
  for (int row = warp; row < present; row += kManyWarps) {
    float high[2], part[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int split = lane + 32 * i;
      const float* from = results + split * each + rows * d + row;
      high[i] = split < region.splits ? __ldcg(from) : kNothing;
      part[i] = split < region.splits ? __ldcg(from + rows) : 0.0f;
    }
    float most = fmaxf(high[0], high[1]);
    for (int step = 16; step > 0; step /= 2) {
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
    }
    const float shares[2] = {power_of_two(high[0] - most), power_of_two(high[1] - most)};
    const float whole = warp_sum(shares[0] * part[0] + shares[1] * part[1]);
#pragma unroll
    for (int i = 0; i < 2; ++i) weights[row * kMostSplits + lane + 32 * i] = shares[i] / whole;
  }
  __syncthreads();
  const Tokens cached(a, region.sequence, region.kv);
  // Four columns of a row at a time, and several such at once: each waits for every split.
  constexpr int kAtOnce = 4;
  const int items = present * (d / 4);
  for (int begin = threadIdx.x; begin < items; begin += kAtOnce * kManyThreads) {
    float4 sums[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) sums[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 2
    for (int split = 0; split < region.splits; ++split) {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int index = min(begin + i * kManyThreads, items - 1);
        const float weight = weights[index / (d / 4) * kMostSplits + split];
        const float4 value =
            __ldcg(reinterpret_cast<const float4*>(results + split * each) + index);
        sums[i].x += weight * value.x, sums[i].y += weight * value.y;
        sums[i].z += weight * value.z, sums[i].w += weight * value.w;
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int index = begin + i * kManyThreads;
      if (index >= items) continue;
      const int row = index / (d / 4), channel = index % (d / 4) * 4, at = region.first_row + row;
      if (!cached.has(region.place_of(at))) continue;
      *reinterpret_cast<uint2*>(static_cast<uint16_t*>(a.y) + region.offset(at, a.y_stride, d) +
                                channel) = make_uint2(pack_pair(sums[i].x, sums[i].y, a.type),
                                                      pack_pair(sums[i].z, sums[i].w, a.type));
    }
  }
}

}  // namespace

template <Core C, int D, int T, int N>
__global__ void __launch_bounds__(kManyThreads, Sizes<C, D, T, N>::kBlocks)
    attend_many(const __grid_constant__ nq_cuda_attention a, int cuts) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800  // older GPUs run attend_each
  using S = Sizes<C, D, T, N>;
  extern __shared__ uint4 shared[];
  __shared__ int is_last;

  release_dependents();
  const Region region(a, S::kRows, N, cuts);
  if (!region.any) return;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, d = a.head_dim;
  const Tokens cached(a, region.sequence, region.kv);
  char* const memory = reinterpret_cast<char*>(shared);
  const uint32_t base = shared_address(shared);
  float* const scales = reinterpret_cast<float*>(memory + S::kScales);  // of keys, of values, twice
  float* const row_scales = scales + 4 * N;
  int* const slots = reinterpret_cast<int*>(memory + S::kSlots);
  const auto slot_of = [&](int tile) {
    return cached.slot(min(tile + 16 * static_cast<int>(threadIdx.x), region.last_place & ~15));
  };
  const bool finds_slots = threadIdx.x < N / 16;
  if (finds_slots) {
    slots[threadIdx.x] = slot_of(region.begin);
    slots[N / 16 + threadIdx.x] = slot_of(region.begin + N);
  }
  __syncthreads();

  wait_for_predecessors();
  Fetch<C, D, N> new_keys(d), new_values(d);
  const auto begin_fetch = [&](int tile, int stage) {
    const int* const where = slots + stage * (N / 16);
    const uint32_t keys = base + S::kKeys + stage * S::kTile;
    new_keys.begin(a.cache.keys, a.cache.key_scales, where, keys, tile, region.first_key,
                   region.last_place, d);
    new_values.begin(a.cache.values, a.cache.value_scales, where, keys + 2 * S::kTile, tile,
                     region.first_key, region.last_place, d);
    copy_async_commit();
  };
  const auto end_fetch = [&](int stage) {
    const uint32_t keys = base + S::kKeys + stage * S::kTile;
    new_keys.end(keys, scales + 2 * stage * N);
    new_values.end(keys + 2 * S::kTile, scales + (2 * stage + 1) * N);
  };
  fetch_queries<C, D, T, N>(a, region, base);
  begin_fetch(region.begin, 0);
  end_fetch(0);
  copy_async_wait<0>();
  __syncthreads();

  const int warp_row = warp * 16 * T, first_row = region.first_row + warp_row;
  uint16_t* const my_queries = reinterpret_cast<uint16_t*>(memory) + warp_row * S::kWidth;
  if constexpr (C == Core::kCodes) {
    convert_queries<D>(my_queries, 16 * T, a.type, row_scales + warp_row, lane);
  }
  const uint32_t queries = base + ((warp_row + lane % 16) * S::kWidth + lane / 16 * 8) * 2;
  uint32_t held[S::kHoldsQueries ? T : 1][S::kHoldsQueries ? D / 16 : 1][4];
  if constexpr (S::kHoldsQueries) {
#pragma unroll
    for (int t = 0; t < T; ++t) {
#pragma unroll
      for (int k = 0; k < D / 16; ++k) {
        load_matrices(held[t][k], queries + (16 * t * S::kWidth + 16 * k) * 2);
      }
    }
  }

  Rows<C, D, T, N> rows(region, first_row, lane);
  const int least = region.place_of(min(first_row, region.last_row));
  const int most = region.place_of(min(first_row + 16 * T - 1, region.last_row));
  const Score score(a, 1.0f, 1.0f);
  // Scores stay products where nothing but their scale is to be done.
  const bool plain = C != Core::kCodes && a.soft_cap == 0.0f;
  const float factor = plain ? a.scale * Score::kLog2E : 1.0f;
  for (int tile = region.begin, stage = 0; tile < region.end; tile += N, stage ^= 1) {
    // This tile is here for everyone, and everyone is done with the one before it.
    copy_async_wait<0>();
    __syncthreads();
    const bool more = tile + N < region.end;
    int far_slot = 0;  // of the tile after the next
    if (more) {
      begin_fetch(tile + N, stage ^ 1);
      if (finds_slots) far_slot = slot_of(tile + 2 * N);
    }
    if (tile <= most && (a.window == 0 || tile + N > least - a.window + 1)) {
      const float* const key_scales = scales + 2 * stage * N;
      const float* const value_scales = key_scales + N;
      const uint32_t keys = base + S::kKeys + stage * S::kTile;
      float scores[T][N / 8][4];
      rows.multiply_keys(scores, held, queries, keys, lane);
      if (!plain) {
#pragma unroll
        for (int t = 0; t < T; ++t) {
#pragma unroll
          for (int n = 0; n < N / 8; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              float& value = scores[t][n][e];
              if constexpr (C == Core::kCodes) {
                const int key = 8 * n + 2 * (lane % 4) + e % 2;
                value *= key_scales[key] * row_scales[warp_row + 16 * t + 8 * (e / 2) + lane / 4];
                value = score(value, 0) + log2f(value_scales[key]);
              } else {
                value = score(value, 0);
              }
            }
          }
        }
      }
      if (tile + N - 1 > least || (a.window != 0 && tile <= most - a.window)) {
        rows.mask(scores, tile, a.window, lane);
      }
      rows.weigh(scores, factor, value_scales, lane);
      rows.add(scores, keys + 2 * S::kTile, lane);
    }
    if (!more) continue;
    end_fetch(stage ^ 1);
    if (finds_slots) slots[stage * (N / 16) + threadIdx.x] = far_slot;
  }
  rows.gather_totals();
  if (region.splits == 1) {
    store_rows(a, region, rows, my_queries, first_row, lane);
    return;
  }

  const int64_t unit =
      (static_cast<int64_t>(region.sequence) * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  float* results = reinterpret_cast<float*>(static_cast<unsigned*>(a.workspace) + kCounters) +
                   unit * cuts * split_floats(a, S::kRows);
  leave_rows(rows, factor, results + region.split * split_floats(a, S::kRows), d, warp_row, lane);
  __threadfence();
  __syncthreads();
  unsigned* counter = static_cast<unsigned*>(a.workspace) + unit;
  if (threadIdx.x == 0) {
    is_last = atomicAdd(counter, 1u) == static_cast<unsigned>(region.splits) - 1u;
    if (is_last) *counter = 0;  // nobody else counts here before the next launch
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  finish_rows(a, region, results, reinterpret_cast<float*>(memory), S::kRows);
#endif
}

namespace {

// How the rows of a description are cut; the same for the workspace and the launch.
struct Cut {
  int tiles;  // of 16 rows a warp
  int64_t blocks;
  int splits;
};

// `wide`: blocks may have two tiles a warp, which are faster once there are enough.
Cut cut_of(const nq_cuda_attention& a, int cores, bool wide) {
  const int64_t rows = static_cast<int64_t>(a.max_tokens) * (a.heads / a.kv_heads);
  const int64_t heads = static_cast<int64_t>(a.sequences) * a.kv_heads;
  if (wide && ceil_div(rows, 128) * heads > 2 * cores) return {2, ceil_div(rows, 128) * heads, 1};
  Cut cut = {1, ceil_div(rows, 64) * heads, 1};
  if (cut.blocks < cores) cut.splits = splits_of(a, cut.blocks, cores, kSplitTokens);
  return cut;
}

template <Core C, int D, int T, int N>
nq_status run(const nq_cuda_attention& a, const Cut& cut, const nq_cuda_device& device,
              cudaStream_t stream) {
  using S = Sizes<C, D, T, N>;
  const int64_t tiles = cut.blocks / a.kv_heads / a.sequences;
  if (tiles > 0xffff || static_cast<int64_t>(a.sequences) * cut.splits > 0xffff) {
    return NQ_TOO_LARGE;
  }
  const dim3 grid(static_cast<unsigned>(a.kv_heads), static_cast<unsigned>(tiles),
                  static_cast<unsigned>(a.sequences * cut.splits));
  const Launch how = {"attention", grid, kManyThreads, S::kBytes, may_overlap(device)};
  return launch_with_shared<attend_many<C, D, T, N>>(how, S::kBytes, stream, a, cut.splits);
}

}  // namespace

size_t attend_many_workspace(const nq_cuda_attention& a) {
  const int64_t rows = static_cast<int64_t>(a.max_tokens) * (a.heads / a.kv_heads);
  const int64_t units = ceil_div(rows, 64) * a.sequences * a.kv_heads;
  const int64_t blocks = most_blocks(a, units, kMostCores, kSplitTokens);
  return static_cast<size_t>(blocks * split_floats(a, 64)) * 4;
}

}  // namespace nq_cuda

using namespace nq_cuda;

extern "C" size_t nq_cuda_attend_workspace_bytes(const nq_cuda_attention* attention) {
  if (attention == nullptr || check_attention_shape(*attention) != NQ_OK) return 0;
  const size_t one = attend_one_workspace(*attention), many = attend_many_workspace(*attention);
  return 4 * kCounters + (one > many ? one : many);
}

extern "C" nq_status nq_cuda_attend_many(const nq_cuda_attention* attention, void* stream) {
  if (attention == nullptr) return NQ_BAD_ARGUMENT;
  const nq_cuda_attention& a = *attention;
  nq_status status = check_attention(a, false);
  if (status != NQ_OK) return status;
  status = check_workspace(a);
  if (status != NQ_OK) return status;
  nq_cuda_device device;
  status = describe(&device);
  if (status != NQ_OK) return status;
  cudaStream_t queue = static_cast<cudaStream_t>(stream);
  if (device.compute_capability < 80) return attend_each(a, device, queue);
  int most_shared = 0;
  status = shared_limit(&most_shared);
  if (status != NQ_OK) return status;
  most_shared -= 64;  // what the kernel has besides
  return for_core(a, [&](auto core) {
    constexpr Core kCore = decltype(core)::value;
    return for_room(a.head_dim, [&](auto room) {
      constexpr int kRoom = decltype(room)::value;
      constexpr bool kWide = kRoom <= (kCore == Core::kCodes ? 64 : 128);
      bool wide = false;
      if constexpr (kWide) wide = Sizes<kCore, kRoom, 2, 64>::kBytes <= most_shared;
      const Cut cut = cut_of(a, cores_of(device), wide);
      if constexpr (kWide) {
        if (cut.tiles == 2) return run<kCore, kRoom, 2, 64>(a, cut, device, queue);
      }
      if constexpr (kRoom < 256) {
        return run<kCore, kRoom, 1, 64>(a, cut, device, queue);
      } else {
        if (Sizes<kCore, 256, 1, 32>::kBytes <= most_shared) {
          return run<kCore, 256, 1, 32>(a, cut, device, queue);
        }
        return run<kCore, 256, 1, 16>(a, cut, device, queue);
      }
    });
  });
}
