// SPDX-License-Identifier: Apache-2.0
//
// nq_cuda_attend: one new token a sequence, in one launch. A block first rotates its queries, and
// the block whose split ends with the new token also rotates the new key and appends it. See
// one.cuh for how tokens and heads are shared out.

#include "cuda/attention/sums.cuh"

namespace nq_cuda {

namespace {

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
  RunningSums<C, D> running;
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
