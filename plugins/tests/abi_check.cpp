// SPDX-License-Identifier: Apache-2.0
//
// Compiled, never run, where ONNX Runtime's own C headers are present: every slot and offset in
// ort_abi.h is that of the real interface.

#include <onnxruntime_c_api.h>

#include "../onnxruntime/ort_abi.h"

#define SLOT(name, entry) \
  static_assert(offsetof(OrtApi, entry) == ort::name * sizeof(void*), "slot of " #entry)
#define MEMBER(ours, theirs)                                                    \
  static_assert(offsetof(ort::CustomOp, ours) == offsetof(OrtCustomOp, theirs), \
                "offset of " #theirs)

static_assert(ORT_API_VERSION >= ort::kApiVersion, "headers of 1.18 or newer");
static_assert(offsetof(OrtApiBase, GetVersionString) == offsetof(ort::ApiBase, GetVersionString),
              "OrtApiBase");

SLOT(kCreateStatus, CreateStatus);
SLOT(kCreateCustomOpDomain, CreateCustomOpDomain);
SLOT(kCustomOpDomainAdd, CustomOpDomain_Add);
SLOT(kAddCustomOpDomain, AddCustomOpDomain);
SLOT(kGetTensorMutableData, GetTensorMutableData);
SLOT(kCreateTypeShape, CreateTensorTypeAndShapeInfo);
SLOT(kSetElementType, SetTensorElementType);
SLOT(kSetDimensions, SetDimensions);
SLOT(kGetElementType, GetTensorElementType);
SLOT(kGetDimensionsCount, GetDimensionsCount);
SLOT(kGetDimensions, GetDimensions);
SLOT(kGetSymbolicDimensions, GetSymbolicDimensions);
SLOT(kGetTensorTypeAndShape, GetTensorTypeAndShape);
SLOT(kKernelInfoGetAttributeFloat, KernelInfoGetAttribute_float);
SLOT(kKernelInfoGetAttributeInt64, KernelInfoGetAttribute_int64);
SLOT(kKernelInfoGetAttributeInt64s, KernelInfoGetAttributeArray_int64);
SLOT(kKernelContextGetInputCount, KernelContext_GetInputCount);
SLOT(kKernelContextGetInput, KernelContext_GetInput);
SLOT(kKernelContextGetOutput, KernelContext_GetOutput);
SLOT(kReleaseStatus, ReleaseStatus);
SLOT(kReleaseTypeShape, ReleaseTensorTypeAndShapeInfo);
SLOT(kReleaseCustomOpDomain, ReleaseCustomOpDomain);
SLOT(kKernelInfoGetInputCount, KernelInfo_GetInputCount);
SLOT(kKernelInfoGetConstantInput, KernelInfoGetConstantInput_tensor);
SLOT(kShapeInferGetInputCount, ShapeInferContext_GetInputCount);
SLOT(kShapeInferGetInputTypeShape, ShapeInferContext_GetInputTypeShape);
SLOT(kShapeInferSetOutputTypeShape, ShapeInferContext_SetOutputTypeShape);
SLOT(kSetSymbolicDimensions, SetSymbolicDimensions);
SLOT(kKernelContextParallelFor, KernelContext_ParallelFor);
SLOT(kReleaseAllocator, ReleaseAllocator);
SLOT(kKernelContextGetGpuStream, KernelContext_GetGPUComputeStream);
SLOT(kKernelContextGetScratchBuffer, KernelContext_GetScratchBuffer);
SLOT(kKernelInfoGetAllocator, KernelInfoGetAllocator);
static_assert(offsetof(OrtAllocator, Alloc) == offsetof(ort::Allocator, Alloc), "OrtAllocator");
static_assert(offsetof(OrtAllocator, Free) == offsetof(ort::Allocator, Free), "OrtAllocator");
static_assert(offsetof(OrtAllocator, Info) == offsetof(ort::Allocator, Info), "OrtAllocator");

MEMBER(version, version);
MEMBER(CreateKernel, CreateKernel);
MEMBER(GetName, GetName);
MEMBER(GetExecutionProviderType, GetExecutionProviderType);
MEMBER(GetInputType, GetInputType);
MEMBER(GetInputTypeCount, GetInputTypeCount);
MEMBER(GetOutputType, GetOutputType);
MEMBER(GetOutputTypeCount, GetOutputTypeCount);
MEMBER(KernelCompute, KernelCompute);
MEMBER(KernelDestroy, KernelDestroy);
MEMBER(GetInputCharacteristic, GetInputCharacteristic);
MEMBER(GetOutputCharacteristic, GetOutputCharacteristic);
MEMBER(GetInputMemoryType, GetInputMemoryType);
MEMBER(CreateKernelV2, CreateKernelV2);
MEMBER(KernelComputeV2, KernelComputeV2);
MEMBER(InferOutputShape, InferOutputShapeFn);
MEMBER(GetStartVersion, GetStartVersion);
MEMBER(GetEndVersion, GetEndVersion);
MEMBER(ReleaseAliasMap, ReleaseAliasMap);

static_assert(ort::kFloat == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, "float32");
static_assert(ort::kInt32 == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, "int32");
static_assert(ort::kFloat16 == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, "float16");
static_assert(ort::kBfloat16 == ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16, "bfloat16");
static_assert(ort::kInvalidGraph == ORT_INVALID_GRAPH, "status codes");
static_assert(ort::kInvalidArgument == ORT_INVALID_ARGUMENT, "status codes");
