#include "bottleneck.h"

namespace dyndeploy {
namespace cuda {

int run_float(const BottleneckArguments& arguments, Vectors vectors, void* stream) {
  return run_all<float>(arguments, vectors, stream);
}

}  // namespace cuda
}  // namespace dyndeploy
