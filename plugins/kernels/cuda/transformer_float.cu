#include "transformer.h"

namespace dyndeploy {
namespace cuda {

int run_transformer_float(const TransformerArguments& arguments, bool vectors, const Tiles& tiles,
                          void* stream) {
  return run_any<float>(arguments, vectors, tiles, stream);
}

}  // namespace cuda
}  // namespace dyndeploy
