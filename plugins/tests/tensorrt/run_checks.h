// SPDX-License-Identifier: Apache-2.0
//
// The plugin's life in an engine: serialized, made again, cloned into contexts, and run.

#ifndef NQ_TESTS_TENSORRT_RUN_CHECKS_H
#define NQ_TESTS_TENSORRT_RUN_CHECKS_H

#include "build_checks.h"

namespace conformance {

// One execution context: a plugin, the tensors of one call, a workspace, a stream.
class Context {
 public:
  Context(const Node& node, Plugin plugin, size_t workspace)
      : node_(node), plugin_(std::move(plugin)), workspace_(workspace), stream_(new_stream()) {}
  ~Context() { end_stream(stream_); }
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  // New random X of [batch, length, n]; outputs are poisoned.
  bool reshape(int64_t batch, int64_t length) {
    tensors_ = node_.tensors(batch, length);
    x_ = std::make_unique<Tensor>(node_.of.x, tensors_[0].dims);
    x_->randomize(0.0, 1.0);
    x_->upload();
    inputs_ = {x_->device->at()};
    for (const Tensor* weight : node_.weights) inputs_.push_back(weight->device->at());
    y_.clear();
    outputs_.clear();
    for (const auto& layer : node_.layers) {
      const int64_t count = batch * length * layer->m;
      y_.push_back(std::make_unique<Buffer>(static_cast<size_t>(count) * bytes_of(node_.of.x)));
      outputs_.push_back(y_.back()->at());
    }
    return runtime_of(plugin_)->onShapeChange(tensors_.data(), node_.inputs(),
                                              tensors_.data() + node_.inputs(),
                                              node_.outputs()) == 0;
  }
  bool enqueue() {
    return runtime_of(plugin_)->enqueue(tensors_.data(), tensors_.data() + node_.inputs(),
                                        inputs_.data(), outputs_.data(), workspace_.at(),
                                        stream_) == 0;
  }
  void poison() {
    workspace_.fill(0xff);
    for (const auto& y : y_) y->fill(0xff);
  }
  // The outputs' bytes, after everything enqueued so far.
  std::vector<std::vector<uint8_t>> results() {
    finish(stream_);
    std::vector<std::vector<uint8_t>> all;
    for (const auto& y : y_) all.push_back(y->download());
    return all;
  }
  double error() {
    double worst = 0.0;
    const std::vector<std::vector<uint8_t>> y = results();
    for (size_t i = 0; i < y.size(); ++i) {
      const double one = node_.layers[i]->error(*x_, y[i]);
      if (!(one <= worst)) worst = one;
    }
    return worst;
  }
  IPluginV3OneRuntime* runtime() const { return runtime_of(plugin_); }
  const std::vector<PluginTensorDesc>& tensors() const { return tensors_; }
  cudaStream_t stream() const { return stream_; }

 private:
  const Node& node_;
  Plugin plugin_;
  Buffer workspace_;
  cudaStream_t stream_;
  std::vector<PluginTensorDesc> tensors_;
  std::unique_ptr<Tensor> x_;
  std::vector<const void*> inputs_;
  std::vector<std::unique_ptr<Buffer>> y_;
  std::vector<void*> outputs_;
};

// Gives the largest error. Without `enqueue` everything but that, which needs no GPU.
inline double check_run(const Library& library, const Node& node, bool enqueue, Report* report) {
  const int64_t most_batch = 3, most_length = kOnGpu ? 129 : 33;
  const int32_t inputs = node.inputs(), outputs = node.outputs();
  const Plugin built = create(library, node, node.fields());
  const std::vector<DynamicPluginTensorDesc> profile = node.profile(most_batch, most_length);
  const size_t workspace =
      build_of(built)->getWorkspaceSize(profile.data(), inputs, profile.data() + inputs, outputs);
  // What the engine keeps; the builder's plugin is gone before the engine's is made.
  Fields kept;
  Plugin loaded;
  {
    const Plugin clone(built->clone());
    kept = Fields::copy_of(*runtime_of(clone)->getFieldsToSerialize());
  }
  loaded = create(library, node, kept, TensorRTPhase::kRUNTIME);
  if (!report->expect(loaded != nullptr, "createPlugin from an engine's fields")) return INFINITY;
  const Fields again = Fields::copy_of(*runtime_of(loaded)->getFieldsToSerialize());
  report->expect(kept.text() == again.text(), "fields survive a second serialization");
  const Plugin clone(loaded->clone());
  Context first(node, Plugin(runtime_of(loaded)->attachToContext(nullptr)), workspace);
  Context second(node, Plugin(runtime_of(clone)->attachToContext(nullptr)), workspace);
  loaded.reset();

  report->expect(second.reshape(2, 17), "onShapeChange");
  std::vector<PluginTensorDesc> wrong = second.tensors();
  wrong[0].dims.d[2] += 1;
  report->expect(
      second.runtime()->onShapeChange(wrong.data(), inputs, wrong.data() + inputs, outputs) != 0,
      "onShapeChange refuses another width");
  if (!enqueue) return 0.0;

  const double limit = node.of.x == DataType::kHALF ? 1e-3 : 4.5e-3;
  double worst = 0.0;
  const int64_t shapes[][2] = {{1, 1}, {1, 2}, {3, 3}, {1, 8}, {1, 9}, {2, 17}, {3, most_length}};
  for (const auto& shape : shapes) {
    report->expect(first.reshape(shape[0], shape[1]) && first.enqueue(), "enqueue");
    const double error = first.error();
    report->expect(error <= limit, ("error at " + std::to_string(shape[0] * shape[1]) +
                                    " rows: " + std::to_string(error))
                                       .c_str());
    if (!(error <= worst)) worst = error;
    const std::vector<std::vector<uint8_t>> once = first.results();
    first.poison();
    report->expect(through_graph(first.stream(), [&] { return first.enqueue(); }), "captured");
    report->expect(first.results() == once, "a replay gives the same bits");
  }
  // Two contexts at once, decode and prefill.
  report->expect(first.reshape(1, 1) && second.reshape(2, 17), "two contexts");
  for (int i = 0; i < 4; ++i) report->expect(first.enqueue() && second.enqueue(), "two streams");
  report->expect(first.error() <= limit && second.error() <= limit, "two streams do not mix");
  report->expect(first.reshape(1, 0) && first.enqueue(), "no rows, no work");
  return worst;
}

}  // namespace conformance

#endif  // NQ_TESTS_TENSORRT_RUN_CHECKS_H
