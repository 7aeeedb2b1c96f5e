// Reading boxes from the levels of a feature pyramid.

#include <string>

#include "rules.h"

namespace dyndeploy {
namespace tensorrt {
namespace {

constexpr int kStrides = tables::value_offset(tables::kPyramidRoiAlign, "strides");
constexpr int kSize = tables::value_offset(tables::kPyramidRoiAlign, "size");
constexpr int kLevels = cuda::kPyramidLevels;
constexpr char kHeights[] = "HIJK", kWidths[] = "WXYZ";  // of the maps, as the operator's axes have them

std::string check_attributes(const Operator&, const Attributes& attributes) {
  const std::int32_t* strides = attributes.values + kStrides;
  for (int i = 0; i < kLevels; ++i) {
    if (strides[i] < (i ? strides[i - 1] : 1)) {
      return "strides has " + std::to_string(strides[i]) + " at " + std::to_string(i) +
             ", expected positive integers that rise";
    }
  }
  if (attributes.values[kSize] >= 1) return std::string();
  return "size is " + std::to_string(attributes.values[kSize]) + ", expected a positive integer";
}

DerivedSize derive(const Operator&, const Attributes& attributes, char letter) {
  return letter == 'S' ? DerivedSize{'\0', attributes.values[kSize]} : same(letter);
}

cuda::RegionsShape shape_of(const Attributes& attributes, const Sizes& sizes) {
  cuda::RegionsShape shape = {
      static_cast<int>(sizes['C']), static_cast<int>(sizes['N']), attributes.values[kSize], {}, {}, {}};
  for (int i = 0; i < kLevels; ++i) {
    shape.heights[i] = static_cast<int>(sizes[kHeights[i]]);
    shape.widths[i] = static_cast<int>(sizes[kWidths[i]]);
    shape.strides[i] = attributes.values[kStrides + i];
  }
  return shape;
}

// Each map covers what the one before covers: nobody mixes up the levels.
std::string check_cover(const Operator& op, const Attributes& attributes, const Sizes& sizes,
                        const char* letters) {
  for (int i = 1; i < kLevels; ++i) {
    const std::int64_t before = sizes[letters[i - 1]], here = sizes[letters[i]];
    const std::int64_t stride = attributes.values[kStrides + i],
                       earlier = attributes.values[kStrides + i - 1];
    const std::int64_t expected = (before * earlier + stride - 1) / stride;
    if (before >= 0 && here >= 0 && here != expected) {
      return std::string(op.inputs[i].name) + " has " + std::to_string(here) +
             " cells along an axis, where " + op.inputs[i - 1].name + " and the strides make it " +
             std::to_string(expected);
    }
  }
  return std::string();
}

std::string check_sizes(const Operator& op, const Attributes& attributes, const Sizes& sizes, cuda::Type) {
  std::string problem = check_positive(op, sizes);
  if (problem.empty()) problem = check_cover(op, attributes, sizes, kHeights);
  if (problem.empty()) problem = check_cover(op, attributes, sizes, kWidths);
  if (!problem.empty() || !all_known(op, sizes) || sizes['N'] == 0) return problem;
  const char* refusal = cuda::check_regions(shape_of(attributes, sizes));
  return refusal ? refusal : std::string();
}

std::size_t no_workspace(const Operator&, const Attributes&, const Sizes&, cuda::Type) { return 0; }

int run(const Operator&, const Attributes& attributes, const Sizes& sizes, cuda::Type type,
        const Buffers& buffers, const char**) {
  return cuda::run_regions(
      shape_of(attributes, sizes), type, buffers.inputs, static_cast<const float*>(buffers.inputs[kLevels]),
      static_cast<const std::int32_t*>(buffers.inputs[kLevels + 1]), buffers.output, buffers.stream);
}

std::string describe(const Operator&, const Attributes&, const Sizes&, cuda::Type, int, int) {
  return "1 element an access";
}

}  // namespace

const Rules kPyramidRegionsRules = {check_attributes, derive, check_sizes, no_workspace, describe, run};

}  // namespace tensorrt
}  // namespace dyndeploy
