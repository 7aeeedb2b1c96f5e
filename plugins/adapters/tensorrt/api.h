// TensorRT's headers, 8.2 to 11.1, and what differs between them. C++14: GCC 7.5 on a board builds this.
#pragma once

// IPluginV2DynamicExt is deprecated since 10.0 and used on purpose: it is the only interface of the boards.
// Its shell hides overloads of its bases, and older headers leave parameters unused.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
#pragma GCC diagnostic ignored "-Woverloaded-virtual"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <NvInferRuntime.h>
#pragma GCC diagnostic pop

#define DYNDEPLOY_TENSORRT_HAS_V3 (NV_TENSORRT_MAJOR >= 10)
#define DYNDEPLOY_TENSORRT_HAS_LOGGER_FINDER \
  (NV_TENSORRT_MAJOR > 8 || (NV_TENSORRT_MAJOR == 8 && NV_TENSORRT_MINOR >= 6))

#if !DYNDEPLOY_TENSORRT_HAS_LOGGER_FINDER
namespace nvinfer1 {
class ILoggerFinder;  // so that the entry points are the same for every version
}  // namespace nvinfer1
#endif
