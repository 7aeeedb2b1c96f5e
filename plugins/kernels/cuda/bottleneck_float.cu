#include "bottleneck.h"

namespace dyndeploy {
namespace cuda {

int run_float(const BottleneckArguments& arguments, Vectors vectors, Sequence& sequence) {
  return run_all<float>(arguments, vectors, sequence);
}

}  // namespace cuda
}  // namespace dyndeploy
