#include "features_x86.h"
#include "isa_table.h"
#include "simd/avx512_bf16.h"

namespace dyndeploy::cpu {
namespace {

bool supported() { return features_x86().avx512_bf16; }

}  // namespace

extern const Isa kIsaAvx512Bf16;
const Isa kIsaAvx512Bf16 = make_isa<Avx512, Avx512Bf16>("avx512_bf16", &supported);

}  // namespace dyndeploy::cpu
