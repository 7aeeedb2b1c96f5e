// LayerBottleneck[Projection](x, mask (N,1,1,1), w1, b1, w2, b2, w3, b3[, wd, bd]): whole blocks are skipped.
#pragma once

#include "bottleneck_op.h"

namespace dyndeploy::ort {

class LayerBottleneck : public BottleneckKernel {
 public:
  static constexpr const char* kName = "LayerBottleneck";
  static constexpr const char* kInputs[] = {"x", "mask", "w1", "b1", "w2", "b2", "w3", "b3"};
  static constexpr bool kInPlace = true;
  static constexpr BottleneckOpInfo kOp{
      {kName, kInputs, static_cast<int>(std::size(kInputs))}, Skipping::kLayer, false};

  LayerBottleneck(const KernelInfo& info, const Registration& registration)
      : BottleneckKernel(kOp, info, registration) {}
  static void infer(const ShapeInference& inference) { BottleneckKernel::infer(kOp, inference); }
};

class LayerBottleneckProjection : public BottleneckKernel {
 public:
  static constexpr const char* kName = "LayerBottleneckProjection";
  static constexpr const char* kInputs[] = {"x", "mask", "w1", "b1", "w2", "b2", "w3", "b3", "wd", "bd"};
  static constexpr bool kInPlace = false;
  static constexpr BottleneckOpInfo kOp{
      {kName, kInputs, static_cast<int>(std::size(kInputs))}, Skipping::kLayer, true};

  LayerBottleneckProjection(const KernelInfo& info, const Registration& registration)
      : BottleneckKernel(kOp, info, registration) {}
  static void infer(const ShapeInference& inference) { BottleneckKernel::infer(kOp, inference); }
};

}  // namespace dyndeploy::ort
