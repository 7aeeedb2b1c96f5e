#include "bottleneck_op.h"

#include <string>

namespace dyndeploy::ort {
namespace {

constexpr std::int64_t kMaxAttribute = 1 << 16;
// Pixels of the map between the convolutions begin at multiples of this many floats.
constexpr int kRowFloats = 16;

[[noreturn]] void refuse(const tables::Operator& op, const std::string& what) {
  throw InvalidArgument(std::string("dyndeploy.") + op.name + ": " + what);
}

int find(const tables::Operator& op, const char* input) {
  return tables::find_port(op.inputs, op.input_count, input);
}

// An attribute with one value per axis, all of which have to be the same.
int uniform(const tables::Operator& op, const KernelInfo& info, const char* name, int fallback) {
  const std::vector<std::int64_t> values = info.integers(name);
  if (values.empty()) return fallback;
  const int count = op.attributes[tables::find_attribute(op, name)].length;
  bool same = values.size() == static_cast<std::size_t>(count);
  for (const std::int64_t v : values) same = same && v == values.front();
  if (!same || values.front() < 1 || values.front() > kMaxAttribute) {
    refuse(op, std::string("attribute ") + name + " is " + to_string(values) + ", expected " +
                   std::to_string(count) + " equal positive integers");
  }
  return static_cast<int>(values.front());
}

}  // namespace

BottleneckKernel::BottleneckKernel(const tables::Operator& op, const KernelInfo& info,
                                   const Registration& registration)
    : op_(op),
      skipping_(tables::bottleneck_skipping(op.inputs, op.input_count)),
      isa_(registration.isa()),
      threads_(registration.threads()),
      workspaces_(registration.workspaces()) {
  stride_ = uniform(op, info, "strides", 1);
  dilation_ = uniform(op, info, "dilations", 1);
  const int pad = uniform(op, info, "pads", dilation_);
  if (pad != dilation_) {
    refuse(op, "attribute pads is " + std::to_string(pad) + ", expected the dilation, " +
                   std::to_string(dilation_));
  }
  const std::int64_t groups = info.integer("group", 1);
  if (groups < 1 || groups > kMaxAttribute) {
    refuse(op, "attribute group is " + std::to_string(groups) + ", expected a positive integer");
  }
  groups_ = static_cast<int>(groups);
  if (tables::has_attribute(op, "pool_active")) {
    const std::int64_t active = info.integer("pool_active", -1);
    if (active != 0 && active != 1) {
      refuse(op, "attribute pool_active is " + std::to_string(active) + ", expected 0 or 1");
    }
    dense_mean_ = active == 0;
  }
  if (!skipping_.projection && stride_ != 1) {
    refuse(op, "stride " + std::to_string(stride_) + " needs a projection shortcut");
  }

  std::vector<Tensor> weights(static_cast<std::size_t>(op.input_count));
  for (int i = 0; i < op.input_count; ++i) {
    if (op.inputs[i].role != tables::Role::kWeight) continue;
    const OrtValue* value = info.constant_input(static_cast<std::size_t>(i));
    if (!value) return;
    weights[static_cast<std::size_t>(i)] = read_tensor(info.api(), value, op, i);
  }
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
  const auto weight = [&](const char* name) -> const Tensor& {
    return inputs[static_cast<std::size_t>(find(op_, name))];
  };
  const auto expect = [&](const char* name, const std::vector<std::int64_t>& shape) {
    expect_shape(weight(name), op_, find(op_, name), shape);
  };
  const std::int64_t M = weight("w1").shape[0], C = weight("w1").shape[1], Co = weight("w3").shape[0];
  if (M % groups_ != 0) {
    refuse(op_, "attribute group is " + std::to_string(groups_) + ", which does not divide the " +
                    std::to_string(M) + " channels of the 3x3 convolution");
  }
  expect("b1", {M});
  expect("w2", {M, M / groups_, 3, 3});
  expect("b2", {M});
  if (skipping_.excites) {
    expect("ws", {-1, M});
    const std::int64_t S = weight("ws").shape[0];
    expect("bs", {S});
    expect("we", {M, S});
    expect("be", {M});
  }
  expect("w3", {-1, M});
  expect("b3", {Co});
  if (skipping_.projection) {
    expect("wd", {Co, C});
    expect("bd", {Co});
  } else if (Co != C) {
    refuse(op_, "x has " + std::to_string(C) + " channels and w3 makes " + std::to_string(Co) +
                    ": without a projection they must be equal");
  }
  cpu::BottleneckLayer layer;
  layer.inputs = static_cast<int>(C);
  layer.middle = static_cast<int>(M);
  layer.outputs = static_cast<int>(Co);
  layer.stride = stride_;
  layer.dilation = dilation_;
  layer.groups = groups_;
  layer.projection = skipping_.projection;
  layer.zero_skipped = skipping_.excites;
  layer.dense_mean = dense_mean_;
  cpu::BottleneckWeights raw;
  raw.w1 = weight("w1").data;
  raw.b1 = weight("b1").data;
  raw.w2 = weight("w2").data;
  raw.b2 = weight("b2").data;
  raw.w3 = weight("w3").data;
  raw.b3 = weight("b3").data;
  if (skipping_.excites) {
    layer.squeeze = static_cast<int>(weight("ws").shape[0]);
    raw.squeeze = weight("ws").data;
    raw.squeeze_bias = weight("bs").data;
    raw.excite = weight("we").data;
    raw.excite_bias = weight("be").data;
  }
  if (skipping_.projection) {
    raw.wd = weight("wd").data;
    raw.bd = weight("bd").data;
  }
  return std::make_unique<cpu::PackedBottleneck>(isa_, layer, raw, skipping_.channel_mask >= 0, expected,
                                                 arena);
}

void BottleneckKernel::compute(KernelContext& context) {
  std::unique_ptr<cpu::PackedBottleneck> fresh;
  if (!packed_) {
    std::vector<Tensor> weights(static_cast<std::size_t>(op_.input_count));
    for (int i = 0; i < op_.input_count; ++i) {
      if (op_.inputs[i].role == tables::Role::kWeight) {
        weights[static_cast<std::size_t>(i)] = context.tensor(op_, i);
      }
    }
    cpu::Arena arena(0);  // what one run packs shares no buffer with what stays
    fresh = pack(weights, {}, arena);
  }
  const cpu::PackedBottleneck& packed = packed_ ? *packed_ : *fresh;
  const cpu::BottleneckLayer& layer = packed.layer();

  const Tensor x = context.tensor(op_, 0);
  expect_shape(x, op_, 0, {-1, -1, -1, layer.inputs});
  const std::int64_t batch = x.shape[0];
  cpu::BottleneckCall call;
  call.weights = &packed;
  call.shape = cpu::bottleneck_shape(layer, static_cast<int>(batch), static_cast<int>(x.shape[1]),
                                     static_cast<int>(x.shape[2]));
  call.x = x.data;
  if (const int input = skipping_.spatial_mask; input >= 0) {
    const Tensor mask = context.tensor(op_, input);
    const std::int64_t size = skipping_.whole_blocks ? 1 : -1;
    expect_shape(mask, op_, input, {batch, 1, size, size});
    call.spatial_mask = mask.data;
    call.mask_height = static_cast<int>(mask.shape[2]);
    call.mask_width = static_cast<int>(mask.shape[3]);
  }
  if (const int input = skipping_.channel_mask; input >= 0) {
    const Tensor mask = context.tensor(op_, input);
    expect_shape(mask, op_, input, {batch, -1});
    if (layer.middle % mask.shape[1] != 0) {
      refuse(op_, "the channel mask has " + std::to_string(mask.shape[1]) +
                      " groups, which do not divide the " + std::to_string(layer.middle) +
                      " middle channels");
    }
    call.channel_mask = mask.data;
    call.channel_groups = static_cast<int>(mask.shape[1]);
  }
  // Lists and products count pixels and floats of a map in 32 bits; no product here overflows 64.
  const std::int64_t in_pixels = batch * x.shape[1] * x.shape[2];
  const std::int64_t out_pixels =
      batch * call.shape.out_height * static_cast<std::int64_t>(call.shape.out_width);
  const auto require_fit = [&](std::int64_t pixels, std::int64_t channels, const char* what) {
    if (pixels * channels > INT32_MAX) {
      refuse(op_, std::string(what) + " too large: " + std::to_string(pixels) + " pixels of " +
                      std::to_string(channels) + " channels are more than 2^31 - 1 numbers");
    }
  };
  const std::int64_t row = (std::int64_t{layer.middle} + kRowFloats - 1) / kRowFloats * kRowFloats;
  require_fit(in_pixels, row, "the map between the convolutions is");
  require_fit(out_pixels, layer.outputs, "the output is");
  call.y = context.output(0, {batch, call.shape.out_height, call.shape.out_width, layer.outputs});
  const cpu::WorkspacePool::Lease workspace(*workspaces_);
  cpu::run_bottleneck(call, *workspace, context.pool(threads_));
}

bool BottleneckKernel::in_place(const tables::Operator& op) {
  return !tables::bottleneck_skipping(op.inputs, op.input_count).projection;
}

void BottleneckKernel::infer(const tables::Operator& op, const ShapeInference& inference) {
  ShapeInference::Shape shape = inference.input(0);
  if (shape.size() != 4) return;
  if (find(op, "wd") >= 0) {
    const std::vector<std::int64_t> strides = inference.integers("strides");
    const std::int64_t stride = strides.empty() ? 1 : strides.front();
    for (const std::size_t axis : {std::size_t{1}, std::size_t{2}}) {
      if (stride <= 1) continue;
      shape[axis].size = shape[axis].size > 0 ? (shape[axis].size - 1) / stride + 1 : -1;
      shape[axis].name.clear();
    }
    const ShapeInference::Shape bias = inference.input(static_cast<std::size_t>(find(op, "b3")));
    shape[3] = bias.size() == 1 ? bias[0] : ShapeInference::Dim{};
  }
  inference.set_output(shape);
}

}  // namespace dyndeploy::ort
