// SPDX-License-Identifier: Apache-2.0
//
// nq_cuda_attend: one new token a sequence, in one launch. A block first rotates its queries, and
// the block whose split ends with the new token also rotates the new key and appends it. See
// one.cuh for how tokens and heads are shared out.

#include "cuda/attention/one.cuh"
#include "cuda/attention/score.cuh"

namespace nq_cuda {

namespace {

template <Core C, int D>
struct Shared {
  // 64 bytes more than a multiple of 128: eight rows lie in different banks.
  __align__(16) uint16_t queries[kColumns][D % 64 == 0 ? D + 32 : D];
  __align__(16) uint16_t new_key[D];  // as in the cache
  __align__(16) uint16_t new_value[D];
  __align__(16) float sums[kMostWarps<D>][kColumns][D];
  float maxima[kMostWarps<D>][kColumns], totals[kMostWarps<D>][kColumns];
  float weights[kColumns * kMostSplits];
  Rotation<D> rotation;
  float query_scales[kColumns];
  float new_scales[2];
  int is_last;
};

// Which row, heads and cached tokens a block has.
struct Share {
  int sequence, place, kv, first_head, heads;  // the row's own place; query heads of the piece
  int64_t row;
  int oldest, begin, end, splits;  // of tokens
  bool any;

