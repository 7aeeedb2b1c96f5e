// All bottlenecks: what is skipped follows from the masks that an operator has.

#include <string>

#include "rules.h"

namespace dyndeploy {
namespace tensorrt {
namespace {

// All bottlenecks have these attributes, at the same place; pool_active, which not all have, is behind them.
constexpr int kStrides = tables::value_offset(tables::kSpatialBottleneck, "strides");
constexpr int kDilations = tables::value_offset(tables::kSpatialBottleneck, "dilations");
constexpr int kPads = tables::value_offset(tables::kSpatialBottleneck, "pads");
constexpr int kGroup = tables::value_offset(tables::kSpatialBottleneck, "group");
constexpr int kPoolActive = tables::value_offset(tables::kSpatialSEBottleneck, "pool_active");
static_assert(kGroup == tables::value_offset(tables::kSpatialSEBottleneck, "group"), "the same place");

bool has_pool_active(const Operator& op) {
  return tables::has_attribute(op.attributes, op.attribute_count, "pool_active");
}

tables::Skipping skipping(const Operator& op) {
  return tables::bottleneck_skipping(op.inputs, op.input_count);
}

std::string check_attributes(const Operator& op, const Attributes& attributes) {
  const std::int32_t* values = attributes.values;
  const std::int32_t stride = values[kStrides], dilation = values[kDilations];
  if (values[kStrides + 1] != stride || (stride != 1 && stride != 2)) {
    return "strides are " + std::to_string(stride) + ", " + std::to_string(values[kStrides + 1]) +
           ", expected 1, 1 or 2, 2";
  }
  if (values[kDilations + 1] != dilation || dilation < 1) {
    return "dilations are " + std::to_string(dilation) + ", " + std::to_string(values[kDilations + 1]) +
           ", expected two equal positive integers";
  }
  for (int i = 0; i < 4; ++i) {
    if (values[kPads + i] != dilation) {
      return "pads hold " + std::to_string(values[kPads + i]) + ", expected the dilation, " +
             std::to_string(dilation);
    }
  }
  if (values[kGroup] < 1)
    return "group is " + std::to_string(values[kGroup]) + ", expected a positive integer";
  if (stride != 1 && !skipping(op).projection) {
    return "stride " + std::to_string(stride) + " needs a projection shortcut";
  }
  if (has_pool_active(op) && values[kPoolActive] != 0 && values[kPoolActive] != 1) {
    return "pool_active is " + std::to_string(values[kPoolActive]) + ", expected 0 or 1";
  }
  return std::string();
}

DerivedSize derive(const Operator&, const Attributes& attributes, char letter) {
  const std::int32_t stride = attributes.values[kStrides];
  if (letter == 'P') return {'H', stride};
  if (letter == 'Q') return {'W', stride};
  return same(letter);
}

cuda::BottleneckShape shape_of(const Operator& op, const Attributes& attributes, const Sizes& sizes) {
  const auto size = [&](char letter) { return static_cast<int>(sizes[letter]); };
  const tables::Skipping inputs = skipping(op);
  cuda::BottleneckShape shape = {};
  shape.batch = size('N');
  shape.height = size('H');
  shape.width = size('W');
  shape.inputs = size('C');
  shape.middle = size('M');
  shape.outputs = inputs.projection ? size('O') : size('C');
  shape.groups = attributes.values[kGroup];
  shape.stride = attributes.values[kStrides];
  shape.dilation = attributes.values[kDilations];
  shape.projection = inputs.projection;
  if (inputs.spatial_mask >= 0) {
    shape.mask_height = inputs.whole_blocks ? 1 : size('h');
    shape.mask_width = inputs.whole_blocks ? 1 : size('w');
  }
  if (inputs.channel_mask >= 0) shape.channel_groups = size('G');
  if (inputs.excites) shape.squeeze = size('S');
  // Of a sample that is computed whole, all pixels are active.
  shape.winograd = size('k') > 9 * shape.middle;
  shape.pool_active = !has_pool_active(op) || attributes.values[kPoolActive] != 0;
  shape.largest_batch = attributes.largest_batch;
  return shape;
}

// w2 as the kernels of floats read it: (group, 9 * M / group, M / group).
std::string check_w2(const Sizes& sizes, std::int64_t group, std::int64_t width) {
  const std::int64_t expected[] = {group, width >= 0 ? 9 * width : -1, width};
  const char axes[] = "gkm";
  for (int i = 0; i < 3; ++i) {
    const std::int64_t size = sizes[axes[i]];
    // What Winograd's algorithm makes of the weights may stand behind them.
    if (i == 1 && group == 1 && size >= 0 && size == 25 * width) continue;
    if (size >= 0 && expected[i] >= 0 && size != expected[i]) {
      return "dimension " + std::to_string(i) + " of w2 is " + std::to_string(size) + ", expected " +
             std::to_string(expected[i]) + ": (group, 9 * M / group, M / group), repacked for TensorRT";
    }
  }
  return std::string();
}

// The same in integers: (M, 9, M / group) in words.
std::string check_quantized_w2(const Sizes& sizes, std::int64_t, std::int64_t width) {
  const std::int64_t found = sizes['m'];
  if (width < 0 || found < 0 || found == width) return std::string();
  return "the last dimension of w2 holds " + std::to_string(found) + " bytes, expected " +
         std::to_string(width) + ": (M, 9, M / group), repacked for TensorRT by words of 4 bytes";
}

std::string check_block(const Operator& op, const Attributes& attributes, const Sizes& sizes,
                        std::string (*check_weight)(const Sizes&, std::int64_t, std::int64_t)) {
  std::string problem = check_positive(op, sizes);
  if (!problem.empty()) return problem;
  const std::int64_t M = sizes['M'], G = sizes['G'], group = attributes.values[kGroup];
  if (M >= 0 && M % group != 0) {
    return "group is " + std::to_string(group) + ", which does not divide the " + std::to_string(M) +
           " channels of the 3x3 convolution";
  }
  problem = check_weight(sizes, group, M >= 0 ? M / group : sizes['m']);
  if (!problem.empty()) return problem;
  if (M >= 0 && G >= 0 && M % G != 0) {
    return "the channel mask has " + std::to_string(G) + " groups, which do not divide the " +
           std::to_string(M) + " middle channels";
  }
  const std::int64_t stride = attributes.values[kStrides];
  const char* const map = "HW";
  const char* const mask = "hw";
  for (int i = 0; i < 2; ++i) {
    const std::int64_t outputs = (sizes[map[i]] + stride - 1) / stride;
    if (sizes[map[i]] >= 0 && sizes[mask[i]] > outputs) {
      return std::string("the spatial mask has ") + std::to_string(sizes[mask[i]]) +
             (i ? " columns" : " rows") + " for an output of " + std::to_string(outputs);
    }
  }
  return std::string();
}

std::string text_or_nothing(const char* text) { return text ? text : std::string(); }

std::string check_sizes(const Operator& op, const Attributes& attributes, const Sizes& sizes,
                        cuda::Type type) {
  const std::string problem = check_block(op, attributes, sizes, check_w2);
  if (!problem.empty() || !all_known(op, sizes) || sizes['N'] == 0) return problem;
  return text_or_nothing(cuda::check_bottleneck(shape_of(op, attributes, sizes), type));
}

std::string check_quantized_sizes(const Operator& op, const Attributes& attributes, const Sizes& sizes,
                                  cuda::Type) {
  const std::string problem = check_block(op, attributes, sizes, check_quantized_w2);
  if (!problem.empty() || !all_known(op, sizes) || sizes['N'] == 0) return problem;
  return text_or_nothing(cuda::check_quantized_bottleneck(shape_of(op, attributes, sizes)));
}

std::size_t workspace(const Operator& op, const Attributes& attributes, const Sizes& sizes, cuda::Type type) {
  return cuda::bottleneck_workspace(shape_of(op, attributes, sizes), type);
}

std::size_t quantized_workspace(const Operator& op, const Attributes& attributes, const Sizes& sizes,
                                cuda::Type) {
  return cuda::quantized_bottleneck_workspace(shape_of(op, attributes, sizes));
}

// Inputs by name; those that an operator lacks are null.
struct Inputs {
  const Operator& op;
  const Buffers& buffers;

