#include <cstdlib>
#include <cstring>

#include "gemm.h"

namespace dyndeploy::cpu {

#if defined(__x86_64__)
extern const Isa kIsaAvx512;
extern const Isa kIsaAvx2;
#elif defined(__aarch64__)
extern const Isa kIsaNeon;
#endif
extern const Isa kIsaGeneric;

namespace {

const Isa* const kBestFirst[] = {
#if defined(__x86_64__)
    &kIsaAvx512, &kIsaAvx2,
#elif defined(__aarch64__)
    &kIsaNeon,
#endif
    &kIsaGeneric};

}  // namespace

const Isa* find_isa(const char* name) {
  for (const Isa* isa : kBestFirst) {
    if (std::strcmp(isa->name, name) == 0) return isa->supported() ? isa : nullptr;
  }
  return nullptr;
}

const Isa* select_isa() {
  const char* name = std::getenv("DYNDEPLOY_CPU_ISA");
  if (name && *name) return find_isa(name);
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
