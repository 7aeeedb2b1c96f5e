// Quads of bytes, 16 at a time: AVX-512 VNNI. Included only by translation units built with those flags.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "../quantized_gemm.h"
#include "avx512.h"
#include "unroll.h"

namespace dyndeploy::cpu {
namespace {

struct Avx512Vnni {
  using Sums = __m512i;
  using Inputs = __m512i;
  using Weights = __m512i;
  static constexpr int kWidth = 16;
  static constexpr int kVectors = 4;
  // 6 x 4 sums + 4 weights + 1 quad of inputs; the address of each row stays in a general register.
  static constexpr int kRows = 6;
  static constexpr int kWeightLimit = 128;
  static constexpr bool kCopies = true;
  static constexpr bool kFlips = false;
  static constexpr bool kHasLanes = false;

  // NV vectors of sums as words, in the order of the pack instructions: each 128 bits of the first vector
  // hold four columns of vector 0, then four of vector 1; the second vector likewise 2 and 3.
  template <int NV>
  struct Words {
    __m512i low, high;
  };

  static Sums load(const std::int32_t* p) { return _mm512_loadu_si512(p); }
  static Weights weights(const std::int8_t* p) { return _mm512_loadu_si512(p); }
  static Inputs inputs(const std::uint8_t* p) {
    std::int32_t quad;
    __builtin_memcpy(&quad, p, sizeof quad);
    return _mm512_set1_epi32(quad);
  }
  static Sums dot(Inputs x, Weights w, Sums c) {
    return DYNDEPLOY_ACCUMULATE("vpdpbusd", _mm512_dpbusd_epi32(c, x, w), x, w, c);
  }

  static __m512i rounded(Sums c, const float* multiplier) {
    const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(c), _mm512_loadu_ps(multiplier));
    return _mm512_cvt_roundps_epi32(product, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  template <int NV>
  static Words<NV> requantise(const Sums (&c)[NV], const float* multiplier) {
    __m512i v[4];
    DYNDEPLOY_UNROLL
    for (int i = 0; i < 4; ++i)
      v[i] = i < NV ? rounded(c[i < NV ? i : 0], multiplier + (i < NV ? i : 0) * kWidth)
                    : _mm512_setzero_si512();
    return {_mm512_packs_epi32(v[0], v[1]), NV > 2 ? _mm512_packs_epi32(v[2], v[3]) : _mm512_setzero_si512()};
  }
  template <int NV>
  static Words<NV> add(Words<NV> a, Words<NV> b) {
    return {_mm512_adds_epi16(a.low, b.low), NV > 2 ? _mm512_adds_epi16(a.high, b.high) : a.high};
  }
  // Between columns in order and the order of the pack instructions: a transposition of 4 x 4 groups of four
  // bytes, its own inverse.
  static __m512i reorder(__m512i bytes) {
    const __m512i from = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_epi32(from, bytes);
  }
  static __mmask64 first(int n) { return n >= 64 ? ~__mmask64{0} : (__mmask64{1} << n) - 1; }
  // NV vectors of bytes; count: only so many of them are there.
  template <int NV>
  static Words<NV> bytes(const std::uint8_t* p, int count = NV * kWidth) {
    const __m512i ordered =
        NV == 4 && count == 64 ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi8(first(count), p);
    const __m512i x = reorder(ordered), zero = _mm512_setzero_si512();
    return {_mm512_unpacklo_epi8(x, zero), NV > 2 ? _mm512_unpackhi_epi8(x, zero) : zero};
  }
  template <int NV>
  static void store(std::uint8_t* p, Words<NV> w, int count = NV * kWidth) {
    const __m512i x = reorder(_mm512_packus_epi16(w.low, w.high));
    if (NV == 4 && count == 64)
      _mm512_storeu_si512(p, x);
    else if (NV == 2 && count == 32)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_castsi512_si256(x));
    else
      _mm512_mask_storeu_epi8(p, first(count), x);
  }

  // Those of a vector's 16 columns that come from one block of 32: each takes two words from one of two
  // vectors.
  struct Part {
    const std::int8_t* base;
    __m512i from;
    __mmask32 words;
  };
  enum class From { kPanel, kPairs, kSingles };

