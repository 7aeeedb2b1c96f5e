// The dynamic residual bottlenecks. Activations are channels-last; y may be x where the layer has no
// projection, and then only active pixels are touched.
#pragma once

#include "parallel.h"
#include "shape.h"
#include "weights.h"
#include "workspace.h"

namespace dyndeploy::cpu {

struct BottleneckCall {
  const PackedBottleneck* weights = nullptr;
  BottleneckShape shape;
  const float* x = nullptr;
  float* y = nullptr;
  // (batch, mask_height, mask_width); nullptr: every pixel is active. One value per sample skips whole
  // layers.
  const float* spatial_mask = nullptr;
  int mask_height = 0;
  int mask_width = 0;
  // (batch, channel_groups); nullptr: every channel is active.
  const float* channel_mask = nullptr;
  int channel_groups = 0;
};

// Throws std::bad_alloc while the workspace grows.
void run_bottleneck(const BottleneckCall& call, Workspace& workspace, const ThreadPool& pool);

}  // namespace dyndeploy::cpu
