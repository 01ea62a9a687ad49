// SPDX-License-Identifier: Apache-2.0
//
// The part of ONNX Runtime's C interface that a custom operator touches, described by slot.
//
// OrtApi is a table of function pointers that only ever grows at its end, and OrtCustomOp a struct
// whose `version` says how many of its members exist, so the numbers below hold for every release
// since 1.18 (API version 18). A source build therefore needs no ONNX Runtime SDK. Where the real
// headers are at hand, tests/plugins compares the two.

#ifndef NQ_ORT_ABI_H
#define NQ_ORT_ABI_H

#include <stddef.h>
#include <stdint.h>

namespace ort {

constexpr uint32_t kApiVersion = 18;

// Opaque handles.
struct Status;
struct SessionOptions;
struct CustomOpDomain;
struct KernelInfo;
struct KernelContext;
struct Value;
struct TypeShape;
struct ShapeInferContext;
struct MemoryInfo;

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2, kInvalidGraph = 10 };

// Element types, numbered as in ONNX's TensorProto.
enum ElementType : int {
  kUndefined = 0,
  kFloat = 1,
  kInt8 = 3,
  kInt32 = 6,
  kInt64 = 7,
  kFloat16 = 10,
  kBfloat16 = 16
};

enum Characteristic : int { kRequired = 0, kOptional = 1, kVariadic = 2 };
enum MemoryType : int { kMemoryDefault = 0 };

enum Slot : size_t {
  kCreateStatus = 0,
  kCreateCustomOpDomain = 26,
  kCustomOpDomainAdd = 27,
  kAddCustomOpDomain = 28,
  kGetTensorMutableData = 51,
  kCreateTypeShape = 57,
  kSetElementType = 58,
  kSetDimensions = 59,
  kGetElementType = 60,
  kGetDimensionsCount = 61,
  kGetDimensions = 62,
  kGetSymbolicDimensions = 63,
  kGetTensorTypeAndShape = 65,
  kKernelInfoGetAttributeFloat = 85,
  kKernelInfoGetAttributeInt64 = 86,
  kKernelContextGetInputCount = 88,
  kKernelContextGetInput = 90,
  kKernelContextGetOutput = 91,
  kReleaseStatus = 93,
  kReleaseTypeShape = 99,
  kReleaseCustomOpDomain = 101,
  kReleaseAllocator = 132,
  kKernelInfoGetAttributeInt64s = 163,
  kKernelContextGetGpuStream = 193,
  kKernelInfoGetInputCount = 230,
  kKernelInfoGetConstantInput = 249,
  kShapeInferGetInputCount = 267,
  kShapeInferGetInputTypeShape = 268,
  kShapeInferSetOutputTypeShape = 270,
  kSetSymbolicDimensions = 271,
  kKernelContextParallelFor = 274,
  kKernelContextGetScratchBuffer = 277,
  kKernelInfoGetAllocator = 278,
};

// The table itself: an address to count slots from.
struct Api;

struct ApiBase {
  const Api* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};
static_assert(offsetof(ApiBase, GetVersionString) == 8, "two pointers");

// What hands out memory; a table of its own, whose first members are these.
struct Allocator {
  uint32_t version;
  void* (*Alloc)(Allocator*, size_t);
  void (*Free)(Allocator*, void*);
  const MemoryInfo* (*Info)(const Allocator*);
};
static_assert(offsetof(Allocator, Info) == 24, "slot 3");

// Calls one entry: call<Signature>(api, slot)(arguments...).
template <class Signature>
inline Signature* call(const Api* api, Slot slot) {
  return reinterpret_cast<Signature*>(reinterpret_cast<void* const*>(api)[slot]);
}

