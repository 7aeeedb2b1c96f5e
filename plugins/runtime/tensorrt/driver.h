// The CUDA driver, opened at run time: the module links no CUDA library.
#pragma once

#include <cuda.h>

#include <string>

namespace dyndeploy {
namespace runtime {

// Functions of libcuda.so.1 by their own names; they are those of cuda.h under its macros.
struct Driver {
  decltype(&::cuInit) init;
  decltype(&::cuDriverGetVersion) driver_version;
  decltype(&::cuDeviceGet) device;
  decltype(&::cuDeviceGetName) device_name;
  decltype(&::cuDeviceGetAttribute) device_attribute;
  decltype(&::cuDevicePrimaryCtxRetain) retain;
  decltype(&::cuDevicePrimaryCtxRelease) release;
  decltype(&::cuCtxSetCurrent) set_current;
  decltype(&::cuMemAlloc) allocate;
  decltype(&::cuMemFree) free;
  decltype(&::cuMemHostAlloc) allocate_host;
  decltype(&::cuMemFreeHost) free_host;
  decltype(&::cuMemcpyHtoDAsync) upload;
  decltype(&::cuMemcpyDtoHAsync) download;
  decltype(&::cuStreamCreate) stream_create;
  decltype(&::cuStreamDestroy) stream_destroy;
  decltype(&::cuStreamSynchronize) synchronize;
  decltype(&::cuStreamBeginCapture) begin_capture;
  decltype(&::cuStreamEndCapture) end_capture;
  decltype(&::cuGraphLaunch) graph_launch;
  decltype(&::cuGraphExecDestroy) executable_destroy;
  decltype(&::cuGraphDestroy) graph_destroy;
  // Only one of the two is there: until 11.3 the one with a node and a log, which nobody asks for.
  CUresult (*instantiate_with_flags)(CUgraphExec*, CUgraph, unsigned long long);
  CUresult (*instantiate)(CUgraphExec*, CUgraph, CUgraphNode*, char*, std::size_t);

  // Why there is none, or "".
  std::string open();
};

}  // namespace runtime
}  // namespace dyndeploy
