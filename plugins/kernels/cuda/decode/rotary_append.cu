// SPDX-License-Identifier: Apache-2.0
//
// Rotary embedding of queries and keys (RoFormer, section 3.4.2, channels paired across the halves
// of a head) with the optional RMS norm of each head, and the append to the cache. One block a row,
// one warp a head.

#include "cuda/decode/attention.cuh"

namespace nq_cuda {

namespace {

constexpr int kThreads = 256;

template <nq_type Type, int D>
__global__ void __launch_bounds__(kThreads) rotary_append(const nq_cuda_attention a) {
  release_dependents();
  wait_for_predecessors();
  const int64_t row = blockIdx.x;
  const int64_t sequence = row / a.max_tokens;
  const int64_t place = a.positions[sequence] + row % a.max_tokens;
  if (place < 0 || place >= a.cache.page_tokens) return;
  const int lane = threadIdx.x % 32;
  const Rotation<D> rotation(a.frequencies, place, lane);
  for (int head = threadIdx.x / 32; head < a.heads + 2 * a.kv_heads; head += kThreads / 32) {
    if (head < a.heads) {
      Head<Type, D> query(a.q, row * a.q_stride + head * D, lane);
      query.norm(a.q_norm, a.norm_eps, lane);
      query.rotate(rotation);
      query.store(a.y, row * a.y_stride + head * D, Type, lane);
      continue;
    }
    const int kv = (head - a.heads) % a.kv_heads;
    const int64_t cached = ((sequence * a.kv_heads + kv) * a.cache.page_tokens + place) * D;
    if (head < a.heads + a.kv_heads) {
      Head<Type, D> key(a.k, row * a.k_stride + kv * D, lane);
      key.norm(a.k_norm, a.norm_eps, lane);
      key.rotate(rotation);
      key.store(a.cache.keys, cached, Type, lane);
    } else {
      Head<Type, D>(a.v, row * a.v_stride + kv * D, lane).store(a.cache.values, cached, Type, lane);
    }
  }
}

template <nq_type Type>
nq_status run(const nq_cuda_attention& a, const nq_cuda_device& device, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(a.sequences * a.max_tokens));
  switch (a.head_dim) {
    case 64:
      return launch_overlapping(rotary_append<Type, 64>, grid, kThreads, device, stream, a);
    case 128:
      return launch_overlapping(rotary_append<Type, 128>, grid, kThreads, device, stream, a);
    default:
      return launch_overlapping(rotary_append<Type, 256>, grid, kThreads, device, stream, a);
  }
}

}  // namespace

}  // namespace nq_cuda

extern "C" nq_status nq_cuda_rotary_append(const nq_cuda_attention* attention, void* stream) {
  using namespace nq_cuda;
  if (attention == nullptr) return NQ_BAD_ARGUMENT;
  nq_status status = check_supported(*attention, true);
  if (status != NQ_OK) return status;
  nq_cuda_device device;
  status = describe(&device);
  if (status != NQ_OK) return status;
  cudaStream_t queue = static_cast<cudaStream_t>(stream);
  if (attention->type == NQ_FLOAT16) return run<NQ_FLOAT16>(*attention, device, queue);
  return run<NQ_BFLOAT16>(*attention, device, queue);
}
