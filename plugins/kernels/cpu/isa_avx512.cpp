#include "isa_table.h"
#include "simd/avx512.h"

namespace dyndeploy::cpu {

extern const Isa kIsaAvx512;
const Isa kIsaAvx512 = make_isa<Avx512>("avx512", [] {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
});

}  // namespace dyndeploy::cpu
