// Which tokens, heads or sublayers of a transformer block are computed, of x (N,T,D).
#pragma once

#include "custom_op.h"
#include "token_masker.h"

namespace dyndeploy::ort {

// What both kinds share: a layer normalisation, or none.
class TokenNormalisation {
 public:
  TokenNormalisation(const tables::Operator& op, const KernelInfo& info);
  cpu::TokenInput input(const Tensor& x) const;

 private:
  bool normalise_;
  float epsilon_;
};

// mask (N,T)
class TokenMaskerKernel {
 public:
  TokenMaskerKernel(const tables::Operator& op, const KernelInfo& info, const Registration& registration);
  void compute(KernelContext& context);
  static void infer(const tables::Operator& op, const ShapeInference& inference);
  static bool in_place(const tables::Operator&) { return false; }

 private:
  const tables::Operator& op_;
  const cpu::Isa& isa_;
  int threads_;
  TokenNormalisation normalisation_;
  std::int64_t kept_;
};

// mask (N,A) or (N,1,1,1) from the first token
class ClassTokenMaskerKernel {
 public:
  ClassTokenMaskerKernel(const tables::Operator& op, const KernelInfo& info, const Registration& registration)
      : op_(op), isa_(registration.isa()), normalisation_(op, info) {}
  void compute(KernelContext& context);
  static void infer(const tables::Operator& op, const ShapeInference& inference);
  static bool in_place(const tables::Operator&) { return false; }

 private:
  const tables::Operator& op_;
  const cpu::Isa& isa_;
  TokenNormalisation normalisation_;
};

}  // namespace dyndeploy::ort
