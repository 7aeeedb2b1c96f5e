// The contract between the plugins and TensorRT, without a GPU: creators, fields, shapes, types, stored
// state, clones, and what reaches the kernels. Runs against a fake registry with the headers of any version
// (FAKE_TENSORRT), or against a real libnvinfer into which it loads libdyndeploy_tensorrt.so (argv[1]).

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "api.h"
#include "recording_kernels.h"
#ifdef FAKE_TENSORRT
#include "fake_tensorrt.h"
#else
#include <dlfcn.h>
#include <unistd.h>
#endif

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

#if NV_TENSORRT_MAJOR >= 10 && !defined(DYNDEPLOY_TENSORRT_USE_V2)
#define INTERFACE_V3 1
#else
#define INTERFACE_V3 0
#endif

extern "C" std::int32_t DyndeployKernels(const char* name, const std::int32_t* attributes,
                                         std::int32_t attribute_count, const std::int64_t* shapes,
                                         std::int32_t shape_count, std::int32_t half, std::int32_t capability,
                                         std::int32_t processors, char* text, std::int32_t size,
                                         std::int32_t tactic);
extern "C" std::int32_t DyndeployTimedTactics(char* text, std::int32_t size);
extern "C" std::int32_t DyndeployReadTimedTactics(const char* text);

namespace {

using dyndeploy::cuda::Type;
using nvinfer1::DataType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;
using Dims = std::vector<std::int64_t>;

int failures = 0;
int checks = 0;

void check(bool passed, const std::string& what, int line) {
  ++checks;
  if (passed) return;
  ++failures;
  std::printf("contract.cpp:%d: %s\n", line, what.c_str());
}
#define CHECK(CONDITION, WHAT) check((CONDITION), (WHAT), __LINE__)

using DescribeKernels = decltype(&DyndeployKernels);
DescribeKernels describe_kernels_of = nullptr;
decltype(&DyndeployTimedTactics) timed_tactics = nullptr;
decltype(&DyndeployReadTimedTactics) read_timed_tactics = nullptr;

#ifndef FAKE_TENSORRT
// TensorRT has a logger once a builder or a runtime exists, which takes a GPU; without, plugins write to
// stderr.
class ErrorStream {
 public:
  ErrorStream() : file_(std::tmpfile()) {
    if (file_) dup2(fileno(file_), 2);
  }
  std::string take() {
    std::string text;
    if (!file_) return text;
    std::fflush(stderr);
    const off_t end = lseek(2, 0, SEEK_CUR);
    text.resize(static_cast<std::size_t>(end - taken_));
    const ssize_t size = pread(2, &text[0], text.size(), taken_);
    text.resize(size > 0 ? static_cast<std::size_t>(size) : 0);
    taken_ = end;
    return text;
  }

 private:
  std::FILE* file_;
  off_t taken_ = 0;
};

class Logger final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity <= Severity::kERROR) std::fprintf(stderr, "%s\n", message);
  }
};

ErrorStream& error_stream() {
  static ErrorStream stream;
  return stream;
}

std::string take_log() { return error_stream().take(); }
#endif

// ---- What the plugins must be like. Written from the operators' documents, not from the adapter.

struct Case {
  std::string op;
  std::vector<std::pair<std::string, std::vector<std::int32_t>>> attributes;
  std::vector<Dims> inputs;
  std::vector<bool> data;  // per input: has the type of x
  Dims output;
  std::vector<std::string> symbolic;  // the output's sizes in terms of those of the inputs
  bool float_output;
  std::vector<std::size_t> integers = {};  // tensors of 32-bit integers, the output behind the inputs

  bool is_integer(std::size_t i) const {
    return std::find(integers.begin(), integers.end(), i) != integers.end();
  }
  bool is_data(std::size_t i) const {
    return !is_integer(i) && (i < inputs.size() ? static_cast<bool>(data[i]) : !float_output);
  }
  // The first tensor whose type a builder chooses; behind the output: there is none.
  std::size_t first_data() const {
    std::size_t i = 0;
    while (i <= inputs.size() && !is_data(i)) ++i;
    return i;
  }
  bool has_data() const { return first_data() <= inputs.size(); }
  // The operator's name without what says that it is in integers.
  std::string kind() const { return op.find("Quantized") == 0 ? op.substr(9) : op; }
};

std::int32_t bits(float value) {
  std::int32_t result;
  std::memcpy(&result, &value, sizeof result);
  return result;
}
// Attributes whose values are the bits of floats.
bool is_real(const std::string& attribute) { return attribute == "epsilon" || attribute == "scale"; }

bool is_sampling(const Case& node) { return node.op.find("MultiscaleDeformable") == 0; }

constexpr int kN = 11, kH = 15, kW = 10, kC = 24, kM = 8, kO = 32, kGroup = 2, kS = 3;

Case bottleneck(const std::string& op, const std::vector<Dims>& masks, bool constants) {
  const bool excites = op.find("SE") != std::string::npos;
  const bool projection = op.find("Projection") != std::string::npos;
  const int stride = projection ? 2 : 1, outputs = projection ? kO : kC;
  Case result;
  result.op = op;
  result.attributes = {
      {"strides", {stride, stride}}, {"dilations", {2, 2}}, {"pads", {2, 2, 2, 2}}, {"group", {kGroup}}};
  result.inputs = {{kN, kH, kW, kC}};
  result.data = {true};
  for (const Dims& mask : masks) {
    result.inputs.push_back(mask);
    result.data.push_back(false);
  }
  const auto add = [&](const std::vector<Dims>& weights) {
    for (const Dims& dims : weights) {
      result.inputs.push_back(dims);
      result.data.push_back(dims.size() > 1);
    }
  };
  add({{kC, kM}, {kM}, {kGroup, 9 * kM / kGroup, kM / kGroup}, {kM}});
  if (excites) add({{kM, kS}, {kS}, {kS, kM}, {kM}});
  add({{kM, outputs}, {outputs}});
  if (excites && op.find("Spatial") == 0) result.attributes.push_back({"pool_active", {1}});
  if (projection) {
    result.inputs.insert(result.inputs.end(), {{kC, kO}, {kO}});
    result.data.insert(result.data.end(), {true, false});
  }
  if (constants) {
    result.inputs.insert(result.inputs.end(), {{16, kM}, {outputs}});
    result.data.insert(result.data.end(), {false, false});
  }
  result.output = {kN, (kH + stride - 1) / stride, (kW + stride - 1) / stride, outputs};
  if (projection) {
    result.symbolic = {"0.0", "ceil(0.1/2)", "ceil(0.2/2)",
                       std::to_string(masks.size() + (excites ? 9 : 5)) + ".1"};
  } else {
    result.symbolic = {"0.0", "0.1", "0.2", "0.3"};
  }
  result.float_output = false;
  return result;
}

constexpr int kT = 9, kA = 3, kHeadWidth = 8, kF = 15;

Case transformer(const std::string& op, const std::vector<Dims>& masks) {
  Case result;
  result.op = op;
  result.attributes = {
      {"epsilon", {bits(1e-6f)}}, {"scale", {bits(0.125f)}}, {"token_mlp", {1}}, {"head_mode", {0}}};
  result.inputs = {{kN, kT, kC}};
  result.inputs.insert(result.inputs.end(), masks.begin(), masks.end());
  result.inputs.insert(result.inputs.end(), {{kC},
                                             {kC},
                                             {kC, 3, kA, kHeadWidth},
                                             {3, kA, kHeadWidth},
                                             {kA, kHeadWidth, kC},
                                             {kC},
                                             {kC},
                                             {kC},
                                             {kC, kF},
                                             {kF},
                                             {kF, kC},
                                             {kC}});
  const std::size_t first = 1 + masks.size();
  result.data.assign(result.inputs.size(), false);
  result.data[0] = true;
  for (const std::size_t matrix : {2, 4, 8, 10}) result.data[first + matrix] = true;
  result.output = result.inputs[0];
  result.symbolic = {"0.0", "0.1", "0.2"};
  result.float_output = false;
  return result;
}

Case token_masker(const std::string& op, int outputs, const Dims& output,
                  const std::vector<std::string>& symbolic) {
  Case result;
  result.op = op;
  result.attributes = {{"epsilon", {bits(1e-5f)}}, {"normalise", {1}}};
  if (outputs == 0) result.attributes.push_back({"kept", {1}});
  result.inputs = {{kN, kT, kC}, outputs == 0 ? Dims{kC} : Dims{outputs, kC}, {outputs == 0 ? 1 : outputs}};
  result.data = {true, false, false};
  result.output = output;
  result.symbolic = symbolic;
  result.float_output = true;
  return result;
}

constexpr int kQ = 13, kP = 4, kRegion = 7, kSide = 16;

Case sampling(int levels) {
  Case result;
  result.op = "MultiscaleDeformableAttention" + std::to_string(levels);
  std::vector<std::int32_t> sizes;
  int cells = 0;
  for (int i = 0; i < levels; ++i) {
    sizes.insert(sizes.end(), {6 - i, 5 - i});
    cells += (6 - i) * (5 - i);
  }
  result.attributes = {{"sizes", sizes}};
  result.inputs = {{kN, cells, kA, kHeadWidth}, {kN, kQ, kA, levels, kP, 2}, {kN, kQ, kA, levels, kP}};
  result.data = {true, false, false};
  result.output = {kN, kQ, kA, kHeadWidth};
  result.symbolic = {"0.0", "1.1", "0.2", "0.3"};
  result.float_output = false;
  return result;
}

Case regions() {
  Case result;
  result.op = "PyramidRoiAlign";
  result.attributes = {{"strides", {4, 8, 16, 32}}, {"size", {kRegion}}};
  for (int i = 0; i < 4; ++i) result.inputs.push_back({1, kC, kSide >> i, 2 * (kSide >> i)});
  result.inputs.insert(result.inputs.end(), {{kN, 4}, {kN}});
  result.data = {true, true, true, true, false, false};
  result.output = {kN, kC, kRegion, kRegion};
  result.symbolic = {"4.0", "0.1", std::to_string(kRegion), std::to_string(kRegion)};
  result.float_output = false;
  result.integers = {5};
  return result;
}

constexpr int kWord = 4;  // bytes of a 32-bit integer

Case quantized_bottleneck(const std::string& op, const std::vector<Dims>& masks) {
  const bool projection = op.find("Projection") != std::string::npos;
  const int stride = projection ? 2 : 1, outputs = projection ? kO : kC;
  Case result;
  result.op = "Quantized" + op;
  result.attributes = {
      {"strides", {stride, stride}}, {"dilations", {2, 2}}, {"pads", {2, 2, 2, 2}}, {"group", {kGroup}}};
  result.inputs = {{kN, kH, kW, kC / kWord}};
  result.inputs.insert(result.inputs.end(), masks.begin(), masks.end());
  result.integers = {0};
  const auto add = [&](const Dims& weight) {
    const std::size_t at = result.inputs.size();
    const Dims row = {weight[0]};
    result.inputs.insert(result.inputs.end(), {weight, row, row});
    result.integers.insert(result.integers.end(), {at, at + 1});
  };
  add({kM, kC / kWord});
  add({kM, 9, kM / kGroup / kWord});
  add({outputs, kM / kWord});
  if (projection) add({kO, kC / kWord});
  result.data.assign(result.inputs.size(), false);
  result.integers.push_back(result.inputs.size());
  result.output = {kN, (kH + stride - 1) / stride, (kW + stride - 1) / stride, outputs / kWord};
  if (projection) {
    result.symbolic = {"0.0", "ceil(0.1/2)", "ceil(0.2/2)",
                       "ceil(" + std::to_string(masks.size() + 7) + ".0/4)"};
  } else {
    result.symbolic = {"0.0", "0.1", "0.2", "0.3"};
  }
  result.float_output = false;
  return result;
}

