// Quads of bytes, 8 at a time, with AVX2, and with the product of AVX-VNNI. Included only by translation
// units built with those flags.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "unroll.h"

namespace dyndeploy::cpu {
namespace {

// All but the product.
struct Avx2Bytes {
  using Sums = __m256i;
  static constexpr int kWidth = 8;
  static constexpr int kVectors = 2;
  static constexpr bool kCopies = false;
  static constexpr bool kFlips = false;
  static constexpr bool kHasLanes = false;

  // Sums as words, in the order of the pack instruction: each 128 bits hold four columns of the first vector,
  // then four of the second.
  template <int NV>
  struct Words {
    __m256i value;
  };

  static Sums load(const std::int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static std::int32_t quad(const std::uint8_t* p) {
    std::int32_t value;
    __builtin_memcpy(&value, p, sizeof value);
    return value;
  }
  static __m256i rounded(Sums c, const float* multiplier) {
    return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_cvtepi32_ps(c), _mm256_loadu_ps(multiplier)));
  }
  template <int NV>
  static Words<NV> requantise(const Sums (&c)[NV], const float* multiplier) {
    const __m256i low = rounded(c[0], multiplier);
    if constexpr (NV == 1)
      return {_mm256_packs_epi32(low, _mm256_setzero_si256())};
    else
      return {_mm256_packs_epi32(low, rounded(c[1], multiplier + kWidth))};
  }
  template <int NV>
  static Words<NV> add(Words<NV> a, Words<NV> b) {
    return {_mm256_adds_epi16(a.value, b.value)};
  }
  // Between columns in order and the order of the pack instruction, its own inverse.
  static __m128i reorder(__m128i bytes) { return _mm_shuffle_epi32(bytes, _MM_SHUFFLE(3, 1, 2, 0)); }
  // NV vectors of bytes; count: only so many of them are there.
  template <int NV>
  static Words<NV> bytes(const std::uint8_t* p, int count = NV * kWidth) {
    __m128i ordered = _mm_setzero_si128();
    if (count == 2 * kWidth)
      ordered = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    else if (count == kWidth)
      ordered = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    else
      __builtin_memcpy(&ordered, p, static_cast<std::size_t>(count));
    return {_mm256_cvtepu8_epi16(reorder(ordered))};
  }
  template <int NV>
  static void store(std::uint8_t* p, Words<NV> w, int count = NV * kWidth) {
    const __m128i low = _mm256_castsi256_si128(w.value), high = _mm256_extracti128_si256(w.value, 1);
    const __m128i x = reorder(_mm_packus_epi16(low, high));
    if (count == 2 * kWidth)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), x);
    else if (count == kWidth)
      _mm_storel_epi64(reinterpret_cast<__m128i*>(p), x);
    else
      __builtin_memcpy(p, &x, static_cast<std::size_t>(count));
  }
};

// Pairs of products are added up in 16 bits, exact for weights of 7 bits: 2 * 255 * 64 < 2^15.
struct Avx2Quantized : Avx2Bytes {
  using Inputs = __m256i;
  using Weights = __m256i;
  // 4 x 2 sums + 2 weights + 1 quad of inputs + 2 products + the ones that add up pairs
  static constexpr int kRows = 4;
  static constexpr int kWeightLimit = 64;

  static Weights weights(const std::int8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static Inputs inputs(const std::uint8_t* p) { return _mm256_set1_epi32(quad(p)); }
  static Sums dot(Inputs x, Weights w, Sums c) {
    const __m256i pairs = _mm256_maddubs_epi16(x, w);
    return _mm256_add_epi32(c, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
};

// Inputs and weights as words first, exact for all weights.
struct Avx2QuantizedWide : Avx2Bytes {
  struct Inputs {
    __m256i even, odd;
  };
  using Weights = Inputs;
  static constexpr int kRows = 4;
  static constexpr int kWeightLimit = 128;

  static Weights weights(const std::int8_t* p) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8), _mm256_srai_epi16(bytes, 8)};
  }
  static Inputs inputs(const std::uint8_t* p) {
    const __m256i bytes = _mm256_set1_epi32(quad(p));
    return {_mm256_and_si256(bytes, _mm256_set1_epi16(255)), _mm256_srli_epi16(bytes, 8)};
  }
  static Sums dot(Inputs x, Weights w, Sums c) {
    c = _mm256_add_epi32(c, _mm256_madd_epi16(x.even, w.even));
    return _mm256_add_epi32(c, _mm256_madd_epi16(x.odd, w.odd));
  }
};

#if defined(__AVXVNNI__)
struct AvxVnni : Avx2Bytes {
  using Inputs = __m256i;
  using Weights = __m256i;
  // 6 x 2 sums + 2 weights + 1 quad of inputs
  static constexpr int kRows = 6;
  static constexpr int kWeightLimit = 128;

  static Weights weights(const std::int8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static Inputs inputs(const std::uint8_t* p) { return _mm256_set1_epi32(quad(p)); }
  static Sums dot(Inputs x, Weights w, Sums c) {
    return DYNDEPLOY_ACCUMULATE("%{vex%} vpdpbusd", _mm256_dpbusd_avx_epi32(c, x, w), x, w, c);
  }
};
#endif

}  // namespace
}  // namespace dyndeploy::cpu
