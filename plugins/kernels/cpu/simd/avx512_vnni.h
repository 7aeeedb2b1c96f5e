// Quads of bytes, 16 at a time: AVX-512 VNNI. Included only by translation units built with those flags.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "../quantized_gemm.h"
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

  // Up to 16 columns of one block of 32: each takes two words from one of two vectors of words.
  struct Piece {
    __m512i from;
    __mmask16 lanes;
    std::int8_t* out;
    std::int32_t* through;
  };
  enum class From { kPanel, kPairs, kSingles };

  static __m512i load_word_row(const std::int8_t* p) { return _mm512_loadu_si512(p); }
  // Two inputs, each one of a pair, as words of a pair of their own.
  static __m512i pair_up(const std::int8_t* block, std::int32_t a, std::int32_t b) {
    const __m512i first =
        _mm512_srl_epi16(load_word_row(block + (a >> 1) * 64), _mm_cvtsi32_si128(a & 1 ? 8 : 0));
    const __m512i second =
        _mm512_sll_epi16(load_word_row(block + (b >> 1) * 64), _mm_cvtsi32_si128(b & 1 ? 0 : 8));
    return _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaaull, first, second);
  }

  template <int Pieces, From Kind, bool Constants>
  static DYNDEPLOY_NOINLINE void copy_pieces(const QuantizedCopy& copy, const std::int8_t* base,
                                             const Piece* pieces) {
    constexpr int kRow = kVectors * kWidth * 4, kAhead = 12;
    const std::int32_t* rows = copy.from.selection->rows;
    Piece piece[Pieces];
    DYNDEPLOY_UNROLL
    for (int i = 0; i < Pieces; ++i) piece[i] = pieces[i];
    std::int8_t* to[Pieces];
    DYNDEPLOY_UNROLL
    for (int i = 0; i < Pieces; ++i) to[i] = piece[i].out;
    for (int t = 0; t < copy.taps; ++t) {
      const std::uint8_t* constants = copy.from.selection->constants;
      __m512i sum[Pieces];
      DYNDEPLOY_UNROLL
      for (int i = 0; i < Pieces; ++i) sum[i] = _mm512_setzero_si512();
      for (int q = 0; q < copy.quads; ++q) {
        __m512i low, high;
        if constexpr (Kind == From::kPanel) {
          low = load_word_row(base);
          high = load_word_row(base + 64);
          base += kRow;
        } else if constexpr (Kind == From::kPairs) {
          __builtin_prefetch(base + rows[2 * kAhead] * std::ptrdiff_t{64});
          __builtin_prefetch(base + rows[2 * kAhead + 1] * std::ptrdiff_t{64});
          low = load_word_row(base + rows[0] * std::ptrdiff_t{64});
          high = load_word_row(base + rows[1] * std::ptrdiff_t{64});
          rows += 2;
        } else {
          low = pair_up(base, rows[0], rows[1]);
          high = pair_up(base, rows[2], rows[3]);
          rows += 4;
        }
        DYNDEPLOY_UNROLL
        for (int i = 0; i < Pieces; ++i) {
          const __m512i quads = _mm512_permutex2var_epi16(low, piece[i].from, high);
          _mm512_mask_storeu_epi32(to[i], piece[i].lanes, quads);
          to[i] += kRow;
          if constexpr (Constants) sum[i] = dot(inputs(constants), quads, sum[i]);
        }
        if constexpr (Constants) constants += 4;
      }
      if constexpr (Constants) {
        DYNDEPLOY_UNROLL
        for (int i = 0; i < Pieces; ++i)
          _mm512_mask_storeu_epi32(piece[i].through + t * (kVectors + 1) * kWidth, piece[i].lanes, sum[i]);
      }
    }
  }

  template <int Pieces>
  static void copy_block(const QuantizedCopy& copy, const std::int8_t* base, const Piece* pieces) {
    const auto& s = *copy.from.selection;
    if (!s.blocks) return copy_pieces<Pieces, From::kPanel, false>(copy, base, pieces);
    if (s.single)
      return s.constants ? copy_pieces<Pieces, From::kSingles, true>(copy, base, pieces)
                         : copy_pieces<Pieces, From::kSingles, false>(copy, base, pieces);
    s.constants ? copy_pieces<Pieces, From::kPairs, true>(copy, base, pieces)
                : copy_pieces<Pieces, From::kPairs, false>(copy, base, pieces);
  }

  // Block by block of columns; constants are those of inputs that come from blocks.
  static void copy(const QuantizedCopy& copy, std::int32_t* through) {
    constexpr int kBlock = 32;
    const auto& s = *copy.from.selection;
    for (int n = 0; n < copy.count;) {
      const int block = copy.source(n) / kBlock;
      const std::int8_t* const base =
          s.blocks ? s.blocks + block * s.block_stride
                   : copy.from.base + block / 2 * copy.from.panel_stride + block % 2 * (kBlock * 4);
      Piece pieces[2];
      int count = 0;
      while (count < 2 && n < copy.count && copy.source(n) / kBlock == block) {
        std::int16_t from[2 * kWidth] = {};
        const int begin = n;
        for (; n < copy.count && n < begin + kWidth && copy.source(n) / kBlock == block; ++n) {
          const int column = copy.source(n) % kBlock, lane = n - begin;
          from[2 * lane] = static_cast<std::int16_t>(s.blocks ? column : 2 * column);
          from[2 * lane + 1] = static_cast<std::int16_t>(s.blocks ? kBlock + column : 2 * column + 1);
        }
        pieces[count++] = {_mm512_loadu_si512(from), static_cast<__mmask16>((1u << (n - begin)) - 1u),
                           copy.b + begin * 4, through + begin};
      }
      count == 2 ? copy_block<2>(copy, base, pieces) : copy_block<1>(copy, base, pieces);
    }
  }
};

}  // namespace
}  // namespace dyndeploy::cpu
