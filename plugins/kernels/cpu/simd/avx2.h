// Vectors of 8 floats: AVX2 with FMA. Included only by translation units built with those flags.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "unroll.h"

namespace dyndeploy::cpu {
namespace {

struct Avx2 {
  using Half = Avx2;  // no narrower vectors pay
  using Reg = __m256;
  static constexpr int kWidth = 8;
  static constexpr int kInputsPerRow = 1;
  static constexpr int kPanelVectors = 2;
  // 6 x 2 accumulators + 2 weights + 1 activation fill 15 of the 16 registers.
  static constexpr int kTileRows = 6;
  static constexpr int kDirectRows = 6;
  static constexpr int kDirectVectors = 2;
  static constexpr bool kHasMerge = false;
  static constexpr bool kHasMatrix = false;
  static constexpr bool kHasLanes = false;
  static constexpr bool kFinishesFromMemory = false;
  static constexpr int kRegisters = 16;
  static constexpr bool kPanelInL1 = false;

  static __m256i first(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static Reg zero() { return _mm256_setzero_ps(); }
  static Reg load(const float* p) { return _mm256_loadu_ps(p); }
  static Reg load_bytes(const std::uint8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  static Reg load_first(const float* p, int n) { return _mm256_maskload_ps(p, first(n)); }
  static void store(float* p, Reg v) { _mm256_storeu_ps(p, v); }
  static void store_first(float* p, Reg v, int n) { _mm256_maskstore_ps(p, first(n), v); }
  static Reg broadcast(const float* p) { return _mm256_broadcast_ss(p); }
  static Reg fma(Reg a, Reg b, Reg c) {
    return DYNDEPLOY_ACCUMULATE("vfmadd231ps", _mm256_fmadd_ps(a, b, c), a, b, c);
  }
  static Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
  static Reg sub(Reg a, Reg b) { return _mm256_sub_ps(a, b); }
  static Reg multiply_add(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  static Reg max(Reg a, Reg b) { return _mm256_max_ps(a, b); }
  static Reg min(Reg a, Reg b) { return _mm256_min_ps(a, b); }
  // a * 2^n of a whole n that leaves the exponent in its range
  static Reg scale2(Reg a, Reg n) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), exponent));
  }
  // The operand order lets NaN through.
  static Reg relu(Reg a) { return _mm256_max_ps(_mm256_setzero_ps(), a); }
  // Pairs of floats, then pairs of pairs within 128 bits, then the 128-bit halves.
  static void transpose(Reg (&rows)[kWidth]) {
    Reg pairs[kWidth], quads[kWidth];
    for (int i = 0; i < 8; i += 2) {
      pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
      pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
      quads[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
      quads[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
      quads[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
      quads[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
      rows[i] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20);
      rows[i + 4] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31);
    }
  }
  // As transpose(), of pairs of floats.
  static void transpose_pairs(Reg (&rows)[kWidth / 2]) {
    __m256d two[4];
    for (int i = 0; i < 4; i += 2) {
      two[i] = _mm256_unpacklo_pd(_mm256_castps_pd(rows[i]), _mm256_castps_pd(rows[i + 1]));
      two[i + 1] = _mm256_unpackhi_pd(_mm256_castps_pd(rows[i]), _mm256_castps_pd(rows[i + 1]));
    }
    for (int i = 0; i < 2; ++i) {
      rows[i] = _mm256_castpd_ps(_mm256_permute2f128_pd(two[i], two[i + 2], 0x20));
      rows[i + 2] = _mm256_castpd_ps(_mm256_permute2f128_pd(two[i], two[i + 2], 0x31));
    }
  }
  static float sum(Reg a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  // Lane i takes lane from[i].
  static Reg permute(Reg a, const std::int32_t* from) {
    return _mm256_permutevar8x32_ps(a, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
};

}  // namespace
}  // namespace dyndeploy::cpu
