// SpatialMasker(x (N,H,W,C), weight (g,C), bias (g)) -> mask (N,g,mask_height,mask_width)
#pragma once

#include "custom_op.h"

namespace dyndeploy::ort {

class SpatialMasker {
 public:
  static constexpr const char* kName = "SpatialMasker";
  static constexpr const char* kInputs[] = {"x", "weight", "bias"};
  static constexpr bool kInPlace = false;
  static constexpr OpNames kNames{kName, kInputs, 3};

  SpatialMasker(const KernelInfo& info, const Registration& registration);
  void compute(KernelContext& context);
  static void infer(const ShapeInference& inference);

 private:
  const cpu::Isa& isa_;
  int threads_;
  std::int64_t mask_height_;
  std::int64_t mask_width_;
};

}  // namespace dyndeploy::ort