// A masker of floats as the one of bytes.
Case of_bytes(Case masker) {
  masker.op = "Quantized" + masker.op;
  masker.inputs[0].back() /= kWord;
  masker.integers = {0};
  masker.data[0] = false;
  return masker;
}

Case conversion(bool begins) {
  const Dims numbers = {kN, kH, kW, kC}, words = {kN, kH, kW, kC / kWord};
  Case result;
  result.op = begins ? "QuantizeBytes" : "DequantizeBytes";
  result.attributes = {{"scale", {bits(0.125f)}}};
  result.inputs = {begins ? numbers : words};
  result.data = {begins};
  result.output = begins ? words : numbers;
  result.symbolic = {"0.0", "0.1", "0.2", begins ? "ceil(0.3/4)" : "(0.3*4)"};
  result.float_output = false;
  result.integers = {begins ? 1u : 0u};
  return result;
}

std::vector<Case> all_cases() {
  const Dims patches = {kN, 1, 5, 5}, layer = {kN, 1, 1, 1}, groups = {kN, 4};
  const Dims x = {kN, kH, kW, kC};
  std::vector<Case> cases = {
      {"SpatialMasker",
       {{"mask_height", {5}}, {"mask_width", {3}}},
       {x, {1, kC}, {1}},
       {true, false, false},
       {kN, 1, 5, 3},
       {"0.0", "1.0", "5", "3"},
       true},
      {"ChannelMasker", {}, {x, {4, kC}, {4}}, {true, false, false}, {kN, 4}, {"0.0", "1.0"}, true},
      {"ChannelMaskerHidden",
       {},
       {x, {6, kC}, {6}, {4, 6}, {4}},
       {true, false, false, false, false},
       {kN, 4},
       {"0.0", "3.0"},
       true}};
  for (const std::string end : {"Bottleneck", "BottleneckProjection"}) {
    cases.push_back(bottleneck("Spatial" + end, {patches}, false));
    cases.push_back(bottleneck("Layer" + end, {layer}, false));
    cases.push_back(bottleneck("Channel" + end, {groups}, true));
    cases.push_back(bottleneck("SpatialChannel" + end, {patches, groups}, true));
    cases.push_back(bottleneck("SpatialSE" + end, {patches}, false));
    cases.push_back(bottleneck("LayerSE" + end, {layer}, false));
    cases.push_back(bottleneck("ChannelSE" + end, {groups}, false));
    cases.push_back(bottleneck("SpatialChannelSE" + end, {patches, groups}, false));
  }
  const Dims tokens = {kN, kT}, heads = {kN, kA};
  cases.push_back(token_masker("TokenMasker", 0, tokens, {"0.0", "0.1"}));
  cases.push_back(token_masker("ClassTokenHeadMasker", kA, heads, {"0.0", "1.0"}));
  cases.push_back(token_masker("ClassTokenLayerMasker", 1, layer, {"0.0", "1", "1", "1"}));
  cases.push_back(transformer("TokenTransformerBlock", {tokens}));
  cases.push_back(transformer("HeadTransformerBlock", {heads}));
  cases.push_back(transformer("LayerTransformerBlock", {layer, layer}));
  cases.push_back(transformer("TokenHeadTransformerBlock", {tokens, heads}));
  cases.push_back(transformer("TokenLayerTransformerBlock", {tokens, layer, layer}));
  cases.push_back(transformer("HeadLayerTransformerBlock", {heads, layer, layer}));
  cases.push_back(transformer("TokenHeadLayerTransformerBlock", {tokens, heads, layer, layer}));
  cases.push_back(sampling(3));
  cases.push_back(sampling(4));
  cases.push_back(regions());
  for (std::size_t i = 0; i < 3; ++i) cases.push_back(of_bytes(cases[i]));
  for (const std::string end : {"Bottleneck", "BottleneckProjection"}) {
    cases.push_back(quantized_bottleneck("Spatial" + end, {patches}));
    cases.push_back(quantized_bottleneck("Layer" + end, {layer}));
    cases.push_back(quantized_bottleneck("Channel" + end, {groups}));
    cases.push_back(quantized_bottleneck("SpatialChannel" + end, {patches, groups}));
  }
  cases.push_back(conversion(true));
  cases.push_back(conversion(false));
  return cases;
}

// ---- The fields of a node, owned.

struct NodeFields {
  explicit NodeFields(const Case& from) {
    for (const auto& attribute : from.attributes) {
      add(attribute.first, attribute.second,
          is_real(attribute.first) ? PluginFieldType::kFLOAT32 : PluginFieldType::kINT32);
    }
  }
  void add(const std::string& name, const std::vector<std::int32_t>& values,
           PluginFieldType type = PluginFieldType::kINT32) {
    names.push_back(std::unique_ptr<std::string>(new std::string(name)));
    data.push_back(std::unique_ptr<std::vector<std::int32_t>>(new std::vector<std::int32_t>(values)));
    fields.emplace_back(names.back()->c_str(), data.back()->data(), type,
                        static_cast<int32_t>(values.size()));
  }
  const nvinfer1::PluginFieldCollection* get() {
    collection.nbFields = static_cast<int32_t>(fields.size());
    collection.fields = fields.data();
    return &collection;
  }
  std::vector<std::unique_ptr<std::string>> names;
  std::vector<std::unique_ptr<std::vector<std::int32_t>>> data;
  std::vector<PluginField> fields;
  nvinfer1::PluginFieldCollection collection{};
};

// ---- Symbolic sizes.

class Dimension final : public nvinfer1::IDimensionExpr {
 public:
  Dimension(const std::string& name, std::int64_t number, bool constant) : text(name), value(number) {
    impl_.value = number;
    impl_.constant = constant;
    mImpl = &impl_;
  }
  std::string text;
  std::int64_t value;

 private:
  struct Impl final : nvinfer1::apiv::VDimensionExpr {
    bool isConstant() const override { return constant; }
#if NV_TENSORRT_MAJOR >= 10
    int64_t getConstantValue() const override { return value; }
    bool isSizeTensor() const override { return false; }
#else
    int32_t getConstantValue() const override { return static_cast<int32_t>(value); }
#endif
    std::int64_t value = 0;
    bool constant = false;
  };
  Impl impl_;
};

class Builder final : public nvinfer1::IExprBuilder {
 public:
  Builder() {
    impl_.owner = this;
    mImpl = &impl_;
  }
  const Dimension* make(const std::string& text, std::int64_t value, bool is_constant) {
    all_.push_back(std::unique_ptr<Dimension>(new Dimension(text, value, is_constant)));
    return all_.back().get();
  }

 private:
#if NV_TENSORRT_MAJOR >= 10
  using Integer = int64_t;
#else
  using Integer = int32_t;
#endif
  struct Impl final : nvinfer1::apiv::VExprBuilder {
    const nvinfer1::IDimensionExpr* constant(Integer value) override {
      return owner->make(std::to_string(value), value, true);
    }
    const nvinfer1::IDimensionExpr* operation(nvinfer1::DimensionOperation op,
                                              const nvinfer1::IDimensionExpr& first,
                                              const nvinfer1::IDimensionExpr& second) override {
      const auto& a = static_cast<const Dimension&>(first);
      const auto& b = static_cast<const Dimension&>(second);
      if (op == nvinfer1::DimensionOperation::kPROD) {
        return owner->make("(" + a.text + "*" + b.text + ")", a.value * b.value, false);
      }
      if (op != nvinfer1::DimensionOperation::kCEIL_DIV) return nullptr;
      return owner->make("ceil(" + a.text + "/" + b.text + ")", (a.value + b.value - 1) / b.value, false);
    }
#if NV_TENSORRT_MAJOR >= 10
    const nvinfer1::IDimensionExpr* declareSizeTensor(int32_t, const nvinfer1::IDimensionExpr&,
                                                      const nvinfer1::IDimensionExpr&) override {
      return nullptr;
    }
#endif
    Builder* owner = nullptr;
  };
  Impl impl_;
  std::vector<std::unique_ptr<Dimension>> all_;
};

PluginTensorDesc describe(const Dims& dims, DataType type, TensorFormat format = TensorFormat::kLINEAR) {
  PluginTensorDesc desc = {};
  desc.dims.nbDims = static_cast<int32_t>(dims.size());
  for (std::size_t i = 0; i < dims.size(); ++i)
    desc.dims.d[i] = static_cast<decltype(+desc.dims.d[0])>(dims[i]);
  desc.type = type;
  desc.format = format;
  desc.scale = 1;
  return desc;
}

std::vector<PluginTensorDesc> describe(const Case& node, DataType type) {
  std::vector<PluginTensorDesc> descs;
  for (std::size_t i = 0; i <= node.inputs.size(); ++i) {
    descs.push_back(describe(i < node.inputs.size() ? node.inputs[i] : node.output,
                             node.is_integer(i) ? DataType::kINT32
                             : node.is_data(i)  ? type
                                                : DataType::kFLOAT));
  }
  return descs;
}

// `largest` as the maximum, the batch unknown until then.
std::vector<nvinfer1::DynamicPluginTensorDesc> dynamic(const std::vector<PluginTensorDesc>& largest) {
  std::vector<nvinfer1::DynamicPluginTensorDesc> result;
  for (const PluginTensorDesc& desc : largest) {
    nvinfer1::DynamicPluginTensorDesc entry = {};
    entry.desc = desc;
    entry.max = entry.min = desc.dims;
    if (desc.dims.d[0] == kN) {
      entry.desc.dims.d[0] = -1;
      entry.min.d[0] = 1;
    }
    result.push_back(entry);
  }
  return result;
}

// ---- Both interfaces behind one face.

using State = std::vector<std::uint8_t>;

#if INTERFACE_V3
using Creator = nvinfer1::IPluginCreatorV3One;
using Plugin = nvinfer1::IPluginV3;

nvinfer1::IPluginV3OneCore& core(Plugin& plugin) {
  return *static_cast<nvinfer1::IPluginV3OneCore*>(
      plugin.getCapabilityInterface(nvinfer1::PluginCapabilityType::kCORE));
}
nvinfer1::IPluginV3OneBuild& build(Plugin& plugin) {
  return *static_cast<nvinfer1::IPluginV3OneBuild*>(
      plugin.getCapabilityInterface(nvinfer1::PluginCapabilityType::kBUILD));
}
nvinfer1::IPluginV3OneRuntime& runtime(Plugin& plugin) {
  return *static_cast<nvinfer1::IPluginV3OneRuntime*>(
      plugin.getCapabilityInterface(nvinfer1::PluginCapabilityType::kRUNTIME));
}

struct Destroy {
  void operator()(Plugin* plugin) const { delete plugin; }
};
using Owned = std::unique_ptr<Plugin, Destroy>;

