// Where bytes begin and end.

#include <cmath>
#include <limits>
#include <string>

#include "rules.h"

namespace dyndeploy {
namespace tensorrt {
namespace {

constexpr int kScale = tables::value_offset(tables::kQuantizeBytes, "scale");
static_assert(kScale == tables::value_offset(tables::kDequantizeBytes, "scale"), "the same place");

std::string check_attributes(const Operator&, const Attributes& attributes) {
  const float scale = real_value(attributes.values[kScale]);
  if (std::isfinite(scale) && scale >= std::numeric_limits<float>::min()) return std::string();
  return "scale is " + std::to_string(scale) + ", expected a finite positive number";
}

DerivedSize derive(const Operator&, const Attributes&, char letter) { return same(letter); }

std::size_t count_of(const Sizes& sizes) {
  std::size_t count = 1;
  for (const char* letter = "NHWC"; *letter; ++letter) count *= static_cast<std::size_t>(sizes[*letter]);
  return count;
}

std::string check_sizes(const Operator& op, const Attributes&, const Sizes& sizes, cuda::Type) {
  std::string problem = check_positive(op, sizes);
  if (!problem.empty()) return problem;
  if (sizes['C'] > 0 && sizes['C'] % kWordBytes != 0) {
    return "x has " + std::to_string(sizes['C']) + " channels, and bytes travel by words of 4";
  }
  if (!all_known(op, sizes)) return problem;
  if (count_of(sizes) / 128 > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max())) {
    return "x is too large";
  }
  return std::string();
}

std::size_t no_workspace(const Operator&, const Attributes&, const Sizes&, cuda::Type) { return 0; }

// What 4 elements at a time begin at.
const char* misaligned_data(const void* data, cuda::Type type, const char* name) {
  const std::uintptr_t bytes = type == cuda::Type::kHalf ? 8 : 16;
  return reinterpret_cast<std::uintptr_t>(data) % bytes != 0 ? name : nullptr;
}

int quantize(const Operator&, const Attributes& attributes, const Sizes& sizes, cuda::Type type,
             const Buffers& buffers, const char** misaligned) {
  *misaligned = misaligned_data(buffers.inputs[0], type, "x");
  return cuda::run_quantize(count_of(sizes), type, buffers.inputs[0], real_value(attributes.values[kScale]),
                            static_cast<std::uint8_t*>(buffers.output), buffers.stream);
}

int dequantize(const Operator&, const Attributes& attributes, const Sizes& sizes, cuda::Type type,
               const Buffers& buffers, const char** misaligned) {
  *misaligned = misaligned_data(buffers.output, type, "y");
  return cuda::run_dequantize(count_of(sizes), type, static_cast<const std::uint8_t*>(buffers.inputs[0]),
                              real_value(attributes.values[kScale]), buffers.output, buffers.stream);
}

std::string describe(const Operator&, const Attributes&, const Sizes&, cuda::Type, int, int) {
  return "4 elements an access";
}

}  // namespace

const Rules kQuantizeBytesRules = {check_attributes, derive, check_sizes, no_workspace, describe, quantize};
const Rules kDequantizeBytesRules = {check_attributes, derive,   check_sizes,
                                     no_workspace,     describe, dequantize};

}  // namespace tensorrt
}  // namespace dyndeploy
