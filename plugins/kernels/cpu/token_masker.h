// Maskers of transformer blocks: which tokens, heads or sublayers a sample's activations ask for. In floats,
// whatever the products compute in.
#pragma once

#include "gemm.h"
#include "parallel.h"

namespace dyndeploy::cpu {

struct TokenInput {
  const float* x = nullptr;  // (batch, tokens, channels)
  int batch = 0;
  int tokens = 0;
  int channels = 0;
  bool normalise = false;  // layer normalisation without weights comes first
  float epsilon = 0.0f;
};

// mask (batch, tokens) = x . weight (channels) + bias (1) >= 0; the first `kept` tokens always stay
void run_token_masker(const Isa& isa, const TokenInput& input, const float* weight, const float* bias,
                      int kept, float* mask, const ThreadPool& pool);

// mask (batch, count) = first token . weight (count, channels) + bias (count) >= 0
void run_class_token_masker(const Isa& isa, const TokenInput& input, const float* weight, const float* bias,
                            int count, float* mask);

}  // namespace dyndeploy::cpu
