#if defined(__linux__)
#include <sys/auxv.h>
#endif

#include "quantized_gemm_impl.h"
#include "simd/neon_quantized.h"

namespace dyndeploy::cpu {
namespace {

bool supported() {
#if defined(__linux__)
  constexpr unsigned long kDotProduct = 1ul << 20;  // HWCAP_ASIMDDP, which older headers lack
  return (getauxval(AT_HWCAP) & kDotProduct) != 0;
#else
  return false;  // nobody to ask
#endif
}

}  // namespace

extern const QuantizedIsa kIsaNeonDot;
const QuantizedIsa kIsaNeonDot = make_quantized_isa<NeonDot>("neon_dot", &supported);

}  // namespace dyndeploy::cpu
