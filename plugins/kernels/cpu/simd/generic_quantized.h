// Quads of bytes in plain C++.
#pragma once

#include <cstdint>

#include "unroll.h"

namespace dyndeploy::cpu {
namespace {

struct GenericQuantized {
  static constexpr int kWidth = 4;
  static constexpr int kVectors = 2;
  static constexpr int kRows = 4;
  static constexpr int kWeightLimit = 128;
  static constexpr bool kCopies = false;
  static constexpr bool kFlips = false;
  static constexpr bool kHasLanes = false;
  struct Sums {
    std::int32_t lane[kWidth];
  };
  struct Inputs {
    std::uint8_t byte[4];
  };
  struct Weights {
    const std::int8_t* byte;
  };
  template <int NV>
  struct Words {
    std::int32_t value[NV * kWidth];
  };

  static Sums load(const std::int32_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
  static Weights weights(const std::int8_t* p) { return {p}; }
  static Inputs inputs(const std::uint8_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
  static Sums dot(Inputs x, Weights w, Sums c) {
    for (int n = 0; n < kWidth; ++n) {
      for (int i = 0; i < 4; ++i) c.lane[n] += x.byte[i] * w.byte[4 * n + i];
    }
    return c;
  }
  static std::int32_t saturate(std::int32_t v) { return v < -32768 ? -32768 : v > 32767 ? 32767 : v; }
  // Built without contraction of floating-point operations: the product is rounded before anything else.
  static std::int32_t round(float v) {
    if (v <= -32768.0f) return -32768;
    if (v >= 32767.0f) return 32767;
    constexpr float kEven = 12582912.0f;  // 1.5 * 2^23: the sum has no bits behind the point, ties go to even
    volatile float sum = v + kEven;
    return static_cast<std::int32_t>(sum - kEven);
  }
  template <int NV>
  static Words<NV> requantise(const Sums (&c)[NV], const float* multiplier) {
    Words<NV> w;
    for (int i = 0; i < NV * kWidth; ++i)
      w.value[i] = round(static_cast<float>(c[i / kWidth].lane[i % kWidth]) * multiplier[i]);
    return w;
  }
  template <int NV>
  static Words<NV> add(Words<NV> a, Words<NV> b) {
    for (int i = 0; i < NV * kWidth; ++i) a.value[i] = saturate(a.value[i] + b.value[i]);
    return a;
  }
  // NV vectors of bytes; count: only so many of them are there.
  template <int NV>
  static Words<NV> bytes(const std::uint8_t* p, int count = NV * kWidth) {
    Words<NV> w;
    for (int i = 0; i < NV * kWidth; ++i) w.value[i] = i < count ? p[i] : 0;
    return w;
  }
  template <int NV>
  static void store(std::uint8_t* p, Words<NV> w, int count = NV * kWidth) {
    for (int i = 0; i < count; ++i)
      p[i] = static_cast<std::uint8_t>(w.value[i] < 0 ? 0 : w.value[i] > 255 ? 255 : w.value[i]);
  }
};

}  // namespace
}  // namespace dyndeploy::cpu
