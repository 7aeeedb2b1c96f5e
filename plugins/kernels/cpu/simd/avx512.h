// Vectors of 16 floats: AVX-512 F/BW/DQ/VL. Included only by translation units built with those flags.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "avx2.h"
#include "unroll.h"

namespace dyndeploy::cpu {
namespace {

// Vectors of 8 floats with all 32 registers, for what would leave half of 16 lanes empty.
struct Avx512Half : Avx2 {
  static constexpr int kRegisters = 32;
};

struct Avx512 {
  using Reg = __m512;
  using Half = Avx512Half;
  static constexpr int kWidth = 16;
  static constexpr int kInputsPerRow = 1;
  static constexpr int kPanelVectors = 2;
  // 14 x 2 accumulators + 2 weights + 1 activation fill 31 of the 32 registers.
  static constexpr int kTileRows = 14;
  // 6 x 4 accumulators: fewer rows, so that each row's address can stay in a general register.
  static constexpr int kDirectRows = 6;
  static constexpr int kDirectVectors = 4;
  static constexpr bool kHasMerge = true;
  static constexpr bool kHasMatrix = false;
  static constexpr bool kHasLanes = false;
  static constexpr bool kFinishesFromMemory = false;
  static constexpr int kRegisters = 32;
  static constexpr bool kPanelInL1 = false;

  static __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
  static Reg zero() { return _mm512_setzero_ps(); }
  static Reg load(const float* p) { return _mm512_loadu_ps(p); }
  static Reg load_bytes(const std::uint8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static Reg load_first(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static void store(float* p, Reg v) { _mm512_storeu_ps(p, v); }
  static void store_first(float* p, Reg v, int n) { _mm512_mask_storeu_ps(p, first(n), v); }
  static Reg broadcast(const float* p) { return _mm512_set1_ps(*p); }
  static Reg fma(Reg a, Reg b, Reg c) {
    return DYNDEPLOY_ACCUMULATE("vfmadd231ps", _mm512_fmadd_ps(a, b, c), a, b, c);
  }
  static Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
  static Reg sub(Reg a, Reg b) { return _mm512_sub_ps(a, b); }
  static Reg multiply_add(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static Reg max(Reg a, Reg b) { return _mm512_max_ps(a, b); }
  static Reg min(Reg a, Reg b) { return _mm512_min_ps(a, b); }
  // a * 2^n of a whole n that leaves the exponent in its range
  static Reg scale2(Reg a, Reg n) { return _mm512_scalef_ps(a, n); }
  // The operand order lets NaN through.
  static Reg relu(Reg a) { return _mm512_max_ps(_mm512_setzero_ps(), a); }
  // Pairs of floats, then pairs of pairs within 128 bits, then the 128-bit quarters, twice.
  static void transpose(Reg (&rows)[kWidth]) {
    Reg pairs[kWidth], quads[kWidth];
    DYNDEPLOY_UNROLL
    for (int i = 0; i < 16; i += 2) {
      pairs[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
      pairs[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
    }
    DYNDEPLOY_UNROLL
    for (int i = 0; i < 16; i += 4) {
      quads[i] = _mm512_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
      quads[i + 1] = _mm512_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
      quads[i + 2] = _mm512_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
      quads[i + 3] = _mm512_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
    }
    DYNDEPLOY_UNROLL
    for (int i = 0; i < 4; ++i) {
      const Reg even_low = _mm512_shuffle_f32x4(quads[i], quads[i + 4], 0x88);
      const Reg odd_low = _mm512_shuffle_f32x4(quads[i], quads[i + 4], 0xdd);
      const Reg even_high = _mm512_shuffle_f32x4(quads[i + 8], quads[i + 12], 0x88);
      const Reg odd_high = _mm512_shuffle_f32x4(quads[i + 8], quads[i + 12], 0xdd);
      rows[i] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
      rows[i + 4] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
      rows[i + 8] = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
      rows[i + 12] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
    }
  }
  // As transpose(), of pairs of floats.
  static void transpose_pairs(Reg (&rows)[kWidth / 2]) {
    __m512d two[8], four[8];
    DYNDEPLOY_UNROLL
    for (int i = 0; i < 8; i += 2) {
      two[i] = _mm512_unpacklo_pd(_mm512_castps_pd(rows[i]), _mm512_castps_pd(rows[i + 1]));
      two[i + 1] = _mm512_unpackhi_pd(_mm512_castps_pd(rows[i]), _mm512_castps_pd(rows[i + 1]));
    }
    DYNDEPLOY_UNROLL
    for (int i = 0; i < 2; ++i) {
      four[i] = _mm512_shuffle_f64x2(two[i], two[i + 2], 0x88);
      four[i + 2] = _mm512_shuffle_f64x2(two[i], two[i + 2], 0xdd);
      four[i + 4] = _mm512_shuffle_f64x2(two[i + 4], two[i + 6], 0x88);
      four[i + 6] = _mm512_shuffle_f64x2(two[i + 4], two[i + 6], 0xdd);
    }
    DYNDEPLOY_UNROLL
    for (int i = 0; i < 4; ++i) {
      rows[i] = _mm512_castpd_ps(_mm512_shuffle_f64x2(four[i], four[i + 4], 0x88));
      rows[i + 4] = _mm512_castpd_ps(_mm512_shuffle_f64x2(four[i], four[i + 4], 0xdd));
    }
  }
  static float sum(Reg a) { return _mm512_reduce_add_ps(a); }
  // Puts lane from[i] of b into lane i of a where mask has bit i.
  using Lanes = __m512i;
  using Mask = __mmask16;
  static Lanes lanes(const int* from) { return _mm512_loadu_si512(from); }
  static Reg merge(Reg a, Reg b, Lanes from, Mask mask) {
    return _mm512_mask_permutexvar_ps(a, mask, from, b);
  }
  // Lane i takes lane from[i].
  static Reg permute(Reg a, const std::int32_t* from) {
    return _mm512_permutexvar_ps(_mm512_loadu_si512(from), a);
  }
};

}  // namespace
}  // namespace dyndeploy::cpu
