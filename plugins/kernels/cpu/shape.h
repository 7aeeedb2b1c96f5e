// The sizes of one bottleneck call, in elements.
#pragma once

#include <cstddef>

namespace dyndeploy::cpu {

// What the weights and attributes fix.
struct BottleneckLayer {
  int inputs = 0;   // C
  int middle = 0;   // M
  int outputs = 0;  // Co
  int stride = 1;
  int dilation = 1;
  int groups = 1;
  bool projection = false;
  // What a skipped channel is after each ReLU: zero, or the constant relu(bias).
  bool zero_skipped = false;
  int squeeze = 0;  // hidden channels of the squeeze-excite before the last convolution; 0: none
  // The squeeze-excite's mean is over the whole map, so that a spatial mask skips the last convolution only.
  bool dense_mean = false;
};

struct BottleneckShape {
  int batch = 0;
  int height = 0;
  int width = 0;
  int out_height = 0;
  int out_width = 0;
};

inline BottleneckShape bottleneck_shape(const BottleneckLayer& layer, int batch, int height, int width) {
  return {batch, height, width, (height - 1) / layer.stride + 1, (width - 1) / layer.stride + 1};
}

inline int round_up(int value, int to) { return (value + to - 1) / to * to; }
inline int ceil_to_int(int value, int by) { return (value + by - 1) / by; }

}  // namespace dyndeploy::cpu
