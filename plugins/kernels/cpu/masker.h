// Maskers: which patches or channel groups a sample's activations ask for.
#pragma once

#include "gemm.h"
#include "parallel.h"
#include "workspace.h"

namespace dyndeploy::cpu {

struct MaskerInput {
  const float* x = nullptr;  // (batch, height, width, channels)
  int batch = 0;
  int height = 0;
  int width = 0;
  int channels = 0;
};

// mask (batch, groups, mask_height, mask_width) = adaptive mean of x . weight (groups, channels) + bias >= 0
void run_spatial_masker(const Isa& isa, const MaskerInput& input, const float* weight, const float* bias,
                        int groups, int mask_height, int mask_width, float* mask, const ThreadPool& pool);

struct ChannelMaskerWeights {
  const float* hidden_weight = nullptr;  // (hidden, channels), or nullptr
  const float* hidden_bias = nullptr;
  int hidden = 0;
  const float* weight = nullptr;  // (groups, hidden or channels)
  const float* bias = nullptr;
  int groups = 0;
};

// mask (batch, groups) = weight . [relu(hidden_weight . mean + hidden_bias) or mean] + bias >= 0
void run_channel_masker(const Isa& isa, const MaskerInput& input, const ChannelMaskerWeights& weights,
                        float* mask, Workspace& workspace, const ThreadPool& pool);

}  // namespace dyndeploy::cpu
