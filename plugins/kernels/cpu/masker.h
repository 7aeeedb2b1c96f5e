// Maskers: which patches or channel groups a sample's activations ask for.
#pragma once

#include <cstdint>

#include "gemm.h"
#include "parallel.h"
#include "workspace.h"

namespace dyndeploy::cpu {

template <class T>
struct MaskerInputOf {
  const T* x = nullptr;  // (batch, height, width, channels)
  int batch = 0;
  int height = 0;
  int width = 0;
  int channels = 0;
};
using MaskerInput = MaskerInputOf<float>;
// The scale of the bytes is part of the first layer's weights. At most kMaxSummedPixels pixels an image.
using ByteMaskerInput = MaskerInputOf<std::uint8_t>;

// mask (batch, groups, mask_height, mask_width) = adaptive mean of x . weight (groups, channels) + bias >= 0
void run_spatial_masker(const Isa& isa, const MaskerInput& input, const float* weight, const float* bias,
                        int groups, int mask_height, int mask_width, float* mask, const ThreadPool& pool);
void run_spatial_masker(const Isa& isa, const ByteMaskerInput& input, const float* weight, const float* bias,
                        int groups, int mask_height, int mask_width, float* mask, Workspace& workspace,
                        const ThreadPool& pool);

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
void run_channel_masker(const Isa& isa, const ByteMaskerInput& input, const ChannelMaskerWeights& weights,
                        float* mask, Workspace& workspace, const ThreadPool& pool);

}  // namespace dyndeploy::cpu