Owned create(Creator& creator, NodeFields& fields) {
  return Owned(creator.createPlugin("node", fields.get(), nvinfer1::TensorRTPhase::kBUILD));
}
Owned clone(Plugin& plugin) { return Owned(plugin.clone()); }
std::string type_name(Plugin& plugin) {
  return std::string(core(plugin).getPluginNamespace()) + core(plugin).getPluginName() + "/" +
         core(plugin).getPluginVersion();
}
int output_count(Plugin& plugin) { return build(plugin).getNbOutputs(); }
bool infer(Plugin& plugin, const std::vector<nvinfer1::DimsExprs>& inputs, Builder& builder,
           nvinfer1::DimsExprs* output) {
  return build(plugin).getOutputShapes(inputs.data(), static_cast<int32_t>(inputs.size()), nullptr, 0, output,
                                       1, builder) == 0;
}
DataType output_type(Plugin& plugin, const std::vector<DataType>& inputs) {
  DataType type = DataType::kINT8;
  build(plugin).getOutputDataTypes(&type, 1, inputs.data(), static_cast<int32_t>(inputs.size()));
  return type;
}
bool supports(Plugin& plugin, int position, const std::vector<PluginTensorDesc>& descs) {
  const auto all = dynamic(descs);
  return build(plugin).supportsFormatCombination(position, all.data(), static_cast<int32_t>(all.size()) - 1,
                                                 1);
}
// Whether the plugin accepts these shapes, and the workspace it asks for.
bool configure(Plugin& plugin, const std::vector<PluginTensorDesc>& descs, std::size_t* workspace) {
  const auto all = dynamic(descs);
  const int32_t count = static_cast<int32_t>(all.size()) - 1;
  *workspace = build(plugin).getWorkspaceSize(all.data(), count, &all[static_cast<std::size_t>(count)], 1);
  return build(plugin).configurePlugin(all.data(), count, &all[static_cast<std::size_t>(count)], 1) == 0;
}
int enqueue(Plugin& plugin, const std::vector<PluginTensorDesc>& descs,
            const std::vector<const void*>& inputs, void* output, void* workspace, Recording& recording) {
  const std::size_t count = descs.size() - 1;
  Owned attached(runtime(plugin).attachToContext(nullptr));
  const int changed =
      runtime(*attached).onShapeChange(descs.data(), static_cast<int32_t>(count), &descs[count], 1);
  const int result = runtime(*attached).enqueue(descs.data(), &descs[count], inputs.data(), &output,
                                                workspace, reinterpret_cast<cudaStream_t>(&recording));
  CHECK((changed != 0) == (result != 0 && recording.error == 0), "onShapeChange and enqueue disagree");
  return result;
}
// As a builder does it that times, with no execution context.
int enqueue_timed(Plugin& plugin, const std::vector<PluginTensorDesc>& descs,
                  const std::vector<const void*>& inputs, void* output, void* workspace,
                  Recording& recording) {
  return runtime(plugin).enqueue(descs.data(), &descs[descs.size() - 1], inputs.data(), &output, workspace,
                                 reinterpret_cast<cudaStream_t>(&recording));
}
Owned restored(Creator& creator, Plugin& plugin) {
  return Owned(creator.createPlugin("node", runtime(plugin).getFieldsToSerialize(),
                                    nvinfer1::TensorRTPhase::kRUNTIME));
}
std::string stored(Plugin& plugin) {
  const nvinfer1::PluginFieldCollection* fields = runtime(plugin).getFieldsToSerialize();
  std::string text;
  for (int i = 0; i < fields->nbFields; ++i) {
    const PluginField& field = fields->fields[i];
    text += std::string(field.name) + "=";
    for (int j = 0; j < field.length; ++j) {
      text += std::to_string(static_cast<const std::int32_t*>(field.data)[j]) + ",";
    }
  }
  return text;
}

void check_state(Creator& creator, const Case& node, Plugin& plugin, const std::vector<Creator*>&) {
  const std::string timing = build(plugin).getTimingCacheID();
  CHECK(timing.find(node.op) == 0 && timing.size() < 1024, "timing cache id " + timing);
  for (std::size_t i = 0; i < node.attributes.size(); ++i) {
    if (node.attributes[i].first == "strides" || node.attributes[i].first == "pads") continue;
    Case other = node;
    for (std::int32_t& value : other.attributes[i].second) ++value;
    for (const char* flag : {"pool_active", "normalise", "token_mlp"}) {
      if (node.attributes[i].first == flag) other.attributes[i].second = {0};
    }
    if (node.attributes[i].first == "dilations") other.attributes[i + 1].second.assign(4, 3);
    NodeFields fields_of_other(other);
    const Owned different = create(creator, fields_of_other);
    CHECK(different && build(*different).getTimingCacheID() != timing,
          "timing cache id without " + other.attributes[i].first);
  }
  const nvinfer1::PluginFieldCollection* fields = runtime(plugin).getFieldsToSerialize();
  const auto restore = [&](std::vector<PluginField> all) {
    const nvinfer1::PluginFieldCollection collection = {static_cast<int32_t>(all.size()), all.data()};
    return Owned(creator.createPlugin("node", &collection, nvinfer1::TensorRTPhase::kRUNTIME));
  };
  const std::vector<PluginField> good(fields->fields, fields->fields + fields->nbFields);
  const Owned again = restore(good);
  CHECK(again && stored(*again) == stored(plugin), node.op + ": stored fields do not come back equal");
  CHECK(!creator.createPlugin("node", fields, nvinfer1::TensorRTPhase::kBUILD),
        "stored fields in a new node");
  take_log();
  for (std::size_t i = 0; i < good.size(); ++i) {
    std::vector<PluginField> fewer = good;
    fewer.erase(fewer.begin() + static_cast<std::ptrdiff_t>(i));
    CHECK(!restore(fewer) && !take_log().empty(), node.op + ": accepted without field " + good[i].name);
  }
  for (PluginField field : good) {
    if (std::strcmp(field.name, "dyndeploy_format") != 0) continue;
    const std::int32_t next = *static_cast<const std::int32_t*>(field.data) + 1;
    std::vector<PluginField> other = good;
    for (PluginField& entry : other) {
      if (std::strcmp(entry.name, field.name) == 0) entry.data = &next;
    }
    CHECK(!restore(other) && take_log().find("format version 4") != std::string::npos,
          node.op + ": a newer format was accepted");
  }
}

