// IPluginV2DynamicExt and its creators: TensorRT 8.2 to 11.1.
#pragma once

#include <string>

#include "plugin_core.h"

// The interface is deprecated since 10.0 and the only one before; it hides overloads that it has made final.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
#pragma GCC diagnostic ignored "-Woverloaded-virtual"

namespace dyndeploy {
namespace tensorrt {

class PluginV2 final : public nvinfer1::IPluginV2DynamicExt {
 public:
  PluginV2(const PluginCore& core, const std::string& plugin_namespace)
      : core_(core), namespace_(plugin_namespace) {}

  const char* getPluginType() const noexcept override { return core_.op().name; }
  const char* getPluginVersion() const noexcept override { return core_.op().version; }
  int32_t getNbOutputs() const noexcept override { return 1; }
  int32_t initialize() noexcept override { return 0; }
  void terminate() noexcept override {}
  void destroy() noexcept override { delete this; }
  void setPluginNamespace(const char* name) noexcept override { namespace_ = name ? name : ""; }
  const char* getPluginNamespace() const noexcept override { return namespace_.c_str(); }
  std::size_t getSerializationSize() const noexcept override { return serialized_size(core_.op()); }
  void serialize(void* buffer) const noexcept override {
    tensorrt::serialize(core_.op(), core_.attributes(), buffer);
  }
  PluginV2* clone() const noexcept override;
  void attachToContext(cudnnContext*, cublasContext*, nvinfer1::IGpuAllocator*) noexcept override {
    core_.stop_timing();
  }
  nvinfer1::DataType getOutputDataType(int32_t index, const nvinfer1::DataType* inputs,
                                       int32_t input_count) const noexcept override;
  nvinfer1::DimsExprs getOutputDimensions(int32_t index, const nvinfer1::DimsExprs* inputs,
                                          int32_t input_count,
                                          nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t position, const nvinfer1::PluginTensorDesc* tensors,
                                 int32_t input_count, int32_t output_count) noexcept override;
  void configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t input_count,
                       const nvinfer1::DynamicPluginTensorDesc* outputs,
                       int32_t output_count) noexcept override;
  std::size_t getWorkspaceSize(const nvinfer1::PluginTensorDesc* inputs, int32_t input_count,
                               const nvinfer1::PluginTensorDesc* outputs,
                               int32_t output_count) const noexcept override;
  int32_t enqueue(const nvinfer1::PluginTensorDesc* input_descs,
                  const nvinfer1::PluginTensorDesc* output_descs, const void* const* inputs,
                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;

 private:
  PluginCore core_;
  std::string namespace_;
};

class BaseCreatorV2 : public nvinfer1::IPluginCreator {
 public:
  explicit BaseCreatorV2(const Operator& op) : op_(op), fields_(op) {}

  const char* getPluginName() const noexcept override { return op_.name; }
  const char* getPluginVersion() const noexcept override { return op_.version; }
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return fields_.get(); }
  void setPluginNamespace(const char* name) noexcept override { namespace_ = name ? name : ""; }
  const char* getPluginNamespace() const noexcept override { return namespace_.c_str(); }
  nvinfer1::IPluginV2* createPlugin(const char* name,
                                    const nvinfer1::PluginFieldCollection* fields) noexcept override;
  nvinfer1::IPluginV2* deserializePlugin(const char* name, const void* data,
                                         std::size_t size) noexcept override;

 private:
  nvinfer1::IPluginV2* finish(const char* layer, const std::string& problem,
                              const Attributes& attributes) const;

  const Operator& op_;
  Fields fields_;
  std::string namespace_;
};

// A type of its own for each operator, as TensorRT's registrars want it.
template <const Operator& op>
class CreatorV2 final : public BaseCreatorV2 {
 public:
  CreatorV2() : BaseCreatorV2(op) {}
};

}  // namespace tensorrt
}  // namespace dyndeploy

#pragma GCC diagnostic pop
