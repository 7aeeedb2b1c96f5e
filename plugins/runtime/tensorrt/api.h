// TensorRT's headers, 8.2 to 11 and TensorRT-RTX, and what differs between them. C++14: GCC 7.5 on a board.
#pragma once

// What later versions deprecate is all that boards have; older headers leave parameters unused.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wpedantic"
#include <NvInfer.h>
#include <NvOnnxParser.h>
#pragma GCC diagnostic pop
#include <cuda_runtime_api.h>

// The version whose interface the headers have, as one number. TensorRT-RTX counts from 1 and has that of 11.
#ifdef TRT_MAJOR_RTX
#define DYNDEPLOY_TRT 1100
#else
#define DYNDEPLOY_TRT (100 * NV_TENSORRT_MAJOR + NV_TENSORRT_MINOR)
#endif

#define DYNDEPLOY_TRT_BY_NAME (DYNDEPLOY_TRT >= 805)         // tensors have names, not places
#define DYNDEPLOY_TRT_HAS_POOLS (DYNDEPLOY_TRT >= 804)       // setMemoryPoolLimit
#define DYNDEPLOY_TRT_IMPLICIT_BATCH (DYNDEPLOY_TRT < 1000)  // an explicit batch is asked for by a flag
#define DYNDEPLOY_TRT_HAS_TYPED \
  (DYNDEPLOY_TRT >= 1000 && DYNDEPLOY_TRT < 1100)           // by a flag; from 11 on always
#define DYNDEPLOY_TRT_HAS_PRECISION (DYNDEPLOY_TRT < 1100)  // precisions by flags
#define DYNDEPLOY_TRT_HAS_MONITOR (DYNDEPLOY_TRT >= 1000)   // IProgressMonitor
