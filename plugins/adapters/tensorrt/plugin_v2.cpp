#include "plugin_v2.h"

#include <new>

#include "log.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

namespace dyndeploy {
namespace tensorrt {

using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

PluginV2* PluginV2::clone() const noexcept { return new (std::nothrow) PluginV2(core_, namespace_); }

nvinfer1::DataType PluginV2::getOutputDataType(int32_t, const nvinfer1::DataType* inputs,
                                               int32_t) const noexcept {
  return core_.output_type(inputs[0]);
}

nvinfer1::DimsExprs PluginV2::getOutputDimensions(int32_t, const nvinfer1::DimsExprs* inputs,
                                                  int32_t input_count,
                                                  nvinfer1::IExprBuilder& builder) noexcept {
  nvinfer1::DimsExprs output = {};
  // -1 dimensions is how this interface says that there is no shape.
  if (!core_.infer_shape(inputs, input_count, builder, &output)) output.nbDims = -1;
  return output;
}

bool PluginV2::supportsFormatCombination(int32_t position, const PluginTensorDesc* tensors,
                                         int32_t input_count, int32_t output_count) noexcept {
  return input_count == core_.op().input_count && output_count == 1 && position >= 0 &&
         position <= input_count && core_.supports(position, tensors[position], tensors[0]);
}

void PluginV2::configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t input_count,
                               const DynamicPluginTensorDesc* outputs, int32_t output_count) noexcept {
  Sizes sizes;
  cuda::Type type;
  if (!core_.check(
          input_count, output_count, [&](int i) { return inputs[i].desc; },
          [&](int i) { return outputs[i].desc; }, &sizes, &type) ||
      !core_.attributes().tuning) {
    return;
  }
  // This interface has no tactics: the plugin times for itself, here, where NvInferRuntime.h gives it the
  // opportunity to choose algorithms by formats and bounds. The builder comes here once more with what it has
  // chosen, and then the tactic is known.
  const auto largest = [](const DynamicPluginTensorDesc& tensor) {
    PluginTensorDesc desc = tensor.desc;
    desc.dims = tensor.max;
    return desc;
  };
  Sizes most;
  if (core_.check(
          input_count, output_count, [&](int i) { return largest(inputs[i]); },
          [&](int i) { return largest(outputs[i]); }, &most, &type)) {
    core_.tune(most, type);
  }
}

std::size_t PluginV2::getWorkspaceSize(const PluginTensorDesc* inputs, int32_t input_count,
                                       const PluginTensorDesc* outputs, int32_t output_count) const noexcept {
  Sizes sizes;
  cuda::Type type;
  const bool fits = core_.check(
      input_count, output_count, [&](int i) { return inputs[i]; }, [&](int i) { return outputs[i]; }, &sizes,
      &type);
  return fits ? core_.workspace(sizes, type) : 0;
}

int32_t PluginV2::enqueue(const PluginTensorDesc* input_descs, const PluginTensorDesc* output_descs,
                          const void* const* inputs, void* const* outputs, void* workspace,
                          cudaStream_t stream) noexcept {
  return core_.enqueue(input_descs, output_descs, Buffers{inputs, outputs[0], workspace, stream});
}

nvinfer1::IPluginV2* BaseCreatorV2::createPlugin(const char* name,
                                                 const nvinfer1::PluginFieldCollection* fields) noexcept {
  Attributes attributes;
  const std::string problem = read_fields(op_, fields, false, &attributes);
  return finish(name, problem, attributes);
}

nvinfer1::IPluginV2* BaseCreatorV2::deserializePlugin(const char* name, const void* data,
                                                      std::size_t size) noexcept {
  Attributes attributes;
  const std::string problem = deserialize(op_, data, size, &attributes);
  return finish(name, problem, attributes);
}

nvinfer1::IPluginV2* BaseCreatorV2::finish(const char* layer, const std::string& problem,
                                           const Attributes& attributes) const {
  if (problem.empty()) return new (std::nothrow) PluginV2(PluginCore(op_, attributes), namespace_);
  log_error(op_.name, (layer && *layer ? std::string(layer) + ": " : std::string()) + problem);
  return nullptr;
}

}  // namespace tensorrt
}  // namespace dyndeploy

#pragma GCC diagnostic pop
