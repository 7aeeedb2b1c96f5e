// BF16 in plain C++: the upper half of a float, rounded to the nearest, ties to even.
#pragma once

#include <cstdint>
#include <cstring>

namespace dyndeploy::cpu {
namespace {

inline std::uint16_t round_to_bf16(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value != value) return static_cast<std::uint16_t>(bits >> 16 | 0x40);  // stays NaN when cut off
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// A pair lies in the place of one float: the first number in the lower half.
inline std::uint32_t pair_bits(float pair) {
  std::uint32_t bits;
  std::memcpy(&bits, &pair, sizeof bits);
  return bits;
}
inline float from_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline float first_of_pair(float pair) { return from_bits(pair_bits(pair) << 16); }
inline float second_of_pair(float pair) { return from_bits(pair_bits(pair) & 0xffff0000u); }

}  // namespace
}  // namespace dyndeploy::cpu
