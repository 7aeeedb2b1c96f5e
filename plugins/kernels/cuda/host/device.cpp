// The device that the host plays when the kernels are compiled without CUDA.
#include "platform.h"

namespace dyndeploy {
namespace cuda {
namespace host {

Device& device() {
  thread_local Device device = {{62, 2, Size::kBest}, false, 0, 0};
  return device;
}

}  // namespace host
}  // namespace cuda
}  // namespace dyndeploy
