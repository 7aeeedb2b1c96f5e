#include "quantized_gemm_impl.h"
#include "simd/generic_quantized.h"

namespace dyndeploy::cpu {

extern const QuantizedIsa kIsaGenericQuantized;
const QuantizedIsa kIsaGenericQuantized =
    make_quantized_isa<GenericQuantized>("generic", [] { return true; });

}  // namespace dyndeploy::cpu
