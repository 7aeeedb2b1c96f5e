// Masks for a run whose own masks say nothing.
#pragma once

#include "kernels.h"
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

// Fills masks of a bottleneck at `memory`, which has room for so many bytes, and points at them; see
// stand_in_masks().
inline int fill_masks(const BottleneckShape& shape, const TimingRates& rates, const float** spatial,
                      const float** channels, float* memory, std::size_t room, void* stream) {
  const std::size_t batch = static_cast<std::size_t>(shape.batch);
  const std::size_t positions = rates.spatial > 0 ? batch * static_cast<std::size_t>(shape.mask_height) *
                                                        static_cast<std::size_t>(shape.mask_width)
                                                  : 0;
  const std::size_t groups = rates.channels > 0 ? batch * static_cast<std::size_t>(shape.channel_groups) : 0;
  if ((positions + groups) * sizeof(float) > room) return 0;
  int error = 0;
  if (positions > 0) {
    error = fill_mask(memory, static_cast<int>(positions), rates.spatial, stream);
    *spatial = memory;
  }
  if (error == 0 && groups > 0) {
    error = fill_mask(memory + positions, static_cast<int>(groups), rates.channels, stream);
    *channels = memory + positions;
  }
  return error;
}

}  // namespace cuda
}  // namespace dyndeploy
