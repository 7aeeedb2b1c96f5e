// The weights of a bottleneck in the layout of one instruction set, with the constants that channel skipping
// needs.
#pragma once

#include <cstdint>

#include "gemm.h"
#include "parallel.h"
#include "shape.h"
#include "workspace.h"

namespace dyndeploy::cpu {

// PyTorch's order: w1 (M, C), w2 (M, M / groups, 3, 3), the squeeze-excite's (S, M) and (M, S), w3 (Co, M),
// wd (Co, C).
struct BottleneckWeights {
  const float *w1 = nullptr, *b1 = nullptr;
  const float *w2 = nullptr, *b2 = nullptr;
  const float *squeeze = nullptr, *squeeze_bias = nullptr;
  const float *excite = nullptr, *excite_bias = nullptr;
  const float *w3 = nullptr, *b3 = nullptr;
  const float *wd = nullptr, *bd = nullptr;
};

struct ConvolutionView {
  PanelView weights;    // of all channels
  Selection selection;  // copied before use
  int inputs = 0;       // per tap
  int taps = 1;
  int outputs = 0;
  int inputs_per_row = 1;

  bool selects() const { return selection.any(); }
  int tap_rows() const { return (inputs + inputs_per_row - 1) / inputs_per_row; }
  // Rows of a panel.
  int depth() const { return taps * tap_rows(); }
  std::int64_t bytes() const { return std::int64_t{4} * depth() * outputs; }
};

// One group of the 3x3 convolution.
struct GroupView {
  ConvolutionView conv;
  ConvolutionView
      winograd;  // the same for Isa::winograd, with a tap per plane; without weights where it cannot be used
  int first_input = 0;   // its place among the channels of h1
  int first_output = 0;  // its place among the channels of h2
};

// A set of weights to run with: all of them, or those of one sample's active channels.
struct WeightsView {
  int middle = 0;  // channels of h1 and h2
  ConvolutionView conv1;
  const float* b1 = nullptr;
  const float* subtract1 = nullptr;
  const GroupView* groups = nullptr;
  int group_count = 0;
  const GroupPart* parts = nullptr;  // in the place of groups, where those are narrow
  int part_count = 0;
  const GroupCopy* part_copies = nullptr;  // that have to be made first
  int part_copy_count = 0;
  const float* b2 = nullptr;
  std::ptrdiff_t b2_stride = 0;  // between border classes; 0: one bias for all
  const float* subtract2 = nullptr;
  ConvolutionView conv3;
  const float* b3 = nullptr;               // with the projection's bias in it
  const std::int32_t* channels = nullptr;  // of all middle channels, those that are left; nullptr: all
};

// The squeeze-excite: factor = sigmoid(excite . relu(squeeze . mean + squeeze_bias) + excite_bias)
struct SqueezeExcite {
  int hidden = 0;
  const float *squeeze = nullptr, *squeeze_bias = nullptr;  // (hidden, channels)
  const float *excite = nullptr, *excite_bias = nullptr;    // (channels, hidden)
};

// Bytes of the selected weights of a view; winograd: conv2 uses those for Isa::winograd.
std::int64_t selected_bytes(const WeightsView& view, bool winograd);

// A view of one sample's active channels whose weights will have been copied when all its copies have been
// made, in any order and by any thread.
struct CompactWeights {
  WeightsView view;
  const SelectedCopy* copies = nullptr;
  int count = 0;
};
CompactWeights compact(const Isa& isa, const WeightsView& selected, bool winograd, Workspace& workspace);

// What a product over panels [panel_begin, panel_end) reads first.
Upcoming first_weights(const Isa& isa, const ConvolutionView& conv, int panel_begin, int panel_end);

class PackedBottleneck {
 public:
  // channel_skipping: also prepare what select() needs. expected: the calls to come, with a batch of 0 where
  // they are not known; weights for Isa::winograd take 16/9 of the 3x3's and are only made where such calls
  // can use them.
  PackedBottleneck(const Isa& isa, const BottleneckLayer& layer, const BottleneckWeights& weights,
                   bool channel_skipping, const BottleneckShape& expected, Arena& arena);

  const Isa& isa() const { return *isa_; }
  const BottleneckLayer& layer() const { return layer_; }
  const WeightsView& full() const { return full_; }
  bool has_winograd() const { return full_.groups && full_.groups[0].winograd.weights.base; }
  // Whether conv2 is Isa::grouped.
  bool has_parts() const { return full_.parts != nullptr; }
  const SqueezeExcite& squeeze_excite() const { return squeeze_excite_; }
  const PanelView& projection() const { return projection_; }
  const float* projection_bias() const { return projection_bias_; }
  // b3 [+ bd] + w3 . relu(b2): the block's output, before the shortcut and ReLU, when every channel is
  // skipped.
  const float* skipped_output() const { return skipped_output_; }

  // The view of one sample's active channels. on: a flag per middle channel; count of them are set, at least
  // one.
  WeightsView select(const std::uint8_t* on, int count, Workspace& workspace) const;

 private:
  const Isa* isa_;
  BottleneckLayer layer_;
  std::shared_ptr<void> memory_;
  WeightsView full_;
  PanelView projection_;
  const float* projection_bias_ = nullptr;
  const float* skipped_output_ = nullptr;
  const float* relu_b1_ = nullptr;
  const float* relu_b2_ = nullptr;
  const float* pairs1_ = nullptr;       // w1 as in Selection::pairs
  const float* border_bias_ = nullptr;  // [border class][middle]: b2 + conv2 of the map of relu(b1)
  std::unique_ptr<GroupView[]> groups_;
  std::unique_ptr<GroupPart[]> parts_;
  SqueezeExcite squeeze_excite_;

  void select_parts(const std::int32_t* channels, int count, WeightsView& view, Workspace& workspace) const;
  void select_groups(const std::int32_t* channels, int count, WeightsView& view, Workspace& workspace) const;
};

}  // namespace dyndeploy::cpu