  const void* data(const char* port) const {
    const int index = op.find_input(port);
    return index < 0 ? nullptr : buffers.inputs[index];
  }
  template <class T>
  const T* of(const char* port) const {
    return static_cast<const T*>(data(port));
  }
  const float* mask(int index) const {
    return index < 0 ? nullptr : static_cast<const float*>(buffers.inputs[index]);
  }
};

cuda::Tiles chosen_tiles(const Attributes& attributes) {
  cuda::Tiles tiles;
  tiles_of(attributes.tactic, &tiles);
  return tiles;
}

int run(const Operator& op, const Attributes& attributes, const Sizes& sizes, cuda::Type type,
        const Buffers& buffers, const char** misaligned) {
  const Inputs given = {op, buffers};
  const auto data = [&](const char* port) { return given.data(port); };
  const auto floats = [&](const char* port) { return given.of<float>(port); };
  const tables::Skipping inputs = skipping(op);
  cuda::BottleneckTensors tensors = {};
  tensors.x = data("x");
  tensors.spatial_mask = given.mask(inputs.spatial_mask);
  tensors.channel_mask = given.mask(inputs.channel_mask);
  tensors.w1 = data("w1");
  tensors.w2 = data("w2");
  tensors.w3 = data("w3");
  tensors.wd = data("wd");
  tensors.b1 = floats("b1");
  tensors.b2 = floats("b2");
  tensors.b3 = floats("b3");
  tensors.bd = floats("bd");
  tensors.border_bias = floats("border_bias");
  tensors.skipped_output = floats("skipped_output");
  tensors.ws = data("ws");
  tensors.we = data("we");
  tensors.bs = floats("bs");
  tensors.be = floats("be");
  tensors.y = buffers.output;
  const cuda::BottleneckShape shape = shape_of(op, attributes, sizes);
  *misaligned = cuda::misaligned_tensor(shape, type, tensors, buffers.workspace);
  const cuda::TimingRates rates = {timing_rate(attributes, inputs.spatial_mask),
                                   timing_rate(attributes, inputs.channel_mask)};
  if (rates.spatial > 0 || rates.channels > 0) {
    const int error = cuda::stand_in_masks(shape, type, rates, &tensors, buffers.workspace, buffers.stream);
    if (error) return error;
  }
  return cuda::run_bottleneck(shape, type, tensors, buffers.workspace, buffers.stream,
                              chosen_tiles(attributes));
}

int run_quantized(const Operator& op, const Attributes& attributes, const Sizes& sizes, cuda::Type,
                  const Buffers& buffers, const char** misaligned) {
  const Inputs given = {op, buffers};
  const tables::Skipping inputs = skipping(op);
  cuda::QuantizedBottleneckTensors tensors = {};
  tensors.x = given.of<std::uint8_t>("x");
  tensors.spatial_mask = given.mask(inputs.spatial_mask);
  tensors.channel_mask = given.mask(inputs.channel_mask);
  tensors.w1 = given.of<std::int8_t>("w1");
  tensors.w2 = given.of<std::int8_t>("w2");
  tensors.w3 = given.of<std::int8_t>("w3");
  tensors.wd = given.of<std::int8_t>("wd");
  tensors.b1 = given.of<std::int32_t>("b1");
  tensors.b2 = given.of<std::int32_t>("b2");
  tensors.b3 = given.of<std::int32_t>("b3");
  tensors.bd = given.of<std::int32_t>("bd");
  tensors.m1 = given.of<float>("m1");
  tensors.m2 = given.of<float>("m2");
  tensors.m3 = given.of<float>("m3");
  tensors.md = given.of<float>("md");
  tensors.y = static_cast<std::uint8_t*>(buffers.output);
  const cuda::BottleneckShape shape = shape_of(op, attributes, sizes);
  *misaligned = cuda::misaligned_tensor(shape, tensors, buffers.workspace);
  const cuda::TimingRates rates = {timing_rate(attributes, inputs.spatial_mask),
                                   timing_rate(attributes, inputs.channel_mask)};
  if (rates.spatial > 0 || rates.channels > 0) {
    const int error = cuda::stand_in_masks(shape, rates, &tensors, buffers.workspace, buffers.stream);
    if (error) return error;
  }
  return cuda::run_quantized_bottleneck(shape, tensors, buffers.workspace, buffers.stream,
                                        chosen_tiles(attributes));
}

std::string text_of(const cuda::BottleneckChoice& choice, const char* unit) {
  if (choice.vector == 0) return std::string();
  std::string text = choice.tensor_cores ? "tensor cores" : "lanes";
  text += ", " + std::to_string(choice.vector) + unit;
  text += choice.winograd ? ", Winograd, tiles" : ", tiles";
  for (int i = 0; i < 3; ++i) {
    text += " " + std::to_string(choice.rows[i]) + "x" + std::to_string(choice.columns[i]);
    if (choice.warpgroups[i]) text += " by warpgroups";
  }
  return text;
}

std::string describe(const Operator& op, const Attributes& attributes, const Sizes& sizes, cuda::Type type,
                     int capability, int processors) {
  const cuda::BottleneckShape shape = shape_of(op, attributes, sizes);
  return text_of(cuda::bottleneck_choice(shape, type, capability, processors, chosen_tiles(attributes)),
                 " elements an access");
}

std::string describe_quantized(const Operator& op, const Attributes& attributes, const Sizes& sizes,
                               cuda::Type, int capability, int processors) {
  const cuda::BottleneckShape shape = shape_of(op, attributes, sizes);
  return text_of(cuda::quantized_bottleneck_choice(shape, capability, processors, chosen_tiles(attributes)),
                 " bytes an access");
}

int candidates(const Operator& op, const Attributes& attributes, const Sizes& sizes, cuda::Type type,
               cuda::Tiles* found) {
  return cuda::bottleneck_candidates(shape_of(op, attributes, sizes), type, 0, 0, found);
}

int quantized_candidates(const Operator& op, const Attributes& attributes, const Sizes& sizes, cuda::Type,
                         cuda::Tiles* found) {
  return cuda::quantized_bottleneck_candidates(shape_of(op, attributes, sizes), 0, 0, found);
}

}  // namespace

const Rules kBottleneckRules = {check_attributes, derive, check_sizes, workspace, describe, run, candidates};
const Rules kQuantizedBottleneckRules = {
    check_attributes,   derive,        check_quantized_sizes, quantized_workspace,
    describe_quantized, run_quantized, quantized_candidates};

bool all_known(const Operator& op, const Sizes& sizes) {
  for (int i = 0; i < op.input_count; ++i) {
    for (const char* axis = op.inputs[i].axes; *axis; ++axis) {
      if (fixed_size(*axis) < 0 && sizes[*axis] < 0) return false;
    }
  }
  return true;
}

std::string check_positive(const Operator& op, const Sizes& sizes) {
  for (int i = 0; i < op.input_count; ++i) {
    for (const char* axis = op.inputs[i].axes; *axis; ++axis) {
      if (*axis != 'N' && sizes[*axis] == 0) return std::string(op.inputs[i].name) + " is empty";
    }
  }
  return std::string();
}

}  // namespace tensorrt
}  // namespace dyndeploy
