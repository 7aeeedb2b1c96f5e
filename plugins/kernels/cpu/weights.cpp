#include "weights.h"

#include <algorithm>
#include <cstring>

#include "lists.h"

namespace dyndeploy::cpu {
namespace {

// Rows per gather: enough of them to share among threads, long enough to stream.
constexpr int kGatherRows = 512;

std::ptrdiff_t padded(int columns, int panel) { return round_up(columns, panel) + panel; }

float relu(float v) { return v < 0.0f ? 0.0f : v; }

class Carver {
 public:
  explicit Carver(char* base) : base_(base) {}
  float* floats(std::size_t count) {
    float* piece = reinterpret_cast<float*>(base_ + used_);
    used_ += (count * sizeof(float) + 63) / 64 * 64;
    return base_ ? piece : nullptr;
  }
  std::size_t used() const { return used_; }

 private:
  char* base_;
  std::size_t used_ = 0;
};

}  // namespace

PackedBottleneck::PackedBottleneck(const Isa& isa, const BottleneckLayer& layer, const BottleneckWeights& weights,
                                   bool channel_skipping)
    : isa_(&isa), layer_(layer), groups_(new GroupView[static_cast<std::size_t>(layer.groups)]) {
  const int C = layer.inputs, M = layer.middle, Co = layer.outputs, G = layer.groups;
  const int PW = isa.panel_width;
  const int width = M / G;
  const int panels1 = ceil_to_int(M, PW), panels2 = ceil_to_int(width, PW), panels3 = ceil_to_int(Co, PW);
  const std::size_t w1_floats = static_cast<std::size_t>(panels1) * PW * C;
  const std::size_t w2_floats = static_cast<std::size_t>(panels2) * PW * 9 * width;  // one group
  const std::size_t w3_floats = static_cast<std::size_t>(panels3) * PW * M;
  const std::size_t wd_floats = layer.projection ? static_cast<std::size_t>(panels3) * PW * C : 0;
  const std::size_t m_floats = static_cast<std::size_t>(padded(M, PW));
  const std::size_t co_floats = static_cast<std::size_t>(padded(Co, PW));

  float *w1, *w2, *w3, *wd, *b1, *b2, *b3, *bd, *r1, *r2, *border, *skipped;
  const auto carve = [&](Carver& carver) {
    w1 = carver.floats(w1_floats);
    w2 = carver.floats(w2_floats * static_cast<std::size_t>(G));
    w3 = carver.floats(w3_floats);
    wd = carver.floats(wd_floats);
    b1 = carver.floats(m_floats);
    b2 = carver.floats(m_floats);
    b3 = carver.floats(co_floats);
    bd = carver.floats(co_floats);
    r1 = carver.floats(channel_skipping ? m_floats : 0);
    r2 = carver.floats(channel_skipping ? m_floats : 0);
    border = carver.floats(channel_skipping ? kBorderClasses * m_floats : 0);
    skipped = carver.floats(channel_skipping ? co_floats : 0);
  };
  Carver measure(nullptr);
  carve(measure);
  memory_ = Buffer(measure.used());
  Carver carver(static_cast<char*>(memory_.get()));
  carve(carver);

  const auto pack = [&](const float* from, int taps, int inputs, int outputs, float* to) {
    PackSource source;
    source.weights = from;
    source.out_stride = static_cast<std::ptrdiff_t>(inputs) * taps;
    source.in_stride = taps;
    source.taps = taps;
    source.inputs = inputs;
    source.outputs = outputs;
    isa.pack(source, 0, ceil_to_int(outputs, PW), to);
  };
  const auto bias = [](const float* from, int count, std::size_t floats, float* to) {
    std::fill(std::copy(from, from + count, to), to + floats, 0.0f);
  };
  const auto panels = [&](const float* base, std::ptrdiff_t depth) {
    PanelView view;
    view.base = base;
    view.row_stride = PW;
    view.panel_stride = depth * PW;
    return view;
  };

  pack(weights.w1, 1, C, M, w1);
  for (int g = 0; g < G; ++g) {
    float* to = w2 + w2_floats * static_cast<std::size_t>(g);
    pack(weights.w2 + static_cast<std::size_t>(g) * width * width * 9, 9, width, width, to);
    groups_[static_cast<std::size_t>(g)] = GroupView{panels(to, 9 * width), width, width, g * width, g * width};
  }
  pack(weights.w3, 1, M, Co, w3);
  bias(weights.b1, M, m_floats, b1);
  bias(weights.b2, M, m_floats, b2);
  bias(weights.b3, Co, co_floats, b3);
  if (layer.projection) {
    pack(weights.wd, 1, C, Co, wd);
    bias(weights.bd, Co, co_floats, bd);
    for (int n = 0; n < Co; ++n) b3[n] += bd[n];
    projection_ = panels(wd, C);
    projection_bias_ = bd;
  }

  full_.middle = M;
  full_.w1 = panels(w1, C);
  full_.b1 = b1;
  full_.groups = groups_.get();
  full_.group_count = G;
  full_.b2 = b2;
  full_.w3 = panels(w3, M);
  full_.b3 = b3;
  if (!channel_skipping) return;

  for (std::size_t i = 0; i < m_floats; ++i) {
    r1[i] = relu(b1[i]);
    r2[i] = relu(b2[i]);
  }
  // A skipped channel of h1 is the constant relu(b1): its contribution through each tap, then summed over the
  // taps that lie inside the map. Doubles, because these constants are computed once and used everywhere.
  std::unique_ptr<double[]> through(new double[static_cast<std::size_t>(M) * 9]());
  for (int n = 0; n < M; ++n) {
    const float* row = weights.w2 + static_cast<std::size_t>(n) * width * 9;
    const float* constants = r1 + n / width * width;
    double* sum = through.get() + static_cast<std::size_t>(n) * 9;
    for (int c = 0; c < width; ++c) {
      for (int t = 0; t < 9; ++t) sum[t] += static_cast<double>(row[c * 9 + t]) * constants[c];
    }
  }
  std::fill(border, border + kBorderClasses * m_floats, 0.0f);
  for (int c = 0; c < kBorderClasses; ++c) {
    const unsigned taps = border_taps(c);
    for (int n = 0; n < M; ++n) {
      double sum = b2[n];
      for (int t = 0; t < 9; ++t) sum += taps >> t & 1u ? through[static_cast<std::size_t>(n) * 9 + t] : 0.0;
      border[static_cast<std::size_t>(c) * m_floats + n] = static_cast<float>(sum);
    }
  }
  std::fill(skipped, skipped + co_floats, 0.0f);
  for (int n = 0; n < Co; ++n) {
    double sum = b3[n];
    for (int c = 0; c < M; ++c) sum += static_cast<double>(weights.w3[static_cast<std::size_t>(n) * M + c]) * r2[c];
    skipped[n] = static_cast<float>(sum);
  }
  relu_b1_ = r1;
  relu_b2_ = r2;
  border_bias_ = border;
  skipped_output_ = skipped;
}

PackedBottleneck::Compact PackedBottleneck::compact(const std::uint8_t* on, int count, Workspace& workspace) const {
  const int C = layer_.inputs, M = layer_.middle, G = layer_.groups;
  const int PW = isa_->panel_width;
  const int width = M / G;
  const auto m_stride = padded(M, PW);

  auto* channels = workspace.take<std::int32_t>(static_cast<std::size_t>(count));
  auto* b1 = workspace.take<float>(static_cast<std::size_t>(padded(count, PW)));
  auto* r1 = workspace.take<float>(static_cast<std::size_t>(padded(count, PW)));
  auto* r2 = workspace.take<float>(static_cast<std::size_t>(padded(count, PW)));
  const auto b2_stride = padded(count, PW);
  auto* b2 = workspace.take<float>(static_cast<std::size_t>(b2_stride) * kBorderClasses);
  int k = 0;
  for (int c = 0; c < M; ++c) {
    if (on[c]) channels[k++] = c;
  }
  for (int i = 0; i < count; ++i) {
    b1[i] = full_.b1[channels[i]];
    r1[i] = relu_b1_[channels[i]];
    r2[i] = relu_b2_[channels[i]];
  }
  for (int c = 0; c < kBorderClasses; ++c) {
    const float* from = border_bias_ + c * m_stride;
    float* to = b2 + c * b2_stride;
    for (int i = 0; i < count; ++i) to[i] = from[channels[i]];
  }

  // A row of gathered weights holds all active outputs; its length is an odd number of cache lines, so that the
  // rows of one panel do not fall into the same cache sets. A gather may write one vector beyond its columns.
  const auto row_floats = [&](int columns) {
    const std::ptrdiff_t lines = ceil_to_int(columns, 16) + ceil_to_int(isa_->vector_width, 16);
    return (lines | 1) * 16;
  };
  const auto tail = static_cast<std::size_t>(2 * PW);
  // The gathers for `depth` rows of the panels of outputs [first, first + columns).
  const auto plan = [&](const PanelView& panels, int first, int columns, const std::int32_t* rows, int depth, float* out,
                        std::ptrdiff_t stride, ColumnGather* gathers) {
    int made = 0;
    int at = 0;
    for (int p = 0; p * PW < columns; ++p) {
      std::uint64_t active = 0;
      int taken = 0;
      for (int n = 0; n < PW && p * PW + n < columns; ++n) {
        if (on[first + p * PW + n]) {
          active |= std::uint64_t{1} << n;
          ++taken;
        }
      }
      if (!taken) continue;
      for (int r = 0; r < depth; r += kGatherRows, ++made) {
        ColumnGather& g = gathers[made];
        g = ColumnGather{};
        g.panel = panels.base + p * panels.panel_stride + (rows ? 0 : r * panels.row_stride);
        g.rows = rows ? rows + r : nullptr;
        g.count = std::min(kGatherRows, depth - r);
        g.active = active;
        g.out = out + at + r * stride;
        g.out_stride = stride;
      }
      at += taken;
    }
    return made;
  };

  Compact compact;
  WeightsView& view = compact.view;
  view.middle = count;
  view.b1 = b1;
  view.subtract1 = r1;
  view.b2 = b2;
  view.b2_stride = b2_stride;
  view.subtract2 = r2;
  view.w3 = full_.w3;
  view.w3.rows = channels;
  view.b3 = skipped_output_;

  const std::ptrdiff_t stride1 = row_floats(count);
  auto* w1 = workspace.take<float>(static_cast<std::size_t>(stride1) * C + tail);
  view.w1.base = w1;
  view.w1.row_stride = stride1;
  view.w1.panel_stride = PW;
  compact.gathers1 = workspace.take<ColumnGather>(static_cast<std::size_t>(ceil_to_int(M, PW)) * ceil_to_int(C, kGatherRows));
  compact.gather_count1 = plan(full_.w1, 0, M, nullptr, C, w1, stride1, compact.gathers1);

  auto* groups = workspace.take<GroupView>(static_cast<std::size_t>(G));
  compact.gathers2 = workspace.take<ColumnGather>(static_cast<std::size_t>(G) * ceil_to_int(width, PW) *
                                                  ceil_to_int(9 * width, kGatherRows));
  int at = 0;
  for (int g = 0; g < G; ++g) {
    int active = 0;
    while (at + active < count && channels[at + active] < (g + 1) * width) ++active;
    if (!active) continue;
    auto* rows = workspace.take<std::int32_t>(static_cast<std::size_t>(9) * active);
    for (int t = 0; t < 9; ++t) {
      for (int i = 0; i < active; ++i) rows[t * active + i] = t * width + channels[at + i] - g * width;
    }
    const std::ptrdiff_t stride2 = row_floats(active);
    auto* w2 = workspace.take<float>(static_cast<std::size_t>(stride2) * 9 * active + tail);
    compact.gather_count2 += plan(full_.groups[g].weights, g * width, width, rows, 9 * active, w2, stride2,
                                  compact.gathers2 + compact.gather_count2);
    PanelView panels;
    panels.base = w2;
    panels.row_stride = stride2;
    panels.panel_stride = PW;
    groups[view.group_count++] = GroupView{panels, active, active, at, at};
    at += active;
  }
  view.groups = groups;
  return compact;
}

}  // namespace dyndeploy::cpu
