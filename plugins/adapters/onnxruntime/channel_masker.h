// ChannelMasker(x (N,H,W,C), weight (G,C), bias (G)) -> mask (N,G)
// ChannelMaskerHidden(x, hidden_weight (h,C), hidden_bias (h), weight (G,h), bias (G)) -> mask (N,G)
#pragma once

#include "custom_op.h"

namespace dyndeploy::ort {

class ChannelMaskerKernel {
 public:
  ChannelMaskerKernel(const OpNames& names, bool hidden, const Registration& registration)
      : names_(names),
        hidden_(hidden),
        isa_(registration.isa()),
        threads_(registration.threads()),
        workspaces_(registration.workspaces()) {}
  void compute(KernelContext& context);

 protected:
  static void infer_mask(const ShapeInference& inference, std::size_t bias_input);

 private:
  OpNames names_;
  bool hidden_;
  const cpu::Isa& isa_;
  int threads_;
  std::shared_ptr<cpu::WorkspacePool> workspaces_;
};

class ChannelMasker : public ChannelMaskerKernel {
 public:
  static constexpr const char* kName = "ChannelMasker";
  static constexpr const char* kInputs[] = {"x", "weight", "bias"};
  static constexpr bool kInPlace = false;

  ChannelMasker(const KernelInfo&, const Registration& registration)
      : ChannelMaskerKernel({kName, kInputs, 3}, false, registration) {}
  static void infer(const ShapeInference& inference) { infer_mask(inference, 2); }
};

class ChannelMaskerHidden : public ChannelMaskerKernel {
 public:
  static constexpr const char* kName = "ChannelMaskerHidden";
  static constexpr const char* kInputs[] = {"x", "hidden_weight", "hidden_bias", "weight", "bias"};
  static constexpr bool kInPlace = false;

  ChannelMaskerHidden(const KernelInfo&, const Registration& registration)
      : ChannelMaskerKernel({kName, kInputs, 5}, true, registration) {}
  static void infer(const ShapeInference& inference) { infer_mask(inference, 4); }
};

}  // namespace dyndeploy::ort
