// Masks for a run whose own masks say nothing.
#pragma once

#include "platform.h"

namespace dyndeploy {
namespace cuda {

// Fills a mask: (position * step) % bits < active, which for a step that has no factor in common with `bits`
// is true of exactly `active` positions.
struct FillArguments {
  float* mask;
  int bits, step, active;
};
struct FillKernel {
  using Arguments = FillArguments;
  static constexpr int kThreads = 256;
  static constexpr int kBlocks = 1;
  static DYN_DEVICE void run(const Arguments& a, Index block) {
    for_threads<kThreads>([&](int t) {
      const long long at = static_cast<long long>(block.x) * kThreads + t;
      if (at < a.bits) a.mask[at] = at * a.step % a.bits < a.active ? 1.0f : 0.0f;
    });
  }
};

inline int common_factor(int a, int b) { return b == 0 ? a : common_factor(b, a % b); }

// So many of a thousand bits are active, and at least one.
inline int fill_mask(float* mask, int bits, int rate, void* stream) {
  FillArguments a = {mask, bits, 1, 1};
  const long long active = (static_cast<long long>(bits) * rate + 500) / 1000;
  if (active > 1) a.active = static_cast<int>(active);
  // Steps of the golden ratio leave no two neighbours that are alike for long.
  const int golden = static_cast<int>(0.6180339887 * bits);
  if (golden > 1) a.step = golden;
  while (common_factor(bits, a.step) != 1) ++a.step;
  return launch<FillKernel>(divide_up(bits, FillKernel::kThreads), 1, a, stream);
}

}  // namespace cuda
}  // namespace dyndeploy
