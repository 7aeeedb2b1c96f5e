// The bottlenecks: what is skipped follows from the masks that an operator has.
#pragma once

#include <memory>

#include "bottleneck.h"
#include "custom_op.h"
#include "quantized_bottleneck.h"

namespace dyndeploy::ort {

// What a node says of the layer, and the checks of what it is given: the same in floats and in integers.
class BottleneckNode {
 public:
  BottleneckNode(const tables::Operator& op, const KernelInfo& info);
  const tables::Skipping& skipping() const { return skipping_; }
  int find(const char* input) const;

  // Inputs at their places, but only the weights; empty where some are not constants of the graph.
  std::vector<Tensor> constant_weights(const KernelInfo& info) const;
  std::vector<Tensor> weights(const KernelContext& context) const;
  // Fails unless the shapes of the weights fit each other.
  cpu::BottleneckLayer layer(const std::vector<Tensor>& weights) const;

  // x and the masks of a call whose weights it has, the shapes checked; returns the shape of the output.
  template <class T, class Call>
  std::vector<std::int64_t> read(const KernelContext& context, Call& call) const;

 private:
  [[noreturn]] void refuse(const std::string& what) const;
  int uniform(const KernelInfo& info, const char* name, int fallback) const;
  void require_fit(std::int64_t pixels, std::int64_t channels, const char* what) const;

  const tables::Operator& op_;
  tables::Skipping skipping_;
  int stride_;
  int dilation_;
  int groups_;
  bool dense_mean_ = false;  // as in cpu::BottleneckLayer
};

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

  BottleneckNode node_;
  const cpu::Isa& isa_;
  int threads_;
  std::shared_ptr<cpu::WorkspacePool> workspaces_;
  std::unique_ptr<cpu::PackedBottleneck> packed_;  // nullptr while weights are not constants of the graph
};

// The same in integers: bytes in, bytes out.
class QuantizedBottleneckKernel {
 public:
  QuantizedBottleneckKernel(const tables::Operator& op, const KernelInfo& info,
                            const Registration& registration);
  void compute(KernelContext& context);
  static void infer(const tables::Operator& op, const ShapeInference& inference) {
    BottleneckKernel::infer(op, inference);
  }
  static bool in_place(const tables::Operator& op) { return BottleneckKernel::in_place(op); }

 private:
  std::unique_ptr<cpu::PackedQuantizedBottleneck> pack(const std::vector<Tensor>& inputs,
                                                       cpu::Arena& arena) const;

  BottleneckNode node_;
  const cpu::QuantizedIsa& isa_;
  int threads_;
  std::shared_ptr<cpu::WorkspacePool> workspaces_;
  std::unique_ptr<cpu::PackedQuantizedBottleneck> packed_;
};

}  // namespace dyndeploy::ort
