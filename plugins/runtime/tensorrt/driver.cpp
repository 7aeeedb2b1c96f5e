#include "driver.h"

#include <dlfcn.h>

namespace dyndeploy {
namespace runtime {
namespace {

constexpr const char* kLibrary = "libcuda.so.1";

template <class Function>
void find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
}

}  // namespace

std::string Driver::open() {
  void* library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (!library) return std::string("no CUDA driver (") + kLibrary + ")";
  std::string lacking;
  const auto need = [&](const char* name, auto& function) {
    find(library, name, function);
    if (!function) lacking = name;
  };
  need("cuInit", init);
  need("cuDriverGetVersion", driver_version);
  need("cuDeviceGet", device);
  need("cuDeviceGetName", device_name);
  need("cuDeviceGetAttribute", device_attribute);
  need("cuDevicePrimaryCtxRetain", retain);
  need("cuDevicePrimaryCtxRelease", release);
  need("cuCtxSetCurrent", set_current);
  need("cuMemAlloc_v2", allocate);
  need("cuMemFree_v2", free);
  need("cuMemHostAlloc", allocate_host);
  need("cuMemFreeHost", free_host);
  need("cuMemcpyHtoDAsync_v2", upload);
  need("cuMemcpyDtoHAsync_v2", download);
  need("cuStreamCreate", stream_create);
  need("cuStreamDestroy_v2", stream_destroy);
  need("cuStreamSynchronize", synchronize);
  need("cuStreamBeginCapture_v2", begin_capture);
  need("cuStreamEndCapture", end_capture);
  need("cuGraphLaunch", graph_launch);
  need("cuGraphExecDestroy", executable_destroy);
  need("cuGraphDestroy", graph_destroy);
  find(library, "cuGraphInstantiateWithFlags", instantiate_with_flags);
  find(library, "cuGraphInstantiate", instantiate);
  if (lacking.empty()) return "";
  return std::string(kLibrary) + " has no " + lacking + ": it is older than CUDA 10.1";
}

}  // namespace runtime
}  // namespace dyndeploy
