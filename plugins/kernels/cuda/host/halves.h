// Halves as bits on the host, rounded as a GPU rounds them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace dyndeploy {
namespace cuda {
namespace host {

inline float half_to_float(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
  const int exponent = (bits >> 10) & 31;
  const std::uint32_t fraction = bits & 0x3ffu;
  if (exponent == 0) {
    const float magnitude = std::ldexp(static_cast<float>(fraction), -24);
    return sign ? -magnitude : magnitude;
  }
  const std::uint32_t wide = exponent == 31 ? 255u : static_cast<std::uint32_t>(exponent + 112);
  const std::uint32_t word = sign | (wide << 23) | (fraction << 13);
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

// To nearest, ties to even.
inline std::uint16_t float_to_half(float value) {
  std::uint32_t word;
  std::memcpy(&word, &value, sizeof word);
  const std::uint16_t sign = static_cast<std::uint16_t>((word >> 16) & 0x8000u);
  const std::uint32_t magnitude = word & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7fffu);
  if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {  // subnormal: units of 2^-24; nearbyint rounds ties to even
    float positive;
    std::memcpy(&positive, &magnitude, sizeof positive);
    return static_cast<std::uint16_t>(sign |
                                      static_cast<std::uint16_t>(std::nearbyint(std::ldexp(positive, 24))));
  }
  const std::uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

// a * b + c of halves, rounded once as HFMA2 rounds it. The double is exact wherever that decides; brought to
// a float whose last bit is odd where it is not exact, it rounds to a half as the double itself would.
inline std::uint16_t fused_multiply_add(std::uint16_t a, std::uint16_t b, std::uint16_t c) {
  const double sum = static_cast<double>(half_to_float(a)) * static_cast<double>(half_to_float(b)) +
                     static_cast<double>(half_to_float(c));
  float value = static_cast<float>(sum);
  const double rounded = static_cast<double>(value);
  std::uint32_t word;
  std::memcpy(&word, &value, sizeof word);
  if ((word & 1u) == 0 && (rounded < sum || rounded > sum)) {
    word += std::fabs(rounded) < std::fabs(sum) ? 1u : 0xffffffffu;
    std::memcpy(&value, &word, sizeof value);
  }
  return float_to_half(value);
}

}  // namespace host
}  // namespace cuda
}  // namespace dyndeploy
