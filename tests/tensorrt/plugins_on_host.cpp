// One call of a plugin as TensorRT makes it, on this machine's memory, with the kernels' bodies compiled for
// it: create, store, restore, infer the shape, ask for a workspace, enqueue.

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "platform.h"
#include "plugin_v2.h"
#include "plugin_v3.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

namespace {

using namespace dyndeploy::tensorrt;
using nvinfer1::DataType;
using nvinfer1::PluginTensorDesc;

class Logger final : public nvinfer1::ILogger {
 public:
  void log(Severity, const char* message) noexcept override { text = message; }
  std::string text;
};

Logger& logger() {
  static Logger instance;
  return instance;
}

struct Call {
  const Operator* op;
  std::vector<PluginTensorDesc> descs;  // inputs, then the output
  std::vector<const void*> inputs;
  void* output;
};

// The workspace may hold anything.
struct Workspace {
  explicit Workspace(std::size_t size) : bytes(size + 256, 0xff) {}
  void* get() { return bytes.data() + (256 - reinterpret_cast<std::uintptr_t>(bytes.data()) % 256) % 256; }
  std::vector<std::uint8_t> bytes;
};

const char* run_v2(const Call& call, const nvinfer1::PluginFieldCollection& fields) {
  BaseCreatorV2 creator(*call.op);
  nvinfer1::IPluginV2* fresh = creator.createPlugin("node", &fields);
  if (!fresh) return "not created";
  std::vector<char> state(fresh->getSerializationSize());
  fresh->serialize(state.data());
  fresh->destroy();
  auto* plugin = static_cast<nvinfer1::IPluginV2DynamicExt*>(
      creator.deserializePlugin("node", state.data(), state.size()));
  if (!plugin) return "not restored";
  const int32_t count = static_cast<int32_t>(call.inputs.size());
  const PluginTensorDesc* output = &call.descs[call.inputs.size()];
  Workspace workspace(plugin->getWorkspaceSize(call.descs.data(), count, output, 1));
  void* outputs[] = {call.output};
  const int error =
      plugin->enqueue(call.descs.data(), output, call.inputs.data(), outputs, workspace.get(), nullptr);
  plugin->destroy();
  return error ? "enqueue failed" : nullptr;
}

#if DYNDEPLOY_TENSORRT_HAS_V3
const char* run_v3(const Call& call, const nvinfer1::PluginFieldCollection& fields) {
  using nvinfer1::PluginCapabilityType;
  BaseCreatorV3 creator(*call.op);
  const std::unique_ptr<nvinfer1::IPluginV3> fresh(
      creator.createPlugin("node", &fields, nvinfer1::TensorRTPhase::kBUILD));
  if (!fresh) return "not created";
  auto* build =
      static_cast<nvinfer1::IPluginV3OneBuild*>(fresh->getCapabilityInterface(PluginCapabilityType::kBUILD));
  auto* made = static_cast<nvinfer1::IPluginV3OneRuntime*>(
      fresh->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
  const std::unique_ptr<nvinfer1::IPluginV3> stored(
      creator.createPlugin("node", made->getFieldsToSerialize(), nvinfer1::TensorRTPhase::kRUNTIME));
  if (!stored) return "not restored";
  const std::unique_ptr<nvinfer1::IPluginV3> attached(
      static_cast<nvinfer1::IPluginV3OneRuntime*>(
          stored->getCapabilityInterface(PluginCapabilityType::kRUNTIME))
          ->attachToContext(nullptr));
  auto* runtime = static_cast<nvinfer1::IPluginV3OneRuntime*>(
      attached->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
  std::vector<nvinfer1::DynamicPluginTensorDesc> dynamic;
  for (const PluginTensorDesc& desc : call.descs) dynamic.push_back({desc, desc.dims, desc.dims, desc.dims});
  const int32_t count = static_cast<int32_t>(call.inputs.size());
  const PluginTensorDesc* output = &call.descs[call.inputs.size()];
  if (build->configurePlugin(dynamic.data(), count, &dynamic[call.inputs.size()], 1)) return "not configured";
  if (runtime->onShapeChange(call.descs.data(), count, output, 1)) return "shape refused";
  Workspace workspace(build->getWorkspaceSize(dynamic.data(), count, &dynamic[call.inputs.size()], 1));
  void* outputs[] = {call.output};
  const int error =
      runtime->enqueue(call.descs.data(), output, call.inputs.data(), outputs, workspace.get(), nullptr);
  return error ? "enqueue failed" : nullptr;
}
#endif

}  // namespace

extern "C" nvinfer1::ILogger* getLogger() noexcept { return &logger(); }

// Interfaces that this library has.
extern "C" __attribute__((visibility("default"))) int plugin_interfaces() {
  return DYNDEPLOY_TENSORRT_HAS_V3 ? 3 : 2;
}

// What the host plays from now on; 62 before.
extern "C" __attribute__((visibility("default"))) void plugin_device(int capability, int processors) {
  dyndeploy::cuda::host::device().traits = {capability, processors, dyndeploy::cuda::Size::kBest};
}

// attributes: values of all of them, those of real ones as the bits of a float.
// tensors: x, the other inputs, the output; for each its type (0 float, 1 half, 2 whole numbers), its rank
// and its sizes in `shapes`. Returns what went wrong, or null.
extern "C" __attribute__((visibility("default"))) const char* plugin_run(int interface, const char* name,
                                                                         const std::int32_t* attributes,
                                                                         const std::int64_t* shapes,
                                                                         void* const* tensors) {
  static std::string answer;
  logger().text.clear();
  Call call = {};
#define FIND(NAME, KIND) \
  if (std::strcmp(name, k##NAME.name) == 0) call.op = &k##NAME;
  DYNDEPLOY_TENSORRT_OPERATORS(FIND)
  if (!call.op) return "no such operator";
  for (int i = 0; i <= call.op->input_count; ++i) {
    PluginTensorDesc desc = {};
    const std::int64_t type = *shapes++;
    desc.type = type == 2 ? DataType::kINT32 : type == 1 ? DataType::kHALF : DataType::kFLOAT;
    desc.format = nvinfer1::TensorFormat::kLINEAR;
    desc.dims.nbDims = static_cast<int32_t>(*shapes++);
    for (int axis = 0; axis < desc.dims.nbDims; ++axis) {
      desc.dims.d[axis] = static_cast<decltype(+desc.dims.d[0])>(*shapes++);
    }
    call.descs.push_back(desc);
    if (i < call.op->input_count) call.inputs.push_back(tensors[i]);
  }
  call.output = tensors[call.op->input_count];
  std::vector<nvinfer1::PluginField> fields;
  for (int i = 0; i < call.op->attribute_count; ++i) {
    const dyndeploy::tables::Attribute& attribute = call.op->attributes[i];
    const auto type =
        attribute.real ? nvinfer1::PluginFieldType::kFLOAT32 : nvinfer1::PluginFieldType::kINT32;
    fields.emplace_back(attribute.name, attributes, type, attribute.length);
    attributes += attribute.length;
  }
  const nvinfer1::PluginFieldCollection collection = {static_cast<int32_t>(fields.size()), fields.data()};
#if DYNDEPLOY_TENSORRT_HAS_V3
  const char* problem = interface == 3 ? run_v3(call, collection) : run_v2(call, collection);
#else
  const char* problem =
      interface == 2 ? run_v2(call, collection) : "this version has IPluginV2DynamicExt only";
#endif
  if (!problem) return nullptr;
  answer = std::string(problem) + ": " + logger().text;
  return answer.c_str();
}

#pragma GCC diagnostic pop
