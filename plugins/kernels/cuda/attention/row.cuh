// SPDX-License-Identifier: Apache-2.0
//
// One token's row: which of its heads and cached tokens a block has, and what the block's warps
// share: queries and, where the block has it, the new token, normed and rotated.

#ifndef NQ_CUDA_ATTENTION_ROW_CUH
#define NQ_CUDA_ATTENTION_ROW_CUH

#include "cuda/attention/one.cuh"

namespace nq_cuda {

// What the warps of a block share.
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

}  // namespace nq_cuda

#endif  // NQ_CUDA_ATTENTION_ROW_CUH
