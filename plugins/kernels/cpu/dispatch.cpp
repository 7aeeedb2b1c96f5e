#include <cstdlib>
#include <cstring>
#include <iterator>
#include <string>

#include "gemm.h"
#include "quantized_gemm.h"

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
#if defined(__x86_64__)
#if defined(DYNDEPLOY_AVX512_VNNI)
extern const QuantizedIsa kIsaAvx512Vnni;
#endif
#if defined(DYNDEPLOY_AVX_VNNI)
extern const QuantizedIsa kIsaAvxVnni;
#endif
extern const QuantizedIsa kIsaAvx2Quantized;
#elif defined(__aarch64__)
#if defined(DYNDEPLOY_NEON_DOT)
extern const QuantizedIsa kIsaNeonDot;
#endif
extern const QuantizedIsa kIsaNeonQuantized;
#endif
extern const QuantizedIsa kIsaGenericQuantized;

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

// With the instruction set for floats whose name also stands for it: the first one here that is not beyond
// it.
struct QuantizedEntry {
  const QuantizedIsa* isa;
  const char* floats;
};
const QuantizedEntry kQuantized[] = {
#if defined(__x86_64__)
#if defined(DYNDEPLOY_AVX512_VNNI)
    {&kIsaAvx512Vnni, "avx512"},
#endif
#if defined(DYNDEPLOY_AVX_VNNI)
    {&kIsaAvxVnni, "avx2"},
#endif
    {&kIsaAvx2Quantized, "avx2"},
#elif defined(__aarch64__)
#if defined(DYNDEPLOY_NEON_DOT)
    {&kIsaNeonDot, "neon"},
#endif
    {&kIsaNeonQuantized, "neon"},
#endif
    {&kIsaGenericQuantized, "generic"}};

// The entries from the first one on that an instruction set for floats allows.
const QuantizedEntry* first_allowed(const char* floats) {
#if defined(__aarch64__)
  static const char* const kOrder[] = {"neon", "generic"};
#else
  static const char* const kOrder[] = {"avx512", "avx2", "generic"};
#endif
  const auto rank = [](const char* name) {
    int r = 0;
    for (const char* known : kOrder) {
      if (std::strcmp(name, known) == 0) return r;
      ++r;
    }
    return -1;
  };
  const int limit = rank(floats);
  if (limit < 0) return std::end(kQuantized);
  const QuantizedEntry* entry = std::begin(kQuantized);
  while (rank(entry->floats) < limit) ++entry;
  return entry;
}

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
  if (!any) {
    // The name of one for integers stands for the floats that go with it.
    for (const QuantizedEntry& entry : kQuantized) {
      if (std::strcmp(entry.isa->name, named) == 0) named = entry.isa->supported() ? entry.floats : "";
    }
    return find(std::begin(kBestFirst), std::end(kBestFirst), named);
  }
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

const QuantizedIsa* find_quantized_isa(const char* name) {
  for (const QuantizedEntry& entry : kQuantized) {
    if (std::strcmp(entry.isa->name, name) == 0) return entry.isa->supported() ? entry.isa : nullptr;
  }
  return nullptr;
}

const QuantizedIsa* select_quantized_isa() {
  const char* named = std::getenv("DYNDEPLOY_CPU_ISA");
  const QuantizedEntry* entry = std::begin(kQuantized);
  if (named && *named) {
    if (const QuantizedIsa* isa = find_quantized_isa(named)) return isa;
    entry = first_allowed(named);
  }
  for (; entry != std::end(kQuantized); ++entry) {
    if (entry->isa->supported()) return entry->isa;
  }
  return nullptr;
}

int available_quantized_isas(const QuantizedIsa** out, int capacity) {
  int count = 0;
  for (const QuantizedEntry& entry : kQuantized) {
    if (count < capacity && entry.isa->supported()) out[count++] = entry.isa;
  }
  return count;
}

}  // namespace dyndeploy::cpu
