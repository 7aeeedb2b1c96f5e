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
};

inline DeviceTraits with_size(DeviceTraits device, Size size) {
  if (size != Size::kBest) device.tiles = size;
  return device;
}

// The traits of a device, asked for once in a process: a launch must not pay for them each time.
template <class Query>
DeviceTraits cached_traits(int device, const Query& query) {
  constexpr int kDevices = 64;
  static std::atomic<std::uint32_t> known[kDevices];  // both numbers in one, 0: not asked yet
  const bool keeps = device >= 0 && device < kDevices;
  const std::uint32_t found = keeps ? known[device].load(std::memory_order_relaxed) : 0;
  if (found != 0) return {static_cast<int>(found >> 16), static_cast<int>(found & 0xffffu)};
  const DeviceTraits traits = query(device);
  if (keeps && traits.capability > 0) {
    known[device].store(static_cast<std::uint32_t>(traits.capability) << 16 |
                            (static_cast<std::uint32_t>(traits.processors) & 0xffffu),
                        std::memory_order_relaxed);
  }
  return traits;
}

#if defined(DYN_PLAYED_DEVICE)
// A build for tests on a GPU takes the tiles of the device that it is told to play; 0 leaves what the GPU
// has.
inline DeviceTraits& played_device() {
  static DeviceTraits device = {0, 0, Size::kBest};
  return device;
}
inline DeviceTraits played(const DeviceTraits& real) {
  const DeviceTraits& device = played_device();
  return {device.capability > 0 ? device.capability : real.capability,
          device.processors > 0 ? device.processors : real.processors, device.tiles};
}
#endif

}  // namespace cuda
}  // namespace dyndeploy
