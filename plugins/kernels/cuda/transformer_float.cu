#include "transformer.h"

namespace dyndeploy {
namespace cuda {

int run_transformer_float(const TransformerArguments& arguments, bool vectors, Sequence& sequence) {
  return run_any<float>(arguments, vectors, sequence);
}

}  // namespace cuda
}  // namespace dyndeploy
