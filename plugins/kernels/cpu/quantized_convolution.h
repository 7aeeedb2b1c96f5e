// The first layers of a network in integers: a convolution of few channels of float images, with the max
// pooling behind it. See quantized_gemm.h for the arithmetic; the same bits on every instruction set.
#pragma once

#include <cstdint>
#include <memory>

#include "parallel.h"
#include "quantized_gemm.h"
#include "workspace.h"

namespace dyndeploy::cpu {

// Windows that move over a map: height and width, stride and padding of each.
struct Windows {
  int height = 1;
  int width = 1;
  int stride_height = 1;
  int stride_width = 1;
  int top = 0;
  int left = 0;
  int bottom = 0;
  int right = 0;

  int rows(int height_of_map) const { return (height_of_map + top + bottom - height) / stride_height + 1; }
  int columns(int width_of_map) const { return (width_of_map + left + right - width) / stride_width + 1; }
};

struct ImageLayer {
  int inputs = 0;
  int outputs = 0;
  Windows kernel;  // at most kQuantizedTaps rows
  Windows pool;    // padding is smaller than a window
  // A number of an image is round(x / scale) + zero_point, which is also what padding is.
  float scale = 1.0f;
  int zero_point = 0;

  int tap_inputs() const { return inputs * kernel.width; }
};

class PackedImageConvolution {
 public:
  // isa is replaced by its `wider` one where the weights ask for it. weights: (outputs, inputs, height,
  // width); per output channel a bias for the sums and the multiplier that requantises them.
  PackedImageConvolution(const QuantizedIsa& isa, const ImageLayer& layer, const std::int8_t* weights,
                         const std::int32_t* bias, const float* multiplier, Arena& arena);

  const QuantizedIsa& isa() const { return *isa_; }
  const ImageLayer& layer() const { return layer_; }
  const QuantizedPanels& panels() const { return panels_; }

 private:
  const QuantizedIsa* isa_;
  ImageLayer layer_;
  std::shared_ptr<void> memory_;
  QuantizedPanels panels_;
};

// x: (batch, inputs, height, width), y: (batch, rows, columns, outputs) of what is pooled.
struct ImageConvolutionCall {
  const PackedImageConvolution* weights = nullptr;
  int batch = 0;
  int height = 0;
  int width = 0;
  const float* x = nullptr;
  std::uint8_t* y = nullptr;
};

// Throws std::bad_alloc while the workspace grows.
void run_image_convolution(const ImageConvolutionCall& call, Workspace& workspace, const ThreadPool& pool);

}  // namespace dyndeploy::cpu
