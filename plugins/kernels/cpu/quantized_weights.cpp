#include "quantized_weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "carver.h"
#include "lists.h"

namespace dyndeploy::cpu {
namespace {

constexpr int kTaps = 9;
constexpr int kCacheLine = 64;

// The remaining taps of every border class.
struct ClassTaps {
  std::uint16_t taps[kBorderClasses] = {};
  constexpr ClassTaps() {
    for (int c = 0; c < kBorderClasses; ++c) taps[c] = static_cast<std::uint16_t>(border_taps(c));
  }
};
constexpr ClassTaps kClassTaps;
static_assert(kBorderClasses == kQuantizedClasses, "one number");

// One more row, of zeros, ends each block.
std::size_t block_bytes(int taps, int inputs) {
  return (static_cast<std::size_t>(taps) * static_cast<std::size_t>(ceil_to_int(inputs, 2)) + 1) *
         kBlockColumns * 2;
}

// weights: (output, input, tap), into zeros.
void pack_blocks(const std::int8_t* weights, int outputs, int inputs, int taps, std::int8_t* out) {
  constexpr std::ptrdiff_t kRow = 2 * kBlockColumns;
  const std::ptrdiff_t tap = ceil_to_int(inputs, 2) * kRow;
  for (int n = 0; n < outputs; ++n) {
    std::int8_t* const column = out + n / kBlockColumns * (taps * tap + kRow) + n % kBlockColumns * 2;
    for (int k = 0; k < inputs; ++k) {
      std::int8_t* const to = column + k / 2 * kRow + k % 2;
      for (int t = 0; t < taps; ++t) to[t * tap] = *weights++;
    }
  }
}

// One more line between the pairs, which else may fall into the same sets of a cache.
std::size_t pair_bytes(int inputs) {
  return static_cast<std::size_t>(round_up(ceil_to_int(inputs, kQuad) * 2 * kQuad, kCacheLine) + kCacheLine);
}

void pack_pairs(const std::int8_t* weights, int outputs, int inputs, std::int8_t* out) {
  for (int n = 0; n < outputs; ++n) {
    std::int8_t* const column = out + static_cast<std::size_t>(n / 2) * pair_bytes(inputs) + n % 2 * kQuad;
    for (int k = 0; k < inputs; ++k) column[k / kQuad * (2 * kQuad) + k % kQuad] = *weights++;
  }
}

// A skipped channel: its sum is the bias alone.
std::uint8_t constant_of(std::int32_t bias, float multiplier) {
  const float product = static_cast<float>(bias) * multiplier;
  return static_cast<std::uint8_t>(std::nearbyint(std::min(std::max(product, 0.0f), 255.0f)));
}

bool fits(const std::int8_t* weights, std::size_t count, int limit) {
  return !weights || std::all_of(weights, weights + count, [=](int w) { return w >= -limit && w <= limit; });
}

}  // namespace

const QuantizedIsa* quantized_isa_for(const QuantizedIsa& isa, const std::int8_t* weights,
                                      std::size_t count) {
  const QuantizedIsa* found = &isa;
  while (found->wider && !fits(weights, count, found->weight_limit)) found = found->wider;
  return found;
}

std::size_t quantized_panel_bytes(const QuantizedIsa& isa, int taps, int inputs) {
  return static_cast<std::size_t>(taps) * static_cast<std::size_t>(ceil_to_int(inputs, kQuad)) *
         static_cast<std::size_t>(isa.panel_width) * kQuad;
}

void pack_quantized_panels(const std::int8_t* weights, int outputs, int inputs, int taps, int panel_width,
                           std::int8_t* out) {
  const std::ptrdiff_t row = static_cast<std::ptrdiff_t>(panel_width) * kQuad;
  const std::ptrdiff_t tap = ceil_to_int(inputs, kQuad) * row;
  for (int n = 0; n < outputs; ++n) {
    std::int8_t* const column = out + n / panel_width * taps * tap + n % panel_width * kQuad;
    for (int k = 0; k < inputs; ++k) {
      std::int8_t* const to = column + k / kQuad * row + k % kQuad;
      for (int t = 0; t < taps; ++t) to[t * tap] = *weights++;
    }
  }
}

std::size_t quantized_copy_bytes(const QuantizedIsa& isa, int taps, int quads) {
  return quantized_panel_bytes(isa, taps, quads * kQuad);
}

std::size_t quantized_bias_count(const QuantizedIsa& isa) {
  return static_cast<std::size_t>(kQuantizedClasses) * static_cast<std::size_t>(isa.panel_width);
}

PackedQuantizedBottleneck::PackedQuantizedBottleneck(const QuantizedIsa& isa, const BottleneckLayer& layer,
                                                     const QuantizedWeights& weights, bool channel_skipping,
                                                     Arena& arena)
    : isa_(&isa), layer_(layer) {
  const int C = layer.inputs, M = layer.middle, Co = layer.outputs, G = layer.groups, PW = isa.panel_width;
  const int width = M / G;
  const auto count = [](int a, int b) { return static_cast<std::size_t>(a) * static_cast<std::size_t>(b); };
  while (isa_->wider && !(fits(weights.w1, count(M, C), isa_->weight_limit) &&
                          fits(weights.w2, count(M, width * kTaps), isa_->weight_limit) &&
                          fits(weights.w3, count(Co, M), isa_->weight_limit) &&
                          fits(layer.projection ? weights.wd : nullptr, count(Co, C), isa_->weight_limit)))
    isa_ = isa_->wider;
  const auto panels = [=](int outputs) { return static_cast<std::size_t>(ceil_to_int(outputs, PW)); };
  const auto column_blocks = [](int outputs) {
    return static_cast<std::size_t>(ceil_to_int(outputs, kBlockColumns));
  };
  const std::size_t groups = static_cast<std::size_t>(G);
  const std::size_t bytes1 = panels(M) * quantized_panel_bytes(isa, 1, C),
                    bytes2 = panels(width) * quantized_panel_bytes(isa, kTaps, width);
  const std::size_t bytes3 = panels(Co) * quantized_panel_bytes(isa, 1, M),
                    bytes_d = panels(Co) * quantized_panel_bytes(isa, 1, C);
  const std::size_t group_blocks = column_blocks(width) * block_bytes(kTaps, width);
  const std::size_t blocks3 = column_blocks(Co) * block_bytes(1, M);
  // The last panel of a group may begin anywhere.
  const std::size_t m_count = panels(M) * static_cast<std::size_t>(PW) + static_cast<std::size_t>(PW);
  const std::size_t co_count = panels(Co) * static_cast<std::size_t>(PW);
  const bool skips = channel_skipping;
  const std::size_t pairs1_bytes =
      skips && isa_->copies_pairs ? static_cast<std::size_t>(ceil_to_int(M, 2)) * pair_bytes(C) : 0;

  std::int8_t *w1, *w2, *w3, *wd, *pairs1, *pairs2, *pairs3;
  std::int32_t *b1, *b2, *b3, *bd, *border, *skipped;
  float *m1, *m2, *m3, *md;
  std::uint8_t *c1, *c2;
  const auto carve = [&](Carver& carver) {
    w1 = carver.take<std::int8_t>(bytes1);
    w2 = carver.take<std::int8_t>(bytes2 * groups);
    w3 = carver.take<std::int8_t>(bytes3);
    wd = carver.take<std::int8_t>(layer.projection ? bytes_d : 0);
    pairs1 = carver.take<std::int8_t>(pairs1_bytes);
    pairs2 = carver.take<std::int8_t>(skips ? group_blocks * groups : 0);
    pairs3 = carver.take<std::int8_t>(skips ? blocks3 : 0);
    b1 = carver.take<std::int32_t>(m_count);
    b2 = carver.take<std::int32_t>(m_count);
    b3 = carver.take<std::int32_t>(co_count);
    bd = carver.take<std::int32_t>(co_count);
    border = carver.take<std::int32_t>(skips ? m_count * kBorderClasses : 0);
    skipped = carver.take<std::int32_t>(skips ? co_count : 0);
    m1 = carver.take<float>(m_count);
    m2 = carver.take<float>(m_count);
    m3 = carver.take<float>(co_count);
    md = carver.take<float>(co_count);
    c1 = carver.take<std::uint8_t>(skips ? m_count : 0);
    c2 = carver.take<std::uint8_t>(skips ? m_count : 0);
  };
  Carver measure(nullptr);
  carve(measure);
  memory_ = arena.take(measure.used());
  std::memset(memory_.get(), 0, measure.used());
  Carver carver(static_cast<char*>(memory_.get()));
  carve(carver);

  const auto conv = [&](const std::int8_t* base, const std::int32_t* bias, const float* multiplier,
                        int inputs, int taps, int outputs) {
    QuantizedConvolution c;
    c.weights.base = base;
    c.weights.panel_stride = static_cast<std::ptrdiff_t>(quantized_panel_bytes(isa, taps, inputs));
    c.weights.bias = bias;
    c.weights.multiplier = multiplier;
    c.inputs = inputs;
    c.taps = taps;
    c.outputs = outputs;
    return c;
  };
  std::copy(weights.b1, weights.b1 + M, b1);
  std::copy(weights.m1, weights.m1 + M, m1);
  std::copy(weights.b2, weights.b2 + M, b2);
  std::copy(weights.m2, weights.m2 + M, m2);
  std::copy(weights.b3, weights.b3 + Co, b3);
  std::copy(weights.m3, weights.m3 + Co, m3);
  pack_quantized_panels(weights.w1, M, C, 1, PW, w1);
  groups_.reset(new QuantizedGroup[groups]);
  const std::size_t group_weights = count(width, width * kTaps);
  for (int g = 0; g < G; ++g) {
    const std::size_t i = static_cast<std::size_t>(g);
    pack_quantized_panels(weights.w2 + i * group_weights, width, width, kTaps, PW, w2 + i * bytes2);
    groups_[i] = {conv(w2 + i * bytes2, b2 + g * width, m2 + g * width, width, kTaps, width), g * width,
                  g * width};
  }
  pack_quantized_panels(weights.w3, Co, M, 1, PW, w3);
  full_.middle = M;
  full_.conv1 = conv(w1, b1, m1, C, 1, M);
  full_.groups = groups_.get();
  full_.group_count = G;
  full_.conv3 = conv(w3, b3, m3, M, 1, Co);
  if (layer.projection) {
    std::copy(weights.bd, weights.bd + Co, bd);
    std::copy(weights.md, weights.md + Co, md);
    pack_quantized_panels(weights.wd, Co, C, 1, PW, wd);
    projection_ = conv(wd, bd, md, C, 1, Co);
  }
  if (!skips) return;

  for (int m = 0; m < M; ++m) {
    c1[m] = constant_of(b1[m], m1[m]);
    c2[m] = constant_of(b2[m], m2[m]);
  }
  for (int g = 0; g < G; ++g) {
    const std::size_t i = static_cast<std::size_t>(g);
    pack_blocks(weights.w2 + i * group_weights, width, width, kTaps, pairs2 + i * group_blocks);
  }
  pack_blocks(weights.w3, Co, M, 1, pairs3);
  if (pairs1_bytes) {
    pack_pairs(weights.w1, M, C, pairs1);
    pairs1_ = pairs1;
    pair_stride1_ = static_cast<std::ptrdiff_t>(pair_bytes(C));
  }
  // What a skipped channel of h1 adds through each tap, summed over the taps that lie inside the map.
  for (int m = 0; m < M; ++m) {
    std::int32_t through[kTaps] = {};
    const std::int8_t* from = weights.w2 + count(m, width * kTaps);
    for (int k = 0; k < width; ++k) {
      const std::int32_t constant = c1[m / width * width + k];
      for (int t = 0; t < kTaps; ++t) through[t] += *from++ * constant;
    }
    for (int c = 0; c < kBorderClasses; ++c) {
      std::int32_t sum = b2[m];
      for (int t = 0; t < kTaps; ++t) sum += border_taps(c) >> t & 1u ? through[t] : 0;
      border[static_cast<std::size_t>(c) * m_count + static_cast<std::size_t>(m)] = sum;
    }
  }
  for (int n = 0; n < Co; ++n) {
    const std::int8_t* const from = weights.w3 + count(n, M);
    skipped[n] = b3[n];
    for (int k = 0; k < M; ++k) skipped[n] += from[k] * std::int32_t{c2[k]};
  }
  constant1_ = c1;
  constant2_ = c2;
  blocks2_ = pairs2;
  block_stride2_ = static_cast<std::ptrdiff_t>(block_bytes(kTaps, width));
  group_stride2_ = static_cast<std::ptrdiff_t>(group_blocks);
  blocks3_ = pairs3;
  block_stride3_ = static_cast<std::ptrdiff_t>(block_bytes(1, M));
  border_bias_ = border;
  border_stride_ = static_cast<std::ptrdiff_t>(m_count);
  constant_bias3_ = skipped;
  skipped_ = full_.conv3;
  skipped_.inputs = 0;
  skipped_.weights.bias = skipped;
}

namespace {

bool come_in_pairs(const std::int32_t* channels, int count, int first) {
  bool paired = count % 2 == 0;
  for (int i = 0; paired && i < count; i += 2)
    paired = (channels[i] - first) % 2 == 0 && channels[i + 1] == channels[i] + 1;
  return paired;
}

// Rows of blocks for `count` of the inputs of each tap, in whole quads.
void list_rows(const std::int32_t* channels, int count, int first, int inputs, int taps,
               QuantizedSelection& s, Workspace& workspace) {
  s.single = !come_in_pairs(channels, count, first);
  const int step = s.single ? 1 : 2;
  const int pairs = ceil_to_int(inputs, 2), zero = taps * pairs, listed = round_up(count, kQuad);
  const std::size_t entries = static_cast<std::size_t>(taps) * static_cast<std::size_t>(listed / step);
  auto* rows = workspace.take<std::int32_t>(entries + kQuantizedListMargin);
  s.rows = rows;
  for (int t = 0; t < taps; ++t) {
    for (int i = 0; i < listed; i += step) {
      const int channel = i < count ? channels[i] - first : 0;
      const int row = i < count ? t * pairs + channel / 2 : zero;
      *rows++ = row * (2 * kBlockColumns) + (s.single ? channel % 2 : 0);
    }
  }
  std::fill(rows, rows + kQuantizedListMargin, rows[-1]);
}

}  // namespace

QuantizedView PackedQuantizedBottleneck::select(const std::uint8_t* on, int count, unsigned classes,
                                                Workspace& workspace) const {
  const int M = layer_.middle, G = layer_.groups, width = M / G;
  auto* channels = workspace.take<std::int32_t>(static_cast<std::size_t>(M));
  int k = 0;
  for (int c = 0; c < M; ++c) {
    channels[k] = c;
    k += on[c] != 0;
    if (k == count) break;
  }
  const auto chosen = [&](const std::uint8_t* from, int begin, int number) -> const std::uint8_t* {
    auto* const to = workspace.take<std::uint8_t>(static_cast<std::size_t>(round_up(number, kQuad)));
    bool any = false;
    for (int i = 0; i < round_up(number, kQuad); ++i) {
      to[i] = i < number ? from[channels[begin + i]] : 0;
      any = any || to[i];
    }
    return any ? to : nullptr;
  };

  QuantizedView view;
  view.middle = count;
  auto* const selections = workspace.take<QuantizedSelection>(static_cast<std::size_t>(G) + 2);
  std::fill(selections, selections + G + 2, QuantizedSelection{});
  view.conv1 = full_.conv1;
  view.conv1.outputs = count;
  view.conv1.weights.selection = selections;
  selections[0].columns = channels;
  if (come_in_pairs(channels, count, 0)) {
    selections[0].pairs = pairs1_;
    selections[0].pair_stride = pair_stride1_;
  }

  auto* const groups = workspace.take<QuantizedGroup>(static_cast<std::size_t>(G));
  int at = 0;
  for (int g = 0; g < G; ++g) {
    int active = 0;
    while (at + active < count && channels[at + active] < (g + 1) * width) ++active;
    if (!active) continue;
    QuantizedSelection& s = selections[1 + g];
    s.blocks = blocks2_ + g * group_stride2_;
    s.block_stride = block_stride2_;
    list_rows(channels + at, active, g * width, width, kTaps, s, workspace);
    auto* const columns = workspace.take<std::int32_t>(static_cast<std::size_t>(active));
    for (int i = 0; i < active; ++i) columns[i] = channels[at + i] - g * width;
    s.columns = columns;
    s.constants = chosen(constant1_, at, active);
    s.class_taps = kClassTaps.taps;
    s.classes = classes;
    QuantizedGroup& group = groups[view.group_count++];
    group = full_.groups[g];
    group.conv.inputs = group.conv.outputs = active;
    group.conv.weights.bias = border_bias_ + g * width;
    group.conv.weights.bias_stride = border_stride_;
    group.conv.weights.selection = &s;
    group.first_input = group.first_output = at;
    at += active;
  }
  view.groups = groups;

  QuantizedSelection& last = selections[G + 1];
  last.blocks = blocks3_;
  last.block_stride = block_stride3_;
  list_rows(channels, count, 0, M, 1, last, workspace);
  last.constants = chosen(constant2_, 0, count);
  view.conv3 = full_.conv3;
  view.conv3.inputs = count;
  view.conv3.weights.bias = constant_bias3_;
  view.conv3.weights.selection = &last;
  return view;
}

std::int64_t selected_bytes(const QuantizedView& view) {
  std::int64_t bytes = view.conv1.bytes() + view.conv3.bytes();
  for (int g = 0; g < view.group_count; ++g) bytes += view.groups[g].conv.bytes();
  return bytes;
}

CompactQuantized compact(const QuantizedIsa& isa, const QuantizedView& selected, Workspace& workspace) {
  const int PW = isa.panel_width;
  const auto panels = [=](const QuantizedConvolution& conv) { return ceil_to_int(conv.outputs, PW); };
  CompactQuantized result;
  result.view = selected;
  auto* groups = workspace.take<QuantizedGroup>(static_cast<std::size_t>(selected.group_count));
  std::copy(selected.groups, selected.groups + selected.group_count, groups);
  result.view.groups = groups;
  int most = panels(selected.conv1) + panels(selected.conv3);
  for (int g = 0; g < selected.group_count; ++g) most += panels(groups[g].conv);
  auto* copies = workspace.take<QuantizedCopy>(static_cast<std::size_t>(most));
  result.copies = copies;
  const auto add = [&](QuantizedConvolution& conv) {
    const std::size_t columns = static_cast<std::size_t>(panels(conv)) * static_cast<std::size_t>(PW);
    const std::size_t panel = quantized_copy_bytes(isa, conv.taps, conv.quads());
    const QuantizedPanels from = conv.weights;
    const std::size_t classes = from.bias_stride ? kBorderClasses : 1;
    auto* const base = workspace.take<std::int8_t>(static_cast<std::size_t>(panels(conv)) * panel);
    auto* const bias = workspace.take<std::int32_t>(classes * columns);
    auto* const multiplier = workspace.take<float>(columns);
    conv.weights = {};
    conv.weights.base = base;
    conv.weights.panel_stride = static_cast<std::ptrdiff_t>(panel);
    conv.weights.bias = bias;
    conv.weights.bias_stride = from.bias_stride ? static_cast<std::ptrdiff_t>(columns) : 0;
    conv.weights.multiplier = multiplier;
    for (int p = 0; p < panels(conv); ++p) {
      QuantizedCopy& copy = copies[result.count++] = {};
      copy.from = from;
      copy.taps = conv.taps;
      copy.quads = conv.quads();
      copy.column = p * PW;
      copy.count = std::min(PW, conv.outputs - p * PW);
      copy.b = base + static_cast<std::size_t>(p) * panel;
      copy.bias = bias + p * PW;
      copy.bias_stride = conv.weights.bias_stride;
      copy.multiplier = multiplier + p * PW;
    }
  };
  add(result.view.conv1);
  for (int g = 0; g < selected.group_count; ++g) add(groups[g].conv);
  add(result.view.conv3);
  return result;
}

QuantizedUpcoming first_weights(const QuantizedIsa& isa, const QuantizedConvolution& conv, int panel_begin,
                                int panel_end) {
  constexpr int kLines = (320 << 10) / kCacheLine;
  QuantizedUpcoming u;
  if (panel_begin >= panel_end) return u;
  const int PW = isa.panel_width;
  const QuantizedSelection* const s = conv.weights.selection;
  if (s && s->pairs) {
    const int begin = panel_begin * PW, end = std::min(panel_end * PW, conv.outputs);
    const int lines = ceil_to_int(conv.quads() * 2 * kQuad, kCacheLine);
    return upcoming_pairs(*s, conv.quads(), begin, std::min(end, begin + 2 * std::max(1, kLines / lines)));
  }
  const auto column = [=](int n) { return s && s->columns ? s->columns[n] : n; };
  const bool blocks = s && s->blocks;
  const int unit = blocks ? kBlockColumns : PW;
  u.stride = blocks ? s->block_stride : conv.weights.panel_stride;
  if (blocks) {
    u.rows = s->rows;
    u.count = conv.taps * conv.quads() * (s->single ? kQuad : 2);
  } else {
    u.count = static_cast<int>(u.stride / kCacheLine);
  }
  const int first = column(panel_begin * PW) / unit;
  const int last = column(std::min(panel_end * PW, conv.outputs) - 1) / unit;
  u.base = (blocks ? s->blocks : conv.weights.base) + first * u.stride;
  u.blocks = std::min(last - first + 1, std::max(1, kLines / std::max(u.count, 1)));
  return u;
}

}  // namespace dyndeploy::cpu
