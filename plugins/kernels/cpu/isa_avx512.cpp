#include "isa_table.h"
#include "simd/avx512.h"

namespace dyndeploy::cpu {
namespace {

bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

}  // namespace

extern const Isa kIsaAvx512;
const Isa kIsaAvx512 = make_isa<Avx512>("avx512", &supported);

}  // namespace dyndeploy::cpu
