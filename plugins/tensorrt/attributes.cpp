// SPDX-License-Identifier: Apache-2.0

#include "attributes.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

namespace nq_tensorrt {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;

namespace {

// An engine remembers the build that planned its workspace, and no other may run it.
constexpr const char* kLibraryField = "library";
constexpr const char* kLibrary = NQ_VERSION;

// A list attribute holds one value a projection, in the operator NanoQuantLinear a lone integer.
struct Name {
  const char* linear;
  const char* group;
  int32_t (Attributes::*list)[NQ_CUDA_MAX_GROUP];
  int32_t least, most;
};

constexpr Name kLists[] = {
    {"rank", "ranks", &Attributes::rank, 1, INT_MAX},
    {"out_features", "out_features", &Attributes::out_features, 1, INT_MAX},
    {"has_scale_mid", "has_scale_mid", &Attributes::has_scale_mid, 0, 1},
    {"has_bias", "has_bias", &Attributes::has_bias, 0, 1},
};
constexpr const char* kInFeatures = "in_features";
constexpr const char* kLayout = "layout";

const char* name_in(Operator op, const Name& name) {
  return op == Operator::kLinear ? name.linear : name.group;
}

const PluginField* find(const PluginFieldCollection* from, const char* name) {
  if (from == nullptr || from->fields == nullptr) return nullptr;
  for (int32_t i = 0; i < from->nbFields; ++i) {
    const PluginField& field = from->fields[i];
    if (field.name != nullptr && strcmp(field.name, name) == 0) return &field;
  }
  return nullptr;
}

// Reads 1 to `room` integers between `least` and `most`; parsers pass 32 bits, some hosts 64.
bool read_integers(const PluginFieldCollection* from, const char* name, int32_t least, int32_t most,
                   int32_t room, int32_t* values, int32_t* count, char* why, size_t why_bytes) {
  const PluginField* field = find(from, name);
  if (field == nullptr || field->data == nullptr) {
    snprintf(why, why_bytes, "attribute %s is missing", name);
    return false;
  }
  const bool wide = field->type == PluginFieldType::kINT64;
  if (!wide && field->type != PluginFieldType::kINT32) {
    snprintf(why, why_bytes, "attribute %s is not an integer", name);
    return false;
  }
  if (field->length < 1 || field->length > room) {
    snprintf(why, why_bytes, "attribute %s has %d values, and 1 to %d are allowed", name,
             field->length, room);
    return false;
  }
  for (int32_t i = 0; i < field->length; ++i) {
    int64_t value = 0;
    int32_t narrow = 0;
    const char* at = static_cast<const char*>(field->data);
    if (wide) {
      memcpy(&value, at + sizeof value * static_cast<size_t>(i), sizeof value);
    } else {
      memcpy(&narrow, at + sizeof narrow * static_cast<size_t>(i), sizeof narrow);
      value = narrow;
    }
    if (value < least || value > most) {
      snprintf(why, why_bytes, "attribute %s is %lld, outside %d to %d", name,
               static_cast<long long>(value), least, most);
      return false;
    }
    values[i] = static_cast<int32_t>(value);
  }
  *count = field->length;
  return true;
}

// Refuses an engine of another build: the workspace it set aside might be too small here.
bool same_library(const PluginFieldCollection* from, char* why, size_t why_bytes) {
  const PluginField* field = find(from, kLibraryField);
  if (field == nullptr || field->data == nullptr) return true;
  const size_t length = field->length < 0 ? 0 : static_cast<size_t>(field->length);
  if (length == strlen(kLibrary) && memcmp(field->data, kLibrary, length) == 0) return true;
  snprintf(why, why_bytes,
           "the engine was built with plugin library %.*s and this is %s: rebuild the engine "
           "(nq-edge build), or install that version",
           static_cast<int>(length < 40 ? length : 40), static_cast<const char*>(field->data),
           kLibrary);
  return false;
}

}  // namespace

const char* name_of(Operator op) {
  return op == Operator::kLinear ? "NanoQuantLinear" : "NanoQuantLinearGroup";
}

int32_t declared_fields(Operator op, PluginField* fields) {
  int32_t count = 0;
  fields[count++] = PluginField(kInFeatures, nullptr, PluginFieldType::kINT32, 1);
  for (const Name& name : kLists) {
    fields[count++] = PluginField(name_in(op, name), nullptr, PluginFieldType::kINT32, 1);
  }
  fields[count++] = PluginField(kLayout, nullptr, PluginFieldType::kINT32, 1);
  return count;
}

bool read_fields(Operator op, const PluginFieldCollection* from, Attributes* attributes, char* why,
                 size_t why_bytes) {
  *attributes = Attributes{};
  int32_t count = 0;
  if (!read_integers(from, kInFeatures, 1, INT_MAX, 1, &attributes->in_features, &count, why,
                     why_bytes) ||
      !read_integers(from, kLayout, 0, INT_MAX, 1, &attributes->layout, &count, why, why_bytes)) {
    return false;
  }
  const int32_t room = op == Operator::kLinear ? 1 : NQ_CUDA_MAX_GROUP;
  for (const Name& name : kLists) {
    if (!read_integers(from, name_in(op, name), name.least, name.most, room, attributes->*name.list,
                       &count, why, why_bytes)) {
      return false;
    }
    if (attributes->count == 0) attributes->count = count;
    if (count != attributes->count) {
      snprintf(why, why_bytes, "attribute %s has %d values, and %s has %d", name_in(op, name),
               count, name_in(op, kLists[0]), attributes->count);
      return false;
    }
  }
  if (op == Operator::kGroup && attributes->count < 2) {
    snprintf(why, why_bytes, "a group has 2 to %d projections, and this one has 1", room);
    return false;
  }
  if (attributes->layout != NQ_LAYOUT_TILES_16X256) {
    snprintf(why, why_bytes,
             "layout is %d, and this plugin reads layout 1: `nq-edge build` writes it",
             attributes->layout);
    return false;
  }
  return same_library(from, why, why_bytes);
}

int32_t write_fields(Operator op, const Attributes& attributes, PluginField* fields) {
  int32_t count = 0;
  fields[count++] = PluginField(kInFeatures, &attributes.in_features, PluginFieldType::kINT32, 1);
  for (const Name& name : kLists) {
    fields[count++] = PluginField(name_in(op, name), attributes.*name.list, PluginFieldType::kINT32,
                                  attributes.count);
  }
  fields[count++] = PluginField(kLayout, &attributes.layout, PluginFieldType::kINT32, 1);
  fields[count++] = PluginField(kLibraryField, kLibrary, PluginFieldType::kCHAR,
                                static_cast<int32_t>(strlen(kLibrary)));
  return count;
}

}  // namespace nq_tensorrt
