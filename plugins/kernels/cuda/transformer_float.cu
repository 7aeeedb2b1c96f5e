#include "transformer.h"

namespace dyndeploy {
namespace cuda {

int run_transformer_float(const TransformerArguments& arguments, bool vectors, void* stream) {
  return run_any<float>(arguments, vectors, stream);
}

}  // namespace cuda
}  // namespace dyndeploy
