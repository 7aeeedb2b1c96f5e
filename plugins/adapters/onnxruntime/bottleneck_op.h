// What the eight bottleneck operators have in common.
#pragma once

#include <memory>

#include "bottleneck.h"
#include "custom_op.h"

namespace dyndeploy::ort {

enum class Skipping { kSpatial, kLayer, kChannel, kSpatialChannel };

struct BottleneckOpInfo {
  OpNames names;
  Skipping skipping;
  bool projection;

  bool has_spatial_mask() const { return skipping != Skipping::kChannel; }
  bool has_channel_mask() const {
    return skipping == Skipping::kChannel || skipping == Skipping::kSpatialChannel;
  }
  int masks() const { return skipping == Skipping::kSpatialChannel ? 2 : 1; }
  int first_weight() const { return 1 + masks(); }
  int weights() const { return projection ? 8 : 6; }
};

class BottleneckKernel {
 public:
  BottleneckKernel(const BottleneckOpInfo& op, const KernelInfo& info, const Registration& registration);
  void compute(KernelContext& context);
  static void infer(const BottleneckOpInfo& op, const ShapeInference& inference);

 private:
  std::unique_ptr<cpu::PackedBottleneck> pack(const std::vector<Tensor>& weights, cpu::Arena& arena) const;

  BottleneckOpInfo op_;
  const cpu::Isa& isa_;
  int threads_;
  std::shared_ptr<cpu::WorkspacePool> workspaces_;
  int stride_;
  int dilation_;
  int groups_;
  std::unique_ptr<cpu::PackedBottleneck> packed_;  // nullptr while weights are not constants of the graph
};

}  // namespace dyndeploy::ort
