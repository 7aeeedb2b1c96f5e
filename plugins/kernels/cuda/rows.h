// Tiles by the number of rows that there are, which the device alone knows.
#pragma once

#include "platform.h"

namespace dyndeploy {
namespace cuda {

struct TilesByRows {
  static constexpr int kStep = 16;  // rows that are told apart
  static constexpr int kSteps = 32;
  static constexpr int kMost = kStep * kSteps;
  std::uint64_t sizes;  // two bits for each step

  DYN_BOTH int of(int rows) const {
    const int step = rows < 1 ? 0 : smaller((rows - 1) / kStep, kSteps - 1);
    return static_cast<int>(sizes >> (2 * step) & 3u);
  }
};

}  // namespace cuda
}  // namespace dyndeploy
