// Vectors of 4 floats: AArch64 Advanced SIMD.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace dyndeploy::cpu {
namespace {

struct Neon {
  using Half = Neon;  // no narrower vectors pay
  using Reg = float32x4_t;
  static constexpr int kWidth = 4;
  static constexpr int kInputsPerRow = 1;
  static constexpr int kPanelVectors = 4;
  // 6 x 4 accumulators + 4 activations of each row + 1 or 2 vectors of weights fill the 32 registers.
  static constexpr int kTileRows = 6;
  static constexpr int kDirectRows = 6;
  static constexpr int kDirectVectors = 4;
  static constexpr bool kHasMerge = false;
  static constexpr bool kHasMatrix = false;
  static constexpr bool kHasLanes = true;
  static constexpr bool kFinishesFromMemory = true;
  static constexpr int kRegisters = 32;
  static constexpr bool kPanelInL1 = true;

  static Reg zero() { return vdupq_n_f32(0.0f); }
  static Reg load(const float* p) { return vld1q_f32(p); }
  static Reg load_bytes(const std::uint8_t* p) {
    std::uint32_t four;
    std::memcpy(&four, p, sizeof(four));
    const uint16x8_t wide = vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four)));
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(wide)));
  }
  static Reg load_first(const float* p, int n) {
    if (n >= kWidth) return load(p);
    const float32x2_t none = vdup_n_f32(0.0f);
    if (n < 2) return vcombine_f32(n ? vld1_lane_f32(p, none, 0) : none, none);
    return vcombine_f32(vld1_f32(p), n > 2 ? vld1_lane_f32(p + 2, none, 0) : none);
  }
  static void store(float* p, Reg v) { vst1q_f32(p, v); }
  static void store_first(float* p, Reg v, int n) {
    if (n >= kWidth) return store(p, v);
    if (n >= 2) vst1_f32(p, vget_low_f32(v));
    if (n == 1) vst1q_lane_f32(p, v, 0);
    if (n == 3) vst1q_lane_f32(p + 2, v, 2);
  }
  static Reg broadcast(const float* p) { return vld1q_dup_f32(p); }
  static Reg fma(Reg a, Reg b, Reg c) { return vfmaq_f32(c, a, b); }
  // c + b times one lane of a. The instruction does so without filling a register with that lane first, which
  // would take a slot of the arithmetic on its way from memory.
  template <int Lane>
  static Reg fma_lane(Reg a, Reg b, Reg c) {
#if defined(__clang__)
    return vfmaq_laneq_f32(c, b, a, Lane);
#else
    // Left to itself GCC moves sums to other registers and back.
    __asm__("fmla %0.4s, %2.4s, %1.s[%3]" : "+w"(c) : "w"(a), "w"(b), "n"(Lane));
    return c;
#endif
  }
  static Reg add(Reg a, Reg b) { return vaddq_f32(a, b); }
  static Reg mul(Reg a, Reg b) { return vmulq_f32(a, b); }
  static Reg sub(Reg a, Reg b) { return vsubq_f32(a, b); }
  static Reg multiply_add(Reg a, Reg b, Reg c) { return vfmaq_f32(c, a, b); }
  static Reg max(Reg a, Reg b) { return vmaxq_f32(a, b); }
  static Reg min(Reg a, Reg b) { return vminq_f32(a, b); }
  // a * 2^n of a whole n that leaves the exponent in its range
  static Reg scale2(Reg a, Reg n) {
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(a), vshlq_n_s32(vcvtq_s32_f32(n), 23)));
  }
  static Reg relu(Reg a) { return vmaxq_f32(a, vdupq_n_f32(0.0f)); }
  static void transpose(Reg (&rows)[kWidth]) {
    const float32x4x2_t top = vtrnq_f32(rows[0], rows[1]), bottom = vtrnq_f32(rows[2], rows[3]);
    for (int i = 0; i < 2; ++i) {
      rows[i] = vcombine_f32(vget_low_f32(top.val[i]), vget_low_f32(bottom.val[i]));
      rows[i + 2] = vcombine_f32(vget_high_f32(top.val[i]), vget_high_f32(bottom.val[i]));
    }
  }
  // As transpose(), of pairs of floats.
  static void transpose_pairs(Reg (&rows)[kWidth / 2]) {
    const Reg first = rows[0];
    rows[0] = vcombine_f32(vget_low_f32(first), vget_low_f32(rows[1]));
    rows[1] = vcombine_f32(vget_high_f32(first), vget_high_f32(rows[1]));
  }
  static float sum(Reg a) { return vaddvq_f32(a); }
  // Lane i takes lane from[i].
  static Reg permute(Reg a, const std::int32_t* from) {
    const uint32x4_t lanes = vreinterpretq_u32_s32(vld1q_s32(from));
    // The four bytes of each lane.
    const uint32x4_t bytes = vmlaq_u32(vdupq_n_u32(0x03020100), lanes, vdupq_n_u32(0x04040404));
    return vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(a), vreinterpretq_u8_u32(bytes)));
  }
};

}  // namespace
}  // namespace dyndeploy::cpu
