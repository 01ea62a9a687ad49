// SPDX-License-Identifier: Apache-2.0

#include "linear_variants.h"

#include "linear_cpu.h"
#include "linear_cuda.h"
#include "linear_kernel.h"
#include "linear_shape.h"
#include "plain_op.h"

// A build for tests registers the CUDA kernel alone, for another provider, over stand-in kernels.
#ifndef NQ_ORT_CUDA_PROVIDER
#define NQ_ORT_CUDA_PROVIDER "CUDAExecutionProvider"
#endif

namespace {

const char* name(const ort::CustomOp*) { return "NanoQuantLinear"; }
const char* cuda_provider(const ort::CustomOp*) { return NQ_ORT_CUDA_PROVIDER; }
ort::ElementType input_type(const ort::CustomOp* op, size_t index) {
  if (index == kInputX) return variant_of(op)->x_type;
  return index == kInputV || index == kInputU ? ort::kInt32 : variant_of(op)->scale_type;
}
ort::ElementType output_type(const ort::CustomOp* op, size_t) { return variant_of(op)->x_type; }

constexpr OpSignature kSignature = {name, always<kInputCount>, input_type, always<1>, output_type};
constexpr OpKernel kCpu = {cpu_create, cpu_compute, cpu_destroy, cpu_provider};
constexpr OpKernel kCuda = {cuda_create, cuda_compute, cuda_destroy, cuda_provider};

constexpr LinearVariant make_variant(bool cuda, ort::ElementType x, ort::ElementType scale) {
  ort::CustomOp op = plain_op(kSignature, cuda ? kCuda : kCpu);
  op.InferOutputShape = infer_linear_shape;
  return LinearVariant{op, x, scale};
}

#define NQ_VARIANTS(cuda)                                                                       \
  make_variant(cuda, ort::kFloat, ort::kFloat), make_variant(cuda, ort::kFloat, ort::kFloat16), \
      make_variant(cuda, ort::kFloat, ort::kBfloat16),                                          \
      make_variant(cuda, ort::kFloat16, ort::kFloat),                                           \
      make_variant(cuda, ort::kFloat16, ort::kFloat16),                                         \
      make_variant(cuda, ort::kFloat16, ort::kBfloat16),                                        \
      make_variant(cuda, ort::kBfloat16, ort::kFloat),                                          \
      make_variant(cuda, ort::kBfloat16, ort::kFloat16),                                        \
      make_variant(cuda, ort::kBfloat16, ort::kBfloat16)

#ifdef NQ_ORT_CUDA_ONLY
const LinearVariant kVariants[] = {NQ_VARIANTS(true)};
#else
const LinearVariant kVariants[] = {NQ_VARIANTS(false), NQ_VARIANTS(true)};
#endif

}  // namespace

int linear_variant_count() { return static_cast<int>(sizeof kVariants / sizeof kVariants[0]); }

const ort::CustomOp* linear_variant(int index) { return &kVariants[index].op; }
