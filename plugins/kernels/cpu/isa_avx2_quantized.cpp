#include "features_x86.h"
#include "quantized_gemm_impl.h"
#include "simd/avx2_quantized.h"

namespace dyndeploy::cpu {
namespace {

bool supported() { return features_x86().avx2; }
constexpr QuantizedIsa kWide = make_quantized_isa<Avx2QuantizedWide>("avx2", &supported);

}  // namespace

extern const QuantizedIsa kIsaAvx2Quantized;
const QuantizedIsa kIsaAvx2Quantized = make_quantized_isa<Avx2Quantized>("avx2", &supported, &kWide);

}  // namespace dyndeploy::cpu
