// SPDX-License-Identifier: Apache-2.0
//
// Rotary embedding of queries and keys (RoFormer, section 3.4.2, channels paired across the halves
// of a head) with the optional RMS norm of each head, and the append to the cache, for any number
// of new tokens a sequence. One block a token, one warp a head.

#include "cuda/attention/head.cuh"
#include "cuda/attention/run.h"

namespace nq_cuda {

namespace {

constexpr int kThreads = 256;

template <int D>
__global__ void __launch_bounds__(kThreads)
    rotary_append(const __grid_constant__ nq_cuda_attention a) {
  release_dependents();
  wait_for_predecessors();
  const NewTokens tokens(a, blockIdx.y);
  if (static_cast<int>(blockIdx.x) >= tokens.count) return;
  const int place = tokens.position + blockIdx.x, lane = threadIdx.x % 32;
  const int64_t row = tokens.first_row + blockIdx.x;
  if (!Tokens(a, blockIdx.y, 0).has(place)) return;
  const Rotation<D> rotation(a, place, lane);
  const int d = a.head_dim;
  for (int head = threadIdx.x / 32; head < a.heads + 2 * a.kv_heads; head += kThreads / 32) {
    if (head < a.heads) {
      Head<D> query(a, a.q, row * a.q_stride + head * d, lane);
      query.norm(a, a.q_norm, lane);
      query.rotate(rotation);
      query.store(a.y, row * a.y_stride + head * d, a.type, d, lane);
      continue;
    }
    const bool is_key = head < a.heads + a.kv_heads;
    const int kv = (head - a.heads) % a.kv_heads;
    Head<D> kept(a, is_key ? a.k : a.v, row * (is_key ? a.k_stride : a.v_stride) + kv * d, lane);
    if (is_key) {
      kept.norm(a, a.k_norm, lane);
      kept.rotate(rotation);
    }
    const int64_t slot = Tokens(a, blockIdx.y, kv).slot(place);
    void* to = is_key ? a.cache.keys : a.cache.values;
    if (a.cache.bits == 16) {
      kept.store(to, slot * d, a.type, d, lane);
    } else {
      const __half scale = kept.store_codes(to, slot * d, d, lane);
      void* scales = is_key ? a.cache.key_scales : a.cache.value_scales;
      if (lane == 0) static_cast<__half*>(scales)[slot] = scale;
    }
  }
}

}  // namespace

}  // namespace nq_cuda

extern "C" nq_status nq_cuda_rotary_append(const nq_cuda_attention* attention, void* stream) {
  using namespace nq_cuda;
  if (attention == nullptr) return NQ_BAD_ARGUMENT;
  const nq_cuda_attention& a = *attention;
  nq_status status = check_attention(a, true);
  if (status != NQ_OK) return status;
  nq_cuda_device device;
  status = describe(&device);
  if (status != NQ_OK) return status;
  const dim3 grid(static_cast<unsigned>(a.max_tokens), static_cast<unsigned>(a.sequences));
  const Launch how = {"rotary embedding", grid, kThreads, 0, may_overlap(device)};
  return for_room(a.head_dim, [&](auto room) {
    return launch(how, static_cast<cudaStream_t>(stream), rotary_append<room.value>, a);
  });
}
