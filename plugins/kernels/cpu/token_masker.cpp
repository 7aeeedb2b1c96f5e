#include "token_masker.h"

#include <algorithm>

namespace dyndeploy::cpu {
namespace {

// Below this a fork costs more than the second thread brings.
constexpr std::int64_t kWorthForking = 1 << 17;

NormLogits logits_of(const TokenInput& input, const float* weight, const float* bias, int count) {
  NormLogits n;
  n.channels = input.channels;
  n.normalise = input.normalise;
  n.epsilon = input.epsilon;
  n.weights = weight;
  n.bias = bias;
  n.count = count;
  return n;
}

}  // namespace

void run_token_masker(const Isa& isa, const TokenInput& input, const float* weight, const float* bias,
                      int kept, float* mask, const ThreadPool& pool) {
  const int rows = input.batch * input.tokens;
  ThreadPool threads = pool;
  if (static_cast<std::int64_t>(rows) * input.channels < kWorthForking) threads.threads = 1;
  const int parts = std::max(1, threads.threads);
  const auto body = [&](int task, int) {
    NormLogits n = logits_of(input, weight, bias, 1);
    const auto at = [=](int i) { return static_cast<int>(static_cast<std::int64_t>(rows) * i / parts); };
    for (int r = at(task); r < at(task + 1); ++r) {
      float logit = 0.0f;
      if (r % input.tokens >= kept) {
        n.x = input.x + static_cast<std::ptrdiff_t>(r) * input.channels;
        isa.norm_logits(n, &logit);
      }
      mask[r] = logit >= 0.0f ? 1.0f : 0.0f;
    }
  };
  const Phase phase(parts, body);
  run_phases(threads, &phase, 1);
}

void run_class_token_masker(const Isa& isa, const TokenInput& input, const float* weight, const float* bias,
                            int count, float* mask) {
  NormLogits n = logits_of(input, weight, bias, count);
  for (int i = 0; i < input.batch; ++i) {
    float* const to = mask + static_cast<std::ptrdiff_t>(i) * count;
    n.x = input.x + static_cast<std::ptrdiff_t>(i) * input.tokens * input.channels;
    isa.norm_logits(n, to);
    for (int m = 0; m < count; ++m) to[m] = to[m] >= 0.0f ? 1.0f : 0.0f;
  }
}

}  // namespace dyndeploy::cpu
