// What both plugin interfaces do: an operator and its attributes against TensorRT's descriptions of tensors.
#pragma once

#include <string>

#include "api.h"
#include "attributes.h"
#include "operators.h"

namespace dyndeploy {
namespace tensorrt {

class PluginCore {
 public:
  PluginCore(const Operator& op, const Attributes& attributes) : op_(op), attributes_(attributes) {}

  const Operator& op() const { return op_; }
  const Attributes& attributes() const { return attributes_; }

  // From now on the masks are read and nothing is chosen any more: the plugin belongs to an execution
  // context, or comes from an engine.
  void stop_timing() {
    for (std::int32_t& rate : attributes_.timing_rates) rate = 0;
    attributes_.tuning = 0;
  }

  // Takes the tiles of a tactic. 0 is no news to a plugin whose tactic was chosen before. An unknown one is
  // logged.
  bool set_tactic(std::int32_t tactic);
  // Chooses them by timing, if a builder has made the plugin from a node and there is something to choose.
  void tune(const Sizes& sizes, cuda::Type type);

  // Sizes and types of the output; problems are logged.
  bool infer_shape(const nvinfer1::DimsExprs* inputs, int count, nvinfer1::IExprBuilder& builder,
                   nvinfer1::DimsExprs* output) const;
  nvinfer1::DataType output_type(nvinfer1::DataType x) const;

  // Whether a node has the operator's numbers of inputs and outputs; a wrong one is logged.
  bool check_count(int input_count, int output_count) const;

  // Whether tensor `position` (inputs first, then the output) may be so, x being as described.
  bool supports(int position, const nvinfer1::PluginTensorDesc& tensor,
                const nvinfer1::PluginTensorDesc& x) const;

  // Logs what is wrong. `inputs` and `outputs` are callables: index -> PluginTensorDesc; sizes of -1 are not
  // checked.
  template <class Inputs, class Output>
  bool check(int input_count, int output_count, const Inputs& input, const Output& output, Sizes* sizes,
             cuda::Type* type) const {
    nvinfer1::PluginTensorDesc tensors[kMaxInputs + 1];
    if (!check_count(input_count, output_count)) return false;
    for (int i = 0; i < input_count; ++i) tensors[i] = input(i);
    tensors[input_count] = output(0);
    return check_tensors(tensors, sizes, type);
  }

  std::size_t workspace(const Sizes& sizes, cuda::Type type) const;
  int enqueue(const nvinfer1::PluginTensorDesc* inputs, const nvinfer1::PluginTensorDesc* outputs,
              const Buffers& buffers) const;

 private:
  bool check_tensors(const nvinfer1::PluginTensorDesc* tensors, Sizes* sizes, cuda::Type* type) const;

  const Operator& op_;
  Attributes attributes_;
};

}  // namespace tensorrt
}  // namespace dyndeploy