  __device__ Share(const nq_cuda_attention& a, bool appends, int step) : any(false) {
    const int group = a.heads / a.kv_heads, pieces = pieces_of(a);
    sequence = appends ? blockIdx.x : blockIdx.x / a.max_tokens;
    const int index = appends ? 0 : blockIdx.x % a.max_tokens;
    kv = blockIdx.y / pieces;
    first_head = blockIdx.y % pieces * kColumns;
    heads = min(kColumns, group - first_head);
    const NewTokens tokens(a, sequence);
    if (index >= tokens.count) return;
    place = tokens.position + index;
    row = tokens.first_row + index;
    if (!Tokens(a, sequence, kv).has(place)) return;
    oldest = a.window == 0 ? 0 : max(0, place + 1 - a.window);
    const int base = oldest & ~15, length = place + 1 - base, cuts = gridDim.z;
    const int size = ((length + cuts - 1) / cuts + step - 1) / step * step;
    splits = (length + size - 1) / size;
    begin = base + blockIdx.z * size;
    end = min(begin + size, place + 1);
    any = static_cast<int>(blockIdx.z) < splits;
  }
};

// Queries, and the new token where the block has it, normed and rotated, in shared memory.
template <Core C, int D>
__device__ void prepare(const nq_cuda_attention& a, const Share& share, bool appends,
                        Shared<C, D>& shared) {
  const int d = a.head_dim, group = a.heads / a.kv_heads;
  const bool has_new = appends && share.end == share.place + 1;
  // Items are the queries, the new key and the new value; whole warps go on together.
  const int at_once = blockDim.x / kSpread<D>;
  for (int item = threadIdx.x / kSpread<D>; item - item % (32 / kSpread<D>) < kColumns + 2;
       item += at_once) {
    const bool is_query = item < kColumns, is_key = item == kColumns;
    const bool wanted = is_query || (has_new && item < kColumns + 2);
    // Columns past the last head repeat it.
    const int64_t head = share.kv * group + share.first_head + min(item, share.heads - 1);
    const void* from = is_query ? a.q : is_key ? a.k : a.v;
    const int64_t stride = is_query ? a.q_stride : is_key ? a.k_stride : a.v_stride;
    HeadPart<D> part(a, from, share.row * stride + (is_query ? head : share.kv) * d, wanted);
    if (appends && a.q_norm != nullptr) {
      part.norm(a, is_query ? a.q_norm : is_key ? a.k_norm : nullptr);
    }
    if (appends && (is_query || is_key)) part.rotate(shared.rotation);
    if (is_query) part.round_to(a.type);  // as nq_cuda_rotary_append would leave them
    const float most = C == Core::kCodes ? part.largest() : 0.0f;
    if (is_query) {
      const float scale = C == Core::kCodes ? range_of(most) : 1.0f;
      part.store(shared.queries[item], 0, kProduct<C>, 1.0f / scale);
      if (leads_head<D>()) shared.query_scales[item] = scale;
      // Rows may be longer than a head: zeros past its last channel.
      const int rest = d + 2 * (part.first - part.half);
      if (part.first >= part.half && rest < D) {
        uint4* to = reinterpret_cast<uint4*>(&shared.queries[item][rest]);
        to[0] = to[1] = make_uint4(0, 0, 0, 0);
      }
      continue;
    }
    if (!wanted) continue;
    void* here = is_key ? shared.new_key : shared.new_value;
    void* there = is_key ? a.cache.keys : a.cache.values;
    const int64_t slot = Tokens(a, share.sequence, share.kv).slot(share.place);
    const bool writes = share.first_head == 0;
    if constexpr (C == Core::kCodes) {
      const __half scale = scale_of(most);
      part.store_codes(here, 0, __half2float(scale));
      if (writes) part.store_codes(there, slot * d, __half2float(scale));
      void* scales = is_key ? a.cache.key_scales : a.cache.value_scales;
      if (leads_head<D>()) shared.new_scales[is_key ? 0 : 1] = __half2float(scale);
      if (leads_head<D>() && writes) static_cast<__half*>(scales)[slot] = scale;
    } else {
      part.store(here, 0, kProduct<C>);
      if (writes) part.store(there, slot * d, kProduct<C>);
    }
  }
}

// A warp's running softmax for the columns 2 q and 2 q + 1, and its sums: of channels 64 m + 8 g +
// 2 c and the next, for those columns, with g = lane / 4 and q = lane % 4.
template <Core C, int D>
struct Running {
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

template <Core C, int D>
__global__ void __launch_bounds__(32 * kMostWarps<D>)
    attend_one(const __grid_constant__ nq_cuda_attention a, bool appends) {
  using Held = Tile<C, D>;
  const int warps = blockDim.x / 32, step = warps * kTile<D>;
  __shared__ Shared<C, D> shared;

  release_dependents();
  const Share share(a, appends, max(step, kLeastSplit));
  if (!share.any) return;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, d = a.head_dim;
  const int g = lane / 4, q = lane % 4;
  const Tokens cached(a, share.sequence, share.kv);
  // Without an append the keys are the work of the launch before.
  if (!appends) wait_for_predecessors();

  const int old_end = min(share.end, appends ? share.place : share.place + 1);
  const int last_group = share.place & ~15;
  const auto find = [&](int (&slots)[Held::kGroups], int token) {
#pragma unroll
    for (int i = 0; i < Held::kGroups; ++i) slots[i] = cached.slot(min(token + 16 * i, last_group));
  };
  Held tile;
  int token = share.begin + warp * kTile<D>, slots[Held::kGroups];
  find(slots, token);
  // These are in the cache already: on their way while the kernel before this one still computes
  // the new token.
  tile.load_keys(a, slots, token, share.oldest, old_end, lane);
  tile.load_values(a, slots, token, share.oldest, old_end, lane);
  if (appends) {
    shared.rotation.fill(a, share.place);
    __syncthreads();
    wait_for_predecessors();
  }
  prepare(a, share, appends, shared);
  __syncthreads();

  const Score score(a, shared.query_scales[2 * q], shared.query_scales[2 * q + 1]);
  Running<C, D> running;
  for (; token < share.end; token += step) {
    const int next = token + step;
    if (next < share.end) find(slots, next);
    const int inside = share.place - token;
    if (appends && inside >= 0 && inside < kTile<D>) {
      tile.insert(shared.new_key, shared.new_value, shared.new_scales, inside, d, lane);
    }
    float scores[Held::kGroups][4] = {};
#pragma unroll
    for (int j = 0; j < Held::kKeyBlocks; ++j) {
      const uint4 b = *reinterpret_cast<const uint4*>(&shared.queries[g][32 * j + 8 * q]);
#pragma unroll
      for (int i = 0; i < Held::kGroups; ++i) {
        const uint4 u = Held::halves(tile.keys[i][0][j]), v = Held::halves(tile.keys[i][1][j]);
        multiply<kProduct<C>>(scores[i], {u.x, v.x, u.y, v.y}, b.x, b.y);
        multiply<kProduct<C>>(scores[i], {u.z, v.z, u.w, v.w}, b.z, b.w);
      }
    }
#pragma unroll
    for (int i = 0; i < Held::kGroups; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int at = token + 16 * i + 8 * (e / 2) + g;
        const bool seen = at >= share.oldest && at < share.end;
        const float raw = scores[i][e] * tile.key_scales[i][e / 2];
        scores[i][e] = seen ? score(raw, e % 2) : kNothing;
      }
    }
    if (next < share.end) tile.load_keys(a, slots, next, share.oldest, old_end, lane);
    running.weigh(scores, tile);
    running.add(scores, tile);
    if (next < share.end) tile.load_values(a, slots, next, share.oldest, old_end, lane);
  }
  running.leave(shared, d);
  __syncthreads();

