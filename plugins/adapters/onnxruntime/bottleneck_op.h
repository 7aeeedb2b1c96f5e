// The bottlenecks: what is skipped follows from the masks that an operator has.
#pragma once

#include <memory>

#include "bottleneck.h"
#include "custom_op.h"

namespace dyndeploy::ort {

class BottleneckKernel {
 public:
  BottleneckKernel(const tables::Operator& op, const KernelInfo& info, const Registration& registration);
  void compute(KernelContext& context);
  static void infer(const tables::Operator& op, const ShapeInference& inference);
  // Without a projection, pixels that are skipped need not even be copied.
  static bool in_place(const tables::Operator& op);

 private:
  // `inputs` holds the weights at their places.
  std::unique_ptr<cpu::PackedBottleneck> pack(const std::vector<Tensor>& inputs,
                                              const cpu::BottleneckShape& expected, cpu::Arena& arena) const;

  const tables::Operator& op_;
  tables::Skipping skipping_;
  const cpu::Isa& isa_;
  int threads_;
  std::shared_ptr<cpu::WorkspacePool> workspaces_;
  int stride_;
  int dilation_;
  int groups_;
  bool dense_mean_ = false;                        // as in cpu::BottleneckLayer
  std::unique_ptr<cpu::PackedBottleneck> packed_;  // nullptr while weights are not constants of the graph
};

}  // namespace dyndeploy::ort
