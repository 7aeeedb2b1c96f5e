#include "isa_table.h"
#include "simd/generic_bf16.h"

namespace dyndeploy::cpu {
namespace {

bool supported() { return true; }

}  // namespace

extern const Isa kIsaGenericBf16;
const Isa kIsaGenericBf16 = make_isa<Generic, GenericBf16>("generic_bf16", &supported);

}  // namespace dyndeploy::cpu
