// ChannelBottleneck[Projection](x, mask (N,G), w1, b1, w2, b2, w3, b3[, wd, bd]): groups of channels are
// skipped.
#pragma once

#include "bottleneck_op.h"

namespace dyndeploy::ort {

class ChannelBottleneck : public BottleneckKernel {
 public:
  static constexpr const char* kName = "ChannelBottleneck";
  static constexpr const char* kInputs[] = {"x", "mask", "w1", "b1", "w2", "b2", "w3", "b3"};
  static constexpr bool kInPlace = true;
  static constexpr BottleneckOpInfo kOp{
      {kName, kInputs, static_cast<int>(std::size(kInputs))}, Skipping::kChannel, false};

  ChannelBottleneck(const KernelInfo& info, const Registration& registration)
      : BottleneckKernel(kOp, info, registration) {}
  static void infer(const ShapeInference& inference) { BottleneckKernel::infer(kOp, inference); }
};

class ChannelBottleneckProjection : public BottleneckKernel {
 public:
  static constexpr const char* kName = "ChannelBottleneckProjection";
  static constexpr const char* kInputs[] = {"x", "mask", "w1", "b1", "w2", "b2", "w3", "b3", "wd", "bd"};
  static constexpr bool kInPlace = false;
  static constexpr BottleneckOpInfo kOp{
      {kName, kInputs, static_cast<int>(std::size(kInputs))}, Skipping::kChannel, true};

  ChannelBottleneckProjection(const KernelInfo& info, const Registration& registration)
      : BottleneckKernel(kOp, info, registration) {}
  static void infer(const ShapeInference& inference) { BottleneckKernel::infer(kOp, inference); }
};

}  // namespace dyndeploy::ort
