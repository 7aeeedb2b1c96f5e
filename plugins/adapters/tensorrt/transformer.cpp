// All transformer blocks: what is skipped follows from the masks that an operator has.

#include <string>

#include "rules.h"

namespace dyndeploy {
namespace tensorrt {
namespace {

// All blocks have the same attributes.
constexpr const tables::Operator& kAny = tables::kTokenTransformerBlock;
constexpr int kEpsilon = tables::value_offset(kAny, "epsilon");
constexpr int kScale = tables::value_offset(kAny, "scale");
constexpr int kTokenMlp = tables::value_offset(kAny, "token_mlp");
constexpr int kHeadMode = tables::value_offset(kAny, "head_mode");

struct Masks {
  int tokens, heads, attention, mlp;  // indices of inputs, -1 for what an operator lacks
};
Masks masks_of(const Operator& op) {
  return {op.find_input("token"), op.find_input("head"), op.find_input("attention"), op.find_input("mlp")};
}

std::string check_attributes(const Operator&, const Attributes& attributes) {
  const float epsilon = real_value(attributes.values[kEpsilon]),
              scale = real_value(attributes.values[kScale]);
  const std::int32_t token_mlp = attributes.values[kTokenMlp], head_mode = attributes.values[kHeadMode];
  if (!(epsilon > 0.0f && epsilon <= 1.0f)) {
    return "epsilon is " + std::to_string(epsilon) + ", expected above 0 and at most 1";
  }
  if (!(scale > 0.0f && scale <= 1e6f)) return "scale is " + std::to_string(scale) + ", expected above 0";
  if (token_mlp != 0 && token_mlp != 1) {
    return "token_mlp is " + std::to_string(token_mlp) + ", expected 0 or 1";
  }
  if (head_mode < 0 || head_mode > 2) {
    return "head_mode is " + std::to_string(head_mode) + ", expected 0, 1 or 2";
  }
  return std::string();
}

DerivedSize derive(const Operator&, const Attributes&, char letter) { return same(letter); }

cuda::TransformerShape shape_of(const Operator& op, const Attributes& attributes, const Sizes& sizes) {
  const auto size = [&](char letter) { return static_cast<int>(sizes[letter]); };
  const Masks masks = masks_of(op);
  cuda::TransformerShape shape = {};
  shape.batch = size('N');
  shape.tokens = size('T');
  shape.width = size('D');
  shape.heads = size('A');
  shape.head_width = size('d');
  shape.hidden = size('F');
  shape.token_mask = masks.tokens >= 0;
  shape.head_mask = masks.heads >= 0;
  shape.sublayer_masks = masks.attention >= 0;
  shape.token_mlp = attributes.values[kTokenMlp] != 0;
  shape.head_mode = attributes.values[kHeadMode];
  shape.epsilon = real_value(attributes.values[kEpsilon]);
  shape.scale = real_value(attributes.values[kScale]);
  shape.largest_batch = attributes.largest_batch;
  return shape;
}

std::string check_sizes(const Operator& op, const Attributes& attributes, const Sizes& sizes,
                        cuda::Type type) {
  std::string problem = check_positive(op, sizes);
  if (!problem.empty()) return problem;
  const std::int64_t D = sizes['D'], A = sizes['A'], d = sizes['d'], F = sizes['F'];
  const bool heads = masks_of(op).heads >= 0;
  const std::int32_t mode = attributes.values[kHeadMode];
  if (heads && mode == 0 && D >= 0 && A >= 0 && d >= 0 && A * d != D) {
    return std::to_string(A) + " heads of " + std::to_string(d) + " channels are not the " +
           std::to_string(D) + " of x, which head_mode 0 needs";
  }
  if (heads && mode == 1 && A > 0 && F >= 0 && F % A != 0) {
    return std::to_string(A) + " heads do not divide the " + std::to_string(F) +
           " hidden units, which head_mode 1 needs";
  }
  if (!all_known(op, sizes) || sizes['N'] == 0) return std::string();
  const char* refusal = cuda::check_transformer(shape_of(op, attributes, sizes), type);
  return refusal ? refusal : std::string();
}

std::size_t workspace(const Operator& op, const Attributes& attributes, const Sizes& sizes, cuda::Type type) {
  return cuda::transformer_workspace(shape_of(op, attributes, sizes), type);
}

int run(const Operator& op, const Attributes& attributes, const Sizes& sizes, cuda::Type type,
        const Buffers& buffers, const char** misaligned) {
  const auto at = [&](int index) -> const void* { return index < 0 ? nullptr : buffers.inputs[index]; };
  const auto data = [&](const char* port) { return at(op.find_input(port)); };
  const auto floats = [&](const char* port) { return static_cast<const float*>(data(port)); };
  const Masks masks = masks_of(op);
  cuda::TransformerTensors tensors = {};
  tensors.x = data("x");
  tensors.token_mask = static_cast<const float*>(at(masks.tokens));
  tensors.head_mask = static_cast<const float*>(at(masks.heads));
  tensors.attention_mask = static_cast<const float*>(at(masks.attention));
  tensors.mlp_mask = static_cast<const float*>(at(masks.mlp));
  tensors.norm1_weight = floats("norm1_weight");
  tensors.norm1_bias = floats("norm1_bias");
  tensors.w_qkv = data("w_qkv");
  tensors.b_qkv = floats("b_qkv");
  tensors.w_proj = data("w_proj");
  tensors.b_proj = floats("b_proj");
  tensors.norm2_weight = floats("norm2_weight");
  tensors.norm2_bias = floats("norm2_bias");
  tensors.w_fc1 = data("w_fc1");
  tensors.b_fc1 = floats("b_fc1");
  tensors.w_fc2 = data("w_fc2");
  tensors.b_fc2 = floats("b_fc2");
  tensors.y = buffers.output;
  const cuda::TransformerShape shape = shape_of(op, attributes, sizes);
  *misaligned = cuda::misaligned_tensor(shape, type, tensors, buffers.workspace);
  const cuda::TransformerRates rates = {
      timing_rate(attributes, masks.tokens), timing_rate(attributes, masks.heads),
      timing_rate(attributes, masks.attention), timing_rate(attributes, masks.mlp)};
  if (rates.tokens > 0 || rates.heads > 0 || rates.attention > 0 || rates.mlp > 0) {
    const int error = cuda::stand_in_masks(shape, type, rates, &tensors, buffers.workspace, buffers.stream);
    if (error) return error;
  }
  cuda::Tiles tiles;
  tiles_of(attributes.tactic, &tiles);
  return cuda::run_transformer(shape, type, tensors, buffers.workspace, buffers.stream, tiles);
}

std::string describe(const Operator& op, const Attributes& attributes, const Sizes& sizes, cuda::Type type,
                     int capability, int processors) {
  cuda::Tiles tiles;
  tiles_of(attributes.tactic, &tiles);
  const cuda::TransformerChoice choice =
      cuda::transformer_choice(shape_of(op, attributes, sizes), type, capability, processors, tiles);
  if (choice.vector == 0) return std::string();
  std::string text = choice.tensor_cores ? "tensor cores" : "lanes";
  text += ", " + std::to_string(choice.vector) +
          (choice.vector == 1 ? " element an access, tiles" : " elements an access, tiles");
  for (int i = 0; i < 4; ++i) {
    text += " " + std::to_string(choice.rows[i]) + "x" + std::to_string(choice.columns[i]);
    if (choice.warpgroups[i]) text += " by warpgroups";
  }
  return text;
}

int candidates(const Operator& op, const Attributes& attributes, const Sizes& sizes, cuda::Type type,
               cuda::Tiles* found) {
  return cuda::transformer_candidates(shape_of(op, attributes, sizes), type, 0, 0, found);
}

}  // namespace

const Rules kTransformerRules = {check_attributes, derive, check_sizes, workspace, describe, run, candidates};

}  // namespace tensorrt
}  // namespace dyndeploy
