// SPDX-License-Identifier: Apache-2.0
//
// Attacks every CPU operator of the library with nodes that contradict themselves: attributes near
// 2^63 or missing, words and scales shorter than promised, other types and dimensions, inputs that
// are gone, any bits as data. `make sanitize` builds it with sanitizers, so that an access
// outside a tensor, an overflow or a leak ends it.
//
//   nq_fuzz_ops LIBRARY CASES [SEED]     prints one JSON object; exit status 0 when nothing was
//   found
//
// A third of the nodes is left as it should be, and must compute.

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fake_ort.h"
#include "random.h"

namespace {

using fake::Attribute;
using fake::Node;
using fake::Tensor;

int64_t below(int64_t limit) {
  return static_cast<int64_t>((random_word() >> 8) % static_cast<uint64_t>(limit));
}
int64_t between(int64_t low, int64_t high) { return low + below(high - low + 1); }

constexpr int64_t kHostile[] = {
    0,         1,         -1,        2,         31,        32,        33,
    255,       256,       65535,     65536,     1 << 20,   INT32_MAX, -INT32_MAX,
    1ll << 31, 1ll << 32, 1ll << 40, 1ll << 62, INT64_MAX, INT64_MIN, INT64_MAX - 31};
int64_t hostile() { return kHostile[below(sizeof kHostile / sizeof kHostile[0])]; }

Attribute integer(int64_t value) { return {Attribute::kInt, {value}, 0.0f}; }

// Plausible contents: small numbers in the tensor's type; now and then any bits.
void fill(Tensor* tensor) {
  const int64_t size = tensor->bytes();
  const bool wild = below(4) == 0;
  for (int64_t i = 0; i < size; ++i) {
    tensor->data[static_cast<size_t>(i)] = static_cast<uint8_t>(random_word() >> 20);
  }
  if (wild) return;
  for (int64_t i = 0; tensor->type == ort::kFloat && i < size; i += 4) {
    const float value = static_cast<float>(below(2001) - 1000) / 1000.0f;
    memcpy(&tensor->data[static_cast<size_t>(i)], &value, 4);
  }
  for (int64_t i = 1; fake::bytes_of(tensor->type) == 2 && i < size; i += 2) {
    tensor->data[static_cast<size_t>(i)] &= 0xbf;  // no exponent is all ones: finite
  }
}

void add(Node* node, ort::ElementType type, std::vector<int64_t> dims, bool constant = false) {
  Tensor tensor;
  tensor.type = type;
  tensor.dims = std::move(dims);
  tensor.constant = constant;
  if (!tensor.allocate()) abort();  // the honest sizes below are small
  fill(&tensor);
  node->inputs.push_back(std::move(tensor));
}

int64_t words(int64_t columns) { return (columns + 31) / 32; }

std::vector<int64_t> leading(int64_t last) {
  std::vector<int64_t> dims;
  for (int64_t i = below(3); i > 0; --i) dims.push_back(between(0, 3));
  dims.push_back(last);
  return dims;
}

// The six weights of one layer.
void add_layer(Node* node, ort::ElementType scales, bool constant, int64_t n, int64_t rank,
               int64_t m, bool mid, bool bias) {
  add(node, ort::kInt32, {rank, words(n)}, constant);
  add(node, ort::kInt32, {m, words(rank)}, constant);
  add(node, scales, {n}, constant);
  add(node, scales, {mid ? rank : 1}, constant);
  add(node, scales, {m}, constant);
  add(node, scales, {bias ? m : 1}, constant);
}

void make_linear(const ort::CustomOp* op, Node* node) {
  const int64_t n = between(1, 130), rank = between(1, 100), m = between(1, 130);
  const bool mid = below(2) != 0, bias = below(2) != 0;
  node->attributes = {{"in_features", integer(n)},  {"rank", integer(rank)},
                      {"out_features", integer(m)}, {"has_scale_mid", integer(mid)},
                      {"has_bias", integer(bias)},  {"layout", integer(0)}};
  add(node, op->GetInputType(op, 0), leading(n));
  add_layer(node, op->GetInputType(op, 3), below(2) != 0, n, rank, m, mid, bias);
  node->outputs.resize(1);
}

void make_group(const ort::CustomOp* op, Node* node) {
  const int64_t n = between(1, 130);
  const size_t count = static_cast<size_t>(between(2, 4));
  const ort::ElementType kinds[] = {ort::kFloat, ort::kFloat16, ort::kBfloat16};
  const ort::ElementType scales = kinds[below(3)];
  std::vector<int64_t> lists[4];
  add(node, op->GetInputType(op, 0), leading(n));
  for (size_t i = 0; i < count; ++i) {
    const int64_t rank = between(1, 100), m = between(1, 130), mid = below(2), bias = below(2);
    add_layer(node, scales, true, n, rank, m, mid != 0, bias != 0);
    const int64_t row[] = {rank, m, mid, bias};
    for (int list = 0; list < 4; ++list) lists[list].push_back(row[list]);
  }
  const char* const names[] = {"ranks", "out_features", "has_scale_mid", "has_bias"};
  for (int list = 0; list < 4; ++list) {
    node->attributes[names[list]] = {Attribute::kInts, lists[list], 0.0f};
  }
  node->attributes["in_features"] = integer(n);
  node->attributes["layout"] = integer(0);
  node->outputs.resize(count);
}

void make_table(const ort::CustomOp* op, Node* node, bool head) {
  const int64_t columns = 32 * between(1, 5), rows = between(1, 100), bits = below(2) ? 8 : 4;
  const int64_t group = below(2) ? columns : 32 * between(1, columns / 32);
  node->attributes = {
      {"columns", integer(columns)}, {"bits", integer(bits)}, {"group_size", integer(group)}};
  if (head) {
    add(node, ort::kFloat, leading(columns));
  } else {
    add(node, ort::kInt64, leading(between(0, 4)));
    Tensor& indices = node->inputs[0];
    for (int64_t i = 0; i < indices.bytes() / 8; ++i) {
      const int64_t index = below(rows);
      memcpy(&indices.data[static_cast<size_t>(8 * i)], &index, 8);
    }
  }
  add(node, ort::kInt8, {rows, (columns * bits + 7) / 8}, below(2) != 0);
  add(node, op->GetInputType(op, 2), {rows, (columns + group - 1) / group}, below(2) != 0);
  node->outputs.resize(1);
}

void make_attention(const ort::CustomOp* op, Node* node) {
  const int64_t kv = between(1, 3), heads = kv * between(1, 3), dim = 16 * between(1, 4);
  const int64_t batch = between(1, 2), rows = between(1, 5), capacity = between(rows, 20);
  const bool slots = below(2) != 0;
  const int64_t caches = slots ? between(1, 3) : batch;
  node->attributes = {{"num_heads", integer(heads)},
                      {"kv_num_heads", integer(kv)},
                      {"head_dim", integer(dim)},
                      {"window", integer(below(3) ? 0 : between(1, 8))},
                      {"scale", {Attribute::kFloat, {}, 0.25f}}};
  add(node, ort::kFloat, {batch, rows, heads * dim});
  for (int i = 0; i < 2; ++i) add(node, ort::kFloat, {batch, rows, kv * dim});
  for (int i = 0; i < 2; ++i) add(node, op->GetInputType(op, 3), {caches, kv, capacity, dim});
  const int64_t places = slots ? batch * rows : batch;
  add(node, ort::kInt32, {places});
  for (int64_t i = 0; i < places; ++i) {
    const int32_t last = static_cast<int32_t>(between(slots ? 0 : rows - 1, capacity - 1));
    memcpy(&node->inputs[5].data[static_cast<size_t>(4 * i)], &last, 4);
  }
  for (int i = 0; i < 2; ++i) add(node, ort::kFloat, {capacity, dim / 2}, true);
  if (slots || below(2)) {
    add(node, ort::kInt32, {slots ? places : 0});
    for (int64_t i = 0; slots && i < places; ++i) {
      const int32_t slot = static_cast<int32_t>(between(0, caches - 1));
      memcpy(&node->inputs[8].data[static_cast<size_t>(4 * i)], &slot, 4);
    }
  }
  node->outputs.resize(3);
}

bool make(const ort::CustomOp* op, Node* node) {
  const char* name = op->GetName(op);
  if (strcmp(op->GetExecutionProviderType(op), "CPUExecutionProvider") != 0) return false;
  if (strcmp(name, "NanoQuantLinear") == 0) {
    make_linear(op, node);
  } else if (strcmp(name, "NanoQuantLinearGroup") == 0) {
    make_group(op, node);
  } else if (strcmp(name, "NanoQuantEmbedding") == 0 || strcmp(name, "NanoQuantHead") == 0) {
    make_table(op, node, strcmp(name, "NanoQuantHead") == 0);
  } else if (strncmp(name, "NanoQuantAttention", strlen("NanoQuantAttention")) == 0) {
    make_attention(op, node);
  } else {
    fprintf(stderr, "no honest node of %s is known here\n", name);
    exit(2);
  }
  const size_t types = op->GetOutputTypeCount(op);
  for (size_t i = 0; i < node->outputs.size(); ++i) {
    node->outputs[i].type = op->GetOutputType(op, i < types ? i : types - 1);
  }
  return true;
}

// One contradiction.
void damage(Node* node) {
  auto attribute = node->attributes.begin();
  std::advance(attribute, below(static_cast<int64_t>(node->attributes.size())));
  Tensor& tensor =
      node->inputs[static_cast<size_t>(below(static_cast<int64_t>(node->inputs.size())))];
  const ort::ElementType types[] = {ort::kFloat, ort::kInt8,    ort::kInt32,
                                    ort::kInt64, ort::kFloat16, ort::kBfloat16};
  const std::vector<int64_t> dims = tensor.dims;
  switch (below(11)) {
    case 0:
    case 1:
      for (int64_t& value : attribute->second.ints) {
        if (below(2)) value = hostile();
      }
      attribute->second.number = below(2) ? NAN : -INFINITY;
      break;
    case 2:
      for (int64_t& value : attribute->second.ints) {
        value = static_cast<int64_t>(static_cast<uint64_t>(value) + random_word() % 5 - 2);
      }
      break;
    case 3:
      if (node->attributes.size() > 1) node->attributes.erase(attribute);
      break;
    case 4:
      attribute->second.kind = static_cast<Attribute::Kind>(below(3));
      if (attribute->second.ints.empty()) attribute->second.ints.push_back(hostile());
      if (below(2)) attribute->second.ints.resize(static_cast<size_t>(between(1, 40)), hostile());
      break;
    case 5:
      if (!tensor.dims.empty()) {
        const int64_t near = tensor.dims.back() < 1 << 20 ? tensor.dims.back() + between(-2, 2) : 1;
        const int64_t value = below(2) ? hostile() : near;
        tensor.dims[static_cast<size_t>(below(static_cast<int64_t>(dims.size())))] =
            value < 0 ? 0 : value;
      }
      break;
    case 6:
      tensor.dims.insert(tensor.dims.begin(), static_cast<size_t>(between(1, 20)), below(3));
      break;
    case 7:
      if (!tensor.dims.empty()) tensor.dims.pop_back();
      break;
    case 8:
      tensor.type = types[below(6)];
      break;
    case 9:
      tensor.missing = below(2) != 0;
      tensor.constant = !tensor.constant;
      break;
    default:
      if (below(2) && node->inputs.size() > 1) {
        node->inputs.pop_back();
      } else {
        add(node, ort::kFloat, {between(0, 4)});
      }
      return;
  }
  if (!tensor.allocate()) {  // no such tensor could exist
    tensor.dims = dims;
    if (!tensor.allocate()) tensor.dims = {0};
    tensor.allocate();
  }
  fill(&tensor);
}

struct Counts {
  int64_t cases, computed, refused;
};

// One node through its life; the counts say how it went. False: an honest node was refused.
bool run(const ort::CustomOp* op, Node* node, bool honest, Counts* counts) {
  ++counts->cases;
  const int64_t before = fake::outstanding();
  if (op->InferOutputShape != nullptr) {
    fake::release(op->InferOutputShape(op, fake::shapes_of(node)));
  }
  void* kernel = nullptr;
  ort::Status* status = op->CreateKernelV2(op, fake::api(), fake::info_of(node), &kernel);
  if (status == nullptr) {
    status = op->KernelComputeV2(kernel, fake::context_of(node));
    op->KernelDestroy(kernel);
  }
  ++(status == nullptr ? counts->computed : counts->refused);
  const bool good = status == nullptr || !honest;
  if (!good) fprintf(stderr, "%s: %s\n", op->GetName(op), fake::message_of(status));
  if (status != nullptr && strlen(fake::message_of(status)) < 8) return false;
  fake::release(status);
  if (fake::outstanding() != before) {
    fprintf(stderr, "%s keeps a status or a shape\n", op->GetName(op));
    return false;
  }
  return good;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 3) return 2;
  const auto operators = fake::load(arguments[1]);
  const int64_t cases = atoll(arguments[2]);
  random_state = count > 3 ? strtoull(arguments[3], nullptr, 10) * 2 + 1 : 1;
  std::map<std::string, Counts> counts;
  for (int64_t done = 0; done < cases;) {
    for (const ort::CustomOp* op : operators) {
      Node node;
      if (!make(op, &node)) continue;
      const int64_t damages = below(3) == 0 ? 0 : between(1, 3);
      for (int64_t i = 0; i < damages; ++i) damage(&node);
      if (!run(op, &node, damages == 0, &counts[op->GetName(op)])) {
        fprintf(stderr, "case %lld, seed %s\n", static_cast<long long>(done),
                count > 3 ? arguments[3] : "0");
        return 1;
      }
      ++done;
    }
  }
  printf("{");
  const char* separator = "";
  for (const auto& [name, seen] : counts) {
    printf("%s\"%s\": {\"cases\": %lld, \"computed\": %lld, \"refused\": %lld}", separator,
           name.c_str(), static_cast<long long>(seen.cases), static_cast<long long>(seen.computed),
           static_cast<long long>(seen.refused));
    separator = ", ";
  }
  printf("}\n");
  return 0;
}
