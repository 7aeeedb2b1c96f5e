// Kernels that compute nothing and write down how they were called: a test passes a Recording as the stream.
#pragma once

#include "kernels.h"

struct Recording {
  int calls = 0;
  int error = 0;  // what the next call returns
  dyndeploy::cuda::Type type = dyndeploy::cuda::Type::kFloat;
  void* workspace = nullptr;
  dyndeploy::cuda::BottleneckShape bottleneck = {};
  dyndeploy::cuda::BottleneckTensors tensors = {};
  dyndeploy::cuda::SpatialMaskerShape spatial_masker = {};
  dyndeploy::cuda::ChannelMaskerShape channel_masker = {};
  dyndeploy::cuda::TransformerShape block = {};
  dyndeploy::cuda::TransformerTensors block_tensors = {};
  dyndeploy::cuda::TokenMaskerShape token_masker = {};
  dyndeploy::cuda::ClassTokenMaskerShape class_token_masker = {};
  dyndeploy::cuda::DeformableAttentionShape sampling = {};
  dyndeploy::cuda::RegionsShape regions = {};
  dyndeploy::cuda::QuantizedBottleneckTensors integers = {};
  std::size_t count = 0;  // of elements that were converted
  float scale = 0.0f;
  const void* maps[dyndeploy::cuda::kPyramidLevels] = {};
  const float *locations = nullptr, *boxes = nullptr;
  const std::int32_t* levels = nullptr;
  void* y = nullptr;
  dyndeploy::cuda::TimingRates rates = {};  // of the last call with rates; 0: masks were read
  dyndeploy::cuda::TransformerRates block_rates = {};
  const void* x = nullptr;
  const float *hidden_weight = nullptr, *hidden_bias = nullptr, *weight = nullptr, *bias = nullptr;
  float* mask = nullptr;
};
