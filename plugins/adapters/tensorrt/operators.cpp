#include "operators.h"

#include <cstring>

#include "rules.h"

namespace dyndeploy {
namespace tensorrt {
namespace {

// The rules of every kind in the operators' table.
constexpr const Rules& kSpatialBottleneckRules = kBottleneckRules;
constexpr const Rules& kLayerBottleneckRules = kBottleneckRules;
constexpr const Rules& kChannelBottleneckRules = kBottleneckRules;
constexpr const Rules& kSpatialChannelBottleneckRules = kBottleneckRules;
constexpr const Rules& kSpatialSeBottleneckRules = kBottleneckRules;
constexpr const Rules& kLayerSeBottleneckRules = kBottleneckRules;
constexpr const Rules& kChannelSeBottleneckRules = kBottleneckRules;
constexpr const Rules& kSpatialChannelSeBottleneckRules = kBottleneckRules;
constexpr const Rules& kTransformerBlockRules = kTransformerRules;
constexpr const Rules& kQuantizedSpatialBottleneckRules = kQuantizedBottleneckRules;
constexpr const Rules& kQuantizedLayerBottleneckRules = kQuantizedBottleneckRules;
constexpr const Rules& kQuantizedChannelBottleneckRules = kQuantizedBottleneckRules;
constexpr const Rules& kQuantizedSpatialChannelBottleneckRules = kQuantizedBottleneckRules;
constexpr const Rules& kQuantizedSpatialMaskerRules = kSpatialMaskerRules;
constexpr const Rules& kQuantizedChannelMaskerRules = kChannelMaskerRules;

constexpr Operator with_rules(const tables::Operator& table, const Rules& rules) {
  return {table.name,          table.plugin_version,     &rules,
          table.plugin_inputs, table.plugin_input_count, table.output,
          table.attributes,    table.attribute_count};
}

}  // namespace

#define DYNDEPLOY_DEFINE_OPERATOR(NAME, KIND) \
  constexpr Operator k##NAME = with_rules(tables::k##NAME, k##KIND##Rules);
DYNDEPLOY_TENSORRT_OPERATORS(DYNDEPLOY_DEFINE_OPERATOR)
#undef DYNDEPLOY_DEFINE_OPERATOR

bool tiles_of(std::int32_t tactic, cuda::Tiles* tiles) {
  *tiles = cuda::Tiles();
  if (tactic < 0) return false;
  std::int32_t rest = tactic == 0 ? 0 : tactic - 1;
  for (cuda::Size& size : tiles->sizes) {
    size = static_cast<cuda::Size>(rest % cuda::kSizes);
    rest /= cuda::kSizes;
  }
  return rest == 0;
}

std::int32_t tactic_of(const cuda::Tiles& tiles) {
  std::int32_t tactic = 0;
  for (int i = cuda::kMostProducts; i-- > 0;) {
    tactic = tactic * cuda::kSizes + static_cast<std::int32_t>(tiles.sizes[i]);
  }
  return tactic + 1;
}

float real_value(std::int32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
std::int32_t real_bits(float value) {
  std::int32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

int Operator::value_count() const {
  int count = 0;
  for (int i = 0; i < attribute_count; ++i) count += attributes[i].length;
  return count;
}

int Operator::find_input(const char* port) const { return tables::find_port(inputs, input_count, port); }

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
      if (shape.sizes[axis] < 0) continue;
      const bool words = in_words(port) && axis == rank - 1;
      const std::int64_t size = shape.sizes[axis] * (words ? kWordBytes : 1);
      const char letter = port.axes[axis];
      const char*& first = owner[static_cast<unsigned char>(letter) & 127];
      std::int64_t expected = fixed_size(letter) >= 0 ? fixed_size(letter) : (*sizes)[letter];
      if (expected < 0) {
        if (size > INT32_MAX) return std::string(port.name) + " is too large: " + to_text(shape);
        (*sizes)[letter] = expected = size;
        first = port.name;
      }
      if (size != expected) {
        return std::string(port.name) + " is " + to_text(shape) + ": dimension " + std::to_string(axis) +
               (words ? ", words of 4 bytes, must hold " : " must be ") + std::to_string(expected) +
               (first ? std::string(", as in ") + first : "");
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
    const std::int64_t fixed = fixed_size(derived.letter);
    const std::int64_t base = !derived.letter ? 0 : fixed >= 0 ? fixed : sizes[derived.letter];
    shape.sizes[axis] = !derived.letter ? derived.value
                        : base < 0      ? -1
                                        : (base + derived.value - 1) / derived.value;
    if (in_words(op.output) && axis == shape.rank - 1 && shape.sizes[axis] > 0) {
      shape.sizes[axis] = (shape.sizes[axis] + kWordBytes - 1) / kWordBytes;
    }
  }
  return shape;
}

int list_tactics(const Operator& op, const Attributes& attributes, const Sizes& sizes, cuda::Type type,
                 std::int32_t* tactics) {
  if (!op.rules->candidates || !attributes.tuning || !all_known(op, sizes) || sizes['N'] < 1) return 0;
  // A mask that is read holds nothing while a builder times: whatever it would skip says nothing of the
  // tiles.
  for (int i = 0; i < op.input_count; ++i) {
    if (op.inputs[i].role == tables::Role::kMask && timing_rate(attributes, i) == 0) return 0;
  }
  cuda::Tiles candidates[cuda::kMostCandidates];
  const int count = op.rules->candidates(op, attributes, sizes, type, candidates);
  if (count < 2) return 0;
  for (int i = 0; i < count; ++i) tactics[i] = tactic_of(candidates[i]);
  return count;
}

std::string describe_choice(const Operator& op, const Attributes& attributes, const Sizes& sizes,
                            cuda::Type type, int capability, int processors) {
  const std::string text = op.rules->describe(op, attributes, sizes, type, capability, processors);
  if (text.empty() || !op.rules->candidates) return text;
  return text + (attributes.tactic > 0 ? ", tuned" : ", by formula");
}

std::string check_shapes(const Operator& op, const Attributes& attributes, const Shape* inputs,
                         const Shape& output, cuda::Type type, Sizes* sizes) {
  std::string problem = bind_sizes(op, inputs, sizes);
  if (problem.empty()) problem = op.rules->check_sizes(op, attributes, *sizes, type);
  if (!problem.empty()) return problem;
  if (in_words(op.output)) {
    const char last = op.output.axes[std::strlen(op.output.axes) - 1];
    const std::int64_t channels = (*sizes)[op.rules->derive(op, attributes, last).letter];
    if (channels > 0 && channels % kWordBytes != 0) {
      return std::string(op.output.name) + " has " + std::to_string(channels) +
             " channels, and bytes travel by words of 4";
    }
  }
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
