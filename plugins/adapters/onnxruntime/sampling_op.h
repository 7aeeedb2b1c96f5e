// Deformable attention: y (N,Q,A,d) of value (N,S,A,d), points (N,Q,A,maps,P,2) and their weights
// (N,Q,A,maps,P).
#pragma once

#include "custom_op.h"
#include "sampling.h"

namespace dyndeploy::ort {

class DeformableAttentionKernel {
 public:
  DeformableAttentionKernel(const tables::Operator& op, const KernelInfo& info,
                            const Registration& registration);
  void compute(KernelContext& context);
  static void infer(const tables::Operator& op, const ShapeInference& inference);
  static bool in_place(const tables::Operator&) { return false; }

 private:
  const tables::Operator& op_;
  const cpu::Isa& isa_;
  int threads_;
  std::vector<std::int64_t> sizes_;
  std::int64_t cells_;
};

}  // namespace dyndeploy::ort