  // Two inputs, each one of a pair, as words of a pair of their own.
  static __m512i pair_up(const std::int8_t* base, std::int32_t a, std::int32_t b) {
    const __m512i first =
        _mm512_srl_epi16(_mm512_loadu_si512(base + (a & ~1)), _mm_cvtsi32_si128(a & 1 ? 8 : 0));
    const __m512i second =
        _mm512_sll_epi16(_mm512_loadu_si512(base + (b & ~1)), _mm_cvtsi32_si128(b & 1 ? 0 : 8));
    return _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaaull, first, second);
  }

  // One vector of columns of rows [begin, begin + count); Parts: how many there are, or 0 for part_count.
  // Returns the sums of the rows with their inputs' constants.
  template <From Kind, int Parts, bool Constants>
  static DYNDEPLOY_NOINLINE __m512i copy_vector(const QuantizedSelection& s, const Part* parts,
                                                int part_count, int begin, int count, std::int8_t* out) {
    constexpr int kRow = kVectors * kWidth * 4, kAhead = 16;
    static_assert(4 * kAhead + 3 < kQuantizedListMargin, "lists are read that far beyond their end");
    const int number = Parts ? Parts : part_count;
    const std::int32_t* rows =
        Kind == From::kPanel ? nullptr : s.rows + begin * (Kind == From::kPairs ? 2 : 4);
    const std::uint8_t* constants = s.constants;
    std::ptrdiff_t offset = begin * std::ptrdiff_t{kRow};
    __m512i sum = _mm512_setzero_si512();
    // Copies, which no store can change.
    Part own[Parts ? Parts : 1];
    DYNDEPLOY_UNROLL
    for (int i = 0; i < Parts; ++i) own[i] = parts[i];
    for (int q = 0; q < count; ++q, out += kRow) {
      __m512i quads = _mm512_setzero_si512();
      const auto take = [&](const Part& part, int i) __attribute__((always_inline)) {
        const std::int8_t* const base = part.base;
        __m512i low, high;
        if constexpr (Kind == From::kPanel) {
          const std::int8_t* const row = base + offset;
          low = _mm512_loadu_si512(row);
          high = _mm512_loadu_si512(row + 64);
        } else if constexpr (Kind == From::kPairs) {
          // The block of the other parts was fetched for the vector before.
          if (i == number - 1) {
            __builtin_prefetch(base + rows[2 * kAhead]);
            __builtin_prefetch(base + rows[2 * kAhead + 1]);
          }
          low = _mm512_loadu_si512(base + rows[0]);
          high = _mm512_loadu_si512(base + rows[1]);
        } else {
          low = pair_up(base, rows[0], rows[1]);
          high = pair_up(base, rows[2], rows[3]);
        }
        const __m512i taken = _mm512_maskz_permutex2var_epi16(part.words, low, part.from, high);
        quads = i ? _mm512_or_si512(quads, taken) : taken;
      };
      if constexpr (Parts > 0) {
        DYNDEPLOY_UNROLL
        for (int i = 0; i < Parts; ++i) take(own[i], i);
      } else {
        for (int i = 0; i < number; ++i) take(parts[i], i);
      }
      _mm512_storeu_si512(out, quads);
      if constexpr (Constants) {
        sum = dot(inputs(constants), quads, sum);
        constants += 4;
      }
      if constexpr (Kind == From::kPanel)
        offset += kRow;
      else
        rows += Kind == From::kPairs ? 2 : 4;
    }
    return sum;
  }

  template <From Kind, bool Constants>
  static __m512i copy_parts(const QuantizedSelection& s, const Part* parts, int number, int begin, int count,
                            std::int8_t* out) {
    switch (number) {
      case 1:
        return copy_vector<Kind, 1, Constants>(s, parts, number, begin, count, out);
      case 2:
        return copy_vector<Kind, 2, Constants>(s, parts, number, begin, count, out);
      case 3:
        return copy_vector<Kind, 3, Constants>(s, parts, number, begin, count, out);
      default:
        return copy_vector<Kind, 0, Constants>(s, parts, number, begin, count, out);
    }
  }

  // What a selection has to be for copy().
  static bool copies(const QuantizedSelection&) { return true; }

