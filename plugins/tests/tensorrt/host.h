// SPDX-License-Identifier: Apache-2.0
//
// TensorRT's side of the plugin interface, as far as a plugin sees it: the library and its
// creators, field collections, and the builder of dimension expressions.

#ifndef NQ_TESTS_TENSORRT_HOST_H
#define NQ_TESTS_TENSORRT_HOST_H

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <deque>
#include <string>
#include <vector>

namespace conformance {

// Counts what fails, and says it.
struct Report {
  bool expect(bool good, const char* what) {
    ++checks;
    if (!good) {
      ++failures;
      printf("FAILED: %s: %s\n", where.c_str(), what);
    }
    return good;
  }
  std::string where;
  int checks = 0, failures = 0;
};

struct Library {
  using Creators = nvinfer1::IPluginCreatorInterface* const* (*)(int32_t&);
  using SetFinder = void (*)(nvinfer1::ILoggerFinder*);
  using Text = const char* (*)();

  bool load(const char* path) {
    handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
      printf("FAILED: %s\n", dlerror());
      return false;
    }
    creators = reinterpret_cast<Creators>(dlsym(handle, "getCreators"));
    set_finder = reinterpret_cast<SetFinder>(dlsym(handle, "setLoggerFinder"));
    last_error = reinterpret_cast<Text>(dlsym(handle, "nq_tensorrt_last_error"));
    return creators != nullptr && set_finder != nullptr && last_error != nullptr;
  }
  nvinfer1::IPluginCreatorV3One* creator(const char* name) const {
    int32_t count = 0;
    nvinfer1::IPluginCreatorInterface* const* all = creators(count);
    for (int32_t i = 0; i < count; ++i) {
      auto* one = static_cast<nvinfer1::IPluginCreatorV3One*>(all[i]);
      if (std::string(one->getPluginName()) == name) return one;
    }
    return nullptr;
  }
  void* handle = nullptr;
  Creators creators = nullptr;
  SetFinder set_finder = nullptr;
  Text last_error = nullptr;
};

// Fields that own what they point to.
class Fields {
 public:
  void add(const std::string& name, const std::vector<int32_t>& values) {
    add(name, nvinfer1::PluginFieldType::kINT32, values.data(), values.size(), 4);
  }
  void add(const std::string& name, const std::string& text) {
    add(name, nvinfer1::PluginFieldType::kCHAR, text.data(), text.size(), 1);
  }
  void add_wide(const std::string& name, const std::vector<int64_t>& values) {
    add(name, nvinfer1::PluginFieldType::kINT64, values.data(), values.size(), 8);
  }
  void add(const std::string& name, nvinfer1::PluginFieldType type, const void* data, size_t length,
           size_t element) {
    remove(name);
    const char* from = static_cast<const char*>(data);
    names_.push_back(name);
    values_.emplace_back(from, from + length * element);
    fields_.emplace_back(names_.back().c_str(), values_.back().data(), type,
                         static_cast<int32_t>(length));
  }
  void remove(const std::string& name) {
    for (size_t i = 0; i < fields_.size(); ++i) {
      if (name == fields_[i].name) fields_.erase(fields_.begin() + static_cast<long>(i--));
    }
  }
  // What an engine does between serializing and loading: a copy that outlives the plugin.
  static Fields copy_of(const nvinfer1::PluginFieldCollection& from) {
    Fields fields;
    for (int32_t i = 0; i < from.nbFields; ++i) {
      const nvinfer1::PluginField& field = from.fields[i];
      const bool text = field.type == nvinfer1::PluginFieldType::kCHAR;
      fields.add(field.name, field.type, field.data, static_cast<size_t>(field.length),
                 text ? 1 : 4);
    }
    return fields;
  }
  const nvinfer1::PluginFieldCollection* collection() {
    collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
    return &collection_;
  }
  // Names and values in one text, for comparisons.
  std::string text() const {
    std::string all;
    for (const nvinfer1::PluginField& field : fields_) {
      const size_t element = field.type == nvinfer1::PluginFieldType::kCHAR ? 1 : 4;
      all += field.name + std::string("=") +
             std::string(static_cast<const char*>(field.data),
                         static_cast<size_t>(field.length) * element) +
             ";";
    }
    return all;
  }
  Fields() = default;
  Fields(const Fields& other) { *this = other; }
  Fields& operator=(const Fields& other) {
    if (this == &other) return *this;
    names_.clear(), values_.clear(), fields_.clear();
    for (const nvinfer1::PluginField& field : other.fields_) {
      const size_t element = field.type == nvinfer1::PluginFieldType::kCHAR    ? 1
                             : field.type == nvinfer1::PluginFieldType::kINT64 ? 8
                                                                               : 4;
      add(field.name, field.type, field.data, static_cast<size_t>(field.length), element);
    }
    return *this;
  }

 private:
  std::deque<std::string> names_;
  std::deque<std::vector<char>> values_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_ = {};
};

// A dimension: a constant, or -1 for one that is not known yet.
class Dimension : public nvinfer1::IDimensionExpr, public nvinfer1::apiv::VDimensionExpr {
 public:
  explicit Dimension(int64_t value) : value_(value) { mImpl = this; }
  ~Dimension() noexcept override = default;
  bool isConstant() const override { return value_ >= 0; }
  int64_t getConstantValue() const override { return value_; }
  bool isSizeTensor() const override { return false; }

 private:
  int64_t value_;
};

class Expressions : public nvinfer1::IExprBuilder, public nvinfer1::apiv::VExprBuilder {
 public:
  Expressions() { mImpl = this; }
  ~Expressions() noexcept override = default;
  const nvinfer1::IDimensionExpr* constant(int64_t value) override {
    made_.emplace_back(value);
    return &made_.back();
  }
  const nvinfer1::IDimensionExpr* operation(nvinfer1::DimensionOperation,
                                            const nvinfer1::IDimensionExpr&,
                                            const nvinfer1::IDimensionExpr&) override {
    return constant(-1);
  }
  const nvinfer1::IDimensionExpr* declareSizeTensor(int32_t, const nvinfer1::IDimensionExpr&,
                                                    const nvinfer1::IDimensionExpr&) override {
    return constant(-1);
  }

 private:
  std::deque<Dimension> made_;
};

}  // namespace conformance

#endif  // NQ_TESTS_TENSORRT_HOST_H