Creator* as_creator(nvinfer1::IPluginCreatorInterface* creator) {
  return std::strcmp(creator->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") == 0
             ? static_cast<Creator*>(creator)
             : nullptr;
}
#else
using Creator = nvinfer1::IPluginCreator;
using Plugin = nvinfer1::IPluginV2DynamicExt;

struct Destroy {
  void operator()(Plugin* plugin) const { plugin->destroy(); }
};
using Owned = std::unique_ptr<Plugin, Destroy>;

Owned own(nvinfer1::IPluginV2* plugin) { return Owned(static_cast<Plugin*>(plugin)); }
Owned create(Creator& creator, NodeFields& fields) { return own(creator.createPlugin("node", fields.get())); }
Owned clone(Plugin& plugin) { return Owned(plugin.clone()); }
std::string type_name(Plugin& plugin) {
  return std::string(plugin.getPluginNamespace()) + plugin.getPluginType() + "/" + plugin.getPluginVersion();
}
int output_count(Plugin& plugin) { return plugin.getNbOutputs(); }
bool infer(Plugin& plugin, const std::vector<nvinfer1::DimsExprs>& inputs, Builder& builder,
           nvinfer1::DimsExprs* output) {
  *output = plugin.getOutputDimensions(0, inputs.data(), static_cast<int32_t>(inputs.size()), builder);
  return output->nbDims >= 0;
}
DataType output_type(Plugin& plugin, const std::vector<DataType>& inputs) {
  return plugin.getOutputDataType(0, inputs.data(), static_cast<int32_t>(inputs.size()));
}
bool supports(Plugin& plugin, int position, const std::vector<PluginTensorDesc>& descs) {
  return plugin.supportsFormatCombination(position, descs.data(), static_cast<int32_t>(descs.size()) - 1, 1);
}
bool configure(Plugin& plugin, const std::vector<PluginTensorDesc>& descs, std::size_t* workspace) {
  const auto all = dynamic(descs);
  const std::size_t count = descs.size() - 1;
  *workspace = plugin.getWorkspaceSize(descs.data(), static_cast<int32_t>(count), &descs[count], 1);
  take_log();
  plugin.configurePlugin(all.data(), static_cast<int32_t>(count), &all[count], 1);
  const std::string after = take_log();  // this interface cannot return a refusal
#ifdef FAKE_TENSORRT
  getLogger()->log(nvinfer1::ILogger::Severity::kERROR, after.c_str());
#else
  std::fprintf(stderr, "%s", after.c_str());
#endif
  return after.empty();
}
int enqueue_timed(Plugin& plugin, const std::vector<PluginTensorDesc>& descs,
                  const std::vector<const void*>& inputs, void* output, void* workspace,
                  Recording& recording) {
  return plugin.enqueue(descs.data(), &descs[descs.size() - 1], inputs.data(), &output, workspace,
                        reinterpret_cast<cudaStream_t>(&recording));
}
int enqueue(Plugin& plugin, const std::vector<PluginTensorDesc>& descs,
            const std::vector<const void*>& inputs, void* output, void* workspace, Recording& recording) {
  plugin.attachToContext(nullptr, nullptr, nullptr);
  return enqueue_timed(plugin, descs, inputs, output, workspace, recording);
}
State stored(Plugin& plugin) {
  // A frame around the buffer shows writes beyond the announced size.
  State bytes(plugin.getSerializationSize() + 16, 0xa5);
  plugin.serialize(bytes.data() + 8);
  for (std::size_t i = 0; i < 8; ++i) {
    CHECK(bytes[i] == 0xa5 && bytes[bytes.size() - 1 - i] == 0xa5, "serialize() wrote beyond its size");
  }
  return State(bytes.begin() + 8, bytes.end() - 8);
}

Owned restored(Creator& creator, Plugin& plugin) {
  const State bytes = stored(plugin);
  return own(creator.deserializePlugin("node", bytes.data(), bytes.size()));
}

void check_state(Creator& creator, const Case& node, Plugin& plugin, const std::vector<Creator*>& others) {
  const State good = stored(plugin);
  const auto restore = [&](const State& bytes) {
    return own(creator.deserializePlugin("node", bytes.data(), bytes.size()));
  };
  const Owned again = restore(good);
  CHECK(again && stored(*again) == good, node.op + ": serialised data do not come back equal");
  take_log();
  for (std::size_t size = 0; size < good.size(); ++size) {
    CHECK(!restore(State(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(size))) &&
              !take_log().empty(),
          node.op + ": accepted " + std::to_string(size) + " bytes");
  }
  CHECK(!creator.deserializePlugin("node", nullptr, 0), node.op + ": accepted nothing");
  State longer = good;
  longer.push_back(0);
  CHECK(!restore(longer), node.op + ": accepted a byte too many");
  for (std::size_t i = 0; i < 16; ++i) {
    State other = good;
    other[i] = static_cast<std::uint8_t>(other[i] ^ 0x10);
    CHECK(!restore(other), node.op + ": accepted a header with byte " + std::to_string(i) + " changed");
  }
  take_log();
  State newer = good;
  newer[4] = 4;
  CHECK(!restore(newer) && take_log().find("format version 4") != std::string::npos,
        node.op + ": a newer format was accepted");
  if (!node.attributes.empty()) {
    State invalid = good;
    std::memset(invalid.data() + 28, 0, 4);
    CHECK(!restore(invalid), node.op + ": accepted an attribute of 0");
  }
  State unknown = good;
  unknown[26] = 1;
  take_log();
  CHECK(!restore(unknown) && take_log().find("holds tactic 65536, which") != std::string::npos,
        node.op + ": accepted an unknown tactic");
  for (Creator* other : others) {
    if (node.op == other->getPluginName()) continue;
    CHECK(!other->deserializePlugin("node", good.data(), good.size()),
          std::string(other->getPluginName()) + " accepted the data of " + node.op);
  }
  take_log();
}

#if NV_TENSORRT_MAJOR < 10
Creator* as_creator(Creator* creator) { return creator; }
#else
Creator* as_creator(nvinfer1::IPluginCreatorInterface* creator) {
  return std::strcmp(creator->getInterfaceInfo().kind, "PLUGIN CREATOR_V1") == 0
             ? static_cast<Creator*>(creator)
             : nullptr;
}
#endif
#endif

#if NV_TENSORRT_MAJOR >= 10
using Listed = nvinfer1::IPluginCreatorInterface;
#else
using Listed = nvinfer1::IPluginCreator;
#endif

Creator* find(const std::string& name) {
#ifdef FAKE_TENSORRT
  auto* found = static_cast<Listed*>(find_fake_creator(name.c_str()));
  return found ? as_creator(found) : nullptr;
#elif NV_TENSORRT_MAJOR >= 10
  auto* found = getPluginRegistry()->getCreator(name.c_str(), "1", "");
  return found ? as_creator(found) : nullptr;
#else
  return getPluginRegistry()->getPluginCreator(name.c_str(), "1", "");
#endif
}

// ---- The checks.

void check_creator(Creator& creator, const Case& node) {
  CHECK(node.op == creator.getPluginName(), node.op + ": name " + creator.getPluginName());
  CHECK(std::strcmp(creator.getPluginVersion(), "1") == 0, node.op + ": version");
  CHECK(std::strcmp(creator.getPluginNamespace(), "") == 0, node.op + ": namespace");
  const nvinfer1::PluginFieldCollection* fields = creator.getFieldNames();
  const auto own = static_cast<int32_t>(node.attributes.size());
  CHECK(fields->nbFields == own + 4, node.op + ": number of fields");
  CHECK(
      std::strcmp(fields->fields[own + 3].name, "plugin_tuning") == 0 && fields->fields[own + 3].length == 1,
      node.op + ": the last field is not that of tuning");
  CHECK(std::strcmp(fields->fields[own + 2].name, "plugin_timing_rates") == 0 &&
            fields->fields[own + 2].length == 4,
        node.op + ": the last field but one is not that of the rates");
  CHECK(std::strcmp(fields->fields[own + 1].name, "plugin_largest_batch") == 0 &&
            fields->fields[own + 1].length == 1,
        node.op + ": the last field but two is not the batch");
  CHECK(std::strcmp(fields->fields[own].name, "plugin_half_only") == 0 && fields->fields[own].length == 1,
        node.op + ": the last field but three is not the precision");
  for (int i = 0; i < own; ++i) {
    const auto& expected = node.attributes[static_cast<std::size_t>(i)];
    CHECK(expected.first == fields->fields[i].name, node.op + ": field " + fields->fields[i].name);
    CHECK(fields->fields[i].length == static_cast<int32_t>(expected.second.size()),
          "length of " + expected.first);
    const bool real = is_real(expected.first);
    CHECK(fields->fields[i].type == (real ? PluginFieldType::kFLOAT32 : PluginFieldType::kINT32),
          "type of " + expected.first);
  }
}

void check_refused(Creator& creator, NodeFields& fields, const std::string& word) {
  take_log();
  const Owned plugin = create(creator, fields);
  const std::string message = take_log();
  CHECK(!plugin, std::string(creator.getPluginName()) + " was created, expected a refusal: " + word);
  CHECK(message.find(word) != std::string::npos, "'" + message + "' does not say '" + word + "'");
  CHECK(message.find(creator.getPluginName()) != std::string::npos,
        "'" + message + "' does not name the operator");
}

// With the attribute, data are half whatever the builder would rather have.
void check_half_only(Creator& creator, const Case& node) {
  NodeFields fields(node), half(node), neither(node), two(node);
  half.add("plugin_half_only", {1});
  neither.add("plugin_half_only", {0});
  two.add("plugin_half_only", {2});
  check_refused(creator, two, "plugin_half_only is 2, expected 0 or 1");
  const Owned free = create(creator, fields), same = create(creator, neither), only = create(creator, half);
  CHECK(free && same && only, node.op + ": " + take_log());
  if (!free || !same || !only) return;
  CHECK(stored(*free) == stored(*same) && stored(*free) != stored(*only),
        node.op + ": precision is not stored");
  for (const DataType x : {DataType::kFLOAT, DataType::kHALF}) {
    const std::vector<PluginTensorDesc> descs = describe(node, x);
    const bool right = x == DataType::kHALF || !node.has_data();
    const int at = node.has_data() ? static_cast<int>(node.first_data()) : 0;
    CHECK(supports(*free, at, descs), node.op + ": data of either type");
    const Owned clones = clone(*only);
    CHECK(supports(*only, at, descs) == right && supports(*clones, at, descs) == right,
          node.op + ": half only");
    if (node.first_data() == node.inputs.size()) {
      CHECK(output_type(*only, {descs[0].type}) == DataType::kHALF &&
                output_type(*free, {descs[0].type}) == DataType::kFLOAT,
            node.op + ": type of an output that no input has");
    }
    std::size_t workspace = 0;
    CHECK(configure(*only, descs, &workspace) == right, node.op + ": configured with another type");
    take_log();
  }
}

void check_fields(Creator& creator, const Case& node) {
  for (std::size_t i = 0; i < node.attributes.size(); ++i) {
    const std::string name = node.attributes[i].first;
    Case other = node;
    other.attributes.erase(other.attributes.begin() + static_cast<std::ptrdiff_t>(i));
    NodeFields missing(other);
    check_refused(creator, missing, name + " is missing");
    NodeFields twice(node);
    twice.add(name, node.attributes[i].second,
              is_real(name) ? PluginFieldType::kFLOAT32 : PluginFieldType::kINT32);
    check_refused(creator, twice, name + " is given twice");
    other = node;
    other.attributes[i].second.push_back(1);
    NodeFields longer(other);
    check_refused(creator, longer, "values, expected " + std::to_string(node.attributes[i].second.size()));
    NodeFields others(node);
    others.fields[i].type = is_real(name) ? PluginFieldType::kINT32 : PluginFieldType::kFLOAT32;
    check_refused(creator, others,
                  name + (is_real(name) ? " must hold 32-bit floats" : " must hold integers"));
    NodeFields empty(node);
    empty.fields[i].data = nullptr;
    check_refused(creator, empty, name + " has 0 values");
  }
  NodeFields unknown(node);
  unknown.add("padding", {1});
  check_refused(creator, unknown, "unknown attribute padding");
  NodeFields parser(node);
  parser.add("plugin_version", {'1'}, PluginFieldType::kCHAR);
  parser.add("plugin_namespace", {0}, PluginFieldType::kCHAR);
  CHECK(create(creator, parser) != nullptr, node.op + ": plugin_version and plugin_namespace are refused");
  const auto with = [&](const std::string& name, const std::vector<std::int32_t>& values, const char* word) {
    Case other = node;
    for (auto& attribute : other.attributes) {
      if (attribute.first == name) attribute.second = values;
    }
    NodeFields fields(other);
    check_refused(creator, fields, word);
  };
  if (node.op == "SpatialMasker") {
    with("mask_height", {0}, "expected positive integers");
    with("mask_width", {-1}, "expected positive integers");
  }
  if (is_sampling(node)) {
    std::vector<std::int32_t> sizes = node.attributes[0].second;
    sizes[3] = 0;
    with("sizes", sizes, "sizes has 0");
  }
  if (node.op == "PyramidRoiAlign") {
    with("strides", {4, 8, 4, 32}, "strides has 4 at 2");
    with("strides", {0, 8, 16, 32}, "strides has 0 at 0");
    with("size", {0}, "size is 0");
    return;
  }
  if (node.op.find("Token") != std::string::npos || node.op.find("Transformer") != std::string::npos) {
    with("epsilon", {bits(0.0f)}, "epsilon is 0.0");
    with("epsilon", {bits(std::nanf(""))}, "epsilon is nan");
    if (node.op == "TokenMasker") with("kept", {-1}, "kept is -1");
    if (node.op.find("Masker") != std::string::npos) with("normalise", {2}, "normalise is 2");
  }
  if (node.op.find("Transformer") != std::string::npos) {
    with("scale", {bits(-1.0f)}, "scale is -1.0");
    with("token_mlp", {2}, "token_mlp is 2");
    with("head_mode", {3}, "head_mode is 3");
  }
  if (node.op.find("Bottleneck") == std::string::npos) return;
  with("strides", {1, 2}, "strides are 1, 2");
  with("strides", {3, 3}, "strides are 3, 3");
  with("dilations", {0, 0}, "dilations are 0, 0");
  with("pads", {2, 2, 2, 1}, "expected the dilation, 2");
  with("group", {0}, "group is 0");
  if (node.attributes.back().first == "pool_active") with("pool_active", {2}, "pool_active is 2");
  if (node.op.find("Projection") == std::string::npos) with("strides", {2, 2}, "needs a projection");
}

#if NV_TENSORRT_MAJOR >= 10
void check_wide_integers(Creator& creator, const Case& node) {
  std::vector<std::vector<std::int64_t>> wide;
  for (const auto& attribute : node.attributes)
    wide.emplace_back(attribute.second.begin(), attribute.second.end());
  NodeFields fields(node);
  std::size_t first = wide.size();
  for (std::size_t i = wide.size(); i-- > 0;) {
    if (is_real(node.attributes[i].first)) continue;
    first = i;
    fields.fields[i].data = wide[i].data();
    fields.fields[i].type = PluginFieldType::kINT64;
  }
  NodeFields narrow(node);
  const Owned a = create(creator, fields), b = create(creator, narrow);
  CHECK(a && b && stored(*a) == stored(*b), node.op + ": 64-bit fields");
  if (first == wide.size()) return;
  wide[first][0] += std::int64_t{1} << 32;
  check_refused(creator, fields, "too large");
}
#endif

void check_shapes(Plugin& plugin, const Case& node) {
  CHECK(type_name(plugin) == node.op + "/1", node.op + ": the plugin calls itself " + type_name(plugin));
  CHECK(output_count(plugin) == 1, node.op + ": outputs");
  Builder builder;
  std::vector<nvinfer1::DimsExprs> inputs;
  for (std::size_t i = 0; i < node.inputs.size(); ++i) {
    nvinfer1::DimsExprs dims = {};
    dims.nbDims = static_cast<int32_t>(node.inputs[i].size());
    for (int axis = 0; axis < dims.nbDims; ++axis) {
      dims.d[axis] = builder.make(std::to_string(i) + "." + std::to_string(axis),
                                  node.inputs[i][static_cast<std::size_t>(axis)], false);
    }
    inputs.push_back(dims);
  }
  nvinfer1::DimsExprs output = {};
  CHECK(infer(plugin, inputs, builder, &output), node.op + ": no shape");
  CHECK(output.nbDims == static_cast<int32_t>(node.output.size()), node.op + ": rank of the output");
  for (int axis = 0; axis < output.nbDims && axis < static_cast<int32_t>(node.output.size()); ++axis) {
    const auto& size = static_cast<const Dimension&>(*output.d[axis]);
    const std::size_t index = static_cast<std::size_t>(axis);
    CHECK(size.value == node.output[index], node.op + ": size " + std::to_string(size.value));
    CHECK(size.text == node.symbolic[index],
          node.op + ": expression " + size.text + ", expected " + node.symbolic[index]);
  }
  take_log();
  std::vector<nvinfer1::DimsExprs> fewer(inputs.begin(), inputs.end() - 1);
  CHECK(!infer(plugin, fewer, builder, &output), node.op + ": a shape with an input missing");
  CHECK(take_log().find("inputs") != std::string::npos, node.op + ": a missing input is not told");
  std::vector<nvinfer1::DimsExprs> flat = inputs;
  const std::string rank = std::to_string(--flat[0].nbDims);
  CHECK(!infer(plugin, flat, builder, &output), node.op + ": a shape for x of rank " + rank);
  CHECK(take_log().find(" has " + rank + " dimensions") != std::string::npos,
        node.op + ": the rank is not told");
}

void check_types(Plugin& plugin, const Case& node) {
  for (const DataType x : {DataType::kFLOAT, DataType::kHALF}) {
    std::vector<PluginTensorDesc> descs = describe(node, x);
    std::vector<DataType> types;
    for (std::size_t i = 0; i + 1 < descs.size(); ++i) types.push_back(descs[i].type);
    if (node.first_data() != node.inputs.size()) {
      CHECK(output_type(plugin, types) == descs.back().type, node.op + ": type of the output");
    }
#if INTERFACE_V3
    types.pop_back();
    take_log();
    DataType type = DataType::kINT8;
    CHECK(build(plugin).getOutputDataTypes(&type, 1, types.data(), static_cast<int32_t>(types.size())) != 0 &&
              take_log().find("inputs and 1 outputs, expected") != std::string::npos,
          node.op + ": types of too few inputs are not refused in words");
#endif
    for (std::size_t i = 0; i < descs.size(); ++i) {
      for (const DataType type :
           {DataType::kFLOAT, DataType::kHALF, DataType::kINT8, DataType::kINT32, DataType::kBOOL}) {
        for (const TensorFormat format : {TensorFormat::kLINEAR, TensorFormat::kCHW2, TensorFormat::kHWC8,
                                          TensorFormat::kCHW32, TensorFormat::kHWC}) {
          std::vector<PluginTensorDesc> tried = descs;
          tried[i].type = type;
          tried[i].format = format;
          const bool real = type == DataType::kFLOAT || type == DataType::kHALF;
          const DataType only = node.is_integer(i) ? DataType::kINT32
                                : node.is_data(i)  ? x
                                                   : DataType::kFLOAT;
          const bool expected =
              format == TensorFormat::kLINEAR && (i == node.first_data() ? real : type == only);
          CHECK(supports(plugin, static_cast<int>(i), tried) == expected,
                node.op + ": tensor " + std::to_string(i) + ", type " +
                    std::to_string(static_cast<int>(type)) + ", format " +
                    std::to_string(static_cast<int>(format)));
        }
      }
    }
    CHECK(!supports(plugin, -1, descs) && !supports(plugin, static_cast<int>(descs.size()), descs),
          node.op + ": positions that are none");
  }
}

std::size_t expected_workspace(const Case& node, DataType type) {
  const std::string kind = node.kind();
  if (kind == "SpatialMasker" || kind == "TokenMasker" || kind.find("ClassToken") == 0) return 0;
  if (kind == "QuantizeBytes" || kind == "DequantizeBytes") return 0;
  if (node.op.find("Transformer") != std::string::npos) {
    return static_cast<std::size_t>(kN * kT * kC * (type == DataType::kHALF ? 2 : 4) + kF);
  }
  if (is_sampling(node) || node.op == "PyramidRoiAlign") return 0;
  if (kind == "ChannelMasker") return kN * kC;
  if (kind == "ChannelMaskerHidden") return kN * kC + 6;
  if (kind != node.op) return static_cast<std::size_t>(kN * kH * kW * kM + node.output[3] * kWord);
  return static_cast<std::size_t>(kN * kH * kW * kM * (type == DataType::kHALF ? 2 : 4) + node.output[3]);
}

void check_configure(Plugin& plugin, const Case& node) {
  for (const DataType type : {DataType::kFLOAT, DataType::kHALF}) {
    const std::vector<PluginTensorDesc> good = describe(node, type);
    std::size_t workspace = 0;
    take_log();
    CHECK(configure(plugin, good, &workspace), node.op + ": refused: " + take_log());
    CHECK(workspace == expected_workspace(node, type), node.op + ": workspace " + std::to_string(workspace) +
                                                           ", expected " +
                                                           std::to_string(expected_workspace(node, type)));
    // Every size of every tensor but x is tied to another one or to an attribute, except that of a mask of
    // patches.
    for (std::size_t i = node.op == "PyramidRoiAlign" ? 0 : 1; i < good.size(); ++i) {
      for (int axis = 0; axis < good[i].dims.nbDims; ++axis) {
        std::vector<PluginTensorDesc> wrong = good;
        wrong[i].dims.d[axis] += 1;
        const std::string what =
            node.op + ": tensor " + std::to_string(i) + " with another dimension " + std::to_string(axis);
        const bool patches = node.op.find("Bottleneck") != std::string::npos && good[i].dims.nbDims == 4 &&
                             good[i].dims.d[1] == 1 && good[i].dims.d[2] == 5 && axis >= 2;
        const bool batch = axis == 0 && good[i].dims.d[0] == kN;
        if (patches) continue;
        take_log();
        const bool accepted = configure(plugin, wrong, &workspace);
        // The batch is not known yet when a plugin is configured, its maximum is wrong then.
        if (batch && accepted) {
          CHECK(workspace == 0, what + " has a workspace");
          continue;
        }
        CHECK(!accepted, what + " was accepted");
        CHECK(!take_log().empty(), what + " was refused without a word");
      }
    }
  }
  if (node.inputs.size() < 2) return;
  std::vector<PluginTensorDesc> mixed = describe(node, DataType::kHALF);
  std::size_t workspace = 0;
  mixed[1].type = DataType::kHALF;
  if (!node.data[1]) {
    CHECK(!configure(plugin, mixed, &workspace), node.op + ": a half mask or constant was accepted");
    CHECK(take_log().find("expected a linear tensor of float") != std::string::npos,
          node.op + ": wrong words");
  }
}

// The addresses handed over; only their identity counts.
struct alignas(16) Memory {
  std::array<float, 28> places;
  const void* input(std::size_t i) const { return &places[i]; }
  void* output() { return &places[20]; }
  void* workspace() { return &places[24]; }
};

void check_seen_block(const Case& node, const Recording& seen, const std::vector<const void*>& inputs,
                      const void* output) {
  const auto has = [&](const char* part) { return node.op.find(part) != std::string::npos; };
  const auto& shape = seen.block;
  CHECK(shape.batch == kN && shape.tokens == kT && shape.width == kC && shape.heads == kA &&
            shape.head_width == kHeadWidth && shape.hidden == kF,
        node.op + ": sizes");
  CHECK(shape.token_mask == has("Token") && shape.head_mask == has("Head") &&
            shape.sublayer_masks == has("Layer"),
        node.op + ": masks");
  CHECK(shape.token_mlp && shape.head_mode == 0 && shape.epsilon == 1e-6f && shape.scale == 0.125f,
        node.op + ": attributes");
  std::size_t next = 0;
  const auto take = [&](bool present) { return present ? inputs[next++] : nullptr; };
  const auto& t = seen.block_tensors;
  CHECK(t.x == take(true), node.op + ": x");
  CHECK(t.token_mask == take(has("Token")), node.op + ": token");
  CHECK(t.head_mask == take(has("Head")), node.op + ": head");
  CHECK(t.attention_mask == take(has("Layer")), node.op + ": attention");
  CHECK(t.mlp_mask == take(has("Layer")), node.op + ": mlp");
  CHECK(t.norm1_weight == take(true) && t.norm1_bias == take(true), node.op + ": norm1");
  CHECK(t.w_qkv == take(true) && t.b_qkv == take(true), node.op + ": qkv");
  CHECK(t.w_proj == take(true) && t.b_proj == take(true), node.op + ": proj");
  CHECK(t.norm2_weight == take(true) && t.norm2_bias == take(true), node.op + ": norm2");
  CHECK(t.w_fc1 == take(true) && t.b_fc1 == take(true), node.op + ": fc1");
  CHECK(t.w_fc2 == take(true) && t.b_fc2 == take(true), node.op + ": fc2");
  CHECK(t.y == output && next == inputs.size(), node.op + ": y");
}

void check_seen_token_masker(const Case& node, const Recording& seen, const std::vector<const void*>& inputs,
                             const void* output) {
  const auto& one = seen.token_masker;
  const auto& other = seen.class_token_masker;
  if (node.op == "TokenMasker") {
    CHECK(one.batch == kN && one.tokens == kT && one.width == kC && one.kept == 1 && one.normalise &&
              one.epsilon == 1e-5f,
          node.op + ": shape");
  } else {
    CHECK(other.batch == kN && other.tokens == kT && other.width == kC && other.normalise &&
              other.outputs == (node.op == "ClassTokenHeadMasker" ? kA : 1) && other.epsilon == 1e-5f,
          node.op + ": shape");
  }
  CHECK(seen.x == inputs[0] && seen.weight == inputs[1] && seen.bias == inputs[2] && seen.mask == output,
        node.op + ": tensors");
}

void check_seen_sampling(const Case& node, const Recording& seen, const std::vector<const void*>& inputs,
                         const void* output) {
  const auto& shape = seen.sampling;
  const int levels = node.op.back() - '0';
  CHECK(shape.batch == kN && shape.cells == node.inputs[0][1] && shape.heads == kA &&
            shape.channels == kHeadWidth && shape.queries == kQ && shape.levels == levels &&
            shape.points == kP,
        node.op + ": sizes");
  for (int i = 0; i < levels; ++i) {
    CHECK(shape.sizes[2 * i] == 6 - i && shape.sizes[2 * i + 1] == 5 - i, node.op + ": maps");
  }
  CHECK(seen.x == inputs[0] && seen.locations == inputs[1] && seen.weight == inputs[2] && seen.y == output,
        node.op + ": tensors");
}

void check_seen_regions(const Case& node, const Recording& seen, const std::vector<const void*>& inputs,
                        const void* output) {
  const auto& shape = seen.regions;
  CHECK(shape.channels == kC && shape.count == kN && shape.size == kRegion, node.op + ": sizes");
  for (int i = 0; i < 4; ++i) {
    CHECK(shape.heights[i] == kSide >> i && shape.widths[i] == 2 * (kSide >> i) &&
              shape.strides[i] == 4 << i && seen.maps[i] == inputs[static_cast<std::size_t>(i)],
          node.op + ": maps");
  }
  CHECK(seen.boxes == inputs[4] && seen.levels == inputs[5] && seen.y == output, node.op + ": tensors");
}

void check_seen_conversion(const Case& node, const Recording& seen, const std::vector<const void*>& inputs,
                           const void* output) {
  CHECK(seen.count == kN * kH * kW * kC && seen.scale == 0.125f, node.op + ": how many, and the scale");
  CHECK(seen.x == inputs[0] && seen.y == output, node.op + ": tensors");
}

void check_seen_integers(const Case& node, const Recording& seen, const std::vector<const void*>& inputs,
                         const void* output) {
  const std::string kind = node.kind();
  const bool spatial = kind.find("Spatial") == 0, layer = kind.find("Layer") == 0;
  const bool channel = kind.find("Channel") != std::string::npos;
  const bool projection = kind.find("Projection") != std::string::npos;
  const auto& shape = seen.bottleneck;
  CHECK(shape.batch == kN && shape.height == kH && shape.width == kW && shape.inputs == kC &&
            shape.middle == kM && shape.outputs == (projection ? kO : kC) && shape.squeeze == 0 &&
            !shape.winograd,
        node.op + ": sizes");
  CHECK(shape.groups == kGroup && shape.stride == (projection ? 2 : 1) && shape.dilation == 2 &&
            shape.projection == projection,
        node.op + ": attributes");
  const int mask = spatial ? 5 : layer ? 1 : 0;
  CHECK(shape.mask_height == mask && shape.mask_width == mask && shape.channel_groups == (channel ? 4 : 0),
        node.op + ": masks");
  std::size_t next = 0;
  const auto take = [&](bool present) { return present ? inputs[next++] : nullptr; };
  const auto& t = seen.integers;
  CHECK(t.x == take(true), node.op + ": x");
  CHECK(t.spatial_mask == take(spatial || layer), node.op + ": spatial mask");
  CHECK(t.channel_mask == take(channel), node.op + ": channel mask");
  CHECK(t.w1 == take(true) && t.b1 == take(true) && t.m1 == take(true), node.op + ": conv1");
  CHECK(t.w2 == take(true) && t.b2 == take(true) && t.m2 == take(true), node.op + ": conv2");
  CHECK(t.w3 == take(true) && t.b3 == take(true) && t.m3 == take(true), node.op + ": conv3");
  CHECK(t.wd == take(projection) && t.bd == take(projection) && t.md == take(projection),
        node.op + ": projection");
  CHECK(t.y == output && next == inputs.size(), node.op + ": y");
}

void check_enqueue(Plugin& plugin, const Case& node) {
  const std::string kind = node.kind();
  const bool block = node.op.find("Transformer") != std::string::npos;
  const bool token_masker = node.op == "TokenMasker" || node.op.find("ClassToken") == 0;
  const bool projection = node.op.find("Projection") != std::string::npos;
  const bool bottleneck = node.op.find("Bottleneck") != std::string::npos;
  Memory memory;
  std::vector<const void*> inputs;
  for (std::size_t i = 0; i < node.inputs.size(); ++i) inputs.push_back(memory.input(i));
  for (const DataType type : {DataType::kFLOAT, DataType::kHALF}) {
    const std::vector<PluginTensorDesc> descs = describe(node, type);
    Recording seen;
    CHECK(enqueue(plugin, descs, inputs, memory.output(), memory.workspace(), seen) == 0,
          node.op + ": enqueue");
    CHECK(seen.calls == 1, node.op + ": kernels were called " + std::to_string(seen.calls) + " times");
    const Type expected = kind != node.op && !bottleneck               ? Type::kByte
                          : node.has_data() && type == DataType::kHALF ? Type::kHalf
                                                                       : Type::kFloat;
    CHECK(seen.type == expected, node.op + ": type");
    if (expected_workspace(node, type) > 0) {
      CHECK(seen.workspace == memory.workspace(), node.op + ": workspace");
    }
    if (kind == "QuantizeBytes" || kind == "DequantizeBytes") {
      check_seen_conversion(node, seen, inputs, memory.output());
      continue;
    }
    if (kind != node.op && bottleneck) {
      check_seen_integers(node, seen, inputs, memory.output());
      continue;
    }
    if (block) {
      check_seen_block(node, seen, inputs, memory.output());
      continue;
    }
    if (is_sampling(node)) {
      check_seen_sampling(node, seen, inputs, memory.output());
      continue;
    }
    if (node.op == "PyramidRoiAlign") {
      check_seen_regions(node, seen, inputs, memory.output());
      continue;
    }
    if (token_masker) {
      check_seen_token_masker(node, seen, inputs, memory.output());
      continue;
    }
    if (kind == "SpatialMasker") {
      const auto& shape = seen.spatial_masker;
      CHECK(shape.batch == kN && shape.height == kH && shape.width == kW && shape.channels == kC &&
                shape.groups == 1 && shape.mask_height == 5 && shape.mask_width == 3,
            "shape of SpatialMasker");
    } else if (!bottleneck) {
      const auto& shape = seen.channel_masker;
      CHECK(shape.batch == kN && shape.height == kH && shape.width == kW && shape.channels == kC &&
                shape.groups == 4 && shape.hidden == (kind == "ChannelMasker" ? 0 : 6),
            "shape of " + node.op);
    }
    if (!bottleneck) {
      const bool hidden = kind == "ChannelMaskerHidden";
      CHECK(seen.x == inputs[0] && seen.mask == memory.output(), node.op + ": x and mask");
      CHECK(seen.hidden_weight == (hidden ? inputs[1] : nullptr) &&
                seen.hidden_bias == (hidden ? inputs[2] : nullptr),
            node.op + ": hidden layer");
      CHECK(seen.weight == inputs[hidden ? 3 : 1] && seen.bias == inputs[hidden ? 4 : 2],
            node.op + ": weight");
    } else {
      const bool spatial = node.op.find("Spatial") == 0, layer = node.op.find("Layer") == 0;
      const bool channel = node.op.find("Channel") != std::string::npos;
      const auto& shape = seen.bottleneck;
      CHECK(shape.batch == kN && shape.height == kH && shape.width == kW && shape.inputs == kC &&
                shape.middle == kM && shape.outputs == (projection ? kO : kC),
            node.op + ": sizes");
      CHECK(shape.groups == kGroup && shape.stride == (projection ? 2 : 1) && shape.dilation == 2 &&
                shape.projection == projection,
            node.op + ": attributes");
      const int mask = spatial ? 5 : layer ? 1 : 0;
      CHECK(shape.mask_height == mask && shape.mask_width == mask, node.op + ": size of the mask");
      CHECK(shape.channel_groups == (channel ? 4 : 0), node.op + ": groups of the mask");
      const bool excites = node.op.find("SE") != std::string::npos;
      CHECK(shape.squeeze == (excites ? kS : 0) && shape.pool_active, node.op + ": squeeze-and-excitation");
      std::size_t next = 0;
      const auto take = [&](bool present) { return present ? inputs[next++] : nullptr; };
      const auto& tensors = seen.tensors;
      CHECK(tensors.x == take(true), node.op + ": x");
      CHECK(tensors.spatial_mask == take(spatial || layer), node.op + ": spatial mask");
      CHECK(tensors.channel_mask == take(channel), node.op + ": channel mask");
      CHECK(tensors.w1 == take(true), node.op + ": w1");
      CHECK(tensors.b1 == take(true), node.op + ": b1");
      CHECK(tensors.w2 == take(true), node.op + ": w2");
      CHECK(tensors.b2 == take(true), node.op + ": b2");
      CHECK(tensors.ws == take(excites), node.op + ": ws");
      CHECK(tensors.bs == take(excites), node.op + ": bs");
      CHECK(tensors.we == take(excites), node.op + ": we");
      CHECK(tensors.be == take(excites), node.op + ": be");
      CHECK(tensors.w3 == take(true), node.op + ": w3");
      CHECK(tensors.b3 == take(true), node.op + ": b3");
      CHECK(tensors.wd == take(projection), node.op + ": wd");
      CHECK(tensors.bd == take(projection), node.op + ": bd");
      CHECK(tensors.border_bias == take(channel && !excites), node.op + ": border_bias");
      CHECK(tensors.skipped_output == take(channel && !excites), node.op + ": skipped_output");
      CHECK(tensors.y == memory.output() && next == inputs.size(), node.op + ": y");
    }
  }
  const std::vector<PluginTensorDesc> good = describe(node, DataType::kFLOAT);
  take_log();
  Recording failing;
  failing.error = 719;
  CHECK(enqueue(plugin, good, inputs, memory.output(), memory.workspace(), failing) == 719,
        node.op + ": the kernels' error is lost");
  CHECK(take_log().find("CUDA error 719") != std::string::npos, node.op + ": the kernels' error is not told");
  std::vector<PluginTensorDesc> empty = good, wrong = good;
  for (PluginTensorDesc& desc : empty) {
    if (desc.dims.d[0] == kN) desc.dims.d[0] = 0;
  }
  Recording none;
  CHECK(enqueue(plugin, empty, inputs, memory.output(), memory.workspace(), none) == 0 && none.calls == 0,
        node.op + ": an empty batch: " + take_log());
  wrong[0].dims.d[wrong[0].dims.nbDims - 1] += 1;
  CHECK(enqueue(plugin, wrong, inputs, memory.output(), memory.workspace(), none) != 0 && none.calls == 0,
        node.op + ": a wrong shape reached the kernels");
  take_log();
}

// While a builder times, masks hold nothing; in an execution context and in a stored engine they are read.
void check_timing(Creator& creator, const Case& node) {
  NodeFields wrong(node), one(node), fields(node), none(node);
  wrong.add("plugin_timing_rates", {500, 1001, 0, 0});
  check_refused(creator, wrong, "plugin_timing_rates holds 1001, expected 0 to 1000");
  one.add("plugin_timing_rates", {500});
  check_refused(creator, one, "plugin_timing_rates has 1 values, expected 4");
  fields.add("plugin_timing_rates", {500, 250, 125, 60});
  const Owned plugin = create(creator, fields), without = create(creator, none);
  CHECK(plugin && without, node.op + ": " + take_log());
  if (!plugin || !without) return;
  CHECK(stored(*plugin) == stored(*without), node.op + ": the rates are stored");
#if INTERFACE_V3
  CHECK(std::strcmp(build(*plugin).getTimingCacheID(), build(*without).getTimingCacheID()) != 0,
        node.op + ": times of other rates count as the same");
#endif
  const bool bottleneck = node.op.find("Bottleneck") != std::string::npos;
  Memory memory;
  std::vector<const void*> inputs;
  for (std::size_t i = 0; i < node.inputs.size(); ++i) inputs.push_back(memory.input(i));
  const std::vector<PluginTensorDesc> descs = describe(node, DataType::kHALF);
  const auto rates = [&](Plugin& timed, bool attached) {
    Recording seen;
    const auto call = attached ? enqueue : enqueue_timed;
    CHECK(call(timed, descs, inputs, memory.output(), memory.workspace(), seen) == 0 && seen.calls == 1,
          node.op + ": timed: " + take_log());
    const auto& of_block = seen.block_rates;
    return std::vector<std::int32_t>{seen.rates.spatial, seen.rates.channels, of_block.tokens,
                                     of_block.heads,     of_block.attention,  of_block.mlp};
  };
  // Each mask takes the next rate.
  const auto has = [&](const char* part) { return node.op.find(part) != std::string::npos; };
  const std::vector<std::int32_t> given = {500, 250, 125, 60}, real(6, 0);
  std::size_t next = 0;
  const auto take = [&](bool present) { return present ? given[next++] : 0; };
  std::vector<std::int32_t> planned(real);
  if (bottleneck) {
    planned[0] = take(has("Spatial") || has("Layer"));
    planned[1] = take(has("Channel"));
  } else if (has("Transformer")) {
    planned[2] = take(has("Token"));
    planned[3] = take(has("Head"));
    planned[4] = take(has("Layer"));
    planned[5] = take(has("Layer"));
  }
  const Owned copy = clone(*plugin), again = restored(creator, *plugin);
  CHECK(rates(*plugin, false) == planned && rates(*copy, false) == planned, node.op + ": timed on its masks");
  CHECK(rates(*without, false) == real, node.op + ": timed without rates");
  CHECK(again && rates(*again, false) == real, node.op + ": a plugin from an engine does not read its masks");
  CHECK(rates(*copy, true) == real, node.op + ": a plugin in a context does not read its masks");
}

// The batch that an engine is planned for goes into it, and to the kernels.
void check_largest_batch(Creator& creator, const Case& node) {
  NodeFields fields(node), planned(node), wrong(node);
  planned.add("plugin_largest_batch", {48});
  wrong.add("plugin_largest_batch", {-1});
  check_refused(creator, wrong, "plugin_largest_batch is -1, expected 0 or more");
  const Owned plugin = create(creator, planned), without = create(creator, fields);
  CHECK(plugin && without, node.op + ": " + take_log());
  if (!plugin || !without) return;
  CHECK(stored(*plugin) != stored(*without), node.op + ": the batch is not stored");
#if INTERFACE_V3
  CHECK(std::strcmp(build(*plugin).getTimingCacheID(), build(*without).getTimingCacheID()) != 0,
        node.op + ": times of another batch's kernels count as the same");
#endif
  Memory memory;
  std::vector<const void*> inputs;
  for (std::size_t i = 0; i < node.inputs.size(); ++i) inputs.push_back(memory.input(i));
  const std::vector<PluginTensorDesc> descs = describe(node, DataType::kHALF);
  const auto told = [&](Plugin& asked) {
    Recording seen;
    CHECK(enqueue(asked, descs, inputs, memory.output(), memory.workspace(), seen) == 0,
          node.op + ": " + take_log());
    return std::max(seen.bottleneck.largest_batch, seen.block.largest_batch);
  };
  const bool asks =
      node.op.find("Bottleneck") != std::string::npos || node.op.find("Transformer") != std::string::npos;
  const Owned again = restored(creator, *plugin);
  CHECK(told(*plugin) == (asks ? 48 : 0) && told(*without) == 0, node.op + ": the kernels are told");
  CHECK(again && told(*again) == (asks ? 48 : 0), node.op + ": an engine has forgotten its batch");
}

#ifdef FAKE_TENSORRT
void check_misaligned(Creator& creator, const Case& node) {
  NodeFields fields(node);
  const Owned plugin = create(creator, fields);
  if (!plugin) return;
  Memory memory;
  std::vector<const void*> inputs;
  for (std::size_t i = 0; i < node.inputs.size(); ++i) inputs.push_back(memory.input(i));
  take_log();
  Recording seen;
  const std::vector<PluginTensorDesc> descs = describe(node, DataType::kFLOAT);
  enqueue(*plugin, descs, inputs, memory.output(), memory.workspace(), seen);
  CHECK(take_log().empty(), node.op + ": something is said of aligned tensors");
  inputs[0] = static_cast<const char*>(inputs[0]) + 4;
  enqueue(*plugin, descs, inputs, memory.output(), memory.workspace(), seen);
  const std::string told = take_log();
  // Regions move single elements anyway, and four bytes begin at a multiple of four.
  if (node.op == "PyramidRoiAlign" || node.op == "DequantizeBytes") {
    CHECK(told.empty(), node.op + ": " + told);
    return;
  }
  const std::string x = is_sampling(node) ? ": value" : ": x";
  CHECK(told.find(node.op + x + " does not begin at a multiple of 16 bytes") != std::string::npos,
        node.op + ": a misaligned x is not told: " + told);
  enqueue(*plugin, descs, inputs, memory.output(), memory.workspace(), seen);
  CHECK(take_log().empty(), node.op + ": a misaligned x is told twice");
}

#endif

bool has_tiles(const Case& node) {
  return node.op.find("Bottleneck") != std::string::npos || node.op.find("Transformer") != std::string::npos;
}

// What the exported function says of the kernels; `shape_count` of the sizes are given.
std::string described(const Case& node, std::size_t shape_count, std::int32_t half, std::int32_t tactic) {
  std::vector<std::int32_t> attributes;
  for (const auto& attribute : node.attributes) {
    attributes.insert(attributes.end(), attribute.second.begin(), attribute.second.end());
  }
  std::vector<std::int64_t> shapes;
  for (const Dims& dims : node.inputs) {
    shapes.push_back(static_cast<std::int64_t>(dims.size()));
    shapes.insert(shapes.end(), dims.begin(), dims.end());
  }
  char text[200] = "nothing";
  const std::int32_t length =
      describe_kernels_of(node.op.c_str(), attributes.data(), static_cast<std::int32_t>(attributes.size()),
                          shapes.data(), static_cast<std::int32_t>(shape_count), half, 87, 16, text,
                          static_cast<std::int32_t>(sizeof text), tactic);
  CHECK(length < 0 || length == static_cast<std::int32_t>(std::strlen(text)), node.op + ": length");
  return length < 0 ? std::string() : std::string(text);
}
std::string described(const Case& node, std::int32_t tactic) {
  std::size_t shape_count = node.inputs.size();
  for (const Dims& dims : node.inputs) shape_count += dims.size();
  return described(node, shape_count, 1, tactic);
}

// What the exported function says of the kernels, over the recording ones.
void check_described(const Case& node) {
  std::vector<std::int32_t> attributes;
  for (const auto& attribute : node.attributes) {
    attributes.insert(attributes.end(), attribute.second.begin(), attribute.second.end());
  }
  std::vector<std::int64_t> shapes;
  for (const Dims& dims : node.inputs) {
    shapes.push_back(static_cast<std::int64_t>(dims.size()));
    shapes.insert(shapes.end(), dims.begin(), dims.end());
  }
  const auto ask = [&](std::size_t shape_count, std::int32_t half) {
    return described(node, shape_count, half, 0);
  };
  const bool bottleneck = node.op.find("Bottleneck") != std::string::npos;
  const bool block = node.op.find("Transformer") != std::string::npos;
  const bool conversion = node.op == "QuantizeBytes" || node.op == "DequantizeBytes";
  const bool bytes = node.kind() != node.op;
  const std::string cores =
      std::string("tensor cores, ") + (bytes ? "16 bytes" : "8 elements") + " an access";
  const std::string expected = bottleneck   ? cores + ", tiles 16x8 16x8 16x8, by formula"
                               : block      ? cores + ", tiles 16x15 16x15 16x15 16x15, by formula"
                               : bytes      ? "16 elements an access"
                               : conversion ? "4 elements an access"
                               : node.op == "PyramidRoiAlign" ? "1 element an access"
                                                              : "8 elements an access";
  CHECK(ask(shapes.size(), 1) == expected, node.op + ": " + ask(shapes.size(), 1));
  const char* in_float = node.op == "PyramidRoiAlign" ? "1 element" : bytes ? "16 " : "4 elements";
  CHECK(ask(shapes.size(), 0).find(in_float) != std::string::npos, node.op + ": in float");
  CHECK(ask(shapes.size() - 1, 1).empty(), node.op + ": a size is missing");
  const std::string large = bottleneck ? cores + ", tiles 19x8 16x8 16x8, tuned"
                            : block    ? cores + ", tiles 19x15 16x15 16x15 16x15, tuned"
                                       : expected;
  CHECK(described(node, 4) == large, node.op + ": tactic 4 is " + described(node, 4));
  CHECK(described(node, 65536) == expected, node.op + ": an unknown tactic is described");
  const std::string untold = expected + (has_tiles(node) && INTERFACE_V3 ? " unless tuned" : "");
  CHECK(described(node, -1) == untold, node.op + ": a tactic that is not told");
  char few[8];
  const std::int32_t length = describe_kernels_of(
      node.op.c_str(), attributes.data(), static_cast<std::int32_t>(attributes.size()), shapes.data(),
      static_cast<std::int32_t>(shapes.size()), 1, 87, 16, few, static_cast<std::int32_t>(sizeof few), 0);
  CHECK(length == static_cast<std::int32_t>(expected.size()) && expected.substr(0, 7) == few,
        node.op + ": a short buffer");
  if (node.op == "DequantizeBytes") return;  // any words fit it
  Case wrong = node;
  wrong.inputs.back().back() += 1;
  CHECK(described(wrong, 0).empty(), node.op + ": a shape that does not fit is described");
}

// ---- Tiles that a builder, or a plugin for it, chooses by timing.

// Sizes of tiles in a run, as one number: those of the recording kernels differ in one product.
int tiles_in(Plugin& plugin, const Case& node, bool attached) {
  Memory memory;
  std::vector<const void*> inputs;
  for (std::size_t i = 0; i < node.inputs.size(); ++i) inputs.push_back(memory.input(i));
  Recording seen;
  const auto call = attached ? enqueue : enqueue_timed;
  CHECK(call(plugin, describe(node, DataType::kHALF), inputs, memory.output(), memory.workspace(), seen) == 0,
        node.op + ": " + take_log());
  int found = 0;
  for (const auto size : seen.tiles.sizes) found += static_cast<int>(size);
  return found;
}

#if INTERFACE_V3
std::vector<std::int32_t> tactics_of(Plugin& plugin, const Case& node) {
  std::size_t workspace = 0;
  CHECK(configure(plugin, describe(node, DataType::kHALF), &workspace), node.op + ": " + take_log());
  std::vector<std::int32_t> tactics(static_cast<std::size_t>(build(plugin).getNbTactics()));
  CHECK(build(plugin).getValidTactics(tactics.data(), static_cast<std::int32_t>(tactics.size())) == 0,
        node.op + ": tactics");
  return tactics;
}

void check_tactics(Creator& creator, const Case& node, Plugin& plugin, Plugin& untimed, Plugin& without) {
  const bool block = node.op.find("Transformer") != std::string::npos;
  const std::vector<std::int32_t> none,
      four = block ? std::vector<std::int32_t>{1, 6, 11, 16} : std::vector<std::int32_t>{1, 2, 3, 4};
  const std::vector<std::int32_t> expected = has_tiles(node) ? four : none;
  CHECK(build(plugin).getNbTactics() == 0, node.op + ": tactics of a plugin that is not configured");
  CHECK(tactics_of(plugin, node) == expected, node.op + ": tactics");
  CHECK(tactics_of(untimed, node) == none && tactics_of(without, node) == none,
        node.op + ": tactics where nothing may be timed");
  const Owned copy = clone(plugin);
  CHECK(build(*copy).getNbTactics() == static_cast<std::int32_t>(expected.size()),
        node.op + ": the clone is not configured");
  std::int32_t one = 0;
  CHECK(build(plugin).getValidTactics(&one, 7) != 0 && one == 0, node.op + ": another number of tactics");
  const std::string id = build(plugin).getTimingCacheID(), other = build(untimed).getTimingCacheID();
  CHECK(id != other, node.op + ": times without tactics count as times with them");

  CHECK(runtime(plugin).setTactic(0) == 0 && tiles_in(plugin, node, false) == 0, node.op + ": the default");
  for (const std::int32_t bad : {-1, 700, 65536}) {
    take_log();
    CHECK(runtime(plugin).setTactic(bad) != 0, node.op + ": tactic " + std::to_string(bad) + " was taken");
    CHECK(take_log().find("tactic " + std::to_string(bad) + " is none of this plugin's") != std::string::npos,
          node.op + ": a bad tactic is refused without a word");
  }
  if (expected.empty()) {
    CHECK(runtime(plugin).setTactic(1) != 0, node.op + ": a tactic of a plugin without tiles");
    take_log();
    return;
  }
  for (int i = 0; i < 4; ++i) {
    const std::int32_t tactic = expected[static_cast<std::size_t>(i)];
    CHECK(runtime(plugin).setTactic(tactic) == 0 && tiles_in(plugin, node, false) == i,
          node.op + ": tactic " + std::to_string(tactic) + " while a builder times");
    // The builder tells a plugin of an engine again; what is stored stands until then.
    const Owned again = restored(creator, plugin);
    CHECK(again && tiles_in(*again, node, true) == i, node.op + ": the tactic is not stored");
    CHECK(again && runtime(*again).setTactic(0) == 0 && tiles_in(*again, node, true) == i,
          node.op + ": the default tactic takes back what was stored");
    CHECK(again && runtime(*again).setTactic(expected[3]) == 0 && tiles_in(*again, node, true) == 3,
          node.op + ": a plugin of an engine does not take its tactic");
    CHECK(again && tactics_of(*again, node) == none, node.op + ": a plugin of an engine offers tactics");
  }
  CHECK(runtime(plugin).setTactic(0) == 0 && tiles_in(plugin, node, false) == 0,
        node.op + ": a tactic of other shapes is kept");
}
#else

// What is said while the plugin is configured.
std::string configured(Plugin& plugin, const Case& node) {
  const auto all = dynamic(describe(node, DataType::kHALF));
  const std::size_t count = all.size() - 1;
  take_log();
  plugin.configurePlugin(all.data(), static_cast<int32_t>(count), &all[count], 1);
  return take_log();
}

void check_tactics(Creator& creator, const Case& node, Plugin& plugin, Plugin& untimed, Plugin& without) {
  CHECK(configured(untimed, node).empty() && tiles_in(untimed, node, false) == 0,
        node.op + ": timed where the node rules it out");
  CHECK(configured(without, node).empty() && tiles_in(without, node, false) == 0,
        node.op + ": timed on masks that hold nothing");
  const std::string said = configured(plugin, node);
  if (!has_tiles(node)) {
    CHECK(said.empty() && tiles_in(plugin, node, false) == 0, node.op + ": " + said);
    return;
  }
  CHECK(said.find(", tuned: 1 ms, by formula 3 ms, of 4 tactics") != std::string::npos,
        node.op + ": what was chosen is not told: " + said);
  CHECK(tiles_in(plugin, node, false) == 2, node.op + ": not the fastest tiles");
  CHECK(stored(plugin) != stored(untimed), node.op + ": the tactic is not stored");
  const Owned again = restored(creator, plugin), copy = clone(plugin);
  CHECK(again && tiles_in(*again, node, true) == 2, node.op + ": the tactic is not restored");
  CHECK(again && configured(*again, node).empty(), node.op + ": a plugin of an engine is timed");
  CHECK(copy && tiles_in(*copy, node, false) == 2, node.op + ": the clone forgets the tactic");
  CHECK(configured(plugin, node).empty() && tiles_in(plugin, node, false) == 2,
        node.op + ": the same was timed twice");
  char text[1 << 16];
  const std::int32_t length = timed_tactics(text, sizeof text);
  const std::string lines(text, static_cast<std::size_t>(length));
  CHECK(lines.find("dyndeploy tactics 1\n") == 0 && lines.find("\n" + node.op + " ") != std::string::npos,
        node.op + ": " + lines);
  const std::string words = described(node, -1);
  CHECK(words.find("tiles 18x") != std::string::npos || words.find(" 18x15 ") != std::string::npos, words);
  CHECK(words.find(", tuned") != std::string::npos, node.op + ": what was timed is not described: " + words);
  CHECK(timed_tactics(nullptr, 0) == length, node.op + ": length of what was timed");
#ifdef FAKE_TENSORRT
  TimedDevice& device = timed_device();
  CHECK(device.timings > 0 && device.tiles.size() >= 4 && device.begin < device.end, node.op + ": the clock");
  // Another device is another line; what was read is not timed.
  std::string others;
  std::size_t line = lines.find("\n" + node.op + " ") + 1;
  others = lines.substr(line, lines.find('\n', line) - line);
  others.replace(others.find("sm87x16"), 7, "sm87x18");
  others =
      others.substr(0, others.rfind(' ')) + (node.op.find("Transformer") != std::string::npos ? " 6" : " 2");
  CHECK(read_timed_tactics(others.c_str()) == -1, node.op + ": read without a format");
  const std::string kept = "dyndeploy tactics 1\n" + others + "\nnothing\nx = y\nx = 65536\nx = -1\nx = 2z\n";
  CHECK(read_timed_tactics(kept.c_str()) == 1, node.op + ": lines that were read");
  device.processors = 18;
  const int before = device.timings;
  const Owned reader = clone(plugin);
  CHECK(configured(*reader, node).empty() && device.timings == before && tiles_in(*reader, node, false) == 1,
        node.op + ": what was read is not taken");
  // Where nothing can be timed, the formula stays, and the log says so once.
  static bool told = false;
  device.processors = 19;
  device.memory = 1;
  const std::string refused = configured(*reader, node);
  CHECK(tiles_in(*reader, node, false) == 0 && device.timings == before, node.op + ": timed without memory");
  CHECK(told ? refused.empty()
             : refused.find("tiles are chosen by formula, nothing can be timed: ") != std::string::npos &&
                   refused.find(" bytes of device memory are not to be had (said once)") != std::string::npos,
        node.op + ": " + refused);
  told = true;
  device.memory = std::size_t{1} << 40;
  device.error = 719;
  configured(*reader, node);
  CHECK(tiles_in(*reader, node, false) == 0 && device.timings == before + 1, node.op + ": after an error");
  device.error = 0;
  device.capability = 0;
  configured(*reader, node);
  CHECK(tiles_in(*reader, node, false) == 0 && device.timings == before + 1, node.op + ": without a device");
  device.capability = 87;
  device.processors = 16;
#endif
}
#endif

void check_tuning(Creator& creator, const Case& node) {
  NodeFields wrong(node), fields(node), off(node), none(node);
  wrong.add("plugin_tuning", {2});
  check_refused(creator, wrong, "plugin_tuning is 2, expected 0 or 1");
  const std::vector<std::int32_t> rates = {500, 250, 125, 60};
  fields.add("plugin_timing_rates", rates);
  off.add("plugin_timing_rates", rates);
  off.add("plugin_tuning", {0});
  const Owned plugin = create(creator, fields), untimed = create(creator, off),
              without = create(creator, none);
  CHECK(plugin && untimed && without, node.op + ": " + take_log());
  if (plugin && untimed && without) check_tactics(creator, node, *plugin, *untimed, *without);
}

void check_kernels_refusal(Creator& creator, const Case& node) {
  Case wide = node;
  const bool block = node.op.find("Transformer") != std::string::npos;
  if (block) {
    wide.attributes[1].second = {bits(1001.0f)};
  } else {
    wide.attributes[1].second = {1001, 1001};
    wide.attributes[2].second = {1001, 1001, 1001, 1001};
  }
  NodeFields fields(wide);
  const Owned plugin = create(creator, fields);
  CHECK(plugin != nullptr, node.op + ": a wide dilation or a large scale");
  if (!plugin) return;
  Recording none;
  Memory memory;
  std::vector<const void*> inputs(node.inputs.size(), memory.input(0));
  take_log();
  CHECK(enqueue(*plugin, describe(node, DataType::kFLOAT), inputs, memory.output(), memory.workspace(),
                none) != 0 &&
            none.calls == 0,
        node.op + ": what the kernels refuse was run");
  CHECK(
      take_log().find(block ? "refuse scales over 1000" : "refuse dilations over 1000") != std::string::npos,
      node.op + ": the kernels' words are lost");
}

void run(const std::vector<Creator*>& listed) {
  const std::vector<Case> cases = all_cases();
  CHECK(listed.size() == cases.size(), "getCreators lists " + std::to_string(listed.size()));
  for (const Case& node : cases) {
    Creator* creator = find(node.op);
    CHECK(creator != nullptr, node.op + " is not registered");
    bool found = false;
    for (Creator* entry : listed) found = found || (entry && node.op == entry->getPluginName());
    CHECK(found, node.op + " is not listed");
    if (!creator) continue;
    check_creator(*creator, node);
    check_fields(*creator, node);
    check_half_only(*creator, node);
    check_largest_batch(*creator, node);
    check_timing(*creator, node);
#ifdef FAKE_TENSORRT
    check_misaligned(*creator, node);
#endif
    check_described(node);
#if NV_TENSORRT_MAJOR >= 10
    check_wide_integers(*creator, node);
#endif
    NodeFields fields(node);
    Owned first = create(*creator, fields);
    CHECK(first != nullptr, node.op + ": " + take_log());
    if (!first) continue;
    check_state(*creator, node, *first, listed);
    const auto state = stored(*first);
    Owned plugin = clone(*first);
    first.reset();
    CHECK(plugin && stored(*plugin) == state, node.op + ": the clone differs");
    if (!plugin) continue;
    check_shapes(*plugin, node);
    check_types(*plugin, node);
    check_configure(*plugin, node);
    check_enqueue(*plugin, node);
    const bool refuses =
        node.op.find("Bottleneck") != std::string::npos || node.op.find("Transformer") != std::string::npos;
    if (refuses) check_kernels_refusal(*creator, node);
    check_tuning(*creator, node);
  }
}

}  // namespace

