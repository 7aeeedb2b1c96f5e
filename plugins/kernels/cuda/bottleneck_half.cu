#include "bottleneck.h"

namespace dyndeploy {
namespace cuda {

int run_half(const BottleneckArguments& arguments, Vectors vectors, Sequence& sequence) {
  return run_all<Half>(arguments, vectors, sequence);
}

}  // namespace cuda
}  // namespace dyndeploy
