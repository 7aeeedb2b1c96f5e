#include "isa_table.h"
#include "simd/neon.h"

namespace dyndeploy::cpu {
namespace {

bool supported() { return true; }

}  // namespace

extern const Isa kIsaNeon;
const Isa kIsaNeon = make_isa<Neon>("neon", &supported);

}  // namespace dyndeploy::cpu
