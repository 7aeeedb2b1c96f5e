#include "token_masker_op.h"

#include <cstring>
#include <string>

namespace dyndeploy::ort {
namespace {

[[noreturn]] void refuse(const tables::Operator& op, const std::string& what) {
  throw InvalidArgument(std::string("dyndeploy.") + op.name + ": " + what);
}

bool decides_once(const tables::Operator& op) { return std::strcmp(op.output.axes, "N111") == 0; }

}  // namespace

TokenNormalisation::TokenNormalisation(const tables::Operator& op, const KernelInfo& info) {
  const std::int64_t normalise = info.integer("normalise", -1);
  if (normalise != 0 && normalise != 1)
    refuse(op, "attribute normalise is " + std::to_string(normalise) + ", expected 0 or 1");
  normalise_ = normalise == 1;
  epsilon_ = info.real("epsilon", 0.0f);
  if (!(epsilon_ > 0.0f))
    refuse(op, "attribute epsilon is " + std::to_string(epsilon_) + ", expected a positive number");
}

cpu::TokenInput TokenNormalisation::input(const Tensor& x) const {
  return {x.floats(),
          static_cast<int>(x.shape[0]),
          static_cast<int>(x.shape[1]),
          static_cast<int>(x.shape[2]),
          normalise_,
          epsilon_};
}

TokenMaskerKernel::TokenMaskerKernel(const tables::Operator& op, const KernelInfo& info,
                                     const Registration& registration)
    : op_(op),
      isa_(registration.isa()),
      threads_(registration.threads()),
      normalisation_(op, info),
      kept_(info.integer("kept", -1)) {
  if (kept_ < 0) refuse(op, "attribute kept is " + std::to_string(kept_) + ", expected 0 or more");
}

void TokenMaskerKernel::compute(KernelContext& context) {
  const Tensor x = context.tensor(op_, 0), weight = context.tensor(op_, 1), bias = context.tensor(op_, 2);
  expect_shape(weight, op_, 1, {x.shape[2]});
  expect_shape(bias, op_, 2, {1});
  if (kept_ > x.shape[1]) {
    refuse(op_, std::to_string(kept_) + " leading tokens cannot be kept of " + std::to_string(x.shape[1]));
  }
  float* mask = context.output(0, {x.shape[0], x.shape[1]});
  cpu::run_token_masker(isa_, normalisation_.input(x), weight.floats(), bias.floats(),
                        static_cast<int>(kept_), mask, context.pool(threads_));
}

void TokenMaskerKernel::infer(const tables::Operator&, const ShapeInference& inference) {
  const ShapeInference::Shape x = inference.input(0);
  if (x.size() == 3) inference.set_output({x[0], x[1]});
}

void ClassTokenMaskerKernel::compute(KernelContext& context) {
  const Tensor x = context.tensor(op_, 0), weight = context.tensor(op_, 1), bias = context.tensor(op_, 2);
  const bool once = decides_once(op_);
  expect_shape(weight, op_, 1, {once ? 1 : -1, x.shape[2]});
  const std::int64_t count = weight.shape[0];
  expect_shape(bias, op_, 2, {count});
  if (x.shape[0] > INT32_MAX / count) refuse(op_, "the mask is too large");
  float* mask = once ? context.output(0, {x.shape[0], 1, 1, 1}) : context.output(0, {x.shape[0], count});
  cpu::run_class_token_masker(isa_, normalisation_.input(x), weight.floats(), bias.floats(),
                              static_cast<int>(count), mask);
}

void ClassTokenMaskerKernel::infer(const tables::Operator& op, const ShapeInference& inference) {
  const ShapeInference::Shape x = inference.input(0), bias = inference.input(2);
  if (x.size() != 3 || bias.size() != 1) return;
  ShapeInference::Dim one;
  one.size = 1;
  inference.set_output(decides_once(op) ? ShapeInference::Shape{x[0], one, one, one}
                                        : ShapeInference::Shape{x[0], bias[0]});
}

}  // namespace dyndeploy::ort
