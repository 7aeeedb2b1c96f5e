#include "quantized_gemm_impl.h"
#include "simd/generic_quantized.h"

namespace dyndeploy::cpu {
namespace {

bool supported() { return true; }

}  // namespace

extern const QuantizedIsa kIsaGenericQuantized;
const QuantizedIsa kIsaGenericQuantized = make_quantized_isa<GenericQuantized>("generic", &supported);

}  // namespace dyndeploy::cpu
