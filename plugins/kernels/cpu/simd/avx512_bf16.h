// Pairs of BF16 numbers, 16 at a time: AVX-512 BF16. Included only by translation units built with those
// flags.
#pragma once

#include "avx512.h"

namespace dyndeploy::cpu {
namespace {

struct Avx512Bf16 : Avx512 {
  static constexpr int kInputsPerRow = 2;
  static constexpr int kRoundedPairs = 16;

  // The product of both pairs, added to c.
  static Reg fma(Reg a, Reg b, Reg c) {
    return DYNDEPLOY_ACCUMULATE("vdpbf16ps", _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b), a, b, c);
  }
  // kRoundedPairs pairs from count floats; what is missing is zero.
  static void round_pairs(const float* from, int count, float* pairs) {
    const Reg low = count < 16 ? load_first(from, count) : load(from);
    const Reg high = count < 32 ? count > 16 ? load_first(from + 16, count - 16) : zero() : load(from + 16);
    store(pairs, (Reg)_mm512_cvtne2ps_pbh(high, low));
  }
  static Reg round_pair(Reg low, Reg high) { return (Reg)_mm512_cvtne2ps_pbh(high, low); }
  // Each float rounded to BF16, its lower half zero.
  static Reg rounded(Reg a) {
    const __m512i bits = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(a));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
  }
  // Pairs of one half of a and one half of b.
  static Reg pair_up(Reg a, bool a_second, Reg b, bool b_second) {
    const __m512i first = _mm512_srl_epi32(_mm512_castps_si512(a), _mm_cvtsi32_si128(a_second ? 16 : 0));
    const __m512i second = _mm512_sll_epi32(_mm512_castps_si512(b), _mm_cvtsi32_si128(b_second ? 0 : 16));
    return _mm512_castsi512_ps(_mm512_mask_blend_epi16(0xaaaaaaaau, first, second));
  }
};

}  // namespace
}  // namespace dyndeploy::cpu
