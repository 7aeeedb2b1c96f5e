// Kernels that compute nothing and write down how they were called: a test passes a Recording as the stream.
#pragma once

#include <vector>

#include "kernels.h"

// The device whose times a stand-in clock tells; the tactic of index 2 is the fastest one unless a test says
// otherwise.
struct TimedDevice {
  int capability = 87, processors = 16;
  std::size_t memory = std::size_t{1} << 40;
  double milliseconds[dyndeploy::cuda::kMostCandidates] = {3, 2, 1, 4, 5, 6, 7, 8};
  int error = 0;
  int timings = 0;                            // how often something was timed
  std::uintptr_t begin = 0, end = 0;          // the memory that was taken last
  std::vector<dyndeploy::cuda::Tiles> tiles;  // of all runs that were timed
};
TimedDevice& timed_device();

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
  dyndeploy::cuda::Tiles tiles = {};        // of the last run
  dyndeploy::cuda::TimingRates rates = {};  // of the last call with rates; 0: masks were read
  dyndeploy::cuda::TransformerRates block_rates = {};
  const void* x = nullptr;
  const float *hidden_weight = nullptr, *hidden_bias = nullptr, *weight = nullptr, *bias = nullptr;
  float* mask = nullptr;
};
