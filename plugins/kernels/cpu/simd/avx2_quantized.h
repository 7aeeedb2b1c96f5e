// Quads of bytes, 8 at a time, with AVX2, and with the product of AVX-VNNI. Included only by translation
// units built with those flags.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "../quantized_gemm.h"
#include "avx2.h"
#include "unroll.h"

namespace dyndeploy::cpu {
namespace {

// All but the product.
struct Avx2Bytes {
  using Sums = __m256i;
  static constexpr int kWidth = 8;
  static constexpr int kVectors = 2;
  static constexpr bool kCopies = true;
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

  // ---- weights of active channels

  // What a selection has to be for copy().
  static bool copies(const QuantizedSelection& s) { return s.pairs || (s.blocks && !s.single); }

  // Eight columns beside each other, and the lanes of a vector that take one of them.
  struct Part {
    const std::int8_t* base;  // of the first row
    __m256i from;
    __m256i lanes;
  };

  // One vector of columns, `count` rows; Parts: how many there are, or 0 for part_count. Returns the sums of
  // the rows with their inputs' constants.
  template <class V, int Parts, bool Constants>
  static DYNDEPLOY_NOINLINE Sums copy_vector(const QuantizedSelection& s, const Part* parts, int part_count,
                                             const std::int32_t* rows, int count, std::int8_t* out) {
    constexpr int kRow = kVectors * kWidth * 4, kAhead = 16;
    static_assert(2 * kAhead + 1 < kQuantizedListMargin, "lists are read that far beyond their end");
    const int number = Parts ? Parts : part_count;
    const std::uint8_t* constants = s.constants;
    Sums sum = _mm256_setzero_si256();
    // Copies, which no store can change.
    Part own[Parts ? Parts : 1];
    DYNDEPLOY_UNROLL
    for (int i = 0; i < Parts; ++i) own[i] = parts[i];
    for (int q = 0; q < count; ++q, out += kRow, rows += 2) {
      __m256i quads = _mm256_setzero_si256();
      const auto take = [&](const Part& part, int i) __attribute__((always_inline)) {
        // The block of the other parts was fetched for the vector before.
        if (i == number - 1) {
          __builtin_prefetch(part.base + rows[2 * kAhead]);
          __builtin_prefetch(part.base + rows[2 * kAhead + 1]);
        }
        const auto words = [&](std::int32_t row) __attribute__((always_inline)) {
          return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(part.base + row)));
        };
        const __m256i all = _mm256_or_si256(words(rows[0]), _mm256_slli_epi32(words(rows[1]), 16));
        const __m256i taken = _mm256_permutevar8x32_epi32(all, part.from);
        quads = number == 1 ? taken : _mm256_or_si256(quads, _mm256_and_si256(taken, part.lanes));
      };
      if constexpr (Parts > 0) {
        DYNDEPLOY_UNROLL
        for (int i = 0; i < Parts; ++i) take(own[i], i);
      } else {
        for (int i = 0; i < number; ++i) take(parts[i], i);
      }
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), quads);
      if constexpr (Constants) {
        sum = V::dot(V::inputs(constants), V::weights(out), sum);
        constants += 4;
      }
    }
    return sum;
  }

  template <class V, bool Constants>
  static Sums copy_parts(const QuantizedSelection& s, const Part* parts, int number, const std::int32_t* rows,
                         int count, std::int8_t* out) {
    switch (number) {
      case 1:
        return copy_vector<V, 1, Constants>(s, parts, number, rows, count, out);
      case 2:
        return copy_vector<V, 2, Constants>(s, parts, number, rows, count, out);
      case 3:
        return copy_vector<V, 3, Constants>(s, parts, number, rows, count, out);
      default:
        return copy_vector<V, 0, Constants>(s, parts, number, rows, count, out);
    }
  }

  // Four pairs of columns are turned into rows.
  static void copy_pairs(const QuantizedCopy& copy) {
    constexpr int kPairs = kWidth / 2, kRow = kVectors * kWidth * 4, kAhead = 512;
    const QuantizedSelection& s = *copy.from.selection;
    for (int begin = 0; begin < copy.count; begin += kWidth) {
      const std::int8_t* from[kPairs];
      for (int i = 0; i < kPairs; ++i) {
        // Lanes beyond the last column hold anything.
        const int n = begin + 2 * i < copy.count ? begin + 2 * i : begin;
        from[i] = s.pairs + copy.source(n) / 2 * s.pair_stride;
      }
      std::int8_t* out = copy.b + begin * 4;
      for (int row = 0; row < copy.quads; row += kPairs) {
        __m256 r[kPairs];
        DYNDEPLOY_UNROLL
        for (int i = 0; i < kPairs; ++i) {
          __builtin_prefetch(from[i] + kAhead);
          r[i] = _mm256_loadu_ps(reinterpret_cast<const float*>(from[i]));
          from[i] += 8 * kPairs;
        }
        Avx2::transpose_pairs(r);
        DYNDEPLOY_UNROLL
        for (int i = 0; i < kPairs; ++i) {
          if (row + i < copy.quads) _mm256_storeu_ps(reinterpret_cast<float*>(out), r[i]);
          out += kRow;
        }
      }
    }
  }

  // Tap by tap, so that the vectors of a panel find each other's lines in the first level.
  template <class V>
  static void copy_selected(const QuantizedCopy& copy, std::int32_t* through) {
    constexpr int kRow = kVectors * kWidth * 4;
    const QuantizedSelection& s = *copy.from.selection;
    if (s.pairs) return copy_pairs(copy);
    Part parts[kVectors * kWidth];
    int ends[kVectors], vectors = 0, used = 0;
    for (int begin = 0; begin < copy.count; begin += kWidth) {
      const int first = used;
      std::int32_t from[kWidth] = {}, part_of[kWidth];
      for (int n = 0; n < kWidth; ++n) {
        part_of[n] = -1;
        if (begin + n >= copy.count) continue;
        const int column = copy.source(begin + n);
        const std::int8_t* const base = s.blocks + column / kBlockColumns * s.block_stride +
                                        column % kBlockColumns / kWidth * (2 * kWidth);
        if (used == first || parts[used - 1].base != base) parts[used++].base = base;
        from[n] = column % kWidth;
        part_of[n] = used - 1;
      }
      const __m256i own = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(part_of));
      for (int i = first; i < used; ++i) {
        parts[i].from = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
        parts[i].lanes = _mm256_cmpeq_epi32(own, _mm256_set1_epi32(i));
      }
      ends[vectors++] = used;
    }
    const auto run = s.constants ? &copy_parts<V, true> : &copy_parts<V, false>;
    for (int t = 0; t < copy.taps; ++t) {
      const int begin = t * copy.quads;
      std::int8_t* const out = copy.b + begin * std::ptrdiff_t{kRow};
      for (int v = 0, first = 0; v < vectors; first = ends[v++]) {
        const Sums sum =
            run(s, parts + first, ends[v] - first, s.rows + 2 * begin, copy.quads, out + v * kWidth * 4);
        std::int32_t* const to = through + (t * (kVectors + 1) + v) * kWidth;
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), sum);
      }
    }
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
  static void copy(const QuantizedCopy& copy, std::int32_t* through) {
    copy_selected<Avx2Quantized>(copy, through);
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
  static void copy(const QuantizedCopy& copy, std::int32_t* through) {
    copy_selected<Avx2QuantizedWide>(copy, through);
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
  static void copy(const QuantizedCopy& copy, std::int32_t* through) {
    copy_selected<AvxVnni>(copy, through);
  }
};
#endif

}  // namespace
}  // namespace dyndeploy::cpu
