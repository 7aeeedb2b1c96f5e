#include "bottleneck.h"

namespace dyndeploy {
namespace cuda {

int run_half(const BottleneckArguments& arguments, Vectors vectors, void* stream) {
  return run_all<Half>(arguments, vectors, stream);
}

}  // namespace cuda
}  // namespace dyndeploy
