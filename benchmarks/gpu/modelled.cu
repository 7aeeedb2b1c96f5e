// The kernels whose main loops are modelled, one instance of each tile: what modelled.py compiles.
#include "bottleneck.h"
#include "quantized_convolution.h"
#include "transformer.h"
// Their launches instantiate them, as those of transformer.h do the attention.
#include "regions.cu"
#include "sampling.cu"

namespace dyndeploy {
namespace cuda {

#define DYN_CONVOLUTION(layer, tile, width) \
  template __global__ void entry<ConvolutionKernel<layer, false, tile, width>>(const BottleneckArguments)
#define DYN_LAYERS(tiles, size, width)                 \
  DYN_CONVOLUTION(kConv1, tiles::size, width); \
  DYN_CONVOLUTION(kConv2, tiles::size, width); \
  DYN_CONVOLUTION(kConv3, tiles::size, width)
#define DYN_LINEAR(tiles, size, width) \
  template __global__ void entry<LinearKernel<kFc1, false, tiles::size, width>>(const TransformerArguments)
#define DYN_WINOGRAD(tiles, size, width) \
  template __global__ void entry<PatchProductKernel<tiles::size, width>>(const BottleneckArguments)
#define DYN_TINY(tiles, width) DYN_LAYERS(tiles, Tiny, width)
#define DYN_TILES(tiles, width)       \
  DYN_LAYERS(tiles, Small, width);    \
  DYN_LAYERS(tiles, Medium, width);   \
  DYN_LAYERS(tiles, Large, width);    \
  DYN_LINEAR(tiles, Medium, width);   \
  DYN_LINEAR(tiles, Large, width)

// Boards alone have them.
#define DYN_BOARD_TILES(tiles, width)  \
  DYN_WINOGRAD(tiles, Small, width);   \
  DYN_WINOGRAD(tiles, Medium, width);  \
  DYN_WINOGRAD(tiles, Large, width)

#define DYN_QUANTIZED(layer, tile)                                                             \
  template __global__ void entry<QuantizedConvolutionKernel<layer, false, tile, kByteRun>>( \
      const QuantizedArguments)
#define DYN_QUANTIZED_LAYERS(tiles, size)        \
  DYN_QUANTIZED(kQuantizedConv1, tiles::size); \
  DYN_QUANTIZED(kQuantizedConv2, tiles::size); \
  DYN_QUANTIZED(kQuantizedConv3, tiles::size); \
  DYN_QUANTIZED(kProjection, tiles::size)
#define DYN_QUANTIZED_TILES(tiles)      \
  DYN_QUANTIZED_LAYERS(tiles, Tiny);    \
  DYN_QUANTIZED_LAYERS(tiles, Medium);  \
  DYN_QUANTIZED_LAYERS(tiles, Large)

#if defined(DYN_MODEL_FLOATS)
DYN_TILES(Lanes<float>, 4);
#if defined(DYN_MODEL_BOARD)
DYN_BOARD_TILES(Lanes<float>, 4);
#endif
#elif defined(DYN_MODEL_BYTE_LANES)
DYN_QUANTIZED_TILES(ByteLanes);
#elif defined(DYN_MODEL_BYTE_WMMA)
DYN_QUANTIZED_TILES(ByteWmmaTensors);
#elif defined(DYN_MODEL_BYTE_TENSOR_CORES)
DYN_QUANTIZED_TILES(ByteTensors);
#elif defined(DYN_MODEL_BYTE_MMA)
DYN_QUANTIZED_TILES(AsyncByteTensors);
DYN_QUANTIZED_LAYERS(AsyncByteTensors, Small);
#elif defined(DYN_MODEL_BYTE_HOPPER)
DYN_QUANTIZED_TILES(HopperByteTensors);
DYN_QUANTIZED_LAYERS(HopperByteTensors, Small);
#elif defined(DYN_MODEL_HOPPER)
DYN_TINY(HopperTensors, 8);
DYN_TILES(HopperTensors, 8);
#elif defined(DYN_MODEL_MMA)
DYN_TINY(AsyncTensors, 8);
DYN_TILES(AsyncTensors, 8);
#elif defined(DYN_MODEL_TENSOR_CORES)
DYN_TILES(Tensors, 8);
#else
DYN_TINY(Lanes<Half>, 8);
DYN_TILES(Lanes<Half>, 8);
DYN_BOARD_TILES(Lanes<Half>, 8);
DYN_WINOGRAD(Lanes<Half>, Tiny, 8);
#endif

}  // namespace cuda
}  // namespace dyndeploy
