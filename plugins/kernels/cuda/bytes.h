// A byte as a number.
#pragma once

#include "platform.h"

namespace dyndeploy {
namespace cuda {

using Byte = std::uint8_t;
constexpr int kMostByte = 255;

DYN_DEVICE float to_float(Byte v) { return static_cast<float>(v); }

// The nearest integer of what is cut to [least, most], ties to even; the bounds are integers below 2^22.
DYN_DEVICE int round_within(float v, float least, float most) {
  constexpr float kWhole = 12582912.0f;  // 1.5 * 2^23: floats near it are integers
  constexpr int kWholeBits = 0x4b400000;
  v = v < least ? least : v > most ? most : v;
  return bits_of(v + kWhole) - kWholeBits;
}

}  // namespace cuda
}  // namespace dyndeploy
