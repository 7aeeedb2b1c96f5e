// What the choice of tiles depends on.
#pragma once

#include <atomic>
#include <cstdint>

#include "kernels.h"

namespace dyndeploy {
namespace cuda {

struct DeviceTraits {
  int capability;  // 10 * major + minor
  int processors;
  Size tiles = Size::kBest;  // of every product that nobody asks for another size
  bool warpgroups = false;   // the kernels were compiled for sm_90a, whose warpgroups multiply together
};

inline DeviceTraits with_size(DeviceTraits device, Size size) {
  if (size != Size::kBest) device.tiles = size;
  return device;
}

// Of a GPU that is not at hand, with the kernels that this compiler makes for it: sm_90a is known from nvcc
// 12 on.
inline DeviceTraits traits_of(int capability, int processors) {
#if defined(__CUDACC_VER_MAJOR__) && __CUDACC_VER_MAJOR__ < 12
  constexpr bool kWarpgroups = false;
#else
  constexpr bool kWarpgroups = true;
#endif
  return {capability, processors, Size::kBest, kWarpgroups && capability == 90};
}

// The traits of a device, asked for once in a process: a launch must not pay for them each time.
template <class Query>
DeviceTraits cached_traits(int device, const Query& query) {
  constexpr int kDevices = 64;
  constexpr std::uint32_t kWarpgroups = 0x8000u;
  static std::atomic<std::uint32_t> known[kDevices];  // all in one, 0: not asked yet
  const bool keeps = device >= 0 && device < kDevices;
  const std::uint32_t found = keeps ? known[device].load(std::memory_order_relaxed) : 0;
  if (found != 0) {
    return {static_cast<int>(found >> 16), static_cast<int>(found & (kWarpgroups - 1)), Size::kBest,
            (found & kWarpgroups) != 0};
  }
  const DeviceTraits traits = query(device);
  if (keeps && traits.capability > 0) {
    known[device].store(static_cast<std::uint32_t>(traits.capability) << 16 |
                            (traits.warpgroups ? kWarpgroups : 0) |
                            (static_cast<std::uint32_t>(traits.processors) & (kWarpgroups - 1)),
                        std::memory_order_relaxed);
  }
  return traits;
}

#if defined(DYN_PLAYED_DEVICE)
// A build for tests on a GPU takes the tiles of the device that it is told to play; 0 leaves what the GPU
// has.
inline DeviceTraits& played_device() {
  static DeviceTraits device = {0, 0, Size::kBest, false};
  return device;
}
inline DeviceTraits played(const DeviceTraits& real) {
  const DeviceTraits& device = played_device();
  return {device.capability > 0 ? device.capability : real.capability,
          device.processors > 0 ? device.processors : real.processors, device.tiles,
          real.warpgroups && (device.capability <= 0 || device.capability == real.capability)};
}
#endif

}  // namespace cuda
}  // namespace dyndeploy
