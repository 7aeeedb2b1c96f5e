#include "recording_kernels.h"

#include "timing.h"

TimedDevice& timed_device() {
  static TimedDevice device;
  return device;
}

namespace dyndeploy {
namespace cuda {

int current_device(int* processors) {
  *processors = timed_device().processors;
  return timed_device().capability;
}

// Nothing reads or writes it: an address is enough.
Scratch::Scratch(std::size_t bytes) {
  TimedDevice& device = timed_device();
  if (bytes > device.memory) return;
  memory_ = &device;
  device.begin = reinterpret_cast<std::uintptr_t>(memory_);
  device.end = device.begin + bytes;
}
Scratch::~Scratch() = default;

int time_in_turn(int count, const std::function<int(int, void*)>& run, double* milliseconds) {
  TimedDevice& device = timed_device();
  ++device.timings;
  for (int i = 0; i < count; ++i) {
    Recording seen;
    seen.error = device.error;
    const int error = run(i, &seen);
    if (error) return error;
    device.tiles.push_back(seen.tiles);
    milliseconds[i] = device.milliseconds[i];
  }
  return 0;
}

namespace {

// Four sizes of one product; none without a device.
int four_sizes(int product, int capability, Tiles* candidates) {
  if (capability == 0 && timed_device().capability == 0) return 0;
  for (int i = 0; i < 4; ++i) {
    candidates[i] = Tiles();
    candidates[i].sizes[product] = static_cast<Size>(i);
  }
  return 4;
}

}  // namespace

int bottleneck_candidates(const BottleneckShape&, Type, int capability, int, Tiles* candidates) {
  return four_sizes(0, capability, candidates);
}

int transformer_candidates(const TransformerShape&, Type, int capability, int, Tiles* candidates) {
  return four_sizes(1, capability, candidates);
}

// One thing that only the kernels refuse, so that a test can see their word passed on.
const char* check_bottleneck(const BottleneckShape& shape, Type) {
  return shape.dilation > 1000 ? "the test's kernels refuse dilations over 1000" : nullptr;
}

std::size_t bottleneck_workspace(const BottleneckShape& shape, Type type) {
  const auto size = [](int value) { return static_cast<std::size_t>(value); };
  return size(shape.batch) * size(shape.height) * size(shape.width) * size(shape.middle) *
             (type == Type::kHalf ? 2 : 4) +
         size(shape.outputs);
}

int run_bottleneck(const BottleneckShape& shape, Type type, const BottleneckTensors& tensors, void* workspace,
                   void* stream, const Tiles& tiles) {
  Recording& recording = *static_cast<Recording*>(stream);
  recording.tiles = tiles;
  ++recording.calls;
  recording.type = type;
  recording.workspace = workspace;
  recording.bottleneck = shape;
  recording.tensors = tensors;
  return recording.error;
}

template <class Tensors>
static int masks_in(void* workspace, const TimingRates& rates, Tensors* tensors, void* stream) {
  static_cast<Recording*>(stream)->rates = rates;
  if (rates.spatial) tensors->spatial_mask = static_cast<const float*>(workspace);
  if (rates.channels) tensors->channel_mask = static_cast<const float*>(workspace);
  return 0;
}

int stand_in_masks(const BottleneckShape&, Type, const TimingRates& rates, BottleneckTensors* tensors,
                   void* workspace, void* stream) {
  return masks_in(workspace, rates, tensors, stream);
}

BottleneckChoice bottleneck_choice(const BottleneckShape& shape, Type type, int capability, int processors,
                                   const Tiles& tiles) {
  BottleneckChoice choice = {type == Type::kHalf ? 8 : 4, capability >= 70, false, {}, {}, {}};
  for (int i = 0; i < 3; ++i) {
    choice.rows[i] = processors + static_cast<int>(tiles.sizes[i]);
    choice.columns[i] = shape.middle;
  }
  return choice;
}

const char* misaligned_tensor(const BottleneckShape&, Type, const BottleneckTensors& tensors, const void*) {
  return reinterpret_cast<std::uintptr_t>(tensors.x) % 16 == 0 ? nullptr : "x";
}

const char* check_quantized_bottleneck(const BottleneckShape& shape) {
  return check_bottleneck(shape, Type::kFloat);
}

std::size_t quantized_bottleneck_workspace(const BottleneckShape& shape) {
  const auto size = [](int value) { return static_cast<std::size_t>(value); };
  return size(shape.batch) * size(shape.height) * size(shape.width) * size(shape.middle) +
         size(shape.outputs);
}

int run_quantized_bottleneck(const BottleneckShape& shape, const QuantizedBottleneckTensors& tensors,
                             void* workspace, void* stream, const Tiles& tiles) {
  Recording& recording = *static_cast<Recording*>(stream);
  recording.tiles = tiles;
  ++recording.calls;
  recording.workspace = workspace;
  recording.bottleneck = shape;
  recording.integers = tensors;
  return recording.error;
}

int stand_in_masks(const BottleneckShape&, const TimingRates& rates, QuantizedBottleneckTensors* tensors,
                   void* workspace, void* stream) {
  return masks_in(workspace, rates, tensors, stream);
}

int quantized_bottleneck_candidates(const BottleneckShape& shape, int capability, int processors,
                                    Tiles* candidates) {
  return bottleneck_candidates(shape, Type::kHalf, capability, processors, candidates);
}

BottleneckChoice quantized_bottleneck_choice(const BottleneckShape& shape, int capability, int processors,
                                             const Tiles& tiles) {
  BottleneckChoice choice = bottleneck_choice(shape, Type::kHalf, capability, processors, tiles);
  choice.vector = 16;
  return choice;
}

const char* misaligned_tensor(const BottleneckShape&, const QuantizedBottleneckTensors& tensors,
                              const void*) {
  return reinterpret_cast<std::uintptr_t>(tensors.x) % 16 == 0 ? nullptr : "x";
}

int run_quantize(std::size_t count, Type type, const void* x, float scale, std::uint8_t* y, void* stream) {
  Recording& recording = *static_cast<Recording*>(stream);
  ++recording.calls;
  recording.type = type;
  recording.count = count;
  recording.scale = scale;
  recording.x = x;
  recording.y = y;
  return recording.error;
}

int run_dequantize(std::size_t count, Type type, const std::uint8_t* x, float scale, void* y, void* stream) {
  Recording& recording = *static_cast<Recording*>(stream);
  ++recording.calls;
  recording.type = type;
  recording.count = count;
  recording.scale = scale;
  recording.x = x;
  recording.y = y;
  return recording.error;
}

const char* check_transformer(const TransformerShape& shape, Type) {
  return shape.scale > 1000.0f ? "the test's kernels refuse scales over 1000" : nullptr;
}

std::size_t transformer_workspace(const TransformerShape& shape, Type type) {
  return static_cast<std::size_t>(shape.batch * shape.tokens * shape.width) * (type == Type::kHalf ? 2 : 4) +
         static_cast<std::size_t>(shape.hidden);
}

int run_transformer(const TransformerShape& shape, Type type, const TransformerTensors& tensors,
                    void* workspace, void* stream, const Tiles& tiles) {
  Recording& recording = *static_cast<Recording*>(stream);
  recording.tiles = tiles;
  ++recording.calls;
  recording.type = type;
  recording.workspace = workspace;
  recording.block = shape;
  recording.block_tensors = tensors;
  return recording.error;
}

int stand_in_masks(const TransformerShape&, Type, const TransformerRates& rates, TransformerTensors* tensors,
                   void* workspace, void* stream) {
  static_cast<Recording*>(stream)->block_rates = rates;
  if (rates.tokens) tensors->token_mask = static_cast<const float*>(workspace);
  return 0;
}

TransformerChoice transformer_choice(const TransformerShape& shape, Type type, int capability, int processors,
                                     const Tiles& tiles) {
  TransformerChoice choice = {type == Type::kHalf ? 8 : 4, capability >= 70, {}, {}, {}};
  for (int i = 0; i < 4; ++i) {
    choice.rows[i] = processors + static_cast<int>(tiles.sizes[i]);
    choice.columns[i] = shape.hidden;
  }
  return choice;
}

const char* misaligned_tensor(const TransformerShape&, Type, const TransformerTensors& tensors, const void*) {
  return reinterpret_cast<std::uintptr_t>(tensors.x) % 16 == 0 ? nullptr : "x";
}

int run_token_masker(const TokenMaskerShape& shape, Type type, const void* x, const float* weight,
                     const float* bias, float* mask, void* stream) {
  Recording& recording = *static_cast<Recording*>(stream);
  ++recording.calls;
  recording.type = type;
  recording.token_masker = shape;
  recording.x = x;
  recording.weight = weight;
  recording.bias = bias;
  recording.mask = mask;
  return recording.error;
}

int run_class_token_masker(const ClassTokenMaskerShape& shape, Type type, const void* x, const float* weight,
                           const float* bias, float* mask, void* stream) {
  Recording& recording = *static_cast<Recording*>(stream);
  ++recording.calls;
  recording.type = type;
  recording.class_token_masker = shape;
  recording.x = x;
  recording.weight = weight;
  recording.bias = bias;
  recording.mask = mask;
  return recording.error;
}

int masker_vector(int channels, Type type) {
  if (channels % 8 != 0) return 1;
  return type == Type::kByte ? 16 : type == Type::kHalf ? 8 : 4;
}

int run_spatial_masker(const SpatialMaskerShape& shape, Type type, const void* x, const float* weight,
                       const float* bias, float* mask, void* stream) {
  Recording& recording = *static_cast<Recording*>(stream);
  ++recording.calls;
  recording.type = type;
  recording.spatial_masker = shape;
  recording.x = x;
  recording.weight = weight;
  recording.bias = bias;
  recording.mask = mask;
  return recording.error;
}

std::size_t channel_masker_workspace(const ChannelMaskerShape& shape) {
  return static_cast<std::size_t>(shape.batch * shape.channels + shape.hidden);
}

int run_channel_masker(const ChannelMaskerShape& shape, Type type, const void* x, const float* hidden_weight,
                       const float* hidden_bias, const float* weight, const float* bias, float* mask,
                       void* workspace, void* stream) {
  Recording& recording = *static_cast<Recording*>(stream);
  ++recording.calls;
  recording.type = type;
  recording.workspace = workspace;
  recording.channel_masker = shape;
  recording.x = x;
  recording.hidden_weight = hidden_weight;
  recording.hidden_bias = hidden_bias;
  recording.weight = weight;
  recording.bias = bias;
  recording.mask = mask;
  return recording.error;
}

const char* check_deformable_attention(const DeformableAttentionShape& shape) {
  return shape.points > 1000 ? "the test's kernels refuse more than 1000 points" : nullptr;
}

int deformable_attention_vector(const DeformableAttentionShape& shape, Type type) {
  return masker_vector(shape.channels, type);
}

int run_deformable_attention(const DeformableAttentionShape& shape, Type type, const void* value,
                             const float* locations, const float* weights, void* y, void* stream) {
  Recording& recording = *static_cast<Recording*>(stream);
  ++recording.calls;
  recording.type = type;
  recording.sampling = shape;
  recording.x = value;
  recording.locations = locations;
  recording.weight = weights;
  recording.y = y;
  return recording.error;
}

const char* check_regions(const RegionsShape& shape) {
  return shape.size > 1000 ? "the test's kernels refuse more than 1000 cells" : nullptr;
}

int run_regions(const RegionsShape& shape, Type type, const void* const* maps, const float* boxes,
                const std::int32_t* levels, void* y, void* stream) {
  Recording& recording = *static_cast<Recording*>(stream);
  ++recording.calls;
  recording.type = type;
  recording.regions = shape;
  for (int i = 0; i < kPyramidLevels; ++i) recording.maps[i] = maps[i];
  recording.boxes = boxes;
  recording.levels = levels;
  recording.y = y;
  return recording.error;
}

}  // namespace cuda
}  // namespace dyndeploy
