#include "spatial_masker.h"

#include "masker_input.h"

namespace dyndeploy::ort {
namespace {

std::int64_t mask_size(const tables::Operator& op, const KernelInfo& info, const char* name) {
  const std::int64_t value = info.integer(name, 0);
  if (value < 1 || value > (1 << 16)) {
    throw InvalidArgument(std::string("dyndeploy.") + op.name + ": attribute " + name + " is " +
                          std::to_string(value) + ", expected a positive integer");
  }
  return value;
}

}  // namespace

SpatialMaskerKernel::SpatialMaskerKernel(const tables::Operator& op, const KernelInfo& info,
                                         const Registration& registration)
    : op_(op),
      isa_(registration.isa()),
      threads_(registration.threads()),
      workspaces_(registration.workspaces()),
      mask_height_(mask_size(op, info, "mask_height")),
      mask_width_(mask_size(op, info, "mask_width")) {}

void SpatialMaskerKernel::compute(KernelContext& context) {
  const Tensor x = context.tensor(op_, 0);
  const Tensor weight = context.tensor(op_, 1);
  const Tensor bias = context.tensor(op_, 2);
  const std::int64_t groups = weight.shape[0];
  expect_shape(weight, op_, 1, {-1, x.shape[3]});
  expect_shape(bias, op_, 2, {groups});
  const std::int64_t cells = x.shape[0] * groups;
  if (mask_height_ * mask_width_ > INT32_MAX / cells)
    throw InvalidArgument(std::string("dyndeploy.") + op_.name + ": the mask is too large");
  float* mask = context.output(0, {x.shape[0], groups, mask_height_, mask_width_});
  const int height = static_cast<int>(mask_height_), width = static_cast<int>(mask_width_);
  if (x.type == abi::ElementType::kUint8) {
    const cpu::WorkspacePool::Lease workspace(*workspaces_);
    cpu::run_spatial_masker(isa_, byte_masker_input(x, op_), weight.floats(), bias.floats(),
                            static_cast<int>(groups), height, width, mask, *workspace,
                            context.pool(threads_));
  } else {
    cpu::run_spatial_masker(isa_, masker_input<float>(x), weight.floats(), bias.floats(),
                            static_cast<int>(groups), height, width, mask, context.pool(threads_));
  }
}

void SpatialMaskerKernel::infer(const tables::Operator&, const ShapeInference& inference) {
  const ShapeInference::Shape x = inference.input(0), bias = inference.input(2);
  if (x.size() != 4 || bias.size() != 1) return;
  ShapeInference::Dim height, width;
  height.size = inference.integer("mask_height", -1);
  width.size = inference.integer("mask_width", -1);
  inference.set_output({x[0], bias[0], height, width});
}

}  // namespace dyndeploy::ort
