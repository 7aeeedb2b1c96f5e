#include "bottleneck.h"

namespace dyndeploy {
namespace cuda {

int run_half(const BottleneckArguments& arguments, Vectors vectors, const Tiles& tiles, Sequence& sequence) {
  return run_all<Half>(arguments, vectors, tiles, sequence);
}

}  // namespace cuda
}  // namespace dyndeploy
