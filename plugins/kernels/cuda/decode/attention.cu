// SPDX-License-Identifier: Apache-2.0
//
// Attention of one new token a sequence, in one launch. The cached tokens of a key/value head are
// cut into splits, a block each; a block keeps a running softmax for the query heads that share the
// key/value head, and the last block to finish adds the splits' results up, always in one order.
//
// A block first rotates its queries, and the block whose split ends with the new token also rotates
// the new key and appends it. Scores: four lanes a key, 16-byte loads. Values: a lane has eight
// channels of every n-th token. Keys and values of a tile are loaded before either is used.

#include <math_constants.h>

#include "cuda/decode/attention.cuh"

namespace nq_cuda {

namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kMostSplits = 32;
constexpr int kChunk = 64;         // splits are multiples of this many tokens
constexpr int kMostQueries = 8;    // query heads that one block takes
constexpr int kBlocksPerCore = 2;  // wanted on each multiprocessor before splitting stops

// How the work is cut; the same on the host and in the kernel.
struct Cut {
  int queries;  // query heads a block has room for: 1, 2, 4 or 8
  int pieces;   // blocks that share a key/value head because it has more query heads than that
  int splits;
};

Cut cut_of(const nq_cuda_attention& a, const nq_cuda_device& device) {
  const int group = a.heads / a.kv_heads;
  Cut cut = {1, 1, 1};
  while (cut.queries < group && cut.queries < kMostQueries) cut.queries *= 2;
  cut.pieces = static_cast<int>(ceil_div(group, cut.queries));
  const int64_t units = static_cast<int64_t>(a.sequences) * a.kv_heads * cut.pieces;
  const int64_t wanted = ceil_div(kBlocksPerCore * device.multiprocessors, units);
  const int64_t most = ceil_div(a.cache.page_tokens, kChunk);
  int64_t splits = wanted < most ? wanted : most;
  if (splits > kMostSplits) splits = kMostSplits;
  cut.splits = static_cast<int>(splits);
  return cut;
}

// Workspace: a counter for each unit, then for each unit and split `queries` maxima, as many sums,
// and the unnormalized outputs.
__host__ __device__ inline int64_t counter_floats(int64_t units) { return (units + 63) / 64 * 64; }
__host__ __device__ inline int64_t split_floats(int queries, int head_dim) {
  return queries * (head_dim + 8);
}

template <nq_type Type, int D, int Q>
__global__ void __launch_bounds__(kThreads) attend(const __grid_constant__ nq_cuda_attention a) {
  constexpr int kTile = D == 256 ? 32 : 64;  // tokens whose keys and values are in registers
  constexpr int kKeysPerLane = kTile / 32;
  constexpr int kLoads = D / 32;  // 16-byte loads of a lane for one key
  constexpr int kAcross = D / 8;  // lanes that hold one value
  constexpr int kDown = kThreads / kAcross;
  constexpr int kValuesPerLane = kTile / kDown;

  __shared__ __align__(16) float queries[Q][D];
  __shared__ float scores[Q][kTile];
  __shared__ float rescale[Q], total[Q], highest[Q];
  __shared__ __align__(16) float sums[kWarps][Q][D];
  __shared__ __align__(16) uint16_t new_key[D];
  __shared__ __align__(16) uint16_t new_value[D];
  __shared__ int is_last;

  release_dependents();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, quarter = lane % 4;
  const int group = a.heads / a.kv_heads, pieces = (group + Q - 1) / Q;
  const int kv = blockIdx.y / pieces, first = blockIdx.y % pieces * Q;
  const int present = min(Q, group - first);
  const int64_t sequence = blockIdx.z;
  const int64_t place = a.positions[sequence];
  if (place < 0 || place >= a.cache.page_tokens) return;

  const int length = static_cast<int>(place) + 1, splits = gridDim.x;
  const int share = ((length + splits - 1) / splits + kChunk - 1) / kChunk * kChunk;
  const int active = (length + share - 1) / share;
  if (static_cast<int>(blockIdx.x) >= active) return;
  const int begin = blockIdx.x * share, end = min(begin + share, length);
  const int64_t cache = (sequence * a.kv_heads + kv) * a.cache.page_tokens * D;
  const uint16_t* keys = static_cast<const uint16_t*>(a.cache.keys) + cache;
  const uint16_t* values = static_cast<const uint16_t*>(a.cache.values) + cache;

  // Older tokens' keys and values; zeros past the end and for the new token.
  uint4 key_words[kKeysPerLane][kLoads], value_words[kValuesPerLane];
  const int channel = threadIdx.x % kAcross * 8, down = threadIdx.x / kAcross;
  const int old_end = min(end, length - 1);
  const auto load_tile = [&](int tile) {
#pragma unroll
    for (int i = 0; i < kKeysPerLane; ++i) {
      const int token = tile + 32 * i + warp * 8 + lane / 4;
      const uint16_t* row = keys + static_cast<int64_t>(token) * D + quarter * 8;
#pragma unroll
      for (int j = 0; j < kLoads; ++j) {
        key_words[i][j] = make_uint4(0, 0, 0, 0);
        if (token < old_end) key_words[i][j] = *reinterpret_cast<const uint4*>(row + j * 32);
      }
    }
#pragma unroll
    for (int i = 0; i < kValuesPerLane; ++i) {
      const int token = tile + i * kDown + down;
      const uint16_t* row = values + static_cast<int64_t>(token) * D + channel;
      value_words[i] = make_uint4(0, 0, 0, 0);
      if (token < old_end) value_words[i] = *reinterpret_cast<const uint4*>(row);
    }
  };
  // They are in the cache already: the first tile is on its way while the kernel before this one
  // still computes the new token.
  load_tile(begin);
  const Rotation<D> rotation(a.frequencies, place, lane);
  wait_for_predecessors();

  for (int q = warp; q < Q; q += kWarps) {
    const int64_t head = static_cast<int64_t>(kv) * group + first + min(q, present - 1);
    Head<Type, D> query(a.q, sequence * a.q_stride + head * D, lane);
    query.norm(a.q_norm, a.norm_eps, lane);
    query.rotate(rotation);
    query.store(queries[q], 0, NQ_FLOAT32, lane, a.scale * 1.4426950408889634f);  // for exp2
  }
  if (end == length && warp == kWarps - 1) {
    Head<Type, D> key(a.k, sequence * a.k_stride + kv * D, lane);
    key.norm(a.k_norm, a.norm_eps, lane);
    key.rotate(rotation);
    key.store(new_key, 0, Type, lane);
    const Head<Type, D> value(a.v, sequence * a.v_stride + kv * D, lane);
    value.store(new_value, 0, Type, lane);
    if (first == 0) {
      key.store(a.cache.keys, cache + place * D, Type, lane);
      value.store(a.cache.values, cache + place * D, Type, lane);
    }
  }
  __syncthreads();

  float sum[Q][8] = {};
  float running_max = -CUDART_INF_F, running_max2 = -CUDART_INF_F;  // of queries warp, warp + 4
  float running_sum = 0.0f, running_sum2 = 0.0f;
  for (int tile = begin; tile < end; tile += kTile) {
    if (tile > begin) load_tile(tile);
    // The new token is in no cache line that was read; its row comes from shared memory.
    if (place < tile + kTile && end == length) {
#pragma unroll
      for (int i = 0; i < kKeysPerLane; ++i) {
        if (tile + 32 * i + warp * 8 + lane / 4 != place) continue;
#pragma unroll
        for (int j = 0; j < kLoads; ++j) {
          key_words[i][j] = *reinterpret_cast<const uint4*>(new_key + j * 32 + quarter * 8);
        }
      }
#pragma unroll
      for (int i = 0; i < kValuesPerLane; ++i) {
        if (tile + i * kDown + down != place) continue;
        value_words[i] = *reinterpret_cast<const uint4*>(new_value + channel);
      }
    }

    float dot[kKeysPerLane][Q] = {};
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      float key[kKeysPerLane][8];
#pragma unroll
      for (int i = 0; i < kKeysPerLane; ++i) {
        unpack_eight(key_words[i][j], Type, key[i]);
      }
#pragma unroll
      for (int q = 0; q < Q; ++q) {
        const float4* from = reinterpret_cast<const float4*>(&queries[q][j * 32 + quarter * 8]);
        const float4 u = from[0], v = from[1];
#pragma unroll
        for (int i = 0; i < kKeysPerLane; ++i) {
          dot[i][q] += u.x * key[i][0] + u.y * key[i][1] + u.z * key[i][2] + u.w * key[i][3] +
                       v.x * key[i][4] + v.y * key[i][5] + v.z * key[i][6] + v.w * key[i][7];
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kKeysPerLane; ++i) {
      const int token = 32 * i + warp * 8 + lane / 4;
#pragma unroll
      for (int q = 0; q < Q; ++q) {
        float score = dot[i][q];
        score += __shfl_xor_sync(0xffffffffu, score, 1);
        score += __shfl_xor_sync(0xffffffffu, score, 2);
        if (q % 4 == quarter) scores[q][token] = tile + token < end ? score : -CUDART_INF_F;
      }
    }
    __syncthreads();

    // Running softmax (online normalizer): a warp has the queries warp and warp + 4.
    for (int q = warp; q < Q; q += kWarps) {
      float& best = q < kWarps ? running_max : running_max2;
      float& sum_so_far = q < kWarps ? running_sum : running_sum2;
      float mine[kKeysPerLane], here = -CUDART_INF_F;
#pragma unroll
      for (int i = 0; i < kKeysPerLane; ++i) {
        mine[i] = scores[q][lane + 32 * i];
        here = fmaxf(here, mine[i]);
      }
      const float next = fmaxf(best, warp_max(here));
      float added = 0.0f;
#pragma unroll
      for (int i = 0; i < kKeysPerLane; ++i) {
        const float share_of_token = exp2f(mine[i] - next);
        scores[q][lane + 32 * i] = share_of_token;
        added += share_of_token;
      }
      const float factor = exp2f(best - next);
      sum_so_far = sum_so_far * factor + warp_sum(added);
      best = next;
      if (lane == 0) rescale[q] = factor;
    }
    __syncthreads();

#pragma unroll
    for (int q = 0; q < Q; ++q) {
      const float factor = rescale[q];
#pragma unroll
      for (int c = 0; c < 8; ++c) sum[q][c] *= factor;
    }
#pragma unroll
    for (int i = 0; i < kValuesPerLane; ++i) {
      float value[8];
      unpack_eight(value_words[i], Type, value);
#pragma unroll
      for (int q = 0; q < Q; ++q) {
        const float weight = scores[q][i * kDown + down];
#pragma unroll
        for (int c = 0; c < 8; ++c) sum[q][c] += weight * value[c];
      }
    }
    __syncthreads();
  }

  // Over the lanes that hold the same channels, then over the warps.
#pragma unroll
  for (int q = 0; q < Q; ++q) {
#pragma unroll
    for (int c = 0; c < 8; ++c) {
#pragma unroll
      for (int step = kAcross; step < 32; step *= 2) {
        sum[q][c] += __shfl_xor_sync(0xffffffffu, sum[q][c], step);
      }
    }
    if (lane < kAcross) {
      float4* to = reinterpret_cast<float4*>(&sums[warp][q][lane * 8]);
      to[0] = make_float4(sum[q][0], sum[q][1], sum[q][2], sum[q][3]);
      to[1] = make_float4(sum[q][4], sum[q][5], sum[q][6], sum[q][7]);
    }
  }
  for (int q = warp; q < Q; q += kWarps) {
    if (lane == 0) {
      highest[q] = q < kWarps ? running_max : running_max2;
      total[q] = q < kWarps ? running_sum : running_sum2;
    }
  }
  __syncthreads();

  const int64_t units = static_cast<int64_t>(gridDim.y) * gridDim.z;
  const int64_t unit = sequence * gridDim.y + blockIdx.y;
  const int64_t row = sequence * a.y_stride + (static_cast<int64_t>(kv) * group + first) * D;
  float* results =
      static_cast<float*>(a.workspace) + counter_floats(units) + unit * splits * split_floats(Q, D);
  float* mine = results + blockIdx.x * split_floats(Q, D);
  for (int i = threadIdx.x; i < present * D; i += kThreads) {
    const int q = i / D, c = i % D;
    float value = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) value += sums[w][q][c];
    if (active == 1) {
      store_value(a.y, row + i, Type, value / total[q]);
    } else {
      mine[i] = value;
    }
  }
  if (active == 1) return;

  float* maxima = mine + Q * D;
  if (threadIdx.x < present) {
    maxima[threadIdx.x] = highest[threadIdx.x];
    maxima[Q + threadIdx.x] = total[threadIdx.x];
  }
  __threadfence();
  __syncthreads();
  unsigned* counter = static_cast<unsigned*>(a.workspace) + unit;
  if (threadIdx.x == 0) {
    is_last = atomicAdd(counter, 1u) == static_cast<unsigned>(active) - 1u;
    if (is_last) *counter = 0;  // nobody else counts here before the next launch
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();

  // A lane has one split; its weight goes where the scores were.
  float* weights = &scores[0][0];
  for (int q = warp; q < present; q += kWarps) {
    const float* from = results + lane * split_floats(Q, D) + Q * D + q;
    const float high = lane < active ? __ldcg(from) : -CUDART_INF_F;
    const float part = lane < active ? __ldcg(from + Q) : 0.0f;
    const float weight = exp2f(high - warp_max(high));
    const float whole = warp_sum(weight * part);
    weights[q * 32 + lane] = weight / whole;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < present * D; i += kThreads) {
    float value = 0.0f;
#pragma unroll 4
    for (int s = 0; s < active; ++s) {
      value += weights[i / D * 32 + s] * __ldcg(results + s * split_floats(Q, D) + i);
    }
    store_value(a.y, row + i, Type, value);
  }
}

template <nq_type Type, int D>
nq_status run(const nq_cuda_attention& a, const Cut& cut, const nq_cuda_device& device,
              cudaStream_t stream) {
  const dim3 grid(cut.splits, a.kv_heads * cut.pieces, a.sequences);
  switch (cut.queries) {
    case 1:
      return launch_overlapping(attend<Type, D, 1>, grid, kThreads, device, stream, a);
    case 2:
      return launch_overlapping(attend<Type, D, 2>, grid, kThreads, device, stream, a);
    case 4:
      return launch_overlapping(attend<Type, D, 4>, grid, kThreads, device, stream, a);
    default:
      return launch_overlapping(attend<Type, D, 8>, grid, kThreads, device, stream, a);
  }
}

template <nq_type Type>
nq_status run(const nq_cuda_attention& a, const Cut& cut, const nq_cuda_device& device,
              cudaStream_t stream) {
  if (a.head_dim == 64) return run<Type, 64>(a, cut, device, stream);
  if (a.head_dim == 128) return run<Type, 128>(a, cut, device, stream);
  return run<Type, 256>(a, cut, device, stream);
}

}  // namespace

}  // namespace nq_cuda

