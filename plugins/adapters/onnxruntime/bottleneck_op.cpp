#include "bottleneck_op.h"

#include <string>

namespace dyndeploy::ort {
namespace {

constexpr std::int64_t kMaxAttribute = 1 << 16;

[[noreturn]] void refuse(const BottleneckOpInfo& op, const std::string& what) {
  throw InvalidArgument(std::string("dyndeploy.") + op.names.op + ": " + what);
}

// An attribute with one value per axis, all of which have to be the same.
int uniform(const BottleneckOpInfo& op, const char* name, const std::vector<std::int64_t>& values,
            std::size_t count, std::int64_t fallback) {
  if (values.empty()) return static_cast<int>(fallback);
  bool same = values.size() == count;
  for (const std::int64_t v : values) same = same && v == values.front();
  if (!same || values.front() < 1 || values.front() > kMaxAttribute) {
    refuse(op, std::string("attribute ") + name + " is " + to_string(values) + ", expected " +
                   std::to_string(count) + " equal positive integers");
  }
  return static_cast<int>(values.front());
}

}  // namespace

BottleneckKernel::BottleneckKernel(const BottleneckOpInfo& op, const KernelInfo& info,
                                   const Registration& registration)
    : op_(op),
      isa_(registration.isa()),
      threads_(registration.threads()),
      workspaces_(registration.workspaces()) {
  stride_ = uniform(op, "strides", info.integers("strides"), 2, 1);
  dilation_ = uniform(op, "dilations", info.integers("dilations"), 2, 1);
  const int pad = uniform(op, "pads", info.integers("pads"), 4, dilation_);
  if (pad != dilation_) {
    refuse(op, "attribute pads is " + std::to_string(pad) + ", expected the dilation, " +
                   std::to_string(dilation_));
  }
  const std::int64_t groups = info.integer("group", 1);
  if (groups < 1 || groups > kMaxAttribute) {
    refuse(op, "attribute group is " + std::to_string(groups) + ", expected a positive integer");
  }
  groups_ = static_cast<int>(groups);
  if (!op.projection && stride_ != 1) {
    refuse(op, "stride " + std::to_string(stride_) + " needs a projection shortcut");
  }

  std::vector<Tensor> weights;
  for (int i = 0; i < op.weights(); ++i) {
    const int input = op.first_weight() + i;
    const OrtValue* value = info.constant_input(static_cast<std::size_t>(input));
    if (!value) return;
    static constexpr std::size_t kRanks[] = {2, 1, 4, 1, 2, 1, 2, 1};
    weights.push_back(read_tensor(info.api(), value, op.names, input, kRanks[i]));
  }
  packed_ = pack(weights, registration.arena());
}

std::unique_ptr<cpu::PackedBottleneck> BottleneckKernel::pack(const std::vector<Tensor>& weights,
                                                              cpu::Arena& arena) const {
  const int first = op_.first_weight();
  const std::int64_t M = weights[0].shape[0], C = weights[0].shape[1], Co = weights[4].shape[0];
  if (M % groups_ != 0) {
    refuse(op_, "attribute group is " + std::to_string(groups_) + ", which does not divide the " +
                    std::to_string(M) + " channels of the 3x3 convolution");
  }
  expect_shape(weights[1], op_.names, first + 1, {M});
  expect_shape(weights[2], op_.names, first + 2, {M, M / groups_, 3, 3});
  expect_shape(weights[3], op_.names, first + 3, {M});
  expect_shape(weights[4], op_.names, first + 4, {-1, M});
  expect_shape(weights[5], op_.names, first + 5, {Co});
  if (op_.projection) {
    expect_shape(weights[6], op_.names, first + 6, {Co, C});
    expect_shape(weights[7], op_.names, first + 7, {Co});
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
  layer.projection = op_.projection;
  cpu::BottleneckWeights raw;
  raw.w1 = weights[0].data;
  raw.b1 = weights[1].data;
  raw.w2 = weights[2].data;
  raw.b2 = weights[3].data;
  raw.w3 = weights[4].data;
  raw.b3 = weights[5].data;
  if (op_.projection) {
    raw.wd = weights[6].data;
    raw.bd = weights[7].data;
  }
  return std::make_unique<cpu::PackedBottleneck>(isa_, layer, raw, op_.has_channel_mask(), arena);
}

void BottleneckKernel::compute(KernelContext& context) {
  const OrtApi& api = context.api();
  std::unique_ptr<cpu::PackedBottleneck> fresh;
  if (!packed_) {
    std::vector<Tensor> weights;
    for (int i = 0; i < op_.weights(); ++i) {
      const int input = op_.first_weight() + i;
      static constexpr std::size_t kRanks[] = {2, 1, 4, 1, 2, 1, 2, 1};
      weights.push_back(
          read_tensor(api, context.input(static_cast<std::size_t>(input)), op_.names, input, kRanks[i]));
    }
    cpu::Arena arena(0);  // what one run packs shares no buffer with what stays
    fresh = pack(weights, arena);
  }
  const cpu::PackedBottleneck& packed = packed_ ? *packed_ : *fresh;
  const cpu::BottleneckLayer& layer = packed.layer();

  const Tensor x = read_tensor(api, context.input(0), op_.names, 0, 4);
  expect_shape(x, op_.names, 0, {-1, -1, -1, layer.inputs});
  const std::int64_t batch = x.shape[0];
  cpu::BottleneckCall call;
  call.weights = &packed;
  call.shape = cpu::bottleneck_shape(layer, static_cast<int>(batch), static_cast<int>(x.shape[1]),
                                     static_cast<int>(x.shape[2]));
  call.x = x.data;
  int input = 1;
  if (op_.has_spatial_mask()) {
    const Tensor mask = read_tensor(api, context.input(1), op_.names, 1, 4);
    const std::int64_t size = op_.skipping == Skipping::kLayer ? 1 : -1;
    expect_shape(mask, op_.names, 1, {batch, 1, size, size});
    call.spatial_mask = mask.data;
    call.mask_height = static_cast<int>(mask.shape[2]);
    call.mask_width = static_cast<int>(mask.shape[3]);
    ++input;
  }
  if (op_.has_channel_mask()) {
    const Tensor mask = read_tensor(api, context.input(static_cast<std::size_t>(input)), op_.names, input, 2);
    expect_shape(mask, op_.names, input, {batch, -1});
    if (layer.middle % mask.shape[1] != 0) {
      refuse(op_, "the channel mask has " + std::to_string(mask.shape[1]) +
                      " groups, which do not divide the " + std::to_string(layer.middle) +
                      " middle channels");
    }
    call.channel_mask = mask.data;
    call.channel_groups = static_cast<int>(mask.shape[1]);
  }
  const std::int64_t out_pixels =
      batch * call.shape.out_height * static_cast<std::int64_t>(call.shape.out_width);
  if (out_pixels * layer.outputs > INT32_MAX) refuse(op_, "the output is too large");
  call.y = context.output(0, {batch, call.shape.out_height, call.shape.out_width, layer.outputs});
  const cpu::WorkspacePool::Lease workspace(*workspaces_);
  cpu::run_bottleneck(call, *workspace, context.pool(threads_));
}

void BottleneckKernel::infer(const BottleneckOpInfo& op, const ShapeInference& inference) {
  ShapeInference::Shape shape = inference.input(0);
  if (shape.size() != 4) return;
  if (op.projection) {
    const std::vector<std::int64_t> strides = inference.integers("strides");
    const std::int64_t stride = strides.empty() ? 1 : strides.front();
    for (const std::size_t axis : {std::size_t{1}, std::size_t{2}}) {
      if (stride <= 1) continue;
      shape[axis].size = shape[axis].size > 0 ? (shape[axis].size - 1) / stride + 1 : -1;
      shape[axis].name.clear();
    }
    const ShapeInference::Shape bias = inference.input(static_cast<std::size_t>(op.first_weight()) + 5);
    shape[3] = bias.size() == 1 ? bias[0] : ShapeInference::Dim{};
  }
  inference.set_output(shape);
}

}  // namespace dyndeploy::ort
