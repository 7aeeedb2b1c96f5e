// The first layers of a network in integers: float images (N,C,H,W) to bytes (N,Ho,Wo,Co).
#pragma once

#include <memory>
#include <string>

#include "custom_op.h"
#include "quantized_convolution.h"

namespace dyndeploy::ort {

class ImageConvolutionKernel {
 public:
  ImageConvolutionKernel(const tables::Operator& op, const KernelInfo& info,
                         const Registration& registration);
  void compute(KernelContext& context);
  static void infer(const tables::Operator& op, const ShapeInference& inference);
  static bool in_place(const tables::Operator&) { return false; }

 private:
  [[noreturn]] void refuse(const std::string& what) const;
  cpu::Windows windows(const KernelInfo& info, const char* strides, const char* pads) const;
  void pack(const Tensor& w, const Tensor& b, const Tensor& m, cpu::Arena& arena,
            std::unique_ptr<cpu::PackedImageConvolution>& packed) const;

  const tables::Operator& op_;
  const cpu::QuantizedIsa& isa_;
  int threads_;
  std::shared_ptr<cpu::WorkspacePool> workspaces_;
  cpu::ImageLayer layer_;  // as far as attributes tell it
  std::unique_ptr<cpu::PackedImageConvolution>
      packed_;  // nullptr while weights are not constants of the graph
};

}  // namespace dyndeploy::ort
