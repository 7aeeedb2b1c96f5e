#include "channel_masker.h"

#include "masker.h"

namespace dyndeploy::ort {

void ChannelMaskerKernel::compute(KernelContext& context) {
  const OrtApi& api = context.api();
  const Tensor x = read_tensor(api, context.input(0), names_, 0, 4);
  std::int64_t features = x.shape[3];
  cpu::ChannelMaskerWeights weights;
  int input = 1;
  if (hidden_) {
    const Tensor weight = read_tensor(api, context.input(1), names_, 1, 2);
    const Tensor bias = read_tensor(api, context.input(2), names_, 2, 1);
    expect_shape(weight, names_, 1, {-1, features});
    features = weight.shape[0];
    expect_shape(bias, names_, 2, {features});
    weights.hidden_weight = weight.data;
    weights.hidden_bias = bias.data;
    weights.hidden = static_cast<int>(features);
    input = 3;
  }
  const Tensor weight = read_tensor(api, context.input(static_cast<std::size_t>(input)), names_, input, 2);
  const Tensor bias =
      read_tensor(api, context.input(static_cast<std::size_t>(input) + 1), names_, input + 1, 1);
  expect_shape(weight, names_, input, {-1, features});
  expect_shape(bias, names_, input + 1, {weight.shape[0]});
  weights.weight = weight.data;
  weights.bias = bias.data;
  weights.groups = static_cast<int>(weight.shape[0]);
  float* mask = context.output(0, {x.shape[0], weight.shape[0]});
  const cpu::MaskerInput masked{x.data, static_cast<int>(x.shape[0]), static_cast<int>(x.shape[1]),
                                static_cast<int>(x.shape[2]), static_cast<int>(x.shape[3])};
  const cpu::WorkspacePool::Lease workspace(*workspaces_);
  cpu::run_channel_masker(isa_, masked, weights, mask, *workspace, context.pool(threads_));
}

void ChannelMaskerKernel::infer_mask(const ShapeInference& inference, std::size_t bias_input) {
  const ShapeInference::Shape x = inference.input(0), bias = inference.input(bias_input);
  if (x.size() == 4 && bias.size() == 1) inference.set_output({x[0], bias[0]});
}

}  // namespace dyndeploy::ort
