// The maskers of tokens, heads and sublayers: rows of x times a few rows of weights, in float whatever the
// type of x.

#include <string>

#include "rules.h"

namespace dyndeploy {
namespace tensorrt {
namespace {

// All of them have these attributes at the same place; the token masker has `kept` behind them.
constexpr int kEpsilon = tables::value_offset(tables::kTokenMasker, "epsilon");
constexpr int kNormalise = tables::value_offset(tables::kTokenMasker, "normalise");
constexpr int kKept = tables::value_offset(tables::kTokenMasker, "kept");
static_assert(kEpsilon == tables::value_offset(tables::kClassTokenHeadMasker, "epsilon") &&
                  kNormalise == tables::value_offset(tables::kClassTokenHeadMasker, "normalise"),
              "the same place");

std::string check_attributes(const Operator& op, const Attributes& attributes) {
  const float epsilon = real_value(attributes.values[kEpsilon]);
  const std::int32_t normalise = attributes.values[kNormalise];
  if (!(epsilon > 0.0f)) return "epsilon is " + std::to_string(epsilon) + ", expected above 0";
  if (normalise != 0 && normalise != 1) {
    return "normalise is " + std::to_string(normalise) + ", expected 0 or 1";
  }
  if (tables::has_attribute(op.attributes, op.attribute_count, "kept") && attributes.values[kKept] < 0) {
    return "kept is " + std::to_string(attributes.values[kKept]) + ", expected 0 or more";
  }
  return std::string();
}

DerivedSize derive(const Operator&, const Attributes&, char letter) { return same(letter); }

std::string check_class_token(const Operator& op, const Attributes&, const Sizes& sizes, cuda::Type) {
  return check_positive(op, sizes);
}

std::string check_tokens(const Operator& op, const Attributes& attributes, const Sizes& sizes, cuda::Type) {
  if (sizes['T'] >= 0 && attributes.values[kKept] > sizes['T']) {
    return "kept is " + std::to_string(attributes.values[kKept]) + " of the " + std::to_string(sizes['T']) +
           " tokens of x";
  }
  if (sizes['N'] > 0 && sizes['T'] > INT32_MAX / sizes['N']) return "x has too many tokens";
  return check_positive(op, sizes);
}

std::size_t no_workspace(const Operator&, const Attributes&, const Sizes&, cuda::Type) { return 0; }

const char* misaligned_x(const Sizes& sizes, cuda::Type type, const Buffers& buffers) {
  const bool vectors = cuda::masker_vector(static_cast<int>(sizes['D']), type) > 1;
  return vectors && reinterpret_cast<std::uintptr_t>(buffers.inputs[0]) % 16 != 0 ? "x" : nullptr;
}

int run_tokens(const Operator& op, const Attributes& attributes, const Sizes& sizes, cuda::Type type,
               const Buffers& buffers, const char** misaligned) {
  *misaligned = misaligned_x(sizes, type, buffers);
  const auto size = [&](char letter) { return static_cast<int>(sizes[letter]); };
  const cuda::TokenMaskerShape shape = {size('N'),
                                        size('T'),
                                        size('D'),
                                        attributes.values[kKept],
                                        attributes.values[kNormalise] != 0,
                                        real_value(attributes.values[kEpsilon])};
  return cuda::run_token_masker(shape, type, buffers.inputs[0],
                                static_cast<const float*>(buffers.inputs[op.find_input("weight")]),
                                static_cast<const float*>(buffers.inputs[op.find_input("bias")]),
                                static_cast<float*>(buffers.output), buffers.stream);
}

int run_class_token(const Operator& op, const Attributes& attributes, const Sizes& sizes, cuda::Type type,
                    const Buffers& buffers, const char** misaligned) {
  *misaligned = misaligned_x(sizes, type, buffers);
  const auto size = [&](char letter) { return static_cast<int>(sizes[letter]); };
  const cuda::ClassTokenMaskerShape shape = {size('N'),
                                             size('T'),
                                             size('D'),
                                             sizes['A'] >= 0 ? size('A') : 1,  // of a sublayer: one decision
                                             attributes.values[kNormalise] != 0,
                                             real_value(attributes.values[kEpsilon])};
  return cuda::run_class_token_masker(shape, type, buffers.inputs[0],
                                      static_cast<const float*>(buffers.inputs[op.find_input("weight")]),
                                      static_cast<const float*>(buffers.inputs[op.find_input("bias")]),
                                      static_cast<float*>(buffers.output), buffers.stream);
}

std::string describe(const Operator&, const Attributes&, const Sizes& sizes, cuda::Type type, int, int) {
  const int vector = cuda::masker_vector(static_cast<int>(sizes['D']), type);
  return std::to_string(vector) + (vector == 1 ? " element an access" : " elements an access");
}

}  // namespace

const Rules kTokenMaskerRules = {check_attributes, derive, check_tokens, no_workspace, describe, run_tokens};
const Rules kClassTokenMaskerRules = {check_attributes, derive,   check_class_token,
                                      no_workspace,     describe, run_class_token};

}  // namespace tensorrt
}  // namespace dyndeploy
