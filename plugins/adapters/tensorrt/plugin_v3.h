// IPluginV3 and its creators: TensorRT 10 and newer.
#pragma once

#include "plugin_core.h"

#if DYNDEPLOY_TENSORRT_HAS_V3

namespace dyndeploy {
namespace tensorrt {

class PluginV3 final : public nvinfer1::IPluginV3,
                       public nvinfer1::IPluginV3OneCore,
                       public nvinfer1::IPluginV3OneBuild,
                       public nvinfer1::IPluginV3OneRuntime {
 public:
  PluginV3(const PluginCore& core, const std::string& plugin_namespace);

  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  const char* getPluginName() const noexcept override { return core_.op().name; }
  const char* getPluginVersion() const noexcept override { return core_.op().version; }
  const char* getPluginNamespace() const noexcept override { return namespace_.c_str(); }

  int32_t getNbOutputs() const noexcept override { return 1; }
  int32_t getOutputDataTypes(nvinfer1::DataType* outputs, int32_t output_count,
                             const nvinfer1::DataType* inputs, int32_t input_count) const noexcept override;
  int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t input_count,
                          const nvinfer1::DimsExprs* shape_inputs, int32_t shape_input_count,
                          nvinfer1::DimsExprs* outputs, int32_t output_count,
                          nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors,
                                 int32_t input_count, int32_t output_count) noexcept override;
  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t input_count,
                          const nvinfer1::DynamicPluginTensorDesc* outputs,
                          int32_t output_count) noexcept override;
  std::size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t input_count,
                               const nvinfer1::DynamicPluginTensorDesc* outputs,
                               int32_t output_count) const noexcept override;
  const char* getTimingCacheID() noexcept override { return timing_id_.c_str(); }
  int32_t getNbTactics() noexcept override { return tactic_count_; }
  int32_t getValidTactics(int32_t* tactics, int32_t count) noexcept override;

  int32_t setTactic(int32_t tactic) noexcept override { return core_.set_tactic(tactic) ? 0 : 1; }

  int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t input_count,
                        const nvinfer1::PluginTensorDesc* outputs, int32_t output_count) noexcept override;
  int32_t enqueue(const nvinfer1::PluginTensorDesc* input_descs,
                  const nvinfer1::PluginTensorDesc* output_descs, const void* const* inputs,
                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override { return fields_.get(); }

 private:
  PluginCore core_;
  std::string namespace_;
  Fields fields_;
  std::string timing_id_;
  // Of the shapes and types that it was configured for last.
  std::int32_t tactics_[cuda::kMostCandidates] = {};
  int tactic_count_ = 0;
};

class BaseCreatorV3 : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit BaseCreatorV3(const Operator& op) : op_(op), fields_(op) {}

  const char* getPluginName() const noexcept override { return op_.name; }
  const char* getPluginVersion() const noexcept override { return op_.version; }
  const char* getPluginNamespace() const noexcept override { return ""; }
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return fields_.get(); }
  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override;

 private:
  const Operator& op_;
  Fields fields_;
};

// A type of its own for each operator, as TensorRT's registrars want it.
template <const Operator& op>
class CreatorV3 final : public BaseCreatorV3 {
 public:
  CreatorV3() : BaseCreatorV3(op) {}
};

}  // namespace tensorrt
}  // namespace dyndeploy

#endif
