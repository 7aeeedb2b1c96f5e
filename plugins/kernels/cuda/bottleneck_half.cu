#include "bottleneck.h"

namespace dyndeploy {
namespace cuda {

int run_half(const BottleneckArguments& arguments, Vectors vectors, const Tiles& tiles, void* stream) {
  return run_all<Half>(arguments, vectors, tiles, stream);
}

}  // namespace cuda
}  // namespace dyndeploy