  // Eight pairs of columns are turned into rows.
  static void copy_pairs(const QuantizedCopy& copy) {
    constexpr int kPairs = kWidth / 2, kRow = kVectors * kWidth * 4, kAhead = 512;
    const QuantizedSelection& s = *copy.from.selection;
    for (int begin = 0; begin < copy.count; begin += kWidth) {
      const std::int8_t* from[kPairs];
      DYNDEPLOY_UNROLL
      for (int i = 0; i < kPairs; ++i) {
        // Lanes beyond the last column hold anything.
        const int n = begin + 2 * i < copy.count ? begin + 2 * i : begin;
        from[i] = s.pairs + copy.source(n) / 2 * s.pair_stride;
      }
      std::int8_t* out = copy.b + begin * 4;
      for (int row = 0; row < copy.quads; row += kPairs) {
        __m512 r[kPairs];
        DYNDEPLOY_UNROLL
        for (int i = 0; i < kPairs; ++i) {
          __builtin_prefetch(from[i] + kAhead);
          r[i] = _mm512_castsi512_ps(_mm512_loadu_si512(from[i]));
          from[i] += 8 * kPairs;
        }
        Avx512::transpose_pairs(r);
        DYNDEPLOY_UNROLL
        for (int i = 0; i < kPairs; ++i) {
          if (row + i < copy.quads) _mm512_storeu_si512(out, _mm512_castps_si512(r[i]));
          out += kRow;
        }
      }
    }
  }

  // Tap by tap, so that the vectors of a panel find each other's lines in the first level. Only what comes
  // from blocks has constants.
  static void copy(const QuantizedCopy& copy, std::int32_t* through) {
    constexpr int kBlock = 32, kRow = kVectors * kWidth * 4;
    const QuantizedSelection& s = *copy.from.selection;
    if (s.pairs) return copy_pairs(copy);
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    Part parts[kVectors * kWidth];
    int ends[kVectors], vectors = 0, used = 0;
    for (int begin = 0; begin < copy.count; begin += kWidth) {
      const int count = copy.count - begin < kWidth ? copy.count - begin : kWidth;
      const __mmask16 all = static_cast<__mmask16>((1u << count) - 1u);
      const __m512i columns = s.columns ? _mm512_maskz_loadu_epi32(all, s.columns + copy.column + begin)
                                        : _mm512_add_epi32(lanes, _mm512_set1_epi32(copy.column + begin));
      const __m512i blocks = _mm512_srli_epi32(columns, 5);
      const __m512i column = _mm512_and_si512(columns, _mm512_set1_epi32(kBlock - 1));
      // The words of a column: one of each vector, or two beside each other of both.
      const __m512i from = s.blocks ? _mm512_add_epi32(_mm512_mullo_epi32(column, _mm512_set1_epi32(0x10001)),
                                                       _mm512_set1_epi32(kBlock << 16))
                                    : _mm512_add_epi32(_mm512_mullo_epi32(column, _mm512_set1_epi32(0x20002)),
                                                       _mm512_set1_epi32(1 << 16));
      for (unsigned left = all; left;) {
        const int block = copy.source(begin + __builtin_ctz(left)) / kBlock;
        const __mmask16 here = _mm512_mask_cmpeq_epi32_mask(all, blocks, _mm512_set1_epi32(block));
        left &= ~static_cast<unsigned>(here);
        parts[used++] = {s.blocks
                             ? s.blocks + block * s.block_stride
                             : copy.from.base + block / 2 * copy.from.panel_stride + block % 2 * (kBlock * 4),
                         from, _mm512_movepi16_mask(_mm512_movm_epi32(here))};
      }
      ends[vectors++] = used;
    }
    for (int t = 0; t < copy.taps; ++t) {
      const int begin = t * copy.quads;
      std::int8_t* const out = copy.b + begin * std::ptrdiff_t{kRow};
      for (int v = 0, first = 0; v < vectors; first = ends[v++]) {
        const auto run =
            !s.blocks ? &copy_parts<From::kPanel, false>
            : s.single
                ? (s.constants ? &copy_parts<From::kSingles, true> : &copy_parts<From::kSingles, false>)
            : s.constants ? &copy_parts<From::kPairs, true>
                          : &copy_parts<From::kPairs, false>;
        const __m512i sum = run(s, parts + first, ends[v] - first, begin, copy.quads, out + v * kWidth * 4);
        _mm512_storeu_si512(through + t * (kVectors + 1) * kWidth + v * kWidth, sum);
      }
    }
  }
};

}  // namespace
}  // namespace dyndeploy::cpu
