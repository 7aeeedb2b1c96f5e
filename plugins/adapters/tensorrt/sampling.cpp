// Deformable attention: sums of bilinear samples of maps at points that queries choose.

#include <string>

#include "rules.h"

namespace dyndeploy {
namespace tensorrt {
namespace {

// All of them have one attribute; operators differ in its length.
int levels_of(const Operator& op) { return op.attributes[0].length / 2; }

std::string check_attributes(const Operator& op, const Attributes& attributes) {
  for (int i = 0; i < 2 * levels_of(op); ++i) {
    if (attributes.values[i] < 1) {
      return "sizes has " + std::to_string(attributes.values[i]) + ", expected positive integers";
    }
  }
  return std::string();
}

DerivedSize derive(const Operator&, const Attributes&, char letter) { return same(letter); }

cuda::DeformableAttentionShape shape_of(const Operator& op, const Attributes& attributes,
                                        const Sizes& sizes) {
  const auto size = [&](char letter) { return static_cast<int>(sizes[letter]); };
  cuda::DeformableAttentionShape shape = {size('N'), size('S'),     size('A'), size('d'),
                                          size('Q'), levels_of(op), size('P'), {}};
  for (int i = 0; i < 2 * shape.levels; ++i) shape.sizes[i] = attributes.values[i];
  return shape;
}

std::string check_sizes(const Operator& op, const Attributes& attributes, const Sizes& sizes, cuda::Type) {
  std::int64_t cells = 0;
  for (int i = 0; i < levels_of(op); ++i) {
    cells += static_cast<std::int64_t>(attributes.values[2 * i]) * attributes.values[2 * i + 1];
  }
  if (sizes['S'] >= 0 && sizes['S'] != cells) {
    return "value has " + std::to_string(sizes['S']) + " cells, and maps of these sizes have " +
           std::to_string(cells);
  }
  const std::string problem = check_positive(op, sizes);
  if (!problem.empty() || !all_known(op, sizes) || sizes['N'] == 0) return problem;
  const char* refusal = cuda::check_deformable_attention(shape_of(op, attributes, sizes));
  return refusal ? refusal : std::string();
}

std::size_t no_workspace(const Operator&, const Attributes&, const Sizes&, cuda::Type) { return 0; }

int run(const Operator& op, const Attributes& attributes, const Sizes& sizes, cuda::Type type,
        const Buffers& buffers, const char** misaligned) {
  const cuda::DeformableAttentionShape shape = shape_of(op, attributes, sizes);
  if (cuda::deformable_attention_vector(shape, type) > 1 &&
      reinterpret_cast<std::uintptr_t>(buffers.inputs[0]) % 16 != 0) {
    *misaligned = "value";
  }
  return cuda::run_deformable_attention(
      shape, type, buffers.inputs[0], static_cast<const float*>(buffers.inputs[1]),
      static_cast<const float*>(buffers.inputs[2]), buffers.output, buffers.stream);
}

std::string describe(const Operator& op, const Attributes& attributes, const Sizes& sizes, cuda::Type type,
                     int, int) {
  const int vector = cuda::deformable_attention_vector(shape_of(op, attributes, sizes), type);
  return std::to_string(vector) + (vector == 1 ? " element an access" : " elements an access");
}

}  // namespace

const Rules kDeformableAttentionRules = {check_attributes, derive, check_sizes, no_workspace, describe, run};

}  // namespace tensorrt
}  // namespace dyndeploy
