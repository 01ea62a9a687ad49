// SPDX-License-Identifier: Apache-2.0
//
// Rotary embedding of queries and keys (RoFormer, section 3.4.2, channels paired across the halves
// of a head) with the optional RMS norm of each head, and the append to the cache, for any number
// of new tokens a sequence. One block a token.

#include "cuda/attention/head.cuh"
#include "cuda/attention/run.h"

namespace nq_cuda {

namespace {

constexpr int kThreads = 256;

template <int D>
__global__ void __launch_bounds__(kThreads)
    rotary_append(const __grid_constant__ nq_cuda_attention a) {
  __shared__ Rotation<D> rotation;
  release_dependents();
  wait_for_predecessors();
  const NewTokens tokens(a, blockIdx.y);
  if (static_cast<int>(blockIdx.x) >= tokens.count) return;
  const int place = tokens.position + blockIdx.x;
  const int64_t row = tokens.first_row + blockIdx.x;
  if (!Tokens(a, blockIdx.y, 0).has(place)) return;
  rotation.fill(a, place);
  __syncthreads();
  const int d = a.head_dim, all = a.heads + 2 * a.kv_heads;
  // Whole warps go on together.
  for (int head = threadIdx.x / kSpread<D>; head / (32 / kSpread<D>)*(32 / kSpread<D>) < all;
       head += kThreads / kSpread<D>) {
    const bool wanted = head < all, is_query = head < a.heads;
    const bool is_key = !is_query && head < a.heads + a.kv_heads;
    const int kv = is_query ? 0 : (head - a.heads) % a.kv_heads;
    const void* from = is_query ? a.q : is_key ? a.k : a.v;
    const int64_t stride = is_query ? a.q_stride : is_key ? a.k_stride : a.v_stride;
    HeadPart<D> part(a, from, row * stride + (is_query ? head : kv) * d, wanted);
    if (a.q_norm != nullptr) part.norm(a, is_query ? a.q_norm : is_key ? a.k_norm : nullptr);
    if (is_query || is_key) part.rotate(rotation);
    const float most = a.cache.bits == 8 ? part.largest() : 0.0f;
    if (is_query) {
      part.store(a.y, row * a.y_stride + head * d, a.type);
    } else if (wanted) {
      const int64_t slot = Tokens(a, blockIdx.y, kv).slot(place);
      void* to = is_key ? a.cache.keys : a.cache.values;
      if (a.cache.bits == 16) {
        part.store(to, slot * d, a.type);
        continue;
      }
      const __half scale = scale_of(most);
      part.store_codes(to, slot * d, __half2float(scale));
      void* scales = is_key ? a.cache.key_scales : a.cache.value_scales;
      if (leads_head<D>()) static_cast<__half*>(scales)[slot] = scale;
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