using namespace nq_cuda;

extern "C" size_t nq_cuda_attend_workspace_bytes(const nq_cuda_attention* attention) {
  nq_cuda_device device;
  if (attention == nullptr || check_attention_shape(*attention) != NQ_OK ||
      attention->max_tokens != 1 || describe(&device) != NQ_OK) {
    return 0;
  }
  const Cut cut = cut_of(*attention, device);
  const int64_t units =
      static_cast<int64_t>(attention->sequences) * attention->kv_heads * cut.pieces;
  return 4 *
         static_cast<size_t>(counter_floats(units) +
                             units * cut.splits * split_floats(cut.queries, attention->head_dim));
}

extern "C" nq_status nq_cuda_attend(const nq_cuda_attention* attention, void* stream) {
  if (attention == nullptr) return NQ_BAD_ARGUMENT;
  nq_status status = check_supported(*attention, true);
  if (status != NQ_OK) return status;
  if (attention->max_tokens != 1) return NQ_BAD_ARGUMENT;
  nq_cuda_device device;
  status = describe(&device);
  if (status != NQ_OK) return status;
  if (attention->workspace == nullptr ||
      reinterpret_cast<uintptr_t>(attention->workspace) % 256 != 0 ||
      attention->workspace_bytes < nq_cuda_attend_workspace_bytes(attention)) {
    return NQ_WORKSPACE;
  }
  const Cut cut = cut_of(*attention, device);
  cudaStream_t queue = static_cast<cudaStream_t>(stream);
  if (attention->type == NQ_FLOAT16) return run<NQ_FLOAT16>(*attention, cut, device, queue);
  return run<NQ_BFLOAT16>(*attention, cut, device, queue);
}

extern "C" nq_status nq_cuda_attend_many(const nq_cuda_attention* attention, void*) {
  return attention == nullptr ? NQ_BAD_ARGUMENT : NQ_NO_KERNEL;
}
