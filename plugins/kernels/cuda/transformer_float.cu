#include "transformer.h"

namespace dyndeploy {
namespace cuda {

int run_transformer_float(const TransformerArguments& arguments, bool vectors, const Tiles& tiles,
                          Sequence& sequence) {
  return run_any<float>(arguments, vectors, tiles, sequence);
}

}  // namespace cuda
}  // namespace dyndeploy
