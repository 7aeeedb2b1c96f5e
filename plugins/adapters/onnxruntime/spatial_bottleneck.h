// SpatialBottleneck[Projection](x, mask (N,1,mh,mw), w1, b1, w2, b2, w3, b3[, wd, bd]): patches are skipped.
#pragma once

#include "bottleneck_op.h"

namespace dyndeploy::ort {

class SpatialBottleneck : public BottleneckKernel {
 public:
  static constexpr const char* kName = "SpatialBottleneck";
  static constexpr const char* kInputs[] = {"x", "mask", "w1", "b1", "w2", "b2", "w3", "b3"};
  static constexpr bool kInPlace = true;
  static constexpr BottleneckOpInfo kOp{
      {kName, kInputs, static_cast<int>(std::size(kInputs))}, Skipping::kSpatial, false};

  SpatialBottleneck(const KernelInfo& info, const Registration& registration)
      : BottleneckKernel(kOp, info, registration) {}
  static void infer(const ShapeInference& inference) { BottleneckKernel::infer(kOp, inference); }
};

class SpatialBottleneckProjection : public BottleneckKernel {
 public:
  static constexpr const char* kName = "SpatialBottleneckProjection";
  static constexpr const char* kInputs[] = {"x", "mask", "w1", "b1", "w2", "b2", "w3", "b3", "wd", "bd"};
  static constexpr bool kInPlace = false;
  static constexpr BottleneckOpInfo kOp{
      {kName, kInputs, static_cast<int>(std::size(kInputs))}, Skipping::kSpatial, true};

  SpatialBottleneckProjection(const KernelInfo& info, const Registration& registration)
      : BottleneckKernel(kOp, info, registration) {}
  static void infer(const ShapeInference& inference) { BottleneckKernel::infer(kOp, inference); }
};

}  // namespace dyndeploy::ort
