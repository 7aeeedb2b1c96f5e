// The maskers: pooling and a small linear layer; the mask is float whatever the type of x.

#include <string>

#include "rules.h"

namespace dyndeploy {
namespace tensorrt {
namespace {

constexpr int kMaskHeight = tables::value_offset(tables::kSpatialMasker, "mask_height");
constexpr int kMaskWidth = tables::value_offset(tables::kSpatialMasker, "mask_width");

// The type of x.
cuda::Type type_of(const Operator& op, cuda::Type data) {
  return op.reads_bytes() ? cuda::Type::kByte : data;
}

std::string no_attributes(const Operator&, const Attributes&) { return std::string(); }

std::string check_mask_size(const Operator&, const Attributes& attributes) {
  const std::int32_t height = attributes.values[kMaskHeight], width = attributes.values[kMaskWidth];
  if (height >= 1 && width >= 1) return std::string();
  return "mask_height and mask_width are " + std::to_string(height) + " and " + std::to_string(width) +
         ", expected positive integers";
}

DerivedSize same_size(const Operator&, const Attributes&, char letter) { return same(letter); }

DerivedSize derive_mask(const Operator&, const Attributes& attributes, char letter) {
  if (letter == 'h') return {'\0', attributes.values[kMaskHeight]};
  if (letter == 'w') return {'\0', attributes.values[kMaskWidth]};
  return same(letter);
}

std::string check_channel(const Operator& op, const Attributes&, const Sizes& sizes, cuda::Type) {
  return check_positive(op, sizes);
}

std::string check_spatial(const Operator& op, const Attributes& attributes, const Sizes& sizes, cuda::Type) {
  const std::int32_t mask[] = {attributes.values[kMaskHeight], attributes.values[kMaskWidth]};
  const std::int64_t map[] = {sizes['H'], sizes['W']};
  for (int i = 0; i < 2; ++i) {
    if (map[i] > 0 && mask[i] > map[i]) {
      return std::string(i ? "mask_width" : "mask_height") + " is " + std::to_string(mask[i]) +
             ", larger than x, which has " + std::to_string(map[i]);
    }
  }
  return check_positive(op, sizes);
}

cuda::ChannelMaskerShape channel_shape(const Sizes& sizes, bool hidden) {
  const auto size = [&](char letter) { return static_cast<int>(sizes[letter]); };
  return {size('N'), size('H'), size('W'), size('C'), hidden ? size('h') : 0, size('G')};
}

std::size_t channel_workspace(const Operator& op, const Attributes&, const Sizes& sizes, cuda::Type) {
  return cuda::channel_masker_workspace(channel_shape(sizes, op.find_input("hidden_weight") >= 0));
}

const char* misaligned_x(const Sizes& sizes, cuda::Type type, const Buffers& buffers) {
  const bool vectors = cuda::masker_vector(static_cast<int>(sizes['C']), type) > 1;
  return vectors && reinterpret_cast<std::uintptr_t>(buffers.inputs[0]) % 16 != 0 ? "x" : nullptr;
}

int run_channel(const Operator& op, const Attributes&, const Sizes& sizes, cuda::Type type,
                const Buffers& buffers, const char** misaligned) {
  type = type_of(op, type);
  *misaligned = misaligned_x(sizes, type, buffers);
  const auto floats = [&](const char* port) -> const float* {
    const int index = op.find_input(port);
    return index < 0 ? nullptr : static_cast<const float*>(buffers.inputs[index]);
  };
  const bool hidden = op.find_input("hidden_weight") >= 0;
  return cuda::run_channel_masker(channel_shape(sizes, hidden), type, buffers.inputs[0],
                                  floats("hidden_weight"), floats("hidden_bias"), floats("weight"),
                                  floats("bias"), static_cast<float*>(buffers.output), buffers.workspace,
                                  buffers.stream);
}

std::size_t spatial_workspace(const Operator&, const Attributes&, const Sizes&, cuda::Type) { return 0; }

int run_spatial(const Operator& op, const Attributes& attributes, const Sizes& sizes, cuda::Type type,
                const Buffers& buffers, const char** misaligned) {
  type = type_of(op, type);
  *misaligned = misaligned_x(sizes, type, buffers);
  const auto size = [&](char letter) { return static_cast<int>(sizes[letter]); };
  const cuda::SpatialMaskerShape shape = {size('N'),
                                          size('H'),
                                          size('W'),
                                          size('C'),
                                          size('g'),
                                          attributes.values[kMaskHeight],
                                          attributes.values[kMaskWidth]};
  return cuda::run_spatial_masker(shape, type, buffers.inputs[0],
                                  static_cast<const float*>(buffers.inputs[op.find_input("weight")]),
                                  static_cast<const float*>(buffers.inputs[op.find_input("bias")]),
                                  static_cast<float*>(buffers.output), buffers.stream);
}

std::string describe(const Operator& op, const Attributes&, const Sizes& sizes, cuda::Type type, int, int) {
  const int vector = cuda::masker_vector(static_cast<int>(sizes['C']), type_of(op, type));
  return std::to_string(vector) + (vector == 1 ? " element an access" : " elements an access");
}

}  // namespace

const Rules kSpatialMaskerRules = {check_mask_size,   derive_mask, check_spatial,
                                   spatial_workspace, describe,    run_spatial};
const Rules kChannelMaskerRules = {no_attributes,     same_size, check_channel,
                                   channel_workspace, describe,  run_channel};

}  // namespace tensorrt
}  // namespace dyndeploy
