// Which groups of channels are computed: mask (N,G) of x (N,H,W,C), through one linear layer or two.
#pragma once

#include "custom_op.h"

namespace dyndeploy::ort {

class ChannelMaskerKernel {
 public:
  ChannelMaskerKernel(const tables::Operator& op, const KernelInfo&, const Registration& registration)
      : op_(op),
        isa_(registration.isa()),
        threads_(registration.threads()),
        workspaces_(registration.workspaces()) {}
  void compute(KernelContext& context);
  static void infer(const tables::Operator& op, const ShapeInference& inference);
  static bool in_place(const tables::Operator&) { return false; }

 private:
  const tables::Operator& op_;
  const cpu::Isa& isa_;
  int threads_;
  std::shared_ptr<cpu::WorkspacePool> workspaces_;
};

}  // namespace dyndeploy::ort
