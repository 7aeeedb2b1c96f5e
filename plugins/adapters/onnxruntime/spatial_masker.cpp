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

SpatialMasker::SpatialMasker(const KernelInfo& info, const Registration& registration)
    : isa_(registration.isa()),
      threads_(registration.threads()),
      mask_height_(mask_size(info, "mask_height")),
      mask_width_(mask_size(info, "mask_width")) {}

void SpatialMasker::compute(KernelContext& context) {
  const OrtApi& api = context.api();
  const Tensor x = read_tensor(api, context.input(0), kNames, 0, 4);
  const Tensor weight = read_tensor(api, context.input(1), kNames, 1, 2);
  const Tensor bias = read_tensor(api, context.input(2), kNames, 2, 1);
  const std::int64_t groups = weight.shape[0];
  expect_shape(weight, kNames, 1, {-1, x.shape[3]});
  expect_shape(bias, kNames, 2, {groups});
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

void SpatialMasker::infer(const ShapeInference& inference) {
  const ShapeInference::Shape x = inference.input(0), bias = inference.input(2);
  if (x.size() != 4 || bias.size() != 1) return;
  ShapeInference::Dim height, width;
  height.size = inference.integer("mask_height", -1);
  width.size = inference.integer("mask_width", -1);
  inference.set_output({x[0], bias[0], height, width});
}

}  // namespace dyndeploy::ort
