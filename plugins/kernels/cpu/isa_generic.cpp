#include "isa_table.h"
#include "simd/generic.h"

namespace dyndeploy::cpu {
namespace {

bool supported() { return true; }

}  // namespace

extern const Isa kIsaGeneric;
const Isa kIsaGeneric = make_isa<Generic>("generic", &supported);

}  // namespace dyndeploy::cpu
