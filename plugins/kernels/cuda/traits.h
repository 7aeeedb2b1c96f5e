// What the choice of tiles depends on.
#pragma once

namespace dyndeploy {
namespace cuda {

// The size of the tiles: that of the least cost, or one that a test asks for.
enum class Size : int { kBest = 0, kSmall = 1, kMedium = 2, kLarge = 3 };

struct DeviceTraits {
  int capability;  // 10 * major + minor
  int processors;
  Size tiles = Size::kBest;
};

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