#ifdef FAKE_TENSORRT
extern "C" Listed* const* getCreators(int32_t& count);
#if NV_TENSORRT_MAJOR >= 8 && (NV_TENSORRT_MAJOR > 8 || NV_TENSORRT_MINOR >= 6)
extern "C" void setLoggerFinder(nvinfer1::ILoggerFinder* finder);

namespace {
// Version-compatible engines tell plugins their logger this way.
class OwnLogger final : public nvinfer1::ILogger {
 public:
  void log(Severity, const char* message) noexcept override { text = message; }
  std::string text;
};
class Finder final : public nvinfer1::ILoggerFinder {
 public:
  nvinfer1::ILogger* findLogger() override { return &logger; }
  OwnLogger logger;
};
void check_logger_finder() {
  Finder finder;
  setLoggerFinder(&finder);
  Case node = all_cases()[0];
  node.attributes.pop_back();
  NodeFields fields(node);
  Creator* creator = find(node.op);
  CHECK(creator && !create(*creator, fields), "created without mask_width");
  CHECK(finder.logger.text.find("mask_width is missing") != std::string::npos,
        "the found logger heard nothing");
  setLoggerFinder(nullptr);
}
}  // namespace
#define HAS_LOGGER_FINDER 1
#endif
#endif

int main(int argc, char** argv) {
  int32_t count = 0;
#ifdef FAKE_TENSORRT
  (void)argc;
  (void)argv;
  Listed* const* listed = getCreators(count);
  describe_kernels_of = DyndeployKernels;
  timed_tactics = DyndeployTimedTactics;
  read_timed_tactics = DyndeployReadTimedTactics;
#else
  if (argc != 2) return 2;
  // TensorRT's own logger is set by the first runtime or builder; without a GPU the runtime is what can be
  // had.
  static Logger logger;
  nvinfer1::IRuntime* runtime = nvinfer1::createInferRuntime(logger);
  std::printf("runtime %s\n", runtime ? "created" : "not created: no GPU");
  void* library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    std::printf("%s\n", dlerror());
    return 1;
  }
  using Function = Listed* const* (*)(int32_t&);
  const auto get_creators = reinterpret_cast<Function>(dlsym(library, "getCreators"));
  CHECK(get_creators && dlsym(library, "setLoggerFinder"), "entry points");
  CHECK((dlsym(library, "getPluginCreators") != nullptr) == !INTERFACE_V3,
        "the entry point for creators of IPluginV2");
  CHECK(!dlsym(library,
               "_ZN9dyndeploy4cuda14run_bottleneckERKNS0_15BottleneckShapeENS0_4TypeERKNS0_"
               "17BottleneckTensorsEPvS8_"),
        "the kernels are exported");
  describe_kernels_of = reinterpret_cast<DescribeKernels>(dlsym(library, "DyndeployKernels"));
  CHECK(describe_kernels_of, "the function that describes kernels");
  timed_tactics = reinterpret_cast<decltype(timed_tactics)>(dlsym(library, "DyndeployTimedTactics"));
  read_timed_tactics =
      reinterpret_cast<decltype(read_timed_tactics)>(dlsym(library, "DyndeployReadTimedTactics"));
  if (!get_creators || !describe_kernels_of || !timed_tactics || !read_timed_tactics) return 1;
  Listed* const* listed = get_creators(count);
#endif
  std::vector<Creator*> creators;
  for (int32_t i = 0; i < count; ++i) creators.push_back(as_creator(listed[i]));
  run(creators);
#ifdef HAS_LOGGER_FINDER
  check_logger_finder();
#endif
  std::printf("TensorRT %d.%d headers, %s: %d checks, %d failed\n", NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR,
              INTERFACE_V3 ? "IPluginV3" : "IPluginV2DynamicExt", checks, failures);
  return failures ? 1 : 0;
}

#pragma GCC diagnostic pop
