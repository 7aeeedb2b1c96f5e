#include "quantized_bottleneck.h"

#include <algorithm>
#include <cstring>

#include "caches.h"
#include "lists.h"
#include "schedule.h"

namespace dyndeploy::cpu {
namespace {

constexpr int kRowAlignment = 64;       // bytes of h1 and h2, which start on cache lines
constexpr int kMarginBytes = 64;        // whole quads of the last group's inputs are read
constexpr int kLeastRows = 112;         // that share a pass over the weights
constexpr int kHiddenBytes = 64 << 10;  // of h2 between conv2 and conv3, of one thread

// Everything the tasks of one call share.
struct Context {
  const QuantizedIsa* isa;
  const PackedQuantizedBottleneck* weights;
  BottleneckLayer layer;
  BottleneckShape shape;
  const std::uint8_t* x;
  std::ptrdiff_t x_stride;
  const std::uint8_t* residual;  // x as the caller has it
  std::uint8_t* y;
  PixelLists lists;
  std::uint8_t* h1;
  std::uint8_t* h2;  // one row per active pixel
  std::ptrdiff_t hidden_stride;
  int block_rows;             // of h2
  QuantizedScratch* scratch;  // one per worker
  Strip* strips;              // one per thread
};

// A convolution that comes after another, and the panels of it that the same thread computes.
struct Following {
  const QuantizedConvolution* conv = nullptr;
  Range panels{0, 0};
  const QuantizedConvolution* shortcut = nullptr;
};

// `then` is what this thread probably computes next.
void product(const Context& c, QuantizedGemm& g, const QuantizedConvolution& conv, Range rows, Range panels,
             const Following& then, int worker) {
  QuantizedUpcoming shortcut;
  if (then.conv) {
    g.upcoming = first_weights(*c.isa, *then.conv, then.panels.begin, then.panels.end);
    if (then.shortcut) {
      shortcut = first_weights(*c.isa, *then.shortcut, then.panels.begin, then.panels.end);
      g.upcoming.then = &shortcut;
    }
  }
  g.product.a.taps = conv.taps;
  g.product.a.inputs = conv.inputs;
  g.product.b = conv.weights;
  g.columns = conv.outputs;
  c.isa->gemm(g, rows.begin, rows.end, panels.begin, panels.end, c.scratch[worker]);
}

int panels_of(const Context& c, const QuantizedConvolution& conv) {
  return ceil_to_int(conv.outputs, c.isa->panel_width);
}

void conv1(const Context& c, const QuantizedView& w, Range rows, Range panels, const Following& then,
           int worker) {
  QuantizedGemm g;
  g.product.a.base = c.x;
  g.product.a.stride = c.x_stride;
  g.product.a.index = c.lists.dilated;
  g.out = c.h1;
  g.stride = c.hidden_stride;
  g.index = c.lists.dilated;
  product(c, g, w.conv1, rows, panels, then, worker);
}

// columns: panels of the only group, or groups
void conv2(const Context& c, const QuantizedView& w, Range rows, Range columns, std::uint8_t* h2, int first,
           const Following& then, int worker) {
  const bool one = w.group_count == 1;
  for (int i = one ? 0 : columns.begin; i < (one ? 1 : columns.end); ++i) {
    const QuantizedGroup& group = w.groups[i];
    QuantizedGemm g;
    QuantizedRows& a = g.product.a;
    a.base = c.h1 + group.first_input;
    a.stride = c.hidden_stride;
    a.index = c.lists.centre;
    a.valid = c.lists.valid;
    for (int t = 0; t < kQuantizedTaps; ++t) {
      const std::ptrdiff_t pixels = (t / 3 - 1) * static_cast<std::ptrdiff_t>(c.shape.width) + (t % 3 - 1);
      a.tap_offset[t] = pixels * c.layer.dilation * c.hidden_stride;
    }
    if (group.conv.weights.bias_stride) g.bias_class = c.lists.border;
    g.out = h2 + group.first_output;
    g.stride = c.hidden_stride;
    g.first = first;
    product(c, g, group.conv, rows, one ? columns : Range{0, panels_of(c, group.conv)},
            one ? then : Following{}, worker);
  }
}

QuantizedRows shortcut_rows(const Context& c, const std::int32_t* index) {
  QuantizedRows a;
  a.base = c.x;
  a.stride = c.x_stride;
  a.index = index;
  a.inputs = c.layer.inputs;
  return a;
}

// conv: conv3, or what is left of it without inputs
void conv3(const Context& c, const QuantizedConvolution& conv, Range rows, Range panels,
           const std::uint8_t* h2, int first, int worker) {
  QuantizedGemm g;
  g.product.a.base = h2;
  g.product.a.stride = c.hidden_stride;
  g.product.a.first = first;
  g.out = c.y;
  g.stride = c.layer.outputs;
  g.index = c.lists.active;
  QuantizedSource shortcut;
  if (c.layer.projection) {
    shortcut.a = shortcut_rows(c, c.lists.centre);
    shortcut.b = c.weights->projection().weights;
    g.shortcut = &shortcut;
  } else {
    g.residual = c.residual;
  }
  product(c, g, conv, rows, panels, {}, worker);
}

// Pixels that no path computes: the shortcut alone.
void skipped_pixels(const Context& c, const std::int32_t* source, Range rows, int worker) {
  if (!c.layer.projection) {
    const std::ptrdiff_t bytes = c.layer.outputs;
    for (int r = rows.begin; r < rows.end; ++r) {
      const std::ptrdiff_t at = c.lists.inactive[r] * bytes;
      std::memcpy(c.y + at, c.residual + at, static_cast<std::size_t>(bytes));
    }
    return;
  }
  QuantizedGemm g;
  g.product.a = shortcut_rows(c, source);
  g.out = c.y;
  g.stride = c.layer.outputs;
  g.index = c.lists.inactive;
  const QuantizedConvolution& projection = c.weights->projection();
  product(c, g, projection, rows, {0, panels_of(c, projection)}, {}, worker);
}

Following before_conv3(const Context& c, const QuantizedView& w, Range panels) {
  return {&w.conv3, panels, c.layer.projection ? &c.weights->projection() : nullptr};
}

// Into how many parts conv2 can be cut across its weights.
int second_columns(const Context& c, const QuantizedView& w) {
  return w.group_count == 1 ? panels_of(c, w.groups[0].conv) : w.group_count;
}

// conv1 to conv3 for one strip, a band of the image at a time; not for weights that are copied first.
void run_strip(const Context& c, const QuantizedView& w, const Strip& strip, int worker) {
  const int panels1 = panels_of(c, w.conv1), panels3 = panels_of(c, w.conv3), columns2 = second_columns(c, w);
  const int band_rows = std::max(2 * kLeastRows, static_cast<int>(blocks().band / c.layer.inputs));
  const int bands = ceil_to_int(strip.active.size(), band_rows);
  std::uint8_t* const h2 = c.h2 + static_cast<std::ptrdiff_t>(worker) * c.block_rows * c.hidden_stride;
  const Following second =
      w.group_count == 1 ? Following{&w.groups[0].conv, {0, columns2}, nullptr} : Following{};
  const Following third = before_conv3(c, w, {0, panels3});
  int done = strip.own.begin;
  for (int b = 0; b < bands; ++b) {
    const Range band = part(strip.active.begin, strip.active.end, b, bands);
    const int needed = b + 1 == bands
                           ? strip.own.end
                           : std::min(strip.own.end, halo(c.lists, c.shape, c.layer.dilation, band).end);
    if (needed > done) {
      conv1(c, w, {done, needed}, {0, panels1}, second, worker);
      done = needed;
    }
    const int blocks = ceil_to_int(band.size(), c.block_rows);
    for (int i = 0; i < blocks; ++i) {
      const Range rows = part(band.begin, band.end, i, blocks);
      conv2(c, w, rows, {0, columns2}, h2, rows.begin, third, worker);
      conv3(c, w.conv3, rows, {0, panels3}, h2, rows.begin, worker);
    }
  }
}

// Runs conv1 to conv3 with one set of weights; `before` runs along.
void run_rows(const Context& c, const QuantizedView& w, Range dilated, Range active, const Phase* before,
              const ThreadPool& pool) {
  const int threads = std::max(1, pool.threads);
  Phase phases[4];
  int count = 0;
  if (before) phases[count++] = *before;
  if (!active.size()) return run_phases(pool, phases, count);

  const bool copies = w.selects();
  bool by_strips = !copies && (threads == 1 || active.size() >= threads * kThreadRows);
  if (by_strips) {
    cut(
        c.lists, c.shape, c.layer.dilation, active, threads,
        [](Range all, int index, int parts) { return part(all.begin, all.end, index, parts); }, c.strips);
    // Pixels that two threads share would have large weights read once more.
    for (int t = 0; t < threads; ++t)
      by_strips = by_strips && (!c.strips[t].shared.size() || w.conv1.bytes() <= blocks().resident_weights);
  }
  const int panels1 = panels_of(c, w.conv1), panels3 = panels_of(c, w.conv3), columns2 = second_columns(c, w);
  const auto shared_body = [&](int task, int worker) {
    const Range shared = c.strips[task / 2].shared;
    conv1(c, w, part(shared.begin, shared.end, task % 2, 2), {0, panels1}, {}, worker);
  };
  const auto strip_body = [&](int task, int worker) { run_strip(c, w, c.strips[task], worker); };
  const Grid grid1 = make_grid(dilated.size(), panels1, copies, threads, kLeastRows);
  const Grid grid2 = make_grid(active.size(), columns2, copies, threads, kLeastRows);
  const Grid grid3 = make_grid(active.size(), panels3, copies, threads, kLeastRows);
  // The same task of the next phase probably falls to the same thread.
  const auto after = [](const QuantizedConvolution& conv, const Grid& grid, int columns, int task) {
    return Following{&conv, part(0, columns, task % grid.column_parts, grid.column_parts), nullptr};
  };
  const auto body1 = [&](int task, int worker) {
    conv1(c, w, part(dilated.begin, dilated.end, task / grid1.column_parts, grid1.row_parts),
          part(0, panels1, task % grid1.column_parts, grid1.column_parts),
          w.group_count == 1 ? after(w.groups[0].conv, grid2, columns2, task) : Following{}, worker);
  };
  const auto body2 = [&](int task, int worker) {
    conv2(c, w, part(active.begin, active.end, task / grid2.column_parts, grid2.row_parts),
          part(0, columns2, task % grid2.column_parts, grid2.column_parts), c.h2, active.begin,
          before_conv3(c, w, part(0, panels3, task % grid3.column_parts, grid3.column_parts)), worker);
  };
  const auto body3 = [&](int task, int worker) {
    conv3(c, w.conv3, part(active.begin, active.end, task / grid3.column_parts, grid3.row_parts),
          part(0, panels3, task % grid3.column_parts, grid3.column_parts), c.h2, active.begin, worker);
  };
  if (by_strips) {
    if (threads > 1) phases[count++] = Phase(2 * threads, shared_body);
    phases[count++] = Phase(threads, strip_body);
  } else {
    phases[count++] = Phase(grid1.tasks(), body1);
    phases[count++] = Phase(grid2.tasks(), body2);
    phases[count++] = Phase(grid3.tasks(), body3);
  }
  run_phases(pool, phases, count);
}

// A bit for every border class that a pixel of the output has.
unsigned border_classes(const BottleneckLayer& layer, const BottleneckShape& shape) {
  const auto along = [&](int count, int size, int low, int high) {
    unsigned found = 0;
    for (int i = 0; i < count; ++i) {
      const int centre = i * layer.stride;
      found |= 1u << ((centre < layer.dilation ? low : 0) | (centre + layer.dilation >= size ? high : 0));
    }
    return found;
  };
  const unsigned rows = along(shape.out_height, shape.height, kBorderTop, kBorderBottom);
  const unsigned columns = along(shape.out_width, shape.width, kBorderLeft, kBorderRight);
  unsigned classes = 0;
  for (int row = 0; row < kBorderClasses; ++row) {
    // Those of columns are multiples of kBorderLeft, so that both bits add up.
    if (rows >> row & 1u) classes |= columns << row;
  }
  return classes;
}

// Pixels whose last quad can be read whole.
const std::uint8_t* padded_pixels(const std::uint8_t* x, std::size_t pixels, int channels,
                                  std::ptrdiff_t stride, Workspace& workspace) {
  auto* const to = workspace.take<std::uint8_t>(pixels * static_cast<std::size_t>(stride));
  for (std::size_t i = 0; i < pixels; ++i) {
    std::uint8_t* const pixel = to + i * static_cast<std::size_t>(stride);
    std::memcpy(pixel, x + i * static_cast<std::size_t>(channels), static_cast<std::size_t>(channels));
    std::memset(pixel + channels, 0, static_cast<std::size_t>(stride - channels));
  }
  return to;
}

}  // namespace

void run_quantized_bottleneck(const QuantizedBottleneckCall& call, Workspace& workspace,
                              const ThreadPool& pool) {
  const PackedQuantizedBottleneck& weights = *call.weights;
  const BottleneckLayer& layer = weights.layer();
  const BottleneckShape& shape = call.shape;
  const int M = layer.middle, batch = shape.batch;
  const int threads = std::max(1, pool.threads);
  const std::size_t in_pixels = static_cast<std::size_t>(batch) * static_cast<std::size_t>(shape.height) *
                                static_cast<std::size_t>(shape.width);

  Context c{};
  c.isa = &weights.isa();
  c.weights = &weights;
  c.layer = layer;
  c.shape = shape;
  c.residual = call.x;
  c.y = call.y;
  c.x_stride = round_up(layer.inputs, kQuad);
  c.x = c.x_stride == layer.inputs ? call.x
                                   : padded_pixels(call.x, in_pixels, layer.inputs, c.x_stride, workspace);
  ListOptions options;
  options.inactive = layer.projection || call.x != call.y;
  c.lists = call.spatial_mask ? make_lists(layer, shape, call.spatial_mask, call.mask_height, call.mask_width,
                                           options, workspace)
                              : make_full_lists(layer, shape, options, workspace);
  const int active = c.lists.active_begin[batch], inactive = c.lists.inactive_begin[batch];

  const int width = M / layer.groups;
  const auto quads = [](int inputs) { return ceil_to_int(inputs, kQuad); };
  c.scratch = workspace.take<QuantizedScratch>(static_cast<std::size_t>(threads));
  const std::size_t zero_bytes = static_cast<std::size_t>(round_up(width, kQuad));
  auto* const zeros = workspace.take<std::uint8_t>(zero_bytes);
  std::memset(zeros, 0, zero_bytes);
  for (int t = 0; t < threads; ++t) {
    QuantizedScratch& scratch = c.scratch[t] = {};
    scratch.zeros = zeros;
    if (!call.channel_mask) continue;
    const std::size_t most = std::max({quantized_copy_bytes(*c.isa, 1, quads(layer.inputs)),
                                       quantized_copy_bytes(*c.isa, kQuantizedTaps, quads(width)),
                                       quantized_copy_bytes(*c.isa, 1, quads(M))});
    scratch.b = workspace.take<std::int8_t>(most);
    scratch.bias = workspace.take<std::int32_t>(quantized_bias_count(*c.isa));
    scratch.multiplier = workspace.take<float>(static_cast<std::size_t>(c.isa->panel_width));
  }
  c.hidden_stride = round_up(M, kRowAlignment);
  c.block_rows = std::max(kLeastRows, kHiddenBytes / static_cast<int>(c.hidden_stride));
  const std::size_t stride = static_cast<std::size_t>(c.hidden_stride);
  const std::size_t rows2 = static_cast<std::size_t>(std::max(active, threads * c.block_rows));
  c.h1 = workspace.take<std::uint8_t>(in_pixels * stride + kMarginBytes);
  c.h2 = workspace.take<std::uint8_t>(rows2 * stride + kMarginBytes);
  c.strips = workspace.take<Strip>(static_cast<std::size_t>(threads));

  const std::int32_t* inactive_source = c.lists.inactive;
  if (inactive && layer.projection && layer.stride > 1) {
    auto* source = workspace.take<std::int32_t>(static_cast<std::size_t>(inactive));
    const int pixels = shape.out_height * shape.out_width;
    for (int i = 0; i < inactive; ++i) {
      const int n = c.lists.inactive[i] / pixels, at = c.lists.inactive[i] % pixels;
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

  const auto dilated_of = [&](int first, int last) {
    return Range{c.lists.dilated_begin[first], c.lists.dilated_begin[last]};
  };
  if (!call.channel_mask) {
    run_rows(c, weights.full(), dilated_of(0, batch), {0, active}, inactive ? &skipped : nullptr, pool);
    return;
  }

  if (inactive) run_phases(pool, &skipped, 1);
  const unsigned classes = border_classes(layer, shape);
  // Rows are cut among threads more evenly than a few panels are.
  const std::int64_t worth_compacting = threads > 1 ? blocks().shared_weights : blocks().slice;
  const int per_group = M / call.channel_groups;
  auto* on = workspace.take<std::uint8_t>(static_cast<std::size_t>(M));
  for (int n = 0; n < batch; ++n) {
    const Range rows{c.lists.active_begin[n], c.lists.active_begin[n + 1]};
    if (!rows.size()) continue;
    const float* bits = call.channel_mask + static_cast<std::ptrdiff_t>(n) * call.channel_groups;
    int count = 0;
    for (int i = 0; i < call.channel_groups; ++i) {
      const bool keep = bits[i] > 0.5f;
      std::memset(on + i * per_group, keep, static_cast<std::size_t>(per_group));
      count += keep ? per_group : 0;
    }
    if (count == 0) {
      const int parts = std::min(threads, rows.size());
      const QuantizedConvolution& constant = weights.skipped();
      const auto body = [&](int task, int worker) {
        const Range mine = part(rows.begin, rows.end, task, parts);
        conv3(c, constant, mine, {0, panels_of(c, constant)}, c.h2, mine.begin, worker);
      };
      const Phase phase(parts, body);
      run_phases(pool, &phase, 1);
      continue;
    }
    const Workspace::Mark mark = workspace.mark();
    CompactQuantized small;
    small.view = count == M ? weights.full() : weights.select(on, count, classes, workspace);
    if (count < M && selected_bytes(small.view) <= worth_compacting)
      small = compact(*c.isa, small.view, workspace);
    const auto body = [&](int task, int) { c.isa->copy(small.copies[task]); };
    const Phase copying(small.count, body);
    run_rows(c, small.view, dilated_of(n, n + 1), rows, small.count ? &copying : nullptr, pool);
    workspace.rewind(mark);
  }
}

}  // namespace dyndeploy::cpu
