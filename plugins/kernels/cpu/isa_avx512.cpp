#include "features_x86.h"
#include "isa_table.h"
#include "simd/avx512.h"

namespace dyndeploy::cpu {
namespace {

bool supported() { return features_x86().avx512; }

}  // namespace

extern const Isa kIsaAvx512;
const Isa kIsaAvx512 = make_isa<Avx512>("avx512", &supported);

}  // namespace dyndeploy::cpu