  // Over the warps.
  const int64_t unit = static_cast<int64_t>(blockIdx.x) * gridDim.y + blockIdx.y;
  float* results = reinterpret_cast<float*>(static_cast<unsigned*>(a.workspace) + kCounters) +
                   unit * gridDim.z * partial_floats(a);
  float* mine = results + blockIdx.z * partial_floats(a);
  const int64_t begin =
      share.row * a.y_stride +
      (static_cast<int64_t>(share.kv) * (a.heads / a.kv_heads) + share.first_head) * d;
  for (int i = threadIdx.x; i < share.heads * d; i += blockDim.x) {
    const int head = i / d, channel = i % d;
    float most = shared.maxima[0][head], sum = 0.0f, total = 0.0f;
    for (int w = 1; w < warps; ++w) most = fmaxf(most, shared.maxima[w][head]);
    for (int w = 0; w < warps; ++w) {
      const float weight = power_of_two(shared.maxima[w][head] - most);
      sum += weight * shared.sums[w][head][channel];
      total += weight * shared.totals[w][head];
    }
    if (share.splits == 1) {
      store_value(a.y, begin + i, a.type, sum / total);
    } else {
      mine[i] = sum;
      if (channel == 0) {
        mine[kColumns * d + head] = most;
        mine[kColumns * d + kColumns + head] = total;
      }
    }
  }
  if (share.splits == 1) return;
  __threadfence();
  __syncthreads();
  unsigned* counter = static_cast<unsigned*>(a.workspace) + unit;
  if (threadIdx.x == 0) {
    shared.is_last = atomicAdd(counter, 1u) == static_cast<unsigned>(share.splits) - 1u;
    if (shared.is_last) *counter = 0;  // nobody else counts here before the next launch
  }
  __syncthreads();
  if (!shared.is_last) return;
  __threadfence();
  finish(a, share, results, shared);
}

// How the work of a call is cut.
struct Cut {
  int warps, splits;
};

int64_t units_of(const nq_cuda_attention& a) {
  return static_cast<int64_t>(a.sequences) * a.kv_heads * pieces_of(a);
}

// Splits are multiples of this many tokens.
int chunk_of(const nq_cuda_attention& a, int warps) {
  const int step = warps * (a.head_dim <= 96 ? kTile<96> : kTile<256>);
  return step > kLeastSplit ? step : kLeastSplit;
}

// Where units are few, large blocks, one on each multiprocessor, else small ones, of which several
// fit.
Cut cut_of(const nq_cuda_attention& a, int cores) {
  const bool few = units_of(a) < cores && a.head_dim <= 128;
  const int warps = few ? kMostWarps<128> : kFewWarps;
  return {warps, splits_of(a, units_of(a), few ? cores : 2 * cores, chunk_of(a, warps))};
}

nq_status run(const nq_cuda_attention& a, const nq_cuda_device& device, bool appends,
              const Cut& cut, cudaStream_t stream) {
  const int64_t rows = static_cast<int64_t>(a.sequences) * (appends ? 1 : a.max_tokens);
  const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(a.kv_heads * pieces_of(a)),
                  static_cast<unsigned>(cut.splits));
  const Launch how = {"attention", grid, 32 * cut.warps, 0, may_overlap(device)};
  return for_core(a, [&](auto core) {
    return for_room(a.head_dim, [&](auto room) {
      return launch(how, stream, attend_one<decltype(core)::value, decltype(room)::value>, a,
                    appends);
    });
  });
}

}  // namespace

nq_status attend_each(const nq_cuda_attention& a, const nq_cuda_device& device,
                      cudaStream_t stream) {
  return run(a, device, false, {kFewWarps, 1}, stream);
}

size_t attend_one_workspace(const nq_cuda_attention& a) {
  const int64_t blocks = most_blocks(a, units_of(a), 2 * kMostCores, chunk_of(a, kFewWarps));
  return static_cast<size_t>(blocks * partial_floats(a)) * 4;
}

}  // namespace nq_cuda

extern "C" nq_status nq_cuda_attend(const nq_cuda_attention* attention, void* stream) {
  using namespace nq_cuda;
  if (attention == nullptr) return NQ_BAD_ARGUMENT;
  const nq_cuda_attention& a = *attention;
  nq_status status = check_attention(a, true);
  if (status != NQ_OK) return status;
  if (a.max_tokens != 1 || a.starts != nullptr) return NQ_BAD_ARGUMENT;
  status = check_workspace(a);
  if (status != NQ_OK) return status;
  nq_cuda_device device;
  status = describe(&device);
  if (status != NQ_OK) return status;
  return run(a, device, true, cut_of(a, cores_of(device)), static_cast<cudaStream_t>(stream));
}
