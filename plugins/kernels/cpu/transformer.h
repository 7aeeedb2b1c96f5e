// Transformer blocks that compute only the tokens, heads and sublayers that masks leave: layer normalisation,
// attention, residual, layer normalisation, MLP with GELU, residual.
#pragma once

#include <cstdint>

#include "gemm.h"
#include "parallel.h"
#include "workspace.h"

namespace dyndeploy::cpu {

// What a dropped head leaves out besides its attention.
enum class HeadMode {
  kInputs,     // its channels of the inputs of the MLP's first product
  kHidden,     // its share of the hidden units
  kAttention,  // nothing, and of its attention the products of queries and keys only: it passes its values on
};

// What the weights and attributes fix.
struct TransformerLayer {
  int width = 0;   // D
  int heads = 0;   // A
  int depth = 0;   // d, of a head
  int hidden = 0;  // F
  float epsilon = 0.0f;
  float scale = 1.0f;
  bool token_mlp = false;  // the MLP, too, computes kept tokens only
  HeadMode head_mode = HeadMode::kInputs;
  bool skips_heads = false;
};

// PyTorch's order: qkv (3, A, d, D), proj (D, A, d), fc1 (F, D), fc2 (D, F).
struct TransformerWeights {
  const float *norm1 = nullptr, *norm1_bias = nullptr;
  const float *qkv = nullptr, *qkv_bias = nullptr;
  const float *proj = nullptr, *proj_bias = nullptr;
  const float *norm2 = nullptr, *norm2_bias = nullptr;
  const float *fc1 = nullptr, *fc1_bias = nullptr;
  const float *fc2 = nullptr, *fc2_bias = nullptr;
};

// Weights in panels, cut into slots that can be left out: outputs in slots of whole panels, inputs in slots
// of whole blocks.
struct SlottedMatrix {
  const float* base = nullptr;
  const float* bias = nullptr;  // padded as the outputs
  int output_slots = 1;
  int outputs = 0;  // of a slot
  int panels = 0;   // of a slot
  int input_slots = 1;
  int inputs = 0;  // of a slot
  int blocks = 0;  // of a slot
  std::ptrdiff_t panel_stride = 0;
};

class PackedTransformer {
 public:
  PackedTransformer(const Isa& isa, const TransformerLayer& layer, const TransformerWeights& weights,
                    Arena& arena);

  const Isa& isa() const { return *isa_; }
  const TransformerLayer& layer() const { return layer_; }
  // Slots are heads, of queries, then of keys, then of values.
  const SlottedMatrix& qkv() const { return qkv_; }
  const SlottedMatrix& proj() const { return proj_; }
  const SlottedMatrix& fc1() const { return fc1_; }
  const SlottedMatrix& fc2() const { return fc2_; }
  const float* norm1() const { return norm1_; }
  const float* norm1_bias() const { return norm1_bias_; }
  const float* norm2() const { return norm2_; }
  const float* norm2_bias() const { return norm2_bias_; }
  // What the MLP adds when every head is dropped.
  const float* mlp_without_heads() const { return mlp_without_heads_; }

 private:
  const Isa* isa_;
  TransformerLayer layer_;
  std::shared_ptr<void> memory_;
  SlottedMatrix qkv_, proj_, fc1_, fc2_;
  const float *norm1_, *norm1_bias_, *norm2_, *norm2_bias_;
  const float* mlp_without_heads_ = nullptr;
};

struct TransformerCall {
  const PackedTransformer* weights = nullptr;
  int batch = 0;
  int tokens = 0;  // T
  const float* x = nullptr;
  float* y = nullptr;  // may be x
  // 0 or 1 each; nullptr: all on.
  const float* token_mask = nullptr;      // (batch, T)
  const float* head_mask = nullptr;       // (batch, A)
  const float* attention_mask = nullptr;  // (batch)
  const float* mlp_mask = nullptr;        // (batch)
};

// Throws std::bad_alloc while the workspace grows.
void run_transformer(const TransformerCall& call, Workspace& workspace, const ThreadPool& pool);

}  // namespace dyndeploy::cpu
