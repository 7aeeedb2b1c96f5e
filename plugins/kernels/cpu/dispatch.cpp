#include <cstdlib>
#include <cstring>
#include <iterator>
#include <string>

#include "gemm.h"

namespace dyndeploy::cpu {

#if defined(__x86_64__)
extern const Isa kIsaAvx512;
extern const Isa kIsaAvx2;
#if defined(DYNDEPLOY_AMX_BF16)
extern const Isa kIsaAmxBf16;
#endif
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
#if defined(DYNDEPLOY_AMX_BF16)
    &kIsaAmxBf16,
#endif
#if defined(DYNDEPLOY_AVX512_BF16)
    &kIsaAvx512Bf16,
#endif
    &kIsaGenericBf16};

const Isa* find(const Isa* const* begin, const Isa* const* end, const char* name) {
  for (; begin != end; ++begin) {
    if (std::strcmp((*begin)->name, name) == 0) return (*begin)->supported() ? *begin : nullptr;
  }
  return nullptr;
}

}  // namespace

const Isa* find_isa(const char* name) {
  const Isa* isa = find(std::begin(kBestFirst), std::end(kBestFirst), name);
  return isa ? isa : find(std::begin(kBfloat16), std::end(kBfloat16), name);
}

const Isa* select_isa(Precision precision) {
  const char* named = std::getenv("DYNDEPLOY_CPU_ISA");
  const bool any = !named || !*named;
  if (precision == Precision::kBfloat16) {
    if (!any) return find(std::begin(kBfloat16), std::end(kBfloat16), (std::string(named) + "_bf16").c_str());
    for (const Isa* isa : kBfloat16) {
      if (isa->supported()) return isa == &kIsaGenericBf16 ? nullptr : isa;
    }
    return nullptr;
  }
  if (!any) return find(std::begin(kBestFirst), std::end(kBestFirst), named);
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
