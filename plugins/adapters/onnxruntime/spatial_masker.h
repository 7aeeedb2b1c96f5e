// Which patches are computed: mask (N,g,mask_height,mask_width) of x (N,H,W,C).
#pragma once

#include "custom_op.h"

namespace dyndeploy::ort {

class SpatialMaskerKernel {
 public:
  SpatialMaskerKernel(const tables::Operator& op, const KernelInfo& info, const Registration& registration);
  void compute(KernelContext& context);
  static void infer(const tables::Operator& op, const ShapeInference& inference);
  static bool in_place(const tables::Operator&) { return false; }

 private:
  const tables::Operator& op_;
  const cpu::Isa& isa_;
  int threads_;
  std::shared_ptr<cpu::WorkspacePool> workspaces_;
  std::int64_t mask_height_;
  std::int64_t mask_width_;
};

}  // namespace dyndeploy::ort
