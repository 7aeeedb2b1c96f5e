#include "transformer_block_op.h"

#include <algorithm>
#include <string>

namespace dyndeploy::ort {
namespace {

[[noreturn]] void refuse(const tables::Operator& op, const std::string& what) {
  throw InvalidArgument(std::string("dyndeploy.") + op.name + ": " + what);
}

int find(const tables::Operator& op, const char* input) {
  return tables::find_port(op.inputs, op.input_count, input);
}

int one_of(const tables::Operator& op, const KernelInfo& info, const char* name, int most) {
  const std::int64_t value = info.integer(name, -1);
  if (value < 0 || value > most) {
    refuse(op, std::string("attribute ") + name + " is " + std::to_string(value) + ", expected 0 to " +
                   std::to_string(most));
  }
  return static_cast<int>(value);
}

}  // namespace

TransformerBlockKernel::TransformerBlockKernel(const tables::Operator& op, const KernelInfo& info,
                                               const Registration& registration)
    : op_(op),
      isa_(registration.isa()),
      threads_(registration.threads()),
      workspaces_(registration.workspaces()) {
  layer_.epsilon = info.real("epsilon", 0.0f);
  if (!(layer_.epsilon > 0.0f))
    refuse(op, "attribute epsilon is " + std::to_string(layer_.epsilon) + ", expected a positive number");
  layer_.scale = info.real("scale", 1.0f);
  layer_.token_mlp = one_of(op, info, "token_mlp", 1) == 1;
  layer_.head_mode = static_cast<cpu::HeadMode>(one_of(op, info, "head_mode", 2));
  layer_.skips_heads = find(op, "head") >= 0;

  std::vector<Tensor> weights(static_cast<std::size_t>(op.input_count));
  for (int i = 0; i < op.input_count; ++i) {
    if (op.inputs[i].role != tables::Role::kWeight) continue;
    const OrtValue* value = info.constant_input(static_cast<std::size_t>(i));
    if (!value) return;
    weights[static_cast<std::size_t>(i)] = read_tensor(info.api(), value, op, i);
  }
  packed_ = pack(weights, registration.arena());
}

std::unique_ptr<cpu::PackedTransformer> TransformerBlockKernel::pack(const std::vector<Tensor>& inputs,
                                                                     cpu::Arena& arena) const {
  const auto weight = [&](const char* name) -> const Tensor& {
    return inputs[static_cast<std::size_t>(find(op_, name))];
  };
  const auto expect = [&](const char* name, const std::vector<std::int64_t>& shape) {
    expect_shape(weight(name), op_, find(op_, name), shape);
    return weight(name).floats();
  };
  const std::vector<std::int64_t>& qkv = weight("w_qkv").shape;
  const std::int64_t A = qkv[1], d = qkv[2], D = qkv[3], F = weight("w_fc1").shape[0];
  cpu::TransformerWeights raw;
  raw.norm1 = expect("norm1_weight", {D});
  raw.norm1_bias = expect("norm1_bias", {D});
  raw.qkv = expect("w_qkv", {3, A, d, D});
  raw.qkv_bias = expect("b_qkv", {3, A, d});
  raw.proj = expect("w_proj", {D, A, d});
  raw.proj_bias = expect("b_proj", {D});
  raw.norm2 = expect("norm2_weight", {D});
  raw.norm2_bias = expect("norm2_bias", {D});
  raw.fc1 = expect("w_fc1", {F, D});
  raw.fc1_bias = expect("b_fc1", {F});
  raw.fc2 = expect("w_fc2", {D, F});
  raw.fc2_bias = expect("b_fc2", {D});
  if (layer_.skips_heads && layer_.head_mode == cpu::HeadMode::kInputs && A * d != D) {
    refuse(op_, "with head_mode 0 a head owns d channels of x, so that A d must be D, and " +
                    std::to_string(A) + " x " + std::to_string(d) + " is not " + std::to_string(D));
  }
  if (layer_.skips_heads && layer_.head_mode == cpu::HeadMode::kHidden && F % A != 0) {
    refuse(op_, "with head_mode 1 the heads must divide F, and " + std::to_string(F) + " % " +
                    std::to_string(A) + " is not 0");
  }
  cpu::TransformerLayer layer = layer_;
  layer.width = static_cast<int>(D);
  layer.heads = static_cast<int>(A);
  layer.depth = static_cast<int>(d);
  layer.hidden = static_cast<int>(F);
  return std::make_unique<cpu::PackedTransformer>(isa_, layer, raw, arena);
}

void TransformerBlockKernel::compute(KernelContext& context) {
  std::unique_ptr<cpu::PackedTransformer> fresh;
  if (!packed_) {
    std::vector<Tensor> weights(static_cast<std::size_t>(op_.input_count));
    for (int i = 0; i < op_.input_count; ++i) {
      if (op_.inputs[i].role == tables::Role::kWeight)
        weights[static_cast<std::size_t>(i)] = context.tensor(op_, i);
    }
    cpu::Arena arena(0);  // what one run packs shares no buffer with what stays
    fresh = pack(weights, arena);
  }
  cpu::TransformerCall call;
  call.weights = packed_ ? packed_.get() : fresh.get();
  const cpu::TransformerLayer& layer = call.weights->layer();

  const Tensor x = context.tensor(op_, 0);
  expect_shape(x, op_, 0, {-1, -1, layer.width});
  const std::int64_t batch = x.shape[0], tokens = x.shape[1];
  // Offsets within one image's rows are counted in 32 bits.
  const std::int64_t widest = std::max({layer.width, layer.hidden, layer.heads * layer.depth});
  if (tokens > INT32_MAX / (2 * widest)) {
    refuse(op_, "x has " + std::to_string(tokens) + " tokens, more than the kernels count for rows of " +
                    std::to_string(widest) + " numbers");
  }
  const auto mask = [&](const char* name, const std::vector<std::int64_t>& shape) -> const float* {
    const int input = find(op_, name);
    if (input < 0) return nullptr;
    const Tensor tensor = context.tensor(op_, input);
    expect_shape(tensor, op_, input, shape);
    return tensor.floats();
  };
  call.batch = static_cast<int>(batch);
  call.tokens = static_cast<int>(tokens);
  call.x = x.floats();
  call.token_mask = mask("token", {batch, tokens});
  call.head_mask = mask("head", {batch, layer.heads});
  call.attention_mask = mask("attention", {batch, 1, 1, 1});
  call.mlp_mask = mask("mlp", {batch, 1, 1, 1});
  call.y = context.output(0, x.shape);
  const cpu::WorkspacePool::Lease workspace(*workspaces_);
  cpu::run_transformer(call, *workspace, context.pool(threads_));
}

}  // namespace dyndeploy::ort
