#include "bottleneck_op.h"

#include <string>

namespace dyndeploy::ort {
namespace {

constexpr std::int64_t kMaxAttribute = 1 << 16;
// Pixels of the map between the convolutions begin at multiples of this many bytes.
constexpr std::int64_t kRowBytes = 64;

}  // namespace

void BottleneckNode::refuse(const std::string& what) const {
  throw InvalidArgument(std::string("dyndeploy.") + op_.name + ": " + what);
}

int BottleneckNode::find(const char* input) const {
  return tables::find_port(op_.inputs, op_.input_count, input);
}

// An attribute with one value per axis, all of which have to be the same.
int BottleneckNode::uniform(const KernelInfo& info, const char* name, int fallback) const {
  const std::vector<std::int64_t> values = info.integers(name);
  if (values.empty()) return fallback;
  const int count = op_.attributes[tables::find_attribute(op_, name)].length;
  bool same = values.size() == static_cast<std::size_t>(count);
  for (const std::int64_t v : values) same = same && v == values.front();
  if (!same || values.front() < 1 || values.front() > kMaxAttribute) {
    refuse(std::string("attribute ") + name + " is " + to_string(values) + ", expected " +
           std::to_string(count) + " equal positive integers");
  }
  return static_cast<int>(values.front());
}

BottleneckNode::BottleneckNode(const tables::Operator& op, const KernelInfo& info)
    : op_(op), skipping_(tables::bottleneck_skipping(op.inputs, op.input_count)) {
  stride_ = uniform(info, "strides", 1);
  dilation_ = uniform(info, "dilations", 1);
  const int pad = uniform(info, "pads", dilation_);
  if (pad != dilation_) {
    refuse("attribute pads is " + std::to_string(pad) + ", expected the dilation, " +
           std::to_string(dilation_));
  }
  const std::int64_t groups = info.integer("group", 1);
  if (groups < 1 || groups > kMaxAttribute) {
    refuse("attribute group is " + std::to_string(groups) + ", expected a positive integer");
  }
  groups_ = static_cast<int>(groups);
  if (tables::has_attribute(op, "pool_active")) {
    const std::int64_t active = info.integer("pool_active", -1);
    if (active != 0 && active != 1) {
      refuse("attribute pool_active is " + std::to_string(active) + ", expected 0 or 1");
    }
    dense_mean_ = active == 0;
  }
  if (!skipping_.projection && stride_ != 1) {
    refuse("stride " + std::to_string(stride_) + " needs a projection shortcut");
  }
}

std::vector<Tensor> BottleneckNode::constant_weights(const KernelInfo& info) const {
  std::vector<Tensor> weights(static_cast<std::size_t>(op_.input_count));
  for (int i = 0; i < op_.input_count; ++i) {
    if (op_.inputs[i].role != tables::Role::kWeight) continue;
    const OrtValue* value = info.constant_input(static_cast<std::size_t>(i));
    if (!value) return {};
    weights[static_cast<std::size_t>(i)] = read_tensor(info.api(), value, op_, i);
  }
  return weights;
}

std::vector<Tensor> BottleneckNode::weights(const KernelContext& context) const {
  std::vector<Tensor> weights(static_cast<std::size_t>(op_.input_count));
  for (int i = 0; i < op_.input_count; ++i) {
    if (op_.inputs[i].role == tables::Role::kWeight)
      weights[static_cast<std::size_t>(i)] = context.tensor(op_, i);
  }
  return weights;
}

cpu::BottleneckLayer BottleneckNode::layer(const std::vector<Tensor>& inputs) const {
  const auto weight = [&](const std::string& name) -> const Tensor& {
    return inputs[static_cast<std::size_t>(find(name.c_str()))];
  };
  const auto expect = [&](const std::string& name, const std::vector<std::int64_t>& shape) {
    expect_shape(weight(name), op_, find(name.c_str()), shape);
  };
  // The bias of a convolution, and in integers its multiplier.
  const auto expect_constants = [&](const char* suffix, std::int64_t outputs) {
    for (const char* kind : {"b", "m"}) {
      const std::string name = std::string(kind) + suffix;
      if (find(name.c_str()) >= 0) expect(name, {outputs});
    }
  };
  const std::int64_t M = weight("w1").shape[0], C = weight("w1").shape[1], Co = weight("w3").shape[0];
  if (M % groups_ != 0) {
    refuse("attribute group is " + std::to_string(groups_) + ", which does not divide the " +
           std::to_string(M) + " channels of the 3x3 convolution");
  }
  cpu::BottleneckLayer layer;
  expect_constants("1", M);
  expect("w2", {M, M / groups_, 3, 3});
  expect_constants("2", M);
  if (skipping_.excites) {
    expect("ws", {-1, M});
    const std::int64_t S = weight("ws").shape[0];
    expect("bs", {S});
    expect("we", {M, S});
    expect("be", {M});
    layer.squeeze = static_cast<int>(S);
  }
  expect("w3", {-1, M});
  expect_constants("3", Co);
  if (skipping_.projection) {
    expect("wd", {Co, C});
    expect_constants("d", Co);
  } else if (Co != C) {
    refuse("x has " + std::to_string(C) + " channels and w3 makes " + std::to_string(Co) +
           ": without a projection they must be equal");
  }
  layer.inputs = static_cast<int>(C);
  layer.middle = static_cast<int>(M);
  layer.outputs = static_cast<int>(Co);
  layer.stride = stride_;
  layer.dilation = dilation_;
  layer.groups = groups_;
  layer.projection = skipping_.projection;
  layer.zero_skipped = skipping_.excites;
  layer.dense_mean = dense_mean_;
  return layer;
}

// Lists and products count pixels and numbers of a map in 32 bits; no product here overflows 64.
void BottleneckNode::require_fit(std::int64_t pixels, std::int64_t channels, const char* what) const {
  if (pixels * channels > INT32_MAX) {
    refuse(std::string(what) + " too large: " + std::to_string(pixels) + " pixels of " +
           std::to_string(channels) + " channels are more than 2^31 - 1 numbers");
  }
}

template <class T, class Call>
std::vector<std::int64_t> BottleneckNode::read(const KernelContext& context, Call& call) const {
  const cpu::BottleneckLayer& layer = call.weights->layer();
  const Tensor x = context.tensor(op_, 0);
  expect_shape(x, op_, 0, {-1, -1, -1, layer.inputs});
  const std::int64_t batch = x.shape[0];
  call.shape = cpu::bottleneck_shape(layer, static_cast<int>(batch), static_cast<int>(x.shape[1]),
                                     static_cast<int>(x.shape[2]));
  call.x = x.as<T>();
  if (const int input = skipping_.spatial_mask; input >= 0) {
    const Tensor mask = context.tensor(op_, input);
    const std::int64_t size = skipping_.whole_blocks ? 1 : -1;
    expect_shape(mask, op_, input, {batch, 1, size, size});
    call.spatial_mask = mask.floats();
    call.mask_height = static_cast<int>(mask.shape[2]);
    call.mask_width = static_cast<int>(mask.shape[3]);
  }
  if (const int input = skipping_.channel_mask; input >= 0) {
    const Tensor mask = context.tensor(op_, input);
    expect_shape(mask, op_, input, {batch, -1});
    if (layer.middle % mask.shape[1] != 0) {
      refuse("the channel mask has " + std::to_string(mask.shape[1]) + " groups, which do not divide the " +
             std::to_string(layer.middle) + " middle channels");
    }
    call.channel_mask = mask.floats();
    call.channel_groups = static_cast<int>(mask.shape[1]);
  }
  const std::int64_t in_pixels = batch * x.shape[1] * x.shape[2];
  const std::int64_t out_pixels =
      batch * call.shape.out_height * static_cast<std::int64_t>(call.shape.out_width);
  constexpr std::int64_t kMultiple = kRowBytes / static_cast<std::int64_t>(sizeof(T));
  const std::int64_t row = (std::int64_t{layer.middle} + kMultiple - 1) / kMultiple * kMultiple;
  require_fit(in_pixels, row, "the map between the convolutions is");
  require_fit(out_pixels, layer.outputs, "the output is");
  return {batch, call.shape.out_height, call.shape.out_width, layer.outputs};
}

BottleneckKernel::BottleneckKernel(const tables::Operator& op, const KernelInfo& info,
                                   const Registration& registration)
    : node_(op, info),
      isa_(registration.isa()),
      threads_(registration.threads()),
      workspaces_(registration.workspaces()) {
  const std::vector<Tensor> weights = node_.constant_weights(info);
  if (weights.empty()) return;
  // What the graph does not tell counts as the largest that a call may bring.
  cpu::BottleneckShape expected{};
  if (const std::vector<std::int64_t> sizes = info.input_shape(0);
      sizes.size() == 4 && sizes[1] > 0 && sizes[2] > 0 && sizes[0] > 0 && sizes[0] < kMaxAttribute &&
      sizes[1] < kMaxAttribute && sizes[2] < kMaxAttribute)
    expected = {static_cast<int>(sizes[0]), static_cast<int>(sizes[1]), static_cast<int>(sizes[2]), 0, 0};
  packed_ = pack(weights, expected, registration.arena());
}

std::unique_ptr<cpu::PackedBottleneck> BottleneckKernel::pack(const std::vector<Tensor>& inputs,
                                                              const cpu::BottleneckShape& expected,
                                                              cpu::Arena& arena) const {
  const cpu::BottleneckLayer layer = node_.layer(inputs);
  const auto data = [&](const char* name) {
    return inputs[static_cast<std::size_t>(node_.find(name))].floats();
  };
  cpu::BottleneckWeights raw;
  raw.w1 = data("w1");
  raw.b1 = data("b1");
  raw.w2 = data("w2");
  raw.b2 = data("b2");
  raw.w3 = data("w3");
  raw.b3 = data("b3");
  if (node_.skipping().excites) {
    raw.squeeze = data("ws");
    raw.squeeze_bias = data("bs");
    raw.excite = data("we");
    raw.excite_bias = data("be");
  }
  if (layer.projection) {
    raw.wd = data("wd");
    raw.bd = data("bd");
  }
  const bool channels = node_.skipping().channel_mask >= 0;
  return std::make_unique<cpu::PackedBottleneck>(isa_, layer, raw, channels, expected, arena);
}

void BottleneckKernel::compute(KernelContext& context) {
  std::unique_ptr<cpu::PackedBottleneck> fresh;
  if (!packed_) {
    cpu::Arena arena(0);  // what one run packs shares no buffer with what stays
    fresh = pack(node_.weights(context), {}, arena);
  }
  cpu::BottleneckCall call;
  call.weights = packed_ ? packed_.get() : fresh.get();
  call.y = context.output(0, node_.read<float>(context, call));
  const cpu::WorkspacePool::Lease workspace(*workspaces_);
  cpu::run_bottleneck(call, *workspace, context.pool(threads_));
}

bool BottleneckKernel::in_place(const tables::Operator& op) {
  return !tables::bottleneck_skipping(op.inputs, op.input_count).projection;
}

void BottleneckKernel::infer(const tables::Operator& op, const ShapeInference& inference) {
  const auto find = [&](const char* name) { return tables::find_port(op.inputs, op.input_count, name); };
  ShapeInference::Shape shape = inference.input(0);
  if (shape.size() != 4) return;
  if (find("wd") >= 0) {
    const std::vector<std::int64_t> strides = inference.integers("strides");
    const std::int64_t stride = strides.empty() ? 1 : strides.front();
    for (const std::size_t axis : {std::size_t{1}, std::size_t{2}}) {
      if (stride <= 1) continue;
      shape[axis].size = shape[axis].size > 0 ? (shape[axis].size - 1) / stride + 1 : -1;
      shape[axis].name.clear();
    }
    const ShapeInference::Shape bias = inference.input(static_cast<std::size_t>(find("b3")));
    shape[3] = bias.size() == 1 ? bias[0] : ShapeInference::Dim{};
  }
  inference.set_output(shape);
}

QuantizedBottleneckKernel::QuantizedBottleneckKernel(const tables::Operator& op, const KernelInfo& info,
                                                     const Registration& registration)
    : node_(op, info),
      isa_(registration.quantized_isa()),
      threads_(registration.threads()),
      workspaces_(registration.workspaces()) {
  const std::vector<Tensor> weights = node_.constant_weights(info);
  if (!weights.empty()) packed_ = pack(weights, registration.arena());
}

std::unique_ptr<cpu::PackedQuantizedBottleneck> QuantizedBottleneckKernel::pack(
    const std::vector<Tensor>& inputs, cpu::Arena& arena) const {
  const cpu::BottleneckLayer layer = node_.layer(inputs);
  const auto input = [&](const char* name) -> const Tensor& {
    return inputs[static_cast<std::size_t>(node_.find(name))];
  };
  const auto weight = [&](const char* name) { return input(name).as<std::int8_t>(); };
  const auto bias = [&](const char* name) { return input(name).as<std::int32_t>(); };
  const auto multiplier = [&](const char* name) { return input(name).floats(); };
  cpu::QuantizedWeights raw;
  raw.w1 = weight("w1");
  raw.b1 = bias("b1");
  raw.m1 = multiplier("m1");
  raw.w2 = weight("w2");
  raw.b2 = bias("b2");
  raw.m2 = multiplier("m2");
  raw.w3 = weight("w3");
  raw.b3 = bias("b3");
  raw.m3 = multiplier("m3");
  if (layer.projection) {
    raw.wd = weight("wd");
    raw.bd = bias("bd");
    raw.md = multiplier("md");
  }
  const bool channels = node_.skipping().channel_mask >= 0;
  return std::make_unique<cpu::PackedQuantizedBottleneck>(isa_, layer, raw, channels, arena);
}

void QuantizedBottleneckKernel::compute(KernelContext& context) {
  std::unique_ptr<cpu::PackedQuantizedBottleneck> fresh;
  if (!packed_) {
    cpu::Arena arena(0);  // what one run packs shares no buffer with what stays
    fresh = pack(node_.weights(context), arena);
  }
  cpu::QuantizedBottleneckCall call;
  call.weights = packed_ ? packed_.get() : fresh.get();
  const std::vector<std::int64_t> shape = node_.read<std::uint8_t>(context, call);
  call.y = context.output<std::uint8_t>(0, shape);
  const cpu::WorkspacePool::Lease workspace(*workspaces_);
  cpu::run_quantized_bottleneck(call, *workspace, context.pool(threads_));
}

}  // namespace dyndeploy::ort
