#include "spatial_masker.h"

#include "masker.h"

namespace dyndeploy::ort {
namespace {

std::int64_t mask_size(const KernelInfo& info, const char* name) {
  const std::int64_t value = info.integer(name, 0);
  if (value < 1 || value > (1 << 16)) {
    throw InvalidArgument(std::string("dyndeploy.SpatialMasker: attribute ") + name + " is " +
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
      mask_height_(mask_size(info, "mask_height")),
      mask_width_(mask_size(info, "mask_width")) {}

void SpatialMaskerKernel::compute(KernelContext& context) {
  const Tensor x = context.tensor(op_, 0);
  const Tensor weight = context.tensor(op_, 1);
  const Tensor bias = context.tensor(op_, 2);
  const std::int64_t groups = weight.shape[0];
  expect_shape(weight, op_, 1, {-1, x.shape[3]});
  expect_shape(bias, op_, 2, {groups});
  const std::int64_t cells = x.shape[0] * groups;
  if (mask_height_ * mask_width_ > INT32_MAX / cells)
    throw InvalidArgument("dyndeploy.SpatialMasker: the mask is too large");
  float* mask = context.output(0, {x.shape[0], groups, mask_height_, mask_width_});
  cpu::MaskerInput input{x.data, static_cast<int>(x.shape[0]), static_cast<int>(x.shape[1]),
                         static_cast<int>(x.shape[2]), static_cast<int>(x.shape[3])};
  cpu::run_spatial_masker(isa_, input, weight.data, bias.data, static_cast<int>(groups),
                          static_cast<int>(mask_height_), static_cast<int>(mask_width_), mask,
                          context.pool(threads_));
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
