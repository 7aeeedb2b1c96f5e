// The weights of a bottleneck in integers in the layout of one instruction set, with the constants that
// channel skipping needs.
#pragma once

#include <cstdint>
#include <memory>

#include "quantized_gemm.h"
#include "shape.h"
#include "workspace.h"

namespace dyndeploy::cpu {

// PyTorch's order: w1 (M, C), w2 (M, M / groups, 3, 3), w3 (Co, M), wd (Co, C); per output channel a bias for
// the sums and the multiplier that requantises them.
struct QuantizedWeights {
  const std::int8_t* w1 = nullptr;
  const std::int32_t* b1 = nullptr;
  const float* m1 = nullptr;
  const std::int8_t* w2 = nullptr;
  const std::int32_t* b2 = nullptr;
  const float* m2 = nullptr;
  const std::int8_t* w3 = nullptr;
  const std::int32_t* b3 = nullptr;
  const float* m3 = nullptr;
  const std::int8_t* wd = nullptr;
  const std::int32_t* bd = nullptr;
  const float* md = nullptr;
};

struct QuantizedConvolution {
  QuantizedPanels weights;
  int inputs = 0;  // per tap
  int taps = 1;
  int outputs = 0;

  int quads() const { return ceil_to_int(inputs, kQuad); }
  std::int64_t bytes() const { return std::int64_t{kQuad} * taps * quads() * outputs; }
};

// One group of the 3x3 convolution.
struct QuantizedGroup {
  QuantizedConvolution conv;
  int first_input = 0;   // its place among the channels of h1
  int first_output = 0;  // its place among the channels of h2
};

// A set of weights to run with: all of them, or those of one sample's active channels.
struct QuantizedView {
  int middle = 0;  // channels of h1 and h2
  QuantizedConvolution conv1;
  const QuantizedGroup* groups = nullptr;
  int group_count = 0;
  QuantizedConvolution conv3;

  bool selects() const { return conv1.weights.selection != nullptr; }
};

// The first of an instruction set and its wider ones whose sums are exact for these weights.
const QuantizedIsa* quantized_isa_for(const QuantizedIsa& isa, const std::int8_t* weights, std::size_t count);
// Bytes of one panel of a convolution's weights.
std::size_t quantized_panel_bytes(const QuantizedIsa& isa, int taps, int inputs);
// weights: (output, input, tap), into panels that are zeros before.
void pack_quantized_panels(const std::int8_t* weights, int outputs, int inputs, int taps, int panel_width,
                           std::int8_t* out);

// Bytes of the selected weights of a view.
std::int64_t selected_bytes(const QuantizedView& view);

// A view of one sample's active channels whose weights will have been copied when all its copies have been
// made, in any order and by any thread.
struct CompactQuantized {
  QuantizedView view;
  const QuantizedCopy* copies = nullptr;
  int count = 0;
};
CompactQuantized compact(const QuantizedIsa& isa, const QuantizedView& selected, Workspace& workspace);

// What a product over panels [panel_begin, panel_end) reads first.
QuantizedUpcoming first_weights(const QuantizedIsa& isa, const QuantizedConvolution& conv, int panel_begin,
                                int panel_end);

class PackedQuantizedBottleneck {
 public:
  // isa is replaced by its `wider` one where the weights ask for it. layer: without a squeeze-excite.
  // channel_skipping: also prepare what select() needs.
  PackedQuantizedBottleneck(const QuantizedIsa& isa, const BottleneckLayer& layer,
                            const QuantizedWeights& weights, bool channel_skipping, Arena& arena);

  const QuantizedIsa& isa() const { return *isa_; }
  const BottleneckLayer& layer() const { return layer_; }
  const QuantizedView& full() const { return full_; }
  const QuantizedConvolution& projection() const { return projection_; }
  // conv3 when every channel is skipped: without inputs, their constants are in its bias.
  const QuantizedConvolution& skipped() const { return skipped_; }

  // The view of one sample's active channels. on: a flag per middle channel; count of them are set, at least
  // one. classes: a bit for every border class of pixels that the map has.
  QuantizedView select(const std::uint8_t* on, int count, unsigned classes, Workspace& workspace) const;

 private:
  const QuantizedIsa* isa_;
  BottleneckLayer layer_;
  std::shared_ptr<void> memory_;
  QuantizedView full_;
  QuantizedConvolution projection_;
  QuantizedConvolution skipped_;
  std::unique_ptr<QuantizedGroup[]> groups_;
  // Of channel skipping: what a skipped channel is, and the weights by blocks of columns.
  const std::uint8_t* constant1_ = nullptr;
  const std::uint8_t* constant2_ = nullptr;
  const std::int8_t* pairs1_ = nullptr;  // w1 as in QuantizedSelection::pairs
  std::ptrdiff_t pair_stride1_ = 0;
  const std::int8_t* blocks2_ = nullptr;
  std::ptrdiff_t block_stride2_ = 0;
  std::ptrdiff_t group_stride2_ = 0;
  const std::int8_t* blocks3_ = nullptr;
  std::ptrdiff_t block_stride3_ = 0;
  const std::int32_t* border_bias_ = nullptr;  // [border class][padded middle]: b2 + conv2 of the constants
  std::ptrdiff_t border_stride_ = 0;
  const std::int32_t* constant_bias3_ = nullptr;  // b3 + w3 . constant2
};

}  // namespace dyndeploy::cpu
