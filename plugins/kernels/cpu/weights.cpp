#include "weights.h"

#include <algorithm>
#include <cstring>

#include "carver.h"
#include "lists.h"
#include "simd/bf16.h"

namespace dyndeploy::cpu {
namespace {

std::ptrdiff_t padded(int columns, int panel) { return round_up(columns, panel) + panel; }

float relu(float v) { return v < 0.0f ? 0.0f : v; }

// sums[n] += sum over the inputs c of a tap: weight (tap, c, n) * constants[c], for every column of every
// panel. Eight columns at a time, so that the sums stay in registers.
template <int InputsPerRow>
void add_constant_output(const ConvolutionView& conv, int tap, const float* constants, int panel_width,
                         double* sums) {
  constexpr int kColumns = 8;
  const int first = tap * conv.tap_rows();
  for (int p = 0; p < ceil_to_int(conv.outputs, panel_width); ++p) {
    const float* panel = conv.weights.base + p * conv.weights.panel_stride + first * conv.weights.row_stride;
    for (int n = 0; n < panel_width; n += kColumns, sums += kColumns) {
      double sum[kColumns];
      std::copy(sums, sums + kColumns, sum);
      for (int c = 0; c < conv.inputs; ++c) {
        const float* row = panel + c / InputsPerRow * conv.weights.row_stride + n;
        for (int i = 0; i < kColumns; ++i) {
          const float weight = InputsPerRow == 1 ? row[i]
                               : c % 2           ? second_of_pair(row[i])
                                                 : first_of_pair(row[i]);
          sum[i] += static_cast<double>(weight) * constants[c];
        }
      }
      std::copy(sum, sum + kColumns, sums);
    }
  }
}

void constant_output(const ConvolutionView& conv, int tap, const float* constants, int panel_width,
                     double* sums) {
  const auto add = conv.inputs_per_row == 1 ? &add_constant_output<1> : &add_constant_output<2>;
  add(conv, tap, constants, panel_width, sums);
}

// Whether Isa::winograd pays for whole maps; it never does for parts of them otherwise.
bool whole_maps_pay(const Isa& isa, const BottleneckShape& shape) {
  if (!shape.batch) return true;
  const auto product = [&](int rows, int columns) {
    return static_cast<int>(
        std::min<std::int64_t>(std::int64_t{shape.batch} * rows * columns, INT32_MAX / 64));
  };
  return winograd_pays(isa, product(shape.height, shape.width),
                       product(ceil_to_int(shape.height, kTileSide), ceil_to_int(shape.width, kTileSide)),
                       false);
}

// Groups of so few outputs that panels would be half empty. Constants of skipped channels need the other way.
bool has_narrow_groups(const BottleneckLayer& layer, bool channel_skipping) {
  return layer.groups > 1 && layer.middle / layer.groups <= kMaxGroupOutputs &&
         (layer.zero_skipped || !channel_skipping);
}

}  // namespace

PackedBottleneck::PackedBottleneck(const Isa& isa, const BottleneckLayer& layer,
                                   const BottleneckWeights& weights, bool channel_skipping,
                                   const BottleneckShape& expected, Arena& arena)
    : isa_(&isa), layer_(layer) {
  const int C = layer.inputs, M = layer.middle, Co = layer.outputs, G = layer.groups;
  const int PW = isa.panel_width, per_row = isa.inputs_per_row;
  const int width = M / G;
  const int panels1 = ceil_to_int(M, PW), panels2 = ceil_to_int(width, PW), panels3 = ceil_to_int(Co, PW);
  const std::size_t w1_floats = static_cast<std::size_t>(panels1) * PW * ceil_to_int(C, per_row);
  const std::size_t w2_floats =  // one group, in panels
      static_cast<std::size_t>(panels2) * PW * 9 * ceil_to_int(width, per_row);
  const int S = layer.squeeze;
  const bool narrow = has_narrow_groups(layer, channel_skipping);
  const int group_row = narrow ? round_up(width, isa.grouped_vector(width)) : 0;
  const std::size_t group_floats = static_cast<std::size_t>(group_row) * 9 * static_cast<std::size_t>(width);
  const bool winograd =
      !narrow && isa.winograd && layer.stride == 1 && layer.dilation == 1 && whole_maps_pay(isa, expected);
  const std::size_t u2_floats = winograd ? w2_floats / 9 * kWinogradPlanes : 0;
  const std::size_t w3_floats = static_cast<std::size_t>(panels3) * PW * ceil_to_int(M, per_row);
  const std::size_t wd_floats =
      layer.projection ? static_cast<std::size_t>(panels3) * PW * ceil_to_int(C, per_row) : 0;
  const std::size_t m_floats = static_cast<std::size_t>(padded(M, PW));
  const std::size_t co_floats = static_cast<std::size_t>(padded(Co, PW));

  const bool constants = channel_skipping && !layer.zero_skipped;
  const std::size_t squeeze_floats = static_cast<std::size_t>(S) * M;

  float *w1, *w2, *u2, *w3, *wd, *b1, *b2, *b3, *bd, *r1, *r2, *pairs1, *border, *skipped;
  float *squeeze, *squeeze_bias, *excite, *excite_bias;
  const auto carve = [&](Carver& carver) {
    w1 = carver.take<float>(w1_floats);
    w2 = carver.take<float>((narrow ? group_floats : w2_floats) * static_cast<std::size_t>(G));
    u2 = carver.take<float>(u2_floats * static_cast<std::size_t>(G));
    w3 = carver.take<float>(w3_floats);
    wd = carver.take<float>(wd_floats);
    b1 = carver.take<float>(m_floats);
    b2 = carver.take<float>(narrow ? static_cast<std::size_t>(group_row) * static_cast<std::size_t>(G)
                                   : m_floats);
    b3 = carver.take<float>(co_floats);
    bd = carver.take<float>(co_floats);
    r1 = carver.take<float>(constants ? m_floats : 0);
    r2 = carver.take<float>(constants ? m_floats : 0);
    pairs1 = carver.take<float>(channel_skipping ? w1_floats : 0);
    border = carver.take<float>(constants ? kBorderClasses * m_floats : 0);
    skipped = carver.take<float>(constants ? co_floats : 0);
    squeeze = carver.take<float>(squeeze_floats);
    squeeze_bias = carver.take<float>(static_cast<std::size_t>(S));
    excite = carver.take<float>(squeeze_floats);
    excite_bias = carver.take<float>(S ? static_cast<std::size_t>(M) : 0);
  };
  Carver measure(nullptr);
  carve(measure);
  memory_ = arena.take(measure.used());
  Carver carver(static_cast<char*>(memory_.get()));
  carve(carver);

  const auto pack = [&](const float* from, int taps, int inputs, int outputs, float* to) {
    PackSource source;
    source.weights = from;
    source.taps = taps;
    source.inputs = inputs;
    source.outputs = outputs;
    isa.pack(source, 0, ceil_to_int(outputs, PW), to);
  };
  const auto bias = [](const float* from, int count, std::size_t floats, float* to) {
    std::fill(std::copy(from, from + count, to), to + floats, 0.0f);
  };
  const auto conv = [&](const float* base, int inputs, int taps, int outputs) {
    ConvolutionView view;
    view.weights.base = base;
    view.weights.row_stride = PW;
    view.inputs = inputs;
    view.taps = taps;
    view.outputs = outputs;
    view.inputs_per_row = per_row;
    view.weights.panel_stride = static_cast<std::ptrdiff_t>(view.depth()) * PW;
    return view;
  };

  pack(weights.w1, 1, C, M, w1);
  if (narrow) {
    parts_.reset(new GroupPart[static_cast<std::size_t>(G)]);
    std::fill(w2, w2 + group_floats * static_cast<std::size_t>(G), 0.0f);
    std::fill(b2, b2 + group_row * G, 0.0f);
    for (int m = 0; m < M; ++m) {
      const int g = m / width, n = m % width;
      const float* from = weights.w2 + static_cast<std::size_t>(m) * width * 9;
      float* const to = w2 + group_floats * static_cast<std::size_t>(g) + n;
      for (int k = 0; k < width; ++k) {
        for (int t = 0; t < 9; ++t) to[static_cast<std::ptrdiff_t>(t * width + k) * group_row] = *from++;
      }
      b2[g * group_row + n] = weights.b2[m];
    }
    for (int g = 0; g < G; ++g) {
      GroupPart& part = parts_[static_cast<std::size_t>(g)];
      part.input = part.output = g * width;
      part.inputs = width;
      part.vectors = group_row / isa.grouped_vector(width);
      part.weights = w2 + group_floats * static_cast<std::size_t>(g);
      part.bias = b2 + g * group_row;
    }
    full_.parts = parts_.get();
    full_.part_count = G;
  } else {
    groups_.reset(new GroupView[static_cast<std::size_t>(G)]);
    const std::size_t pairs =
        static_cast<std::size_t>(width) * width;  // of an output and an input of one group
    const std::unique_ptr<float[]> spread(winograd ? new float[pairs * kWinogradPlanes] : nullptr);
    for (int g = 0; g < G; ++g) {
      float* to = w2 + w2_floats * static_cast<std::size_t>(g);
      pack(weights.w2 + static_cast<std::size_t>(g) * width * width * 9, 9, width, width, to);
      GroupView& group = groups_[static_cast<std::size_t>(g)];
      group = GroupView{conv(to, width, 9, width), {}, g * width, g * width};
      if (!winograd) continue;
      float* const planes = u2 + u2_floats * static_cast<std::size_t>(g);
      winograd_weights(weights.w2 + static_cast<std::size_t>(g) * pairs * 9, pairs, spread.get());
      pack(spread.get(), kWinogradPlanes, width, width, planes);
      group.winograd = conv(planes, width, kWinogradPlanes, width);
    }
    bias(weights.b2, M, m_floats, b2);
    full_.groups = groups_.get();
    full_.group_count = G;
  }
  pack(weights.w3, 1, M, Co, w3);
  bias(weights.b1, M, m_floats, b1);
  bias(weights.b3, Co, co_floats, b3);
  if (layer.projection) {
    pack(weights.wd, 1, C, Co, wd);
    bias(weights.bd, Co, co_floats, bd);
    for (int n = 0; n < Co; ++n) b3[n] += bd[n];
    projection_ = conv(wd, C, 1, Co).weights;
    projection_bias_ = bd;
  }

  full_.middle = M;
  full_.conv1 = conv(w1, C, 1, M);
  full_.b1 = b1;
  full_.b2 = b2;
  full_.conv3 = conv(w3, M, 1, Co);
  full_.b3 = b3;
  if (S) {
    std::copy(weights.squeeze, weights.squeeze + squeeze_floats, squeeze);
    std::copy(weights.squeeze_bias, weights.squeeze_bias + S, squeeze_bias);
    std::copy(weights.excite, weights.excite + squeeze_floats, excite);
    std::copy(weights.excite_bias, weights.excite_bias + M, excite_bias);
    squeeze_excite_ = {S, squeeze, squeeze_bias, excite, excite_bias};
  }
  skipped_output_ = b3;
  if (!channel_skipping) return;

  const ConvolutionView& first = full_.conv1;
  for (int p = 0; p < panels1; ++p) {
    for (int k = 0; k < first.depth(); ++k) {
      const float* const row = first.weights.base + p * first.weights.panel_stride + k * PW;
      for (int n = 0; n < PW; n += 2) {
        float* const to = pairs1 + (static_cast<std::size_t>(p * PW + n) / 2 * first.depth() + k) * 2;
        std::copy(row + n, row + n + 2, to);
      }
    }
  }
  pairs1_ = pairs1;
  if (!constants) return;
  for (std::size_t i = 0; i < m_floats; ++i) {
    r1[i] = relu(b1[i]);
    r2[i] = relu(b2[i]);
  }
  // A skipped channel of h1 is the constant relu(b1): its contribution through each tap, then summed over the
  // taps that lie inside the map. Doubles, because these constants are computed once and used everywhere.
  const std::size_t stride = static_cast<std::size_t>(panels2) * PW;
  std::unique_ptr<double[]> through(new double[9 * stride]);
  std::fill(border, border + kBorderClasses * m_floats, 0.0f);
  for (int g = 0; g < G; ++g) {
    const ConvolutionView& view = groups_[static_cast<std::size_t>(g)].conv;
    std::fill(through.get(), through.get() + 9 * stride, 0.0);
    for (int t = 0; t < 9; ++t) constant_output(view, t, r1 + g * width, PW, through.get() + t * stride);
    for (int c = 0; c < kBorderClasses; ++c) {
      const unsigned taps = border_taps(c);
      float* to = border + static_cast<std::size_t>(c) * m_floats + g * width;
      for (int n = 0; n < width; ++n) {
        double sum = b2[g * width + n];
        for (std::size_t t = 0; t < 9; ++t) sum += taps >> t & 1u ? through[t * stride + n] : 0.0;
        to[n] = static_cast<float>(sum);
      }
    }
  }
  const std::size_t columns3 = static_cast<std::size_t>(panels3) * PW;
  std::unique_ptr<double[]> sums(new double[columns3]);
  std::copy(b3, b3 + columns3, sums.get());
  constant_output(full_.conv3, 0, r2, PW, sums.get());
  std::fill(skipped, skipped + co_floats, 0.0f);
  for (int n = 0; n < Co; ++n) skipped[n] = static_cast<float>(sums[static_cast<std::size_t>(n)]);
  relu_b1_ = r1;
  relu_b2_ = r2;
  border_bias_ = border;
  skipped_output_ = skipped;
}

WeightsView PackedBottleneck::select(const std::uint8_t* on, int count, Workspace& workspace) const {
  const int M = layer_.middle;
  const int PW = isa_->panel_width, per_row = isa_->inputs_per_row;
  const auto stride = padded(count, PW);
  const auto floats = [&] { return workspace.take<float>(static_cast<std::size_t>(stride)); };
  auto* channels =
      workspace.take<std::int32_t>(static_cast<std::size_t>(round_up(count, per_row)) + kListMargin);
  int k = 0;
  for (int c = 0; c < M; ++c) {
    if (on[c]) channels[k++] = c;
  }
  while (k % per_row) channels[k++] = -1;
  std::fill(channels + k, channels + k + kListMargin, channels[count - 1]);
  const auto chosen = [&](const float* from, float* to) {
    for (int i = 0; i < count; ++i) to[i] = from[channels[i]];
    return to;
  };

  WeightsView view;
  view.middle = count;
  view.channels = channels;
  view.conv1 = full_.conv1;
  view.conv1.selection.columns = channels;
  bool paired = count % 2 == 0;
  for (int i = 0; paired && i < count; i += 2)
    paired = channels[i] % 2 == 0 && channels[i + 1] == channels[i] + 1;
  if (paired) {
    view.conv1.selection.pairs = pairs1_;
    view.conv1.selection.pair_stride = std::ptrdiff_t{2} * full_.conv1.depth();
  }
  view.conv1.outputs = count;
  view.b1 = chosen(full_.b1, floats());
  view.conv3 = full_.conv3;
  view.conv3.selection.rows = channels;
  view.conv3.inputs = count;
  view.b3 = skipped_output_;
  if (!layer_.zero_skipped) {
    view.subtract1 = chosen(relu_b1_, floats());
    view.subtract2 = chosen(relu_b2_, floats());
    auto* b2 = workspace.take<float>(static_cast<std::size_t>(stride) * kBorderClasses);
    for (int c = 0; c < kBorderClasses; ++c) chosen(border_bias_ + c * padded(M, PW), b2 + c * stride);
    view.b2 = b2;
    view.b2_stride = stride;
  } else if (!has_parts()) {
    view.b2 = chosen(full_.b2, floats());
  }
  has_parts() ? select_parts(channels, count, view, workspace)
              : select_groups(channels, count, view, workspace);
  return view;
}

void PackedBottleneck::select_parts(const std::int32_t* channels, int count, WeightsView& view,
                                    Workspace& workspace) const {
  const int G = layer_.groups, width = layer_.middle / G, W = isa_->grouped_vector(width);
  auto* parts = workspace.take<GroupPart>(static_cast<std::size_t>(G));
  auto* copies = workspace.take<GroupCopy>(static_cast<std::size_t>(G));
  for (int g = 0, at = 0; g < G; ++g) {
    const int begin = at;
    while (at < count && channels[at] < (g + 1) * width) ++at;
    const int left = at - begin;
    if (!left) continue;
    GroupPart& part = parts[view.part_count++];
    part = full_.parts[g];
    part.input = part.output = begin;
    part.inputs = left;
    const std::size_t rows = std::size_t{9} * static_cast<std::size_t>(left);
    if (const int vectors = ceil_to_int(left, W); vectors < part.vectors) {
      const std::size_t row = static_cast<std::size_t>(vectors) * static_cast<std::size_t>(W);
      auto* const to = workspace.take<float>((rows + 1) * row + static_cast<std::size_t>(W));
      copies[view.part_copy_count++] = {&full_.parts[g], channels + begin, left, width, to};
      part.vectors = vectors;
      part.weights = to;
      part.bias = to + rows * row;
      continue;
    }
    auto* listed = workspace.take<std::int32_t>(rows);
    part.rows = listed;
    for (int t = 0; t < 9; ++t) {
      for (int i = begin; i < at; ++i) *listed++ = t * width + channels[i] - g * width;
    }
    auto* lanes = workspace.take<std::int32_t>(static_cast<std::size_t>(part.vectors) *
                                               static_cast<std::size_t>(W + 1));
    part.lanes = lanes;
    for (int v = 0, i = begin; v < part.vectors; ++v, lanes += W + 1) {
      const int first = g * width + v * W;
      std::fill(lanes, lanes + 1 + W, 0);
      for (; i < at && channels[i] < first + W; ++i) lanes[++lanes[0]] = channels[i] - first;
    }
  }
  view.parts = parts;
  view.part_copies = copies;
}

void PackedBottleneck::select_groups(const std::int32_t* channels, int count, WeightsView& view,
                                     Workspace& workspace) const {
  const int G = layer_.groups, width = layer_.middle / G, per_row = isa_->inputs_per_row;
  auto* groups = workspace.take<GroupView>(static_cast<std::size_t>(G));
  int at = 0;
  for (int g = 0; g < G; ++g) {
    int active = 0;
    while (at + active < count && channels[at + active] < (g + 1) * width) ++active;
    if (!active) continue;
    const int listed = round_up(active, per_row), packed = round_up(width, per_row);  // per tap
    const int taps = has_winograd() ? kWinogradPlanes : 9;
    auto* rows = workspace.take<std::int32_t>(static_cast<std::size_t>(taps) * listed + kListMargin);
    auto* columns = workspace.take<std::int32_t>(static_cast<std::size_t>(active));
    for (int i = 0; i < active; ++i) columns[i] = channels[at + i] - g * width;
    for (int t = 0; t < taps; ++t) {
      for (int i = 0; i < listed; ++i) rows[t * listed + i] = i < active ? t * packed + columns[i] : -1;
    }
    std::fill(rows + taps * listed, rows + taps * listed + kListMargin, rows[taps * listed - 1]);
    GroupView& group = groups[view.group_count++];
    group = full_.groups[g];
    for (ConvolutionView* conv : {&group.conv, &group.winograd}) {
      conv->selection.rows = rows;
      conv->selection.columns = columns;
      conv->inputs = conv->outputs = active;
    }
    group.first_input = group.first_output = at;
    at += active;
  }
  view.groups = groups;
}

std::int64_t selected_bytes(const WeightsView& view, bool winograd) {
  std::int64_t bytes = view.conv1.bytes() + view.conv3.bytes();
  for (int g = 0; g < view.group_count; ++g)
    bytes += (winograd ? view.groups[g].winograd : view.groups[g].conv).bytes();
  return bytes;
}

CompactWeights compact(const Isa& isa, const WeightsView& selected, bool winograd, Workspace& workspace) {
  const int PW = isa.panel_width;
  const auto panels = [=](const ConvolutionView& conv) { return ceil_to_int(conv.outputs, PW); };
  const auto chosen = [=](GroupView& group) -> ConvolutionView& {
    return winograd ? group.winograd : group.conv;
  };
  CompactWeights result;
  result.view = selected;
  auto* groups = workspace.take<GroupView>(static_cast<std::size_t>(selected.group_count));
  if (selected.group_count) std::copy(selected.groups, selected.groups + selected.group_count, groups);
  result.view.groups = groups;
  int most = panels(selected.conv1) + panels(selected.conv3);
  for (int g = 0; g < selected.group_count; ++g) most += panels(chosen(groups[g]));
  auto* copies = workspace.take<SelectedCopy>(static_cast<std::size_t>(most));
  result.copies = copies;
  const auto add = [&](ConvolutionView& conv) {
    const std::ptrdiff_t panel = static_cast<std::ptrdiff_t>(conv.depth()) * PW;
    auto* const base =
        workspace.take<float>(static_cast<std::size_t>(panels(conv)) * static_cast<std::size_t>(panel));
    for (int p = 0; p < panels(conv); ++p) {
      SelectedCopy& copy = copies[result.count++] = {};
      copy.b = conv.weights;
      copy.selection = conv.selection;
      copy.row_end = conv.depth();
      copy.column_begin = p * PW;
      copy.column_end = std::min((p + 1) * PW, conv.outputs);
      copy.out = base + p * panel;
      copy.out_stride = PW;
    }
    conv.weights = {base, PW, panel};
    conv.selection = {};
  };
  add(result.view.conv1);
  for (int g = 0; g < selected.group_count; ++g) add(chosen(groups[g]));
  add(result.view.conv3);
  return result;
}

Upcoming first_weights(const Isa& isa, const ConvolutionView& conv, int panel_begin, int panel_end) {
  constexpr std::int64_t kBytes = 256 << 10;
  const std::int64_t panel = std::int64_t{4} * conv.depth() * isa.panel_width;
  const std::int32_t* const columns = conv.selection.columns;
  if (panel_begin < panel_end && conv.selection.pairs) {
    const int begin = panel_begin * isa.panel_width,
              most = 2 * static_cast<int>(kBytes / 4 / 2 / conv.depth());
    const int end = std::min(panel_end * isa.panel_width, conv.outputs);
    return upcoming_pairs(conv.selection, 0, conv.depth(), begin, std::min(end, begin + std::max(most, 2)));
  }
  const auto source = [&](int p) { return columns ? columns[p * isa.panel_width] / isa.panel_width : p; };
  if (panel_begin >= panel_end) return {};
  const int end = std::min(panel_end, panel_begin + std::max(2, static_cast<int>(kBytes / panel)));
  Upcoming upcoming;
  upcoming.base = conv.weights.base + source(panel_begin) * conv.weights.panel_stride;
  upcoming.panel_stride = conv.weights.panel_stride;
  upcoming.panels = (end < panel_end ? source(end) : source(end - 1) + 1) - source(panel_begin);
  upcoming.rows = conv.selection.rows;
  upcoming.row_stride = conv.weights.row_stride;
  upcoming.count = conv.depth();
  upcoming.lines = isa.panel_width > 16 ? 2 : 1;
  return upcoming;
}

}  // namespace dyndeploy::cpu
