// The transformer blocks: what is skipped follows from the masks that an operator has.
#pragma once

#include <memory>

#include "custom_op.h"
#include "transformer.h"

namespace dyndeploy::ort {

class TransformerBlockKernel {
 public:
  TransformerBlockKernel(const tables::Operator& op, const KernelInfo& info,
                         const Registration& registration);
  void compute(KernelContext& context);
  static void infer(const tables::Operator&, const ShapeInference& inference) {
    const ShapeInference::Shape x = inference.input(0);
    if (x.size() == 3) inference.set_output(x);
  }
  // Tokens that are skipped need not even be copied.
  static bool in_place(const tables::Operator&) { return true; }

 private:
  // `inputs` holds the weights at their places.
  std::unique_ptr<cpu::PackedTransformer> pack(const std::vector<Tensor>& inputs, cpu::Arena& arena) const;

  const tables::Operator& op_;
  const cpu::Isa& isa_;
  int threads_;
  std::shared_ptr<cpu::WorkspacePool> workspaces_;
  cpu::TransformerLayer layer_;                     // without sizes
  std::unique_ptr<cpu::PackedTransformer> packed_;  // nullptr while weights are not constants of the graph
};

}  // namespace dyndeploy::ort
