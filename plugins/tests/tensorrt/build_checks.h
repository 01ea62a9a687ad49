// SPDX-License-Identifier: Apache-2.0
//
// What a builder asks of the plugin; needs no GPU.

#ifndef NQ_TESTS_TENSORRT_BUILD_CHECKS_H
#define NQ_TESTS_TENSORRT_BUILD_CHECKS_H

#include "node.h"

namespace conformance {

using nvinfer1::IPluginV3;
using nvinfer1::IPluginV3OneBuild;
using nvinfer1::IPluginV3OneCore;
using nvinfer1::IPluginV3OneRuntime;
using nvinfer1::PluginCapabilityType;
using nvinfer1::TensorRTPhase;

using Plugin = std::unique_ptr<IPluginV3>;

inline IPluginV3OneBuild* build_of(const Plugin& plugin) {
  return static_cast<IPluginV3OneBuild*>(
      plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
}
inline IPluginV3OneRuntime* runtime_of(const Plugin& plugin) {
  return static_cast<IPluginV3OneRuntime*>(
      plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
}

inline Plugin create(const Library& library, const Node& node, Fields fields,
                     TensorRTPhase phase = TensorRTPhase::kBUILD) {
  return Plugin(library.creator(node.of.op)->createPlugin("layer", fields.collection(), phase));
}

inline void check_creators(const Library& library, Report* report) {
  report->where = "creators";
  int32_t count = 0;
  library.creators(count);
  report->expect(count == 2, "two creators");
  for (const char* name : {"NanoQuantLinear", "NanoQuantLinearGroup"}) {
    nvinfer1::IPluginCreatorV3One* creator = library.creator(name);
    if (!report->expect(creator != nullptr, name)) exit(1);
    report->expect(creator->getPluginVersion() == std::string("1"), "version");
    report->expect(creator->getPluginNamespace() == std::string("com.nanoquant"), "namespace");
    report->expect(creator->getInterfaceInfo().kind == std::string("PLUGIN CREATOR_V3ONE"), "kind");
    report->expect(creator->getFieldNames()->nbFields == 6, "six fields");
    report->expect(creator->createPlugin("layer", nullptr, TensorRTPhase::kBUILD) == nullptr,
                   "no fields at all are refused");
  }
}

// Each wrong attribute is refused, and the reason names it.
inline void check_fields(const Library& library, const Node& node, Report* report) {
  const bool group = node.outputs() > 1;
  const std::string rank = group ? "ranks" : "rank";
  const auto refused = [&](const Fields& fields, const std::string& word) {
    const Plugin plugin = create(library, node, fields);
    const std::string reason = library.last_error();
    report->expect(plugin == nullptr && reason.find(word) != std::string::npos,
                   ("refuses: " + word).c_str());
  };
  for (const std::string& name :
       {std::string("in_features"), rank, std::string("out_features"), std::string("has_scale_mid"),
        std::string("has_bias"), std::string("layout")}) {
    Fields fields = node.fields();
    fields.remove(name);
    refused(fields, name + " is missing");
    fields.add(name, nvinfer1::PluginFieldType::kFLOAT32, "\0\0\0\0", 1, 4);
    refused(fields, name + " is not an integer");
    fields.add(name, std::vector<int32_t>{-1});
    refused(fields, name + " is -1");
    fields.add(name, std::vector<int32_t>(5, 1));
    refused(fields, name + " has 5 values");
    fields.add(name, std::vector<int32_t>{});
    refused(fields, name + (fields.collection() ? " " : ""));
  }
  Fields fields = node.fields();
  fields.add("layout", std::vector<int32_t>{0});
  refused(fields, "layout is 0");
  fields = node.fields();
  fields.add_wide("in_features", {int64_t{1} << 40});
  refused(fields, "in_features is 1099511627776");
  fields.add_wide("in_features", {node.of.n});
  report->expect(create(library, node, fields) != nullptr, "takes 64-bit integers");
  fields = node.fields();
  fields.add("library", std::string("0.0.0-other"));
  refused(fields, "0.0.0-other");
  if (group) {
    fields = node.fields();
    fields.add("has_bias", std::vector<int32_t>{0});
    refused(fields, "has_bias has 1 values");
  }
}

inline void check_formats(IPluginV3OneBuild* build, const Node& node, Report* report) {
  const int32_t inputs = node.inputs(), outputs = node.outputs();
  std::vector<DynamicPluginTensorDesc> tensors = node.profile(2, 64);
  bool good = true;
  for (int32_t at = 0; at < inputs + outputs; ++at) {
    const PluginTensorDesc right = tensors[static_cast<size_t>(at)].desc;
    for (int type = 0; type <= static_cast<int>(DataType::kINT64); ++type) {
      for (int format = 0; format < 13; ++format) {
        PluginTensorDesc& tensor = tensors[static_cast<size_t>(at)].desc;
        tensor.type = static_cast<DataType>(type);
        tensor.format = static_cast<TensorFormat>(format);
        // X and the first scale may have other types than here; all others follow them.
        const bool half = tensor.type == DataType::kHALF || tensor.type == DataType::kBF16;
        bool wanted = tensor.type == right.type;
        if (at == 0) wanted = half;
        if (at == 3) wanted = half || tensor.type == DataType::kFLOAT;
        wanted = wanted && tensor.format == TensorFormat::kLINEAR;
        good =
            good && build->supportsFormatCombination(at, tensors.data(), inputs, outputs) == wanted;
      }
    }
    tensors[static_cast<size_t>(at)].desc = right;
  }
  report->expect(good, "formats: exactly the documented ones");
  report->expect(!build->supportsFormatCombination(0, tensors.data(), inputs - 1, outputs),
                 "formats: another number of inputs");
}

inline void check_build(const Library& library, const Node& node, Report* report) {
  const Plugin plugin = create(library, node, node.fields());
  if (!report->expect(plugin != nullptr, "createPlugin")) return;
  auto* core =
      static_cast<IPluginV3OneCore*>(plugin->getCapabilityInterface(PluginCapabilityType::kCORE));
  report->expect(core->getPluginName() == std::string(node.of.op), "name");
  report->expect(core->getPluginVersion() == std::string("1"), "version");
  report->expect(core->getPluginNamespace() == std::string("com.nanoquant"), "namespace");

  IPluginV3OneBuild* build = build_of(plugin);
  const int32_t inputs = node.inputs(), outputs = node.outputs();
  report->expect(build->getNbOutputs() == outputs, "number of outputs");
  std::vector<DataType> types(static_cast<size_t>(inputs)), out_types(8, DataType::kINT8);
  std::vector<nvinfer1::DimsExprs> shapes(static_cast<size_t>(inputs)), out_shapes(8);
  Expressions builder;
  const std::vector<DynamicPluginTensorDesc> profile = node.profile(2, 64);
  for (int32_t i = 0; i < inputs; ++i) {
    const PluginTensorDesc& tensor = profile[static_cast<size_t>(i)].desc;
    types[static_cast<size_t>(i)] = tensor.type;
    nvinfer1::DimsExprs& shape = shapes[static_cast<size_t>(i)];
    shape.nbDims = tensor.dims.nbDims;
    for (int32_t d = 0; d < shape.nbDims; ++d) shape.d[d] = builder.constant(tensor.dims.d[d]);
  }
  report->expect(build->getOutputDataTypes(out_types.data(), outputs, types.data(), inputs) == 0,
                 "types");
  report->expect(build->getOutputShapes(shapes.data(), inputs, nullptr, 0, out_shapes.data(),
                                        outputs, builder) == 0,
                 "shapes");
  for (int32_t i = 0; i < outputs; ++i) {
    const nvinfer1::DimsExprs& shape = out_shapes[static_cast<size_t>(i)];
    report->expect(out_types[static_cast<size_t>(i)] == node.of.x, "output type");
    report->expect(shape.nbDims == 3 && shape.d[0] == shapes[0].d[0] &&
                       shape.d[1] == shapes[0].d[1] &&
                       shape.d[2]->getConstantValue() == node.layers[static_cast<size_t>(i)]->m,
                   "output shape");
  }
  types[0] = DataType::kFLOAT;
  report->expect(build->getOutputDataTypes(out_types.data(), outputs, types.data(), inputs) != 0,
                 "float32 X is refused");
  check_formats(build, node, report);

  const DynamicPluginTensorDesc* all = profile.data();
  report->expect(build->configurePlugin(all, inputs, all + inputs, outputs) == 0, "configure");
  report->expect(build->configurePlugin(all, inputs - 1, all + inputs, outputs) != 0,
                 "configure refuses a missing input");
  for (int32_t i = 0; i < inputs + outputs; ++i) {
    std::vector<DynamicPluginTensorDesc> wrong = profile;
    Dims& shape = wrong[static_cast<size_t>(i)].desc.dims;
    shape.d[shape.nbDims - 1] += 1;
    report->expect(
        build->configurePlugin(wrong.data(), inputs, wrong.data() + inputs, outputs) != 0,
        "configure refuses another size");
  }
  const size_t small = build->getWorkspaceSize(all, inputs, all + inputs, outputs);
  const std::vector<DynamicPluginTensorDesc> larger = node.profile(4, 128);
  const size_t large =
      build->getWorkspaceSize(larger.data(), inputs, larger.data() + inputs, outputs);
  report->expect(small > 0 && large >= small, "workspace grows with the profile");
  const Plugin same = create(library, node, node.fields());
  report->expect(build->getTimingCacheID() == std::string(build_of(same)->getTimingCacheID()),
                 "one timing for layers of one size");
  std::vector<int32_t> flipped;
  for (const Projection& p : node.of.projections) flipped.push_back(!p.bias);
  Fields wider = node.fields(), other_bias = node.fields();
  wider.add("in_features", std::vector<int32_t>{static_cast<int32_t>(node.of.n + 1)});
  other_bias.add("has_bias", flipped);
  for (const Fields& other : {wider, other_bias}) {
    report->expect(std::string(build->getTimingCacheID()) !=
                       build_of(create(library, node, other))->getTimingCacheID(),
                   "another timing for another layer");
  }
}

}  // namespace conformance

#endif  // NQ_TESTS_TENSORRT_BUILD_CHECKS_H
