// What a feature pyramid holds in boxes: y (N,C,S,S) of maps (1,C,H,W), boxes (N,4) and their levels (N).
#pragma once

#include "custom_op.h"
#include "regions.h"

namespace dyndeploy::ort {

class RegionsKernel {
 public:
  RegionsKernel(const tables::Operator& op, const KernelInfo& info, const Registration& registration);
  void compute(KernelContext& context);
  static void infer(const tables::Operator& op, const ShapeInference& inference);
  static bool in_place(const tables::Operator&) { return false; }

 private:
  const tables::Operator& op_;
  const cpu::Isa& isa_;
  int threads_;
  std::shared_ptr<cpu::WorkspacePool> workspaces_;
  std::vector<std::int64_t> strides_;
  std::int64_t size_;
};

}  // namespace dyndeploy::ort
