#include "isa_table.h"
#include "simd/neon.h"

namespace dyndeploy::cpu {

extern const Isa kIsaNeon;
const Isa kIsaNeon = make_isa<Neon>("neon", [] { return true; });

}  // namespace dyndeploy::cpu
