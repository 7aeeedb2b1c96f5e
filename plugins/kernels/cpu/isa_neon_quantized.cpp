#include "quantized_gemm_impl.h"
#include "simd/generic_quantized.h"
#include "simd/neon_quantized.h"

namespace dyndeploy::cpu {
namespace {

bool supported() { return true; }

// Weights of -128, which no quantiser makes here.
struct Wide : GenericQuantized {
  static constexpr int kVectors = NeonQuantized::kVectors;
};
constexpr QuantizedIsa kWide = make_quantized_isa<Wide>("neon", &supported);

}  // namespace

extern const QuantizedIsa kIsaNeonQuantized;
const QuantizedIsa kIsaNeonQuantized = make_quantized_isa<NeonQuantized>("neon", &supported, &kWide);

}  // namespace dyndeploy::cpu
