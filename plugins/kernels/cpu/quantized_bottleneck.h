// The dynamic residual bottlenecks in integers: 8-bit activations with zero point 0 and int8 weights, see
// quantized_gemm.h for the arithmetic. The results are the same bits on every instruction set.
#pragma once

#include "parallel.h"
#include "quantized_weights.h"
#include "shape.h"
#include "workspace.h"

namespace dyndeploy::cpu {

// Activations are channels-last; y may be x where the layer has no projection, and then only active pixels
// are touched.
struct QuantizedBottleneckCall {
  const PackedQuantizedBottleneck* weights = nullptr;
  BottleneckShape shape;
  const std::uint8_t* x = nullptr;
  std::uint8_t* y = nullptr;
  // As in BottleneckCall.
  const float* spatial_mask = nullptr;
  int mask_height = 0;
  int mask_width = 0;
  const float* channel_mask = nullptr;
  int channel_groups = 0;
};

// Throws std::bad_alloc while the workspace grows.
void run_quantized_bottleneck(const QuantizedBottleneckCall& call, Workspace& workspace,
                              const ThreadPool& pool);

}  // namespace dyndeploy::cpu
