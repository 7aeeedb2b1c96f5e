#include "transformer.h"

namespace dyndeploy {
namespace cuda {

int run_transformer_half(const TransformerArguments& arguments, bool vectors, void* stream) {
  return run_any<Half>(arguments, vectors, stream);
}

}  // namespace cuda
}  // namespace dyndeploy
