// SPDX-License-Identifier: Apache-2.0
//
// NanoQuantLinear on a GPU: ONNX Runtime's stream, ONNX Runtime's memory, our kernels.
//
// The kernels read layout 1. Words in layout 0 are turned into it at the first run of a node and
// kept, which takes the packed weights' memory a second time; models exported in layout 1 are read
// where they are.

#include "linear_cuda.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_library.h"
#include "linear_kernel.h"
#include "plain_op.h"
#include "status.h"

namespace {

enum TilesState : int { kNone = 0, kBusy = 1, kReady = 2 };

struct CudaKernel {
  LinearKernel base;
  const CudaLibrary* cuda;
  ort::Allocator* allocator;
  int state;       // of the tiles; runs of one session may come from several threads
  int32_t* v_own;  // both matrices in layout 1, in one block; null where the model has them so
  int32_t* u_own;
};

constexpr size_t kAlign = 256;

size_t round_up(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

ort::Status* fail_with(const CudaKernel& kernel, nq_status status) {
  const char* detail = status == NQ_CUDA_ERROR ? kernel.cuda->error_text() : "";
  return ort::fail(kernel.base.api, ort::kFail, "%s %s", nq_status_text(status), detail);
}

// Makes the tiles and waits for them: the kernels read weights ahead of stream order.
ort::Status* make_tiles(CudaKernel* kernel, const LinearCall& call, void* stream) {
  const LinearAttributes& sizes = kernel->base.attributes;
  const CudaLibrary& cuda = *kernel->cuda;
  const size_t v_bytes =
      static_cast<size_t>(cuda.tile_words(sizes.rank, sizes.in_features)) * sizeof(int32_t);
  const size_t u_bytes =
      static_cast<size_t>(cuda.tile_words(sizes.out_features, sizes.rank)) * sizeof(int32_t);
  char* block =
      static_cast<char*>(kernel->allocator->Alloc(kernel->allocator, round_up(v_bytes) + u_bytes));
  if (block == nullptr) {
    return ort::fail(kernel->base.api, ort::kFail, "%zu bytes of GPU memory are not to be had",
                     round_up(v_bytes) + u_bytes);
  }
  int32_t* v = reinterpret_cast<int32_t*>(block);
  int32_t* u = reinterpret_cast<int32_t*>(block + round_up(v_bytes));
  nq_status status = cuda.make_tiles(static_cast<const int32_t*>(call.data[kInputV]), sizes.rank,
                                     sizes.in_features, v, stream);
  if (status == NQ_OK) {
    status = cuda.make_tiles(static_cast<const int32_t*>(call.data[kInputU]), sizes.out_features,
                             sizes.rank, u, stream);
  }
  if (status == NQ_OK) status = cuda.synchronize(stream);
  if (status != NQ_OK) {
    kernel->allocator->Free(kernel->allocator, block);
    return fail_with(*kernel, status);
  }
  kernel->v_own = v;
  kernel->u_own = u;
  return nullptr;
}

ort::Status* ensure_tiles(CudaKernel* kernel, const LinearCall& call, void* stream) {
  if (kernel->base.attributes.layout == NQ_LAYOUT_TILES_16X256) return nullptr;
  for (;;) {
    int seen = __atomic_load_n(&kernel->state, __ATOMIC_ACQUIRE);
    if (seen == kReady) return nullptr;
    if (seen == kNone && __atomic_compare_exchange_n(&kernel->state, &seen, int{kBusy}, false,
                                                     __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) {
      ort::Status* status = make_tiles(kernel, call, stream);
      __atomic_store_n(&kernel->state, status == nullptr ? kReady : kNone, __ATOMIC_RELEASE);
      return status;
    }
    sched_yield();
  }
}

// Whether the kernels can read or write the rows where they lie: see nq_cuda_pass.
bool fits(const void* rows_at, int64_t columns, int64_t rows) {
  return reinterpret_cast<uintptr_t>(rows_at) % 16 == 0 && (rows == 1 || columns % 8 == 0);
}

// Runs the pass with scratch memory for the workspace and, where rows don't begin at multiples of
// 16 bytes, for spaced copies of x and y.
ort::Status* run(const CudaKernel& kernel, const ort::KernelContext* context, nq_cuda_pass* pass,
                 void* stream) {
  const ort::Api* api = kernel.base.api;
  const CudaLibrary& cuda = *kernel.cuda;
  const nq_linear& layer = *pass->layers;
  const size_t n = static_cast<size_t>(layer.in_features);
  const size_t m = static_cast<size_t>(layer.out_features);
  const size_t rows = static_cast<size_t>(pass->rows);
  const size_t element = 2;
  const size_t x_pitch = (n + 7) / 8 * 8, y_pitch = (m + 7) / 8 * 8;
  const bool copy_x = !fits(pass->x, layer.in_features, pass->rows);
  const bool copy_y = !fits(pass->y[0], layer.out_features, pass->rows);
  const void* x = pass->x;
  void* y = pass->y[0];

  pass->workspace_bytes = cuda.workspace_bytes(pass);
  const size_t work = round_up(pass->workspace_bytes);
  const size_t x_bytes = copy_x ? round_up(rows * x_pitch * element) : 0;
  const size_t y_bytes = copy_y ? round_up(rows * y_pitch * element) : 0;
  void* scratch = nullptr;
  NQ_ORT_RETURN(ort::call<ort::ContextGetScratchBuffer>(api, ort::kKernelContextGetScratchBuffer)(
      context, kernel.allocator->Info(kernel.allocator), work + x_bytes + y_bytes + kAlign,
      &scratch));
  if (scratch == nullptr) {
    return ort::fail(api, ort::kFail, "%zu bytes of GPU memory are not to be had",
                     work + x_bytes + y_bytes + kAlign);
  }
  char* free_space = reinterpret_cast<char*>(round_up(reinterpret_cast<uintptr_t>(scratch)));
  pass->workspace = free_space;
  nq_status status = NQ_OK;
  if (copy_x) {
    pass->x = free_space + work;
    pass->x_stride = static_cast<int64_t>(x_pitch);
    status = cuda.copy_rows(x, n * element, free_space + work, x_pitch * element, n * element, rows,
                            stream);
  }
  if (copy_y) {
    pass->y[0] = free_space + work + x_bytes;
    pass->y_stride[0] = static_cast<int64_t>(y_pitch);
  }
  if (status == NQ_OK) status = cuda.forward(pass, stream);
  if (status == NQ_OK && copy_y) {
    status =
        cuda.copy_rows(pass->y[0], y_pitch * element, y, m * element, m * element, rows, stream);
  }
  // Given back to the stream's own memory: what runs later in the stream may have it.
  kernel.allocator->Free(kernel.allocator, scratch);
  return status == NQ_OK ? nullptr : fail_with(kernel, status);
}

ort::Status* prepare(const ort::CustomOp* op, const ort::Api* api, const ort::KernelInfo* info,
                     CudaKernel* kernel) {
  LinearKernel& base = kernel->base;
  NQ_ORT_RETURN(prepare_kernel(op, api, info, &base));
  if (base.x_type == ort::kFloat) {
    return ort::fail(api, ort::kInvalidGraph,
                     "X is float32, and the CUDA kernel takes float16 and bfloat16: export the "
                     "model with --dtype float16 or bfloat16, or run it on the CPU provider");
  }
  for (size_t i = kInputV; i < kInputCount; ++i) {
    if (!base.checked[i]) {
      return ort::fail(api, ort::kInvalidGraph,
                       "input %zu is not a constant initializer, as the CUDA kernel needs it", i);
    }
  }
  char why[256];
  kernel->cuda = cuda_library(why, sizeof why);
  if (kernel->cuda == nullptr) {
    return ort::fail(api, ort::kFail,
                     "the CUDA kernels cannot be loaded (%s): build nanoquant-edge where nvcc is "
                     "installed, or run the model on the CPU provider",
                     why);
  }
  nq_cuda_device device;
  const nq_status status = kernel->cuda->describe(&device);
  if (status != NQ_OK) {
    return ort::fail(api, ort::kFail, "%s (%s)", nq_status_text(status),
                     kernel->cuda->error_text());
  }
  return ort::call<ort::InfoGetAllocator>(api, ort::kKernelInfoGetAllocator)(
      info, ort::kMemoryDefault, &kernel->allocator);
}

}  // namespace

ort::Status* cuda_create(const ort::CustomOp* op, const ort::Api* api, const ort::KernelInfo* info,
                         void** state) {
  return make_state<CudaKernel>(api, state, cuda_destroy,
                                [=](CudaKernel* kernel) { return prepare(op, api, info, kernel); });
}

ort::Status* cuda_compute(void* state, ort::KernelContext* context) {
  CudaKernel& kernel = *static_cast<CudaKernel*>(state);
  const ort::Api* api = kernel.base.api;
  LinearCall call;
  NQ_ORT_RETURN(read_call(kernel.base, context, &call));
  if (call.rows == 0) return nullptr;
  void* stream = nullptr;
  NQ_ORT_RETURN(
      ort::call<ort::ContextGetGpuStream>(api, ort::kKernelContextGetGpuStream)(context, &stream));
  NQ_ORT_RETURN(ensure_tiles(&kernel, call, stream));
  nq_linear layer = describe_layer(kernel.base.attributes, kernel.base.scale_type, call.data);
  layer.layout = NQ_LAYOUT_TILES_16X256;
  if (kernel.v_own != nullptr) {
    layer.v_words = kernel.v_own;
    layer.u_words = kernel.u_own;
  }
  nq_cuda_pass pass = {};
  pass.layers = &layer;
  pass.count = 1;
  pass.x_type = pass.y_type = kernel_type(kernel.base.x_type);
  pass.rows = call.rows;
  pass.x = call.data[kInputX];
  pass.x_stride = layer.in_features;
  pass.y[0] = call.y;
  pass.y_stride[0] = layer.out_features;
  return run(kernel, context, &pass, stream);
}

void cuda_destroy(void* state) {
  CudaKernel* kernel = static_cast<CudaKernel*>(state);
  if (kernel == nullptr) return;
  if (kernel->allocator != nullptr) {
    if (kernel->v_own != nullptr) kernel->allocator->Free(kernel->allocator, kernel->v_own);
    ort::call<ort::ReleaseAllocator>(kernel->base.api, ort::kReleaseAllocator)(kernel->allocator);
  }
  free(kernel);
}
