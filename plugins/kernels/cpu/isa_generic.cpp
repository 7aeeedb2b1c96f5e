#include "isa_table.h"
#include "simd/generic.h"

namespace dyndeploy::cpu {

extern const Isa kIsaGeneric;
const Isa kIsaGeneric = make_isa<Generic>("generic", [] { return true; });

}  // namespace dyndeploy::cpu
