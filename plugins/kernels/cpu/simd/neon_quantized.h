// Quads of bytes, 4 at a time: AArch64 Advanced SIMD, with its dot product and without.
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "unroll.h"

namespace dyndeploy::cpu {
namespace {

// All but the product. There is none of unsigned and signed bytes: inputs are x - 128, which kFlips tells.
struct NeonBytes {
  using Sums = int32x4_t;
  using Inputs = int8x16_t;
  using Weights = int8x16_t;
  static constexpr int kWidth = 4;
  static constexpr int kVectors = 4;
  static constexpr bool kCopies = false;
  static constexpr bool kFlips = true;

  // Words of eight columns each; the upper half of the last is empty where NV is odd.
  template <int NV>
  struct Words {
    int16x8_t value[(NV + 1) / 2];
  };

  static Sums load(const std::int32_t* p) { return vld1q_s32(p); }
  static Sums sum(Sums a, Sums b) { return vaddq_s32(a, b); }
  static Weights weights(const std::int8_t* p) { return vld1q_s8(p); }
  static Inputs inputs(const std::uint8_t* p) {
    std::uint32_t quad;
    std::memcpy(&quad, p, sizeof quad);
    return vreinterpretq_s8_u8(veorq_u8(vreinterpretq_u8_u32(vdupq_n_u32(quad)), vdupq_n_u8(0x80)));
  }
  static int16x4_t rounded(Sums c, const float* multiplier) {
    return vqmovn_s32(vcvtnq_s32_f32(vmulq_f32(vcvtq_f32_s32(c), vld1q_f32(multiplier))));
  }
  template <int NV>
  static Words<NV> requantise(const Sums (&c)[NV], const float* multiplier) {
    Words<NV> w;
    DYNDEPLOY_UNROLL
    for (int i = 0; i < NV; i += 2) {
      const int16x4_t low = rounded(c[i], multiplier + i * kWidth);
      const bool both = i + 1 < NV;
      const int16x4_t high =
          both ? rounded(c[both ? i + 1 : i], multiplier + (both ? i + 1 : i) * kWidth) : vdup_n_s16(0);
      w.value[i / 2] = vcombine_s16(low, high);
    }
    return w;
  }
  template <int NV>
  static Words<NV> add(Words<NV> a, Words<NV> b) {
    DYNDEPLOY_UNROLL
    for (int i = 0; i < (NV + 1) / 2; ++i) a.value[i] = vqaddq_s16(a.value[i], b.value[i]);
    return a;
  }
  // NV vectors of bytes; count: only so many of them are there.
  template <int NV>
  static Words<NV> bytes(const std::uint8_t* p, int count = NV * kWidth) {
    std::uint8_t copy[kVectors * kWidth] = {};
    if (NV % 2 || count < NV * kWidth) {
      std::memcpy(copy, p, static_cast<std::size_t>(count));
      p = copy;
    }
    Words<NV> w;
    DYNDEPLOY_UNROLL
    for (int i = 0; i < (NV + 1) / 2; ++i) w.value[i] = vreinterpretq_s16_u16(vmovl_u8(vld1_u8(p + 8 * i)));
    return w;
  }
  template <int NV>
  static void store(std::uint8_t* p, Words<NV> w, int count = NV * kWidth) {
    std::uint8_t copy[kVectors * kWidth];
    const bool whole = NV % 2 == 0 && count == NV * kWidth;
    std::uint8_t* const to = whole ? p : copy;
    DYNDEPLOY_UNROLL
    for (int i = 0; i < (NV + 1) / 2; ++i) vst1_u8(to + 8 * i, vqmovun_s16(w.value[i]));
    if (!whole) std::memcpy(p, copy, static_cast<std::size_t>(count));
  }
};

// Two products are added up in 16 bits: 2 * 128 * 127 < 2^15.
struct NeonQuantized : NeonBytes {
  // 4 x 4 sums + 4 weights + 1 quad of inputs + products
  static constexpr int kRows = 4;
  static constexpr int kWeightLimit = 127;
  static constexpr bool kHasLanes = false;

  static Sums dot(Inputs x, Weights w, Sums c) {
    const int16x8_t low = vmull_s8(vget_low_s8(x), vget_low_s8(w)), high = vmull_high_s8(x, w);
    return vpadalq_s16(c, vpaddq_s16(low, high));
  }
};

#if defined(__ARM_FEATURE_DOTPROD)
struct NeonDot : NeonBytes {
  // 6 x 4 sums + 4 quads of inputs of each row + 1 or 2 weights fill the 32 registers.
  static constexpr int kRows = 6;
  static constexpr int kWeightLimit = 128;
  static constexpr bool kHasLanes = true;

  static Inputs four_quads(const std::uint8_t* p) {
    return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(p), vdupq_n_u8(0x80)));
  }
  template <int Lane>
  static Sums dot_lane(Inputs x, Weights w, Sums c) {
    return vdotq_laneq_s32(c, w, x, Lane);
  }
  static Sums dot(Inputs x, Weights w, Sums c) { return vdotq_s32(c, w, x); }
};
#endif

}  // namespace
}  // namespace dyndeploy::cpu
