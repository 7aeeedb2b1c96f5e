// TensorRT and TensorRT-RTX on a GPU, through the module that is compiled against their headers.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "backend.h"
#include "bundle.h"

namespace dyndeploy {
namespace runtime {

struct TensorRtSettings {
  std::string module;   // path of libdyndeploy_runtime_tensorrt.so
  std::string library;  // TensorRT; "": looked for
  std::string plugins;  // the plugin library; "": looked for where a graph needs one
  std::function<void(const std::string&)> progress;  // lines while engines are built; may be empty
};

// The module: the environment variable DYNDEPLOY_TENSORRT_MODULE, else beside this library; "" where there is
// none. Throws Error(DYNDEPLOY_USAGE) where the variable names no file.
std::string find_tensorrt_module();

// Opens TensorRT and the GPU. Engines are found or built when graphs are opened. Throws Error.
std::shared_ptr<Backend> open_tensorrt_backend(const TensorRtSettings& settings, const Bundle& bundle);

}  // namespace runtime
}  // namespace dyndeploy
