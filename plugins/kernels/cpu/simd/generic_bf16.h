// Pairs of BF16 numbers in plain C++: products are exact in a float, sums are rounded to floats.
#pragma once

#include "bf16.h"
#include "generic.h"

namespace dyndeploy::cpu {
namespace {

struct GenericBf16 : Generic {
  static constexpr int kInputsPerRow = 2;
  static constexpr int kRoundedPairs = 16;

  // The product of both pairs, added to c.
  static Reg fma(Reg a, Reg b, Reg c) {
    return make([&](int i) {
      const float x = a.lane[i], w = b.lane[i];
      return c.lane[i] + second_of_pair(x) * second_of_pair(w) + first_of_pair(x) * first_of_pair(w);
    });
  }
  // kRoundedPairs pairs from count floats; what is missing is zero.
  static void round_pairs(const float* from, int count, float* pairs) {
    for (int i = 0; i < kRoundedPairs; ++i) {
      const std::uint32_t first = 2 * i < count ? round_to_bf16(from[2 * i]) : 0;
      const std::uint32_t second = 2 * i + 1 < count ? round_to_bf16(from[2 * i + 1]) : 0;
      pairs[i] = from_bits(first | second << 16);
    }
  }
  // Each float rounded to BF16, its lower half zero.
  static Reg rounded(Reg a) {
    return make([&](int i) { return from_bits(std::uint32_t{round_to_bf16(a.lane[i])} << 16); });
  }
  // Pairs of one half of a and one half of b.
  static float pair_up(float a, bool a_second, float b, bool b_second) {
    const std::uint32_t first = pair_bits(a) >> (a_second ? 16 : 0) & 0xffffu;
    return from_bits(first | pair_bits(b) >> (b_second ? 16 : 0) << 16);
  }
  static Reg pair_up(Reg a, bool a_second, Reg b, bool b_second) {
    return make([&](int i) { return pair_up(a.lane[i], a_second, b.lane[i], b_second); });
  }
};

}  // namespace
}  // namespace dyndeploy::cpu
