#include "plugin_v3.h"

#if DYNDEPLOY_TENSORRT_HAS_V3

#include <algorithm>
#include <new>

#include "log.h"

namespace dyndeploy {
namespace tensorrt {

using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

namespace {

PluginTensorDesc largest(const DynamicPluginTensorDesc& tensor) {
  PluginTensorDesc desc = tensor.desc;
  desc.dims = tensor.max;
  return desc;
}

}  // namespace

PluginV3::PluginV3(const PluginCore& core, const std::string& plugin_namespace)
    : core_(core),
      namespace_(plugin_namespace),
      fields_(core_.op(), core_.attributes()),
      timing_id_(core_.op().name) {
  for (int i = 0; i < core_.op().value_count(); ++i) {
    timing_id_ += " " + std::to_string(core_.attributes().values[i]);
  }
  timing_id_ += " " + std::to_string(core_.attributes().half_only);
  timing_id_ += " " + std::to_string(core_.attributes().largest_batch);
  for (const std::int32_t rate : core_.attributes().timing_rates) timing_id_ += " " + std::to_string(rate);
  timing_id_ += " " + std::to_string(core_.attributes().tuning);
}

nvinfer1::IPluginCapability* PluginV3::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* PluginV3::clone() noexcept {
  PluginV3* copy = new (std::nothrow) PluginV3(core_, namespace_);
  if (copy) {
    copy->tactic_count_ = tactic_count_;
    std::copy(tactics_, tactics_ + tactic_count_, copy->tactics_);
  }
  return copy;
}

nvinfer1::IPluginV3* PluginV3::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
  PluginCore attached = core_;
  attached.stop_timing();
  return new (std::nothrow) PluginV3(attached, namespace_);
}

int32_t PluginV3::getOutputDataTypes(nvinfer1::DataType* outputs, int32_t output_count,
                                     const nvinfer1::DataType* inputs, int32_t input_count) const noexcept {
  if (!core_.check_count(input_count, output_count)) return 1;
  outputs[0] = core_.output_type(inputs[0]);
  return 0;
}

int32_t PluginV3::getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t input_count,
                                  const nvinfer1::DimsExprs*, int32_t shape_input_count,
                                  nvinfer1::DimsExprs* outputs, int32_t output_count,
                                  nvinfer1::IExprBuilder& builder) noexcept {
  if (!core_.check_count(input_count + shape_input_count, output_count)) return 1;
  return core_.infer_shape(inputs, input_count, builder, &outputs[0]) ? 0 : 1;
}

bool PluginV3::supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors,
                                         int32_t input_count, int32_t output_count) noexcept {
  return input_count == core_.op().input_count && output_count == 1 && position >= 0 &&
         position <= input_count && core_.supports(position, tensors[position].desc, tensors[0].desc);
}

int32_t PluginV3::configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t input_count,
                                  const DynamicPluginTensorDesc* outputs, int32_t output_count) noexcept {
  Sizes sizes;
  cuda::Type type;
  tactic_count_ = 0;
  if (!core_.check(
          input_count, output_count, [&](int i) { return inputs[i].desc; },
          [&](int i) { return outputs[i].desc; }, &sizes, &type)) {
    return 1;
  }
  if (!core_.attributes().tuning) return 0;
  Sizes most;
  if (core_.check(
          input_count, output_count, [&](int i) { return largest(inputs[i]); },
          [&](int i) { return largest(outputs[i]); }, &most, &type)) {
    tactic_count_ = list_tactics(core_.op(), core_.attributes(), most, type, tactics_);
  }
  return 0;
}

int32_t PluginV3::getValidTactics(int32_t* tactics, int32_t count) noexcept {
  if (count != tactic_count_) return 1;
  std::copy(tactics_, tactics_ + count, tactics);
  return 0;
}

std::size_t PluginV3::getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t input_count,
                                       const DynamicPluginTensorDesc* outputs,
                                       int32_t output_count) const noexcept {
  Sizes sizes;
  cuda::Type type;
  const bool fits = core_.check(
      input_count, output_count, [&](int i) { return largest(inputs[i]); },
      [&](int i) { return largest(outputs[i]); }, &sizes, &type);
  return fits ? core_.workspace(sizes, type) : 0;
}

int32_t PluginV3::onShapeChange(const PluginTensorDesc* inputs, int32_t input_count,
                                const PluginTensorDesc* outputs, int32_t output_count) noexcept {
  Sizes sizes;
  cuda::Type type;
  const bool fits = core_.check(
      input_count, output_count, [&](int i) { return inputs[i]; }, [&](int i) { return outputs[i]; }, &sizes,
      &type);
  return fits ? 0 : 1;
}

int32_t PluginV3::enqueue(const PluginTensorDesc* input_descs, const PluginTensorDesc* output_descs,
                          const void* const* inputs, void* const* outputs, void* workspace,
                          cudaStream_t stream) noexcept {
  return core_.enqueue(input_descs, output_descs, Buffers{inputs, outputs[0], workspace, stream});
}

nvinfer1::IPluginV3* BaseCreatorV3::createPlugin(const char* name,
                                                 const nvinfer1::PluginFieldCollection* fields,
                                                 nvinfer1::TensorRTPhase phase) noexcept {
  Attributes attributes;
  const std::string problem =
      read_fields(op_, fields, phase == nvinfer1::TensorRTPhase::kRUNTIME, &attributes);
  if (problem.empty()) return new (std::nothrow) PluginV3(PluginCore(op_, attributes), "");
  log_error(op_.name, (name && *name ? std::string(name) + ": " : std::string()) + problem);
  return nullptr;
}

}  // namespace tensorrt
}  // namespace dyndeploy

#endif
