#include "channel_masker.h"

#include <tuple>
#include <utility>

#include "masker_input.h"

namespace dyndeploy::ort {

void ChannelMaskerKernel::compute(KernelContext& context) {
  const Tensor x = context.tensor(op_, 0);
  std::int64_t features = x.shape[3];
  cpu::ChannelMaskerWeights weights;
  const auto layer = [&](int input) {
    const Tensor weight = context.tensor(op_, input), bias = context.tensor(op_, input + 1);
    expect_shape(weight, op_, input, {-1, features});
    features = weight.shape[0];
    expect_shape(bias, op_, input + 1, {features});
    return std::make_pair(weight.floats(), bias.floats());
  };
  const int hidden = tables::find_port(op_.inputs, op_.input_count, "hidden_weight");
  if (hidden >= 0) {
    std::tie(weights.hidden_weight, weights.hidden_bias) = layer(hidden);
    weights.hidden = static_cast<int>(features);
  }
  std::tie(weights.weight, weights.bias) = layer(tables::find_port(op_.inputs, op_.input_count, "weight"));
  weights.groups = static_cast<int>(features);
  if (x.shape[0] > INT32_MAX / features)
    throw InvalidArgument(std::string("dyndeploy.") + op_.name + ": the mask is too large");
  float* mask = context.output(0, {x.shape[0], features});
  const cpu::WorkspacePool::Lease workspace(*workspaces_);
  const auto run = [&](const auto& input) {
    cpu::run_channel_masker(isa_, input, weights, mask, *workspace, context.pool(threads_));
  };
  if (x.type == abi::ElementType::kUint8)
    run(byte_masker_input(x, op_));
  else
    run(masker_input<float>(x));
}

void ChannelMaskerKernel::infer(const tables::Operator& op, const ShapeInference& inference) {
  const int bias_input = tables::find_port(op.inputs, op.input_count, "bias");
  const ShapeInference::Shape x = inference.input(0);
  const ShapeInference::Shape bias = inference.input(static_cast<std::size_t>(bias_input));
  if (x.size() == 4 && bias.size() == 1) inference.set_output({x[0], bias[0]});
}

}  // namespace dyndeploy::ort
