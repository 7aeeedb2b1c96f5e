#include "bottleneck.h"

namespace dyndeploy {
namespace cuda {

int run_float(const BottleneckArguments& arguments, Vectors vectors, const Tiles& tiles, void* stream) {
  return run_all<float>(arguments, vectors, tiles, stream);
}

}  // namespace cuda
}  // namespace dyndeploy
