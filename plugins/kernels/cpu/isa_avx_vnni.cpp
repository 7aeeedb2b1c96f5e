#include "features_x86.h"
#include "quantized_gemm_impl.h"
#include "simd/avx2_quantized.h"

namespace dyndeploy::cpu {
namespace {

bool supported() { return features_x86().avx_vnni; }

}  // namespace

extern const QuantizedIsa kIsaAvxVnni;
const QuantizedIsa kIsaAvxVnni = make_quantized_isa<AvxVnni>("avx_vnni", &supported);

}  // namespace dyndeploy::cpu
