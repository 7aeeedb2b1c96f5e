#include "bottleneck.h"

namespace dyndeploy {
namespace cuda {

int run_float(const BottleneckArguments& arguments, Vectors vectors, const Tiles& tiles, Sequence& sequence) {
  return run_all<float>(arguments, vectors, tiles, sequence);
}

}  // namespace cuda
}  // namespace dyndeploy
