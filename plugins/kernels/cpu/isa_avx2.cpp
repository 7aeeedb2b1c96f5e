#include "isa_table.h"
#include "simd/avx2.h"

namespace dyndeploy::cpu {

extern const Isa kIsaAvx2;
const Isa kIsaAvx2 = make_isa<Avx2>(
    "avx2", [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); });

}  // namespace dyndeploy::cpu
