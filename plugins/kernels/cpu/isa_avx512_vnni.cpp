#include "features_x86.h"
#include "quantized_gemm_impl.h"
#include "simd/avx512_vnni.h"

namespace dyndeploy::cpu {
namespace {

bool supported() { return features_x86().avx512_vnni; }

}  // namespace

extern const QuantizedIsa kIsaAvx512Vnni;
const QuantizedIsa kIsaAvx512Vnni = make_quantized_isa<Avx512Vnni>("avx512_vnni", &supported);

}  // namespace dyndeploy::cpu
