#include "bottleneck.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "caches.h"
#include "lists.h"
#include "schedule.h"

namespace dyndeploy::cpu {
namespace {

// Everything the tasks of one call share.
struct Context {
  const Isa* isa;
  const PackedBottleneck* weights;
  BottleneckLayer layer;
  BottleneckShape shape;
  const float* x;
  float* y;
  PixelLists lists;
  // The pixels of conv3's output: those of `lists`, but where conv1 and conv2 run on more than it needs.
  const std::int32_t* outputs;
  const std::int32_t* outputs_begin;
  const std::int32_t* shortcut;  // the input pixel of each
  const std::int32_t* inactive;  // all other pixels of the output
  const std::int32_t* hidden;    // its row of h2; nullptr: they are in order
  float* h1;
  std::ptrdiff_t h1_stride;
  float* h2;  // one row per active pixel
  std::ptrdiff_t h2_stride;
  int h2_block;          // rows of a thread of its own
  bool rounded;          // h1 and h2 hold pairs of BF16 numbers
  bool winograd;         // conv2 runs tile by tile
  int winograd_tiles;    // that share a pass over its weights
  GemmScratch* scratch;  // one per worker
  Strip* strips;         // one per thread
  float* means;          // of the squeeze-excite: a row of h2_stride per sample, then the factors likewise
  float* squeezed;       // its hidden channels, per sample
};

bool squeezes(const Context& c) { return c.layer.squeeze > 0; }

// The tiles of some active pixels that begin and end with whole tiles.
Range tiles_of(const Context& c, Range active) {
  if (!active.size()) return {0, 0};
  return {c.lists.tiles.of[active.begin], c.lists.tiles.of[active.end - 1] + 1};
}

// As part(), between tiles where conv2 runs tile by tile.
Range part_of_active(const Context& c, Range active, int index, int parts) {
  if (!c.winograd || !active.size()) return part(active.begin, active.end, index, parts);
  const Range all = tiles_of(c, active), tiles = part(all.begin, all.end, index, parts);
  return {c.lists.tiles.first[tiles.begin], c.lists.tiles.first[tiles.end]};
}

// How many rows conv2's product has for some active pixels, and how many of them share a pass over its
// weights.
int product_rows(const Context& c, Range active) {
  return c.winograd ? tiles_of(c, active).size() : active.size();
}
int block_rows(const Context& c) { return c.winograd ? c.winograd_tiles : kBlockRows; }

// A convolution that comes after another, and the panels of it that the same thread computes.
struct Following {
  const ConvolutionView* conv = nullptr;
  Range panels{0, 0};
};

// Where a channel lies in a row of h1 or h2.
std::ptrdiff_t hidden_offset(const Context& c, int channel) { return c.rounded ? channel / 2 : channel; }

const ConvolutionView& second(const Context& c, const GroupView& group) {
  return c.winograd ? group.winograd : group.conv;
}

// Runs the product over panels [panels.begin, panels.end). `then` is what this thread probably computes next.
void product(const Context& c, Gemm& g, const ConvolutionView& conv, Range rows, Range panels,
             const Following& then, int worker) {
  Upcoming upcoming;
  if (then.conv) upcoming = first_weights(*c.isa, *then.conv, then.panels.begin, then.panels.end);
  g.upcoming = &upcoming;
  g.source[0].b = conv.weights;
  g.source[0].selection = conv.selection;
  c.isa->gemm(g, rows.begin, rows.end, panels.begin, panels.end, c.scratch[worker]);
}

// The same product by tiles; rows are active pixels.
void product_by_tiles(const Context& c, Gemm& g, const ConvolutionView& conv, Range rows, Range panels,
                      const Following& then, int worker) {
  const TileList& list = c.lists.tiles;
  const Range tiles = tiles_of(c, rows);
  Winograd w;
  Upcoming upcoming;
  if (then.conv) upcoming = first_weights(*c.isa, *then.conv, then.panels.begin, then.panels.end);
  g.upcoming = &upcoming;
  RowSource& a = g.source[0].a;
  a.index = list.corner;
  a.valid = list.valid;
  a.taps = kWinogradPlanes;
  for (int i = 0; i < kWinogradPlanes; ++i) {
    a.tap_offset[i] =
        ((i / kTileInputs - 1) * static_cast<std::ptrdiff_t>(c.shape.width) + (i % kTileInputs - 1)) *
        c.h1_stride;
  }
  g.source[0].b = conv.weights;
  g.source[0].selection = conv.selection;
  w.product = g;
  w.outputs = list.outputs;
  w.first = list.first;
  c.isa->winograd(w, tiles.begin, tiles.end, panels.begin, panels.end, c.winograd_tiles, c.scratch[worker]);
}

void conv1(const Context& c, const WeightsView& w, Range rows, Range panels, const Following& then,
           int worker) {
  Gemm g;
  g.source[0].a.base = c.x;
  g.source[0].a.stride = c.layer.inputs;
  g.source[0].a.index = c.lists.dilated;
  g.source[0].a.length = c.layer.inputs;
  g.columns = w.middle;
  g.epilogue.bias = w.b1;
  g.epilogue.relu = true;
  g.epilogue.subtract = w.subtract1;
  g.epilogue.out = c.h1;
  g.epilogue.rounded = c.rounded;
  g.epilogue.stride = c.h1_stride;
  g.epilogue.index = c.lists.dilated;
  product(c, g, w.conv1, rows, panels, then, worker);
}

// What the 3x3 reads, from the first channel of h1 on.
RowSource taps_of(const Context& c, int inputs) {
  RowSource a;
  a.base = c.h1;
  a.rounded = c.rounded;
  a.stride = c.h1_stride;
  a.index = c.lists.centre;
  a.taps = 9;
  a.length = inputs;
  a.valid = c.lists.valid;
  for (int t = 0; t < 9; ++t) {
    const std::ptrdiff_t pixels = (t / 3 - 1) * static_cast<std::ptrdiff_t>(c.shape.width) + (t % 3 - 1);
    a.tap_offset[t] = pixels * c.layer.dilation * c.h1_stride;
  }
  return a;
}

// columns: panels of the only group, groups, or 0 for all of them where they are narrow
void conv2(const Context& c, const WeightsView& w, Range rows, Range columns, float* h2, int first,
           const Following& then, int worker) {
  if (w.parts) {
    Grouped g;
    g.a = taps_of(c, w.middle);
    g.parts = w.parts;
    g.count = w.part_count;
    g.outputs = c.layer.middle / c.layer.groups;
    g.out = h2;
    g.stride = c.h2_stride;
    g.first = first;
    return c.isa->grouped(g, rows.begin, rows.end, c.scratch[worker].zeros);
  }
  const bool one = w.group_count == 1;
  for (int i = one ? 0 : columns.begin; i < (one ? 1 : columns.end); ++i) {
    const GroupView& group = w.groups[i];
    Gemm g;
    g.source[0].a = taps_of(c, group.conv.inputs);
    g.source[0].a.base += hidden_offset(c, group.first_input);
    g.columns = group.conv.outputs;
    g.epilogue.bias = w.b2 + group.first_output;
    if (w.b2_stride) {
      g.epilogue.bias_class = c.lists.border;
      g.epilogue.bias_stride = w.b2_stride;
    }
    g.epilogue.relu = true;
    g.epilogue.subtract = w.subtract2 ? w.subtract2 + group.first_output : nullptr;
    g.epilogue.out = h2 + hidden_offset(c, group.first_output);
    g.epilogue.rounded = c.rounded;
    g.epilogue.stride = c.h2_stride;
    g.epilogue.first = first;
    const Range panels = one ? columns : Range{0, ceil_to_int(group.conv.outputs, c.isa->panel_width)};
    const auto run = c.winograd ? &product_by_tiles : &product;
    run(c, g, second(c, group), rows, panels, one ? then : Following{}, worker);
  }
}

RowSource shortcut_rows(const Context& c, const std::int32_t* index) {
  RowSource a;
  a.base = c.x;
  a.stride = c.layer.inputs;
  a.index = index;
  a.length = c.layer.inputs;
  return a;
}

void conv3(const Context& c, const WeightsView& w, Range rows, Range panels, const float* h2, int first,
           int worker) {
  Gemm g;
  g.source[0].a.base = h2;
  g.source[0].a.rounded = c.rounded;
  g.source[0].a.stride = c.h2_stride;
  g.source[0].a.index = c.hidden;
  g.source[0].a.first = first;
  g.source[0].a.length = w.middle;
  g.columns = c.layer.outputs;
  g.epilogue.bias = w.b3;
  g.epilogue.relu = true;
  g.epilogue.out = c.y;
  g.epilogue.stride = c.layer.outputs;
  g.epilogue.index = c.outputs;
  if (c.layer.projection) {
    g.sources = 2;
    g.source[1].a = shortcut_rows(c, c.shortcut);
    g.source[1].b = c.weights->projection();
  } else {
    g.epilogue.residual = c.x;
  }
  product(c, g, w.conv3, rows, panels, {}, worker);
}

// The mean over a sample's pixels of channels [channels.begin, channels.end): always in the same order.
void mean(const Context& c, int sample, Range channels) {
  const std::int32_t* const begin = c.lists.active_begin + sample;
  ColumnSums s;
  s.x = c.h2 + begin[0] * c.h2_stride + channels.begin;
  s.stride = c.h2_stride;
  s.pixels = begin[1] - begin[0];
  s.channels = channels.size();
  s.sums = c.means + sample * c.h2_stride + channels.begin;
  if (!s.pixels) return;
  c.isa->column_sums(s);
  for (int i = 0; i < s.channels; ++i) s.sums[i] /= static_cast<float>(s.pixels);
}

// The factors of a sample's channels, in the place of their means.
void excite(const Context& c, const WeightsView& w, int sample) {
  const std::int32_t* const begin = c.lists.active_begin + sample;
  if (begin[0] == begin[1]) return;
  const SqueezeExcite& se = c.weights->squeeze_excite();
  const int M = c.layer.middle;
  float* const means = c.means + sample * c.h2_stride;
  float* const hidden = c.squeezed + static_cast<std::ptrdiff_t>(sample) * (se.hidden + M);
  const float* all = means;
  if (w.channels) {
    float* const spread = hidden + se.hidden;
    std::fill(spread, spread + M, 0.0f);
    for (int i = 0; i < w.middle; ++i) spread[w.channels[i]] = means[i];
    all = spread;
  }
  for (int i = 0; i < se.hidden; ++i) {
    const float v = c.isa->dot(all, se.squeeze + static_cast<std::ptrdiff_t>(i) * M, M) + se.squeeze_bias[i];
    hidden[i] = v < 0.0f ? 0.0f : v;
  }
  for (int i = 0; i < w.middle; ++i) {
    const int channel = w.channels ? w.channels[i] : i;
    const float* const row = se.excite + static_cast<std::ptrdiff_t>(channel) * se.hidden;
    const float v = c.isa->dot(hidden, row, se.hidden) + se.excite_bias[channel];
    means[i] = 1.0f / (1.0f + std::exp(-v));
  }
}

// Multiplies the rows of h2 that some pixels of conv3 read by their samples' factors.
void scale(const Context& c, const WeightsView& w, Range rows) {
  RowScaling s;
  s.x = c.h2;
  s.stride = c.h2_stride;
  s.index = c.hidden;
  s.channels = w.middle;
  for (int n = 0; n < c.shape.batch; ++n) {
    s.row_begin = std::max(rows.begin, static_cast<int>(c.outputs_begin[n]));
    s.row_end = std::min(rows.end, static_cast<int>(c.outputs_begin[n + 1]));
    s.factors = c.means + n * c.h2_stride;
    if (s.row_begin < s.row_end) c.isa->scale_rows(s);
  }
}

// conv3 of rows that are scaled just before.
void scaled_conv3(const Context& c, const WeightsView& w, Range rows, Range panels, int worker) {
  // Weights that are copied first are worth all rows at a time.
  const int blocks = w.conv3.selects() ? 1 : ceil_to_int(rows.size(), kBlockRows);
  for (int i = 0; i < blocks; ++i) {
    const Range block = part(rows.begin, rows.end, i, blocks);
    scale(c, w, block);
    conv3(c, w, block, panels, c.h2, 0, worker);
  }
}

// Pixels that no path computes: the shortcut alone.
void skipped_pixels(const Context& c, const std::int32_t* source, Range rows, int worker) {
  const int outputs = c.layer.outputs;
  if (!c.layer.projection) {
    for (int r = rows.begin; r < rows.end; ++r) {
      const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(c.inactive[r]) * outputs;
      std::memcpy(c.y + at, c.x + at, sizeof(float) * static_cast<std::size_t>(outputs));
    }
    return;
  }
  Gemm g;
  g.source[0].a = shortcut_rows(c, source);
  g.source[0].b = c.weights->projection();
  g.columns = outputs;
  g.epilogue.bias = c.weights->projection_bias();
  g.epilogue.relu = true;
  g.epilogue.out = c.y;
  g.epilogue.stride = outputs;
  g.epilogue.index = c.inactive;
  c.isa->gemm(g, rows.begin, rows.end, 0, ceil_to_int(outputs, c.isa->panel_width), c.scratch[worker]);
}

// Into how many parts conv2 can be cut across its weights.
int second_columns(const Context& c, const WeightsView& w) {
  if (w.parts) return 1;
  return w.group_count == 1 ? ceil_to_int(w.middle, c.isa->panel_width) : w.group_count;
}

constexpr int kMeanChannels = 64;  // that one task sums at a time
// Rows from which on copying the weights of active channels once takes less time than copying slices of them
// for every few rows, which stay in L2.
constexpr int kWorthCompacting = 4 * kCopyRows;
constexpr int kBandRows = 2 * kBlockRows;

// conv1 to conv3 for one strip, a band of the image at a time.
void run_strip(const Context& c, const WeightsView& w, const Strip& strip, int worker) {
  const int panels1 = ceil_to_int(w.middle, c.isa->panel_width);
  const int columns2 = second_columns(c, w);
  const int panels3 = ceil_to_int(c.layer.outputs, c.isa->panel_width);
  const int band_rows =
      std::max(kBandRows, static_cast<int>(blocks().band / (4 * c.layer.inputs)) / kBlockRows * kBlockRows);
  // Weights that are copied first are worth all rows at a time; then there is one strip, and all of h2 its.
  const bool copies = w.conv1.selects();
  const int bands = copies ? 1 : ceil_to_int(strip.active.size(), band_rows);
  // A squeeze-excite needs all of h2 before conv3.
  const bool whole = squeezes(c);
  float* const h2 = whole ? c.h2 : c.h2 + static_cast<std::ptrdiff_t>(worker) * c.h2_block * c.h2_stride;
  int done = strip.own.begin;
  for (int b = 0; b < bands; ++b) {
    const Range band = part_of_active(c, strip.active, b, bands);
    const int needed = b + 1 == bands
                           ? strip.own.end
                           : std::min(strip.own.end, halo(c.lists, c.shape, c.layer.dilation, band).end);
    if (needed > done) {
      conv1(c, w, {done, needed}, {0, panels1},
            w.group_count == 1 ? Following{&second(c, w.groups[0]), {0, columns2}} : Following{}, worker);
      done = needed;
    }
    const int blocks = copies ? 1 : ceil_to_int(product_rows(c, band), block_rows(c));
    for (int i = 0; i < blocks; ++i) {
      const Range rows = part_of_active(c, band, i, blocks);
      conv2(c, w, rows, {0, columns2}, h2, whole ? 0 : rows.begin, {&w.conv3, {0, panels3}}, worker);
      if (!whole) conv3(c, w, rows, {0, panels3}, h2, rows.begin, worker);
    }
  }
}

// Whether conv2 takes less time tile by tile.
bool tiles_pay(const Context& c, Range active, bool copies) {
  return c.lists.tiles.of && winograd_pays(*c.isa, active.size(), tiles_of(c, active).size(), copies);
}

// The parts of the lists that samples [first, last) have.
struct Rows {
  Range samples;
  Range dilated;
  Range active;
  Range outputs;
};
Rows rows_of(const Context& c, int first, int last) {
  const auto range = [=](const std::int32_t* begin) { return Range{begin[first], begin[last]}; };
  return {{first, last}, range(c.lists.dilated_begin), range(c.lists.active_begin), range(c.outputs_begin)};
}

// Runs conv1 to conv3 with one set of weights; `before` runs along.
void run_rows(const Context& c, const WeightsView& w, const Rows& rows, const Phase* before,
              const ThreadPool& pool) {
  const Range dilated = rows.dilated, active = rows.active;
  const int threads = std::max(1, pool.threads);
  Phase phases[7];
  int count = 0;
  if (before) phases[count++] = *before;
  if (!active.size()) return run_phases(pool, phases, count);

  const bool copies = w.conv1.selects();
  const int rows2 = product_rows(c, active);
  bool by_strips = threads == 1 || (!copies && rows2 >= threads * kThreadRows);
  if (by_strips) {
    cut(
        c.lists, c.shape, c.layer.dilation, active, threads,
        [&](Range all, int index, int parts) { return part_of_active(c, all, index, parts); }, c.strips);
    // Pixels that two threads share would have large weights read once more.
    for (int t = 0; t < threads; ++t)
      by_strips = by_strips && (!c.strips[t].shared.size() || w.conv1.bytes() <= blocks().resident_weights);
  }
  const int PW = c.isa->panel_width;
  const int panels1 = ceil_to_int(w.middle, PW);
  const auto shared_body = [&](int task, int worker) {
    const Range shared = c.strips[task / 2].shared;
    conv1(c, w, part(shared.begin, shared.end, task % 2, 2), {0, panels1}, {}, worker);
  };
  const auto strip_body = [&](int task, int worker) { run_strip(c, w, c.strips[task], worker); };
  const int columns2 = second_columns(c, w);
  const int panels3 = ceil_to_int(c.layer.outputs, PW);
  const Grid grid1 = make_grid(dilated.size(), panels1, copies, threads, kBlockRows);
  const Grid grid2 = make_grid(rows2, columns2, copies, threads, kBlockRows);
  const Grid grid3 = make_grid(rows.outputs.size(), panels3, copies, threads, kBlockRows);

  // The same task of the next phase probably falls to the same thread.
  const auto after = [](const ConvolutionView& conv, const Grid& grid, int columns, int task) {
    return Following{&conv, part(0, columns, task % grid.column_parts, grid.column_parts)};
  };
  // A squeeze-excite finds the pixels of every sample at their own rows of h2.
  const int first = squeezes(c) ? 0 : active.begin;
  const auto body1 = [&](int task, int worker) {
    conv1(c, w, part(dilated.begin, dilated.end, task / grid1.column_parts, grid1.row_parts),
          part(0, panels1, task % grid1.column_parts, grid1.column_parts),
          w.group_count == 1 ? after(second(c, w.groups[0]), grid2, columns2, task) : Following{}, worker);
  };
  const auto body2 = [&](int task, int worker) {
    conv2(c, w, part_of_active(c, active, task / grid2.column_parts, grid2.row_parts),
          part(0, columns2, task % grid2.column_parts, grid2.column_parts), c.h2, first,
          after(w.conv3, grid3, panels3, task), worker);
  };
  const auto body3 = [&](int task, int worker) {
    conv3(c, w, part(active.begin, active.end, task / grid3.column_parts, grid3.row_parts),
          part(0, panels3, task % grid3.column_parts, grid3.column_parts), c.h2, first, worker);
  };
  if (by_strips) {
    if (threads > 1) phases[count++] = Phase(2 * threads, shared_body);
    phases[count++] = Phase(threads, strip_body);
  }
  if (squeezes(c)) {
    const int slices = threads == 1 ? 1 : std::min(threads, ceil_to_int(w.middle, kMeanChannels));
    const auto mean_body = [&](int task, int) {
      const int blocks = ceil_to_int(w.middle, kMeanChannels);
      const Range slice = part(0, blocks, task % slices, slices);
      mean(c, rows.samples.begin + task / slices,
           {slice.begin * kMeanChannels, std::min(slice.end * kMeanChannels, w.middle)});
    };
    const auto excite_body = [&](int task, int) { excite(c, w, rows.samples.begin + task); };
    const auto scale_body = [&](int task, int) {
      scale(c, w, part(rows.outputs.begin, rows.outputs.end, task, threads));
    };
    const bool scaled_first = grid3.column_parts > 1;
    const auto last_body = [&](int task, int worker) {
      const Range part3 =
          part(rows.outputs.begin, rows.outputs.end, task / grid3.column_parts, grid3.row_parts);
      const Range columns = part(0, panels3, task % grid3.column_parts, grid3.column_parts);
      scaled_first ? conv3(c, w, part3, columns, c.h2, 0, worker)
                   : scaled_conv3(c, w, part3, columns, worker);
    };
    if (!by_strips) {
      phases[count++] = Phase(grid1.tasks(), body1);
      phases[count++] = Phase(grid2.tasks(), body2);
    }
    phases[count++] = Phase(rows.samples.size() * slices, mean_body);
    phases[count++] = Phase(rows.samples.size(), excite_body);
    if (scaled_first) phases[count++] = Phase(threads, scale_body);
    phases[count++] = Phase(grid3.tasks(), last_body);
    return run_phases(pool, phases, count);
  }
  if (by_strips) return run_phases(pool, phases, count);
  // Where rows are cut, h2 stays in the cache between the two convolutions.
  const bool by_rows = grid2.column_parts == 1 && grid3.column_parts == 1;
  const int tasks23 = round_up(ceil_to_int(rows2, block_rows(c)), threads);
  const auto body23 = [&](int task, int worker) {
    const Range rows = part_of_active(c, active, task, tasks23);
    float* h2 = c.h2 + (rows.begin - active.begin) * c.h2_stride;
    conv2(c, w, rows, {0, columns2}, h2, rows.begin, {&w.conv3, {0, panels3}}, worker);
    conv3(c, w, rows, {0, panels3}, h2, rows.begin, worker);
  };
  phases[count++] = Phase(grid1.tasks(), body1);
  if (by_rows) {
    phases[count++] = Phase(tasks23, body23);
  } else {
    phases[count++] = Phase(grid2.tasks(), body2);
    phases[count++] = Phase(grid3.tasks(), body3);
  }
  run_phases(pool, phases, count);
}

// A sample all of whose channels are skipped: constants take the place of the convolutions.
void constant_block(const Context& c, Range active, int worker) {
  const int outputs = c.layer.outputs;
  const float* constant = c.weights->skipped_output();
  if (!c.layer.projection) {
    for (int r = active.begin; r < active.end; ++r) {
      const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(c.outputs[r]) * outputs;
      c.isa->add_relu(c.x + at, constant, outputs, c.y + at);
    }
    return;
  }
  Gemm g;
  g.source[0].a = shortcut_rows(c, c.shortcut);
  g.source[0].b = c.weights->projection();
  g.columns = outputs;
  g.epilogue.bias = constant;
  g.epilogue.relu = true;
  g.epilogue.out = c.y;
  g.epilogue.stride = outputs;
  g.epilogue.index = c.outputs;
  c.isa->gemm(g, active.begin, active.end, 0, ceil_to_int(outputs, c.isa->panel_width), c.scratch[worker]);
}

// conv1 and conv2 run on every pixel of the samples that have an active one.
void widen_to_samples(Context& c, Workspace& workspace) {
  const int batch = c.shape.batch, pixels = c.shape.out_height * c.shape.out_width;
  auto* any = workspace.take<float>(static_cast<std::size_t>(batch));
  for (int n = 0; n < batch; ++n) any[n] = c.outputs_begin[n + 1] > c.outputs_begin[n] ? 1.0f : 0.0f;
  // By rows of pixels, so that a pixel's row of h2 follows from its place.
  c.lists = make_lists(c.layer, c.shape, any, 1, 1, {}, workspace);
  const int count = c.outputs_begin[batch];
  auto* hidden = workspace.take<std::int32_t>(static_cast<std::size_t>(count));
  for (int n = 0; n < batch; ++n) {
    for (int i = c.outputs_begin[n]; i < c.outputs_begin[n + 1]; ++i)
      hidden[i] = c.outputs[i] - n * pixels + c.lists.active_begin[n];
  }
  c.hidden = hidden;
}

}  // namespace

void run_bottleneck(const BottleneckCall& call, Workspace& workspace, const ThreadPool& pool) {
  const PackedBottleneck& weights = *call.weights;
  const BottleneckLayer& layer = weights.layer();
  const BottleneckShape& shape = call.shape;
  const int M = layer.middle, batch = shape.batch;
  const int threads = std::max(1, pool.threads);
  const bool in_place = call.x == call.y;

  Context c{};
  c.isa = &weights.isa();
  c.weights = &weights;
  c.layer = layer;
  c.shape = shape;
  c.x = call.x;
  c.y = call.y;
  ListOptions options;
  options.inactive = layer.projection || !in_place;
  options.tiles = weights.has_winograd();
  c.lists = call.spatial_mask ? make_lists(layer, shape, call.spatial_mask, call.mask_height, call.mask_width,
                                           options, workspace)
                              : make_full_lists(layer, shape, options, workspace);
  c.outputs = c.lists.active;
  c.outputs_begin = c.lists.active_begin;
  c.shortcut = c.lists.centre;
  const int inactive = c.lists.inactive_begin[batch];
  c.inactive = c.lists.inactive;
  if (layer.squeeze && layer.dense_mean && call.spatial_mask) widen_to_samples(c, workspace);
  const int active = c.lists.active_begin[batch];

  c.scratch = workspace.take<GemmScratch>(static_cast<std::size_t>(threads));
  const int panels = ceil_to_int(std::max(M, layer.outputs), c.isa->panel_width);
  auto* zeros = workspace.take<float>(static_cast<std::size_t>(round_up(M, kBlock)));
  std::fill(zeros, zeros + round_up(M, kBlock), 0.0f);
  for (int t = 0; t < threads; ++t) {
    c.scratch[t].a = workspace.take<float>(kGemmRowsFloats);
    c.scratch[t].accumulators = workspace.take<float>(gemm_accumulator_floats(panels, c.isa->panel_width));
    c.scratch[t].b = call.channel_mask ? workspace.take<float>(kGemmCopyFloats) : nullptr;
    c.scratch[t].zeros = zeros;
  }
  c.h2_block = kBlockRows;
  if (options.tiles) {
    const int width = M / layer.groups;
    c.winograd_tiles = winograd_block(*c.isa, width);
    c.h2_block = std::max(kBlockRows, c.winograd_tiles * kTileSide * kTileSide);
    for (int t = 0; t < threads; ++t) {
      c.scratch[t].planes = workspace.take<float>(winograd_plane_floats(width, c.winograd_tiles));
      c.scratch[t].products = workspace.take<float>(winograd_product_floats(*c.isa, c.winograd_tiles));
    }
  }
  // The 3x3 reads each number nine times: where pairs need not be taken apart, it is rounded once. Several
  // groups, also parts of them, may begin within a pair.
  c.rounded = c.isa->inputs_per_row == 2 && layer.groups == 1 && !layer.squeeze;
  // Rows start on cache lines.
  c.h1_stride = c.h2_stride = round_up(c.rounded ? ceil_to_int(M, 2) : M, 16);
  // Isa::grouped writes whole vectors.
  if (weights.has_parts()) c.h2_stride += c.isa->vector_width;
  // Whole blocks of the last group's inputs are read, which may end beyond the last row.
  c.h1 = workspace.take<float>(static_cast<std::size_t>(batch) * shape.height * shape.width * c.h1_stride +
                               kBlock);
  c.h2 =
      workspace.take<float>(static_cast<std::size_t>(std::max(active, threads * c.h2_block)) * c.h2_stride);
  c.strips = workspace.take<Strip>(static_cast<std::size_t>(threads));
  if (layer.squeeze) {
    c.means = workspace.take<float>(static_cast<std::size_t>(batch) * static_cast<std::size_t>(c.h2_stride));
    c.squeezed =
        workspace.take<float>(static_cast<std::size_t>(batch) * static_cast<std::size_t>(layer.squeeze + M));
  }

  const std::int32_t* inactive_source = c.inactive;
  if (inactive && layer.projection && layer.stride > 1) {
    auto* source = workspace.take<std::int32_t>(static_cast<std::size_t>(inactive));
    const int pixels = shape.out_height * shape.out_width;
    for (int i = 0; i < inactive; ++i) {
      const int n = c.inactive[i] / pixels, at = c.inactive[i] % pixels;
      const int y = at / shape.out_width * layer.stride, x = at % shape.out_width * layer.stride;
      source[i] = (n * shape.height + y) * shape.width + x;
    }
    inactive_source = source;
  }
  const int inactive_parts = std::min(threads > 1 ? 2 * threads : 1, inactive);
  const auto inactive_body = [&](int task, int worker) {
    skipped_pixels(c, inactive_source, part(0, inactive, task, inactive_parts), worker);
  };
  const Phase skipped(inactive_parts, inactive_body);

  if (!call.channel_mask) {
    c.winograd = tiles_pay(c, {0, active}, false);
    run_rows(c, weights.full(), rows_of(c, 0, batch), inactive ? &skipped : nullptr, pool);
    return;
  }

  if (inactive) run_phases(pool, &skipped, 1);
  const int per_group = M / call.channel_groups;
  auto* on = workspace.take<std::uint8_t>(static_cast<std::size_t>(M));
  for (int n = 0; n < batch; ++n) {
    const Rows rows = rows_of(c, n, n + 1);
    if (!rows.active.size()) continue;
    const float* bits = call.channel_mask + static_cast<std::ptrdiff_t>(n) * call.channel_groups;
    int count = 0;
    for (int i = 0; i < call.channel_groups; ++i) {
      const bool keep = bits[i] > 0.5f;
      std::memset(on + i * per_group, keep, static_cast<std::size_t>(per_group));
      count += keep ? per_group : 0;
    }
    const Workspace::Mark mark = workspace.mark();
    c.winograd = tiles_pay(c, rows.active, count < M);
    if (count == M) {
      run_rows(c, weights.full(), rows, nullptr, pool);
    } else if (count == 0) {
      const int parts = std::min(threads, rows.outputs.size());
      const auto body = [&](int task, int worker) {
        constant_block(c, part(rows.outputs.begin, rows.outputs.end, task, parts), worker);
      };
      const Phase phase(parts, body);
      run_phases(pool, &phase, 1);
    } else {
      CompactWeights small;
      small.view = weights.select(on, count, workspace);
      if (rows.active.size() > kWorthCompacting ||
          selected_bytes(small.view, c.winograd) <= blocks().compact_weights)
        small = compact(*c.isa, small.view, c.winograd, workspace);
      const int groups = small.view.part_copy_count;
      const int group_parts = std::min(threads, groups);
      const auto body = [&](int task, int) {
        if (task < small.count) return c.isa->copy_selected(small.copies[task]);
        const Range range = part(0, groups, task - small.count, group_parts);
        for (int i = range.begin; i < range.end; ++i) c.isa->copy_group(small.view.part_copies[i]);
      };
      const Phase copying(small.count + group_parts, body);
      run_rows(c, small.view, rows, copying.tasks ? &copying : nullptr, pool);
    }
    workspace.rewind(mark);
  }
}

}  // namespace dyndeploy::cpu
