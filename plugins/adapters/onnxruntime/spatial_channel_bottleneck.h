// SpatialChannelBottleneck[Projection](x, spatial_mask, channel_mask, w1 ... b3[, wd, bd]): both are skipped.
#pragma once

#include "bottleneck_op.h"

namespace dyndeploy::ort {

class SpatialChannelBottleneck : public BottleneckKernel {
 public:
  static constexpr const char* kName = "SpatialChannelBottleneck";
  static constexpr const char* kInputs[] = {"x",  "spatial_mask", "channel_mask", "w1", "b1",
                                            "w2", "b2",           "w3",           "b3"};
  static constexpr bool kInPlace = true;
  static constexpr BottleneckOpInfo kOp{
      {kName, kInputs, static_cast<int>(std::size(kInputs))}, Skipping::kSpatialChannel, false};

  SpatialChannelBottleneck(const KernelInfo& info, const Registration& registration)
      : BottleneckKernel(kOp, info, registration) {}
  static void infer(const ShapeInference& inference) { BottleneckKernel::infer(kOp, inference); }
};

class SpatialChannelBottleneckProjection : public BottleneckKernel {
 public:
  static constexpr const char* kName = "SpatialChannelBottleneckProjection";
  static constexpr const char* kInputs[] = {"x",  "spatial_mask", "channel_mask", "w1", "b1", "w2",
                                            "b2", "w3",           "b3",           "wd", "bd"};
  static constexpr bool kInPlace = false;
  static constexpr BottleneckOpInfo kOp{
      {kName, kInputs, static_cast<int>(std::size(kInputs))}, Skipping::kSpatialChannel, true};

  SpatialChannelBottleneckProjection(const KernelInfo& info, const Registration& registration)
      : BottleneckKernel(kOp, info, registration) {}
  static void infer(const ShapeInference& inference) { BottleneckKernel::infer(kOp, inference); }
};

}  // namespace dyndeploy::ort
