#include "features_x86.h"

#include <cpuid.h>

#include <cstdint>

namespace dyndeploy::cpu {
namespace {

struct Registers {
  unsigned a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(unsigned leaf, unsigned part) {
  Registers r;
  __get_cpuid_count(leaf, part, &r.a, &r.b, &r.c, &r.d);  // leaves zeros where there is no such leaf
  return r;
}

bool has(unsigned word, int bit) { return word >> bit & 1u; }

// The registers that the system saves when it switches threads. Not _xgetbv(), which needs a compiler flag.
std::uint64_t saved_registers() {
  std::uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<std::uint64_t>(high) << 32 | low;
}

FeaturesX86 read() {
  constexpr std::uint64_t kYmm = 0x6, kZmm = 0xe0 | kYmm, kTiles = 0x60000;
  constexpr int kFma = 12, kSystemSaves = 27;                      // leaf 1, ECX
  constexpr int kAvx2 = 5, kF = 16, kDq = 17, kBw = 30, kVl = 31;  // leaf 7, EBX
  constexpr int kAvx512Vnni = 11;                                  // leaf 7, ECX
  constexpr int kAmxBf16 = 22, kAmxTile = 24;                      // leaf 7, EDX
  constexpr int kAvxVnni = 4, kAvx512Bf16 = 5;                     // leaf 7, part 1, EAX
  FeaturesX86 found;
  const Registers basic = cpuid(1, 0);
  if (!has(basic.c, kSystemSaves)) return found;
  const std::uint64_t saved = saved_registers();
  const Registers extended = cpuid(7, 0), more = extended.a ? cpuid(7, 1) : Registers{};
  found.avx2 = (saved & kYmm) == kYmm && has(basic.c, kFma) && has(extended.b, kAvx2);
  found.avx_vnni = found.avx2 && has(more.a, kAvxVnni);
  found.avx512 = found.avx2 && (saved & kZmm) == kZmm && has(extended.b, kF) && has(extended.b, kDq) &&
                 has(extended.b, kBw) && has(extended.b, kVl);
  found.avx512_bf16 = found.avx512 && has(more.a, kAvx512Bf16);
  found.avx512_vnni = found.avx512 && has(extended.c, kAvx512Vnni);
  found.amx_bf16 = found.avx512_bf16 && (saved & kTiles) == kTiles && has(extended.d, kAmxTile) &&
                   has(extended.d, kAmxBf16);
  return found;
}

}  // namespace

const FeaturesX86& features_x86() {
  static const FeaturesX86 features = read();
  return features;
}

}  // namespace dyndeploy::cpu
