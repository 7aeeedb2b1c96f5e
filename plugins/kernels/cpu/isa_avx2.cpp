#include "features_x86.h"
#include "isa_table.h"
#include "simd/avx2.h"

namespace dyndeploy::cpu {
namespace {

bool supported() { return features_x86().avx2; }

}  // namespace

extern const Isa kIsaAvx2;
const Isa kIsaAvx2 = make_isa<Avx2>("avx2", &supported);

}  // namespace dyndeploy::cpu
