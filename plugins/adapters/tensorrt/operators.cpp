#include "operators.h"

#include <cstring>

#include "rules.h"

namespace dyndeploy {
namespace tensorrt {
namespace {

constexpr AttributeInfo kConvolution[] = {{"strides", 2}, {"dilations", 2}, {"pads", 4}, {"group", 1}};
constexpr AttributeInfo kMaskSize[] = {{"mask_height", 1}, {"mask_width", 1}};

constexpr Element kData = Element::kData;
constexpr Element kFloat = Element::kFloat;

// Axes: N batch, H and W of x, C its channels, M of the 3x3, O of the output, P and Q its height and width, h
// and w of a spatial mask, G groups of a channel mask; w2 is g groups of k = 9 m rows and m columns.
#define DYNDEPLOY_WEIGHTS(OUTPUTS)                                                     \
  {"w1", kData, "CM"}, {"b1", kFloat, "M"}, {"w2", kData, "gkm"}, {"b2", kFloat, "M"}, \
      {"w3", kData, "M" OUTPUTS}, {                                                    \
    "b3", kFloat, OUTPUTS                                                              \
  }
#define DYNDEPLOY_PROJECTION {"wd", kData, "CO"}, {"bd", kFloat, "O"}
#define DYNDEPLOY_CONSTANTS(OUTPUTS) \
  {"border_bias", kFloat, "#M"}, { "skipped_output", kFloat, OUTPUTS }

constexpr Port kX = {"x", kData, "NHWC"};
constexpr Port kPatchMask = {"mask", kFloat, "N1hw"};
constexpr Port kLayerMask = {"mask", kFloat, "N111"};
constexpr Port kGroupMask = {"mask", kFloat, "NG"};

constexpr Port kSpatialMaskerInputs[] = {kX, {"weight", kFloat, "gC"}, {"bias", kFloat, "g"}};
constexpr Port kChannelMaskerInputs[] = {kX, {"weight", kFloat, "GC"}, {"bias", kFloat, "G"}};
constexpr Port kChannelMaskerHiddenInputs[] = {kX,
                                               {"hidden_weight", kFloat, "hC"},
                                               {"hidden_bias", kFloat, "h"},
                                               {"weight", kFloat, "Gh"},
                                               {"bias", kFloat, "G"}};
constexpr Port kSpatialBottleneckInputs[] = {kX, kPatchMask, DYNDEPLOY_WEIGHTS("C")};
constexpr Port kSpatialBottleneckProjectionInputs[] = {kX, kPatchMask, DYNDEPLOY_WEIGHTS("O"),
                                                       DYNDEPLOY_PROJECTION};
constexpr Port kLayerBottleneckInputs[] = {kX, kLayerMask, DYNDEPLOY_WEIGHTS("C")};
constexpr Port kLayerBottleneckProjectionInputs[] = {kX, kLayerMask, DYNDEPLOY_WEIGHTS("O"),
                                                     DYNDEPLOY_PROJECTION};
constexpr Port kChannelBottleneckInputs[] = {kX, kGroupMask, DYNDEPLOY_WEIGHTS("C"),
                                             DYNDEPLOY_CONSTANTS("C")};
constexpr Port kChannelBottleneckProjectionInputs[] = {kX, kGroupMask, DYNDEPLOY_WEIGHTS("O"),
                                                       DYNDEPLOY_PROJECTION, DYNDEPLOY_CONSTANTS("O")};
constexpr Port kSpatialChannelBottleneckInputs[] = {kX,
                                                    {"spatial_mask", kFloat, "N1hw"},
                                                    {"channel_mask", kFloat, "NG"},
                                                    DYNDEPLOY_WEIGHTS("C"),
                                                    DYNDEPLOY_CONSTANTS("C")};
constexpr Port kSpatialChannelBottleneckProjectionInputs[] = {kX,
                                                              {"spatial_mask", kFloat, "N1hw"},
                                                              {"channel_mask", kFloat, "NG"},
                                                              DYNDEPLOY_WEIGHTS("O"),
                                                              DYNDEPLOY_PROJECTION,
                                                              DYNDEPLOY_CONSTANTS("O")};

template <class Entry, std::size_t count>
constexpr int length(const Entry (&)[count]) {
  return static_cast<int>(count);
}

}  // namespace

#define DYNDEPLOY_OPERATOR(NAME, RULES, OUTPUT, ELEMENT, AXES, ATTRIBUTES, COUNT) \
  constexpr Operator k##NAME = {                                                  \
      #NAME, &RULES, k##NAME##Inputs, length(k##NAME##Inputs), {OUTPUT, ELEMENT, AXES}, ATTRIBUTES, COUNT};
#define DYNDEPLOY_BOTTLENECK(NAME)                                                                   \
  DYNDEPLOY_OPERATOR(NAME, kBottleneckRules, "y", kData, "NHWC", kConvolution, length(kConvolution)) \
  DYNDEPLOY_OPERATOR(NAME##Projection, kBottleneckRules, "y", kData, "NPQO", kConvolution,           \
                     length(kConvolution))

DYNDEPLOY_OPERATOR(SpatialMasker, kSpatialMaskerRules, "mask", kFloat, "Nghw", kMaskSize, length(kMaskSize))
DYNDEPLOY_OPERATOR(ChannelMasker, kChannelMaskerRules, "mask", kFloat, "NG", nullptr, 0)
DYNDEPLOY_OPERATOR(ChannelMaskerHidden, kChannelMaskerRules, "mask", kFloat, "NG", nullptr, 0)
DYNDEPLOY_BOTTLENECK(SpatialBottleneck)
DYNDEPLOY_BOTTLENECK(LayerBottleneck)
DYNDEPLOY_BOTTLENECK(ChannelBottleneck)
DYNDEPLOY_BOTTLENECK(SpatialChannelBottleneck)

int Operator::value_count() const {
  int count = 0;
  for (int i = 0; i < attribute_count; ++i) count += attributes[i].length;
  return count;
}

int Operator::find_input(const char* port) const {
  for (int i = 0; i < input_count; ++i) {
    if (std::strcmp(inputs[i].name, port) == 0) return i;
  }
  return -1;
}

std::string to_text(const Shape& shape) {
  std::string text = "(";
  for (int i = 0; i < shape.rank && i < kMaxRank; ++i) {
    if (i) text += ", ";
    text += shape.sizes[i] < 0 ? "?" : std::to_string(shape.sizes[i]);
  }
  if (shape.rank > kMaxRank) text += ", ...";
  return text + ")";
}

std::string bind_sizes(const Operator& op, const Shape* inputs, Sizes* sizes) {
  const char* owner[128] = {};
  for (int i = 0; i < op.input_count; ++i) {
    const Port& port = op.inputs[i];
    const Shape& shape = inputs[i];
    const int rank = static_cast<int>(std::strlen(port.axes));
    if (shape.rank != rank) {
      return std::string(port.name) + " has " + std::to_string(shape.rank) + " dimensions, expected " +
             std::to_string(rank);
    }
    for (int axis = 0; axis < rank; ++axis) {
      const std::int64_t size = shape.sizes[axis];
      if (size < 0) continue;
      const char letter = port.axes[axis];
      const char*& first = owner[static_cast<unsigned char>(letter) & 127];
      std::int64_t expected = letter == '1' ? 1 : letter == '#' ? 16 : (*sizes)[letter];
      if (expected < 0) {
        if (size > INT32_MAX) return std::string(port.name) + " is too large: " + to_text(shape);
        (*sizes)[letter] = expected = size;
        first = port.name;
      }
      if (size != expected) {
        return std::string(port.name) + " is " + to_text(shape) + ": dimension " + std::to_string(axis) +
               " must be " + std::to_string(expected) + (first ? std::string(", as in ") + first : "");
      }
    }
  }
  return std::string();
}

Shape output_shape(const Operator& op, const Attributes& attributes, const Sizes& sizes) {
  Shape shape = {};
  shape.rank = static_cast<int>(std::strlen(op.output.axes));
  for (int axis = 0; axis < shape.rank; ++axis) {
    const char letter = op.output.axes[axis];
    const DerivedSize derived = op.rules->derive(op, attributes, letter);
    const std::int64_t base = derived.letter ? sizes[derived.letter] : 0;
    shape.sizes[axis] = !derived.letter ? derived.value
                        : base < 0      ? -1
                                        : (base + derived.value - 1) / derived.value;
  }
  return shape;
}

std::string check_shapes(const Operator& op, const Attributes& attributes, const Shape* inputs,
                         const Shape& output, cuda::Type type, Sizes* sizes) {
  std::string problem = bind_sizes(op, inputs, sizes);
  if (problem.empty()) problem = op.rules->check_sizes(op, attributes, *sizes, type);
  if (!problem.empty()) return problem;
  const Shape expected = output_shape(op, attributes, *sizes);
  bool agrees = output.rank == expected.rank;
  for (int axis = 0; agrees && axis < expected.rank; ++axis) {
    agrees = output.sizes[axis] < 0 || expected.sizes[axis] < 0 || output.sizes[axis] == expected.sizes[axis];
  }
  if (agrees) return std::string();
  return std::string(op.output.name) + " is " + to_text(output) + ", expected " + to_text(expected);
}

}  // namespace tensorrt
}  // namespace dyndeploy
