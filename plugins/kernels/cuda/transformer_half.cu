#include "transformer.h"

namespace dyndeploy {
namespace cuda {

int run_transformer_half(const TransformerArguments& arguments, bool vectors, const Tiles& tiles,
                         Sequence& sequence) {
  return run_any<Half>(arguments, vectors, tiles, sequence);
}

}  // namespace cuda
}  // namespace dyndeploy
