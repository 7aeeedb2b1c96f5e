#include "isa_table.h"
#include "simd/avx2.h"

namespace dyndeploy::cpu {
namespace {

bool supported() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

}  // namespace

extern const Isa kIsaAvx2;
const Isa kIsaAvx2 = make_isa<Avx2>("avx2", &supported);

}  // namespace dyndeploy::cpu
