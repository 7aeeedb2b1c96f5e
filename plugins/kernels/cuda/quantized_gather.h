// Weights of active channels, one behind the other, and what skipped ones leave: a skipped channel is a
// constant, as a byte, so that its products go to the biases, exactly.
#pragma once

#include "quantized_convolution.h"

namespace dyndeploy {
namespace cuda {

// Of each sample (the grid's second dimension) a block for every active column of conv2, then one for every
// output of conv3.
struct QuantizedGatherKernel {
  using Arguments = QuantizedArguments;
  static constexpr int kThreads = 128;
  static constexpr int kBlocks = 1;
  static constexpr int kTaps = 9;
  static constexpr int kClasses = 16;

  static int blocks(const Arguments& a) { return a.shape.middle + a.shape.outputs; }

  // Active inputs of a column, as positions in `width` that begin at channel `first`.
  struct Inputs {
    const int* channels;
    int count, first, width, taps;
    const int* bias;  // of the layer before, whose skipped channels are constant
    const float* multiplier;
  };

  static DYN_DEVICE void run(const Arguments& a, Index block) {
    const int middle = a.shape.middle, sample = block.y;
    const int* channels = a.channels + static_cast<std::size_t>(sample) * middle;
    const int* start = a.channel_start + static_cast<std::size_t>(sample) * (a.shape.groups + 1);
    DYN_SHARED_ARRAY(int, totals, kTaps);
    if (block.x < middle) {
      if (block.x >= start[a.shape.groups]) return;
      const int width = a.group_channels, channel = channels[block.x], group = channel / width;
      const Inputs inputs = {channels + start[group],
                             start[group + 1] - start[group],
                             group * width,
                             width,
                             kTaps,
                             a.biases[kQuantizedConv1] + group * width,
                             a.multipliers[kQuantizedConv1] + group * width};
      const std::size_t pitch = static_cast<std::size_t>(kTaps) * width;
      gather(inputs, a.weights[kQuantizedConv2] + static_cast<std::size_t>(channel) * pitch,
             a.active2 + (static_cast<std::size_t>(sample) * middle + block.x) * pitch, totals);
      for_threads<kThreads>([&](int t) {
        if (t >= kClasses) return;
        int sum = a.biases[kQuantizedConv2][channel];
        for (int tap = 0; tap < kTaps; ++tap) {
          const int y = tap / 3, x = tap % 3;
          const bool outside = (y == 0 && (t & 1) != 0) || (y == 2 && (t & 2) != 0) ||
                               (x == 0 && (t & 4) != 0) || (x == 2 && (t & 8) != 0);
          if (!outside) sum += totals[tap];
        }
        a.bias2[(static_cast<std::size_t>(sample) * kClasses + t) * middle + block.x] = sum;
      });
      return;
    }
    const int output = block.x - middle;
    const Inputs inputs = {channels,
                           start[a.shape.groups],
                           0,
                           middle,
                           1,
                           a.biases[kQuantizedConv2],
                           a.multipliers[kQuantizedConv2]};
    const std::size_t row = static_cast<std::size_t>(sample) * a.shape.outputs + output;
    gather(inputs, a.weights[kQuantizedConv3] + static_cast<std::size_t>(output) * middle,
           a.active3 + row * middle, totals);
    for_threads<kThreads>([&](int t) {
      if (t == 0) a.bias3[row] = a.biases[kQuantizedConv3][output] + totals[0];
    });
  }

  // Leaves in `totals` what the skipped inputs add through each tap.
  static DYN_DEVICE void gather(const Inputs& inputs, const std::int8_t* from, std::int8_t* to,
                                int (&totals)[kTaps]) {
    DYN_SHARED_ARRAY(int, sums, kTaps* kThreads);
    for_threads<kThreads>([&](int t) {
      const auto constant = [&](int k) { return to_byte(0, inputs.bias[k], inputs.multiplier[k]); };
      for (int tap = 0; tap < inputs.taps; ++tap) {
        const std::int8_t* row = from + tap * inputs.width;
        int sum = 0;
        for (int k = t; k < inputs.width; k += kThreads) sum += constant(k) * row[k];
        for (int i = t; i < inputs.count; i += kThreads) {
          const int k = inputs.channels[i] - inputs.first;
          to[tap * inputs.width + i] = row[k];
          sum -= constant(k) * row[k];
        }
        sums[tap * kThreads + t] = sum;
      }
    });
    sync();
    for_threads<kThreads>([&](int t) {
      if (t >= inputs.taps) return;
      int sum = 0;
      for (int i = 0; i < kThreads; ++i) sum += sums[t * kThreads + i];
      totals[t] = sum;
    });
    sync();
  }
};

}  // namespace cuda
}  // namespace dyndeploy