using CreateStatus = Status*(ErrorCode, const char*);
using CreateDomain = Status*(const char*, CustomOpDomain**);
using DomainAdd = Status*(CustomOpDomain*, const struct CustomOp*);
using AddDomain = Status*(SessionOptions*, CustomOpDomain*);
using ReleaseDomain = void(CustomOpDomain*);
using ReleaseStatus = void(Status*);
using GetMutableData = Status*(Value*, void**);
using CreateTypeShape = Status*(TypeShape**);
using SetElementType = Status*(TypeShape*, ElementType);
using SetDimensions = Status*(TypeShape*, const int64_t*, size_t);
using GetElementType = Status*(const TypeShape*, ElementType*);
using GetDimensionsCount = Status*(const TypeShape*, size_t*);
using GetDimensions = Status*(const TypeShape*, int64_t*, size_t);
using GetSymbolicDimensions = Status*(const TypeShape*, const char**, size_t);
using SetSymbolicDimensions = Status*(TypeShape*, const char**, size_t);
using GetTensorTypeAndShape = Status*(const Value*, TypeShape**);
using ReleaseTypeShape = void(TypeShape*);
using InfoGetFloat = Status*(const KernelInfo*, const char*, float*);
using InfoGetInt64 = Status*(const KernelInfo*, const char*, int64_t*);
using InfoGetInt64s = Status*(const KernelInfo*, const char*, int64_t*, size_t*);
using InfoGetInputCount = Status*(const KernelInfo*, size_t*);
using InfoGetConstantInput = Status*(const KernelInfo*, size_t, int*, const Value**);
using ContextGetInputCount = Status*(const KernelContext*, size_t*);
using ContextGetInput = Status*(const KernelContext*, size_t, const Value**);
using ContextGetOutput = Status*(KernelContext*, size_t, const int64_t*, size_t, Value**);
using ContextParallelFor = Status*(const KernelContext*, void (*)(void*, size_t), size_t, size_t,
                                   void*);
using ContextGetGpuStream = Status*(const KernelContext*, void**);
using ContextGetScratchBuffer = Status*(const KernelContext*, const MemoryInfo*, size_t, void**);
using InfoGetAllocator = Status*(const KernelInfo*, MemoryType, Allocator**);
using ReleaseAllocator = void(Allocator*);
using InferGetInputCount = Status*(const ShapeInferContext*, size_t*);
using InferGetInput = Status*(const ShapeInferContext*, size_t, TypeShape**);
using InferSetOutput = Status*(const ShapeInferContext*, size_t, const TypeShape*);

// A custom operator. Members are read only as far as `version` says they exist; a null callback
// means the default.
struct CustomOp {
  uint32_t version;
  void* (*CreateKernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char* (*GetName)(const CustomOp*);
  const char* (*GetExecutionProviderType)(const CustomOp*);
  ElementType (*GetInputType)(const CustomOp*, size_t);
  size_t (*GetInputTypeCount)(const CustomOp*);
  ElementType (*GetOutputType)(const CustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const CustomOp*);
  void (*KernelCompute)(void*, KernelContext*);
  void (*KernelDestroy)(void*);
  Characteristic (*GetInputCharacteristic)(const CustomOp*, size_t);
  Characteristic (*GetOutputCharacteristic)(const CustomOp*, size_t);
  MemoryType (*GetInputMemoryType)(const CustomOp*, size_t);
  int (*GetVariadicInputMinArity)(const CustomOp*);
  int (*GetVariadicInputHomogeneity)(const CustomOp*);
  int (*GetVariadicOutputMinArity)(const CustomOp*);
  int (*GetVariadicOutputHomogeneity)(const CustomOp*);
  Status* (*CreateKernelV2)(const CustomOp*, const Api*, const KernelInfo*, void**);
  Status* (*KernelComputeV2)(void*, KernelContext*);
  Status* (*InferOutputShape)(const CustomOp*, ShapeInferContext*);
  int (*GetStartVersion)(const CustomOp*);
  int (*GetEndVersion)(const CustomOp*);
  size_t (*GetMayInplace)(int**, int**);
  void (*ReleaseMayInplace)(int*, int*);
  size_t (*GetAliasMap)(int**, int**);
  void (*ReleaseAliasMap)(int*, int*);
};
static_assert(offsetof(CustomOp, CreateKernel) == 8, "slot 1");
static_assert(offsetof(CustomOp, GetInputType) == 32, "slot 4");
static_assert(offsetof(CustomOp, KernelCompute) == 64, "slot 8");
static_assert(offsetof(CustomOp, GetInputMemoryType) == 96, "slot 12");
static_assert(offsetof(CustomOp, CreateKernelV2) == 136, "slot 17");
static_assert(offsetof(CustomOp, InferOutputShape) == 152, "slot 19");
static_assert(offsetof(CustomOp, GetEndVersion) == 168, "slot 21");
static_assert(sizeof(CustomOp) == 208, "26 slots");

}  // namespace ort

#endif  // NQ_ORT_ABI_H
