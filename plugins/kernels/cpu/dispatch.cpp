#include <cstdlib>
#include <cstring>
#include <string>

#include "gemm.h"

namespace dyndeploy::cpu {

#if defined(__x86_64__)
extern const Isa kIsaAvx512;
extern const Isa kIsaAvx2;
#if defined(DYNDEPLOY_AVX512_BF16)
extern const Isa kIsaAvx512Bf16;
#endif
#elif defined(__aarch64__)
extern const Isa kIsaNeon;
#endif
extern const Isa kIsaGeneric;
extern const Isa kIsaGenericBf16;

namespace {

const Isa* const kBestFirst[] = {
#if defined(__x86_64__)
    &kIsaAvx512, &kIsaAvx2,
#elif defined(__aarch64__)
    &kIsaNeon,
#endif
    &kIsaGeneric};

const Isa* const kBfloat16[] = {
#if defined(DYNDEPLOY_AVX512_BF16)
    &kIsaAvx512Bf16,
#endif
    &kIsaGenericBf16};

}  // namespace

const Isa* find_isa(const char* name) {
  const auto find = [name](const auto& table) -> const Isa* {
    for (const Isa* isa : table) {
      if (std::strcmp(isa->name, name) == 0) return isa->supported() ? isa : nullptr;
    }
    return nullptr;
  };
  const Isa* isa = find(kBestFirst);
  return isa ? isa : find(kBfloat16);
}

const Isa* select_isa(Precision precision) {
  const char* named = std::getenv("DYNDEPLOY_CPU_ISA");
  if (precision == Precision::kBfloat16) {
    return find_isa((std::string(named && *named ? named : "avx512") + "_bf16").c_str());
  }
  if (named && *named) return find_isa(named);
  for (const Isa* isa : kBestFirst) {
    if (isa->supported()) return isa;
  }
  return nullptr;
}

int available_isas(const Isa** out, int capacity) {
  int count = 0;
  for (const Isa* isa : kBestFirst) {
    if (count < capacity && isa->supported()) out[count++] = isa;
  }
  return count;
}

}  // namespace dyndeploy::cpu
