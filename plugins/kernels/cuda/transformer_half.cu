#include "transformer.h"

namespace dyndeploy {
namespace cuda {

int run_transformer_half(const TransformerArguments& arguments, bool vectors, Sequence& sequence) {
  return run_any<Half>(arguments, vectors, sequence);
}

}  // namespace cuda
}  // namespace dyndeploy
