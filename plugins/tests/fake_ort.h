// SPDX-License-Identifier: Apache-2.0
//
// As much of ONNX Runtime as a custom operator sees, so that the operator library can be attacked
// without it: attributes, tensors and shapes are whatever a test says, and every tensor lies in an
// allocation of exactly its size, so that a sanitizer sees the first byte outside.

#ifndef NQ_FAKE_ORT_H
#define NQ_FAKE_ORT_H

#include <stdint.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "../onnxruntime/ort_abi.h"

namespace fake {

// An attribute: integers, or one float.
struct Attribute {
  enum Kind { kInt, kInts, kFloat } kind;
  std::vector<int64_t> ints;
  float number;
};

int64_t bytes_of(ort::ElementType type);

// A tensor; dimensions are never negative and the data never larger than `kMostBytes`.
struct Tensor {
  ort::ElementType type = ort::kFloat;
  std::vector<int64_t> dims;
  std::unique_ptr<uint8_t[]> data;
  bool constant = false;
  bool missing = false;

  int64_t bytes() const;  // -1 when larger than kMostBytes
  bool allocate();        // zeroes; false when too large
};
constexpr int64_t kMostBytes = 1 << 20;

// A node: what its kernel is made from and called with.
struct Node {
  std::map<std::string, Attribute> attributes;
  std::vector<Tensor> inputs;
  std::vector<Tensor> outputs;
};

// The operators that a library registers; exits when there is no such library.
std::vector<const ort::CustomOp*> load(const char* library);

const ort::Api* api();

// Statuses and shapes handed out and not given back.
int64_t outstanding();

ort::KernelInfo* info_of(Node* node);
ort::KernelContext* context_of(Node* node);
ort::ShapeInferContext* shapes_of(Node* node);
void release(ort::Status* status);
const char* message_of(const ort::Status* status);

}  // namespace fake

#endif  // NQ_FAKE_ORT_H
