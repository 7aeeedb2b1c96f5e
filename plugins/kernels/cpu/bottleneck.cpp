#include "bottleneck.h"

#include <algorithm>
#include <cstring>

#include "lists.h"

namespace dyndeploy::cpu {
namespace {

struct Range {
  int begin;
  int end;
  int size() const { return end - begin; }
};

Range part(int begin, int end, int index, int parts) {
  const auto at = [=](int i) {
    return begin + static_cast<int>(static_cast<std::int64_t>(end - begin) * i / parts);
  };
  return {at(index), at(index + 1)};
}

// How one matrix product is cut into tasks: parts of the rows times parts of the weights.
struct Grid {
  int row_parts = 1;
  int column_parts = 1;
  int tasks() const { return row_parts * column_parts; }
};

constexpr int kRowBlock = kMaxBlockTiles * kMaxTileRows;
// Cutting the rows leaves each thread the same part of the image from one convolution and block to the next,
// mostly in its own cache. Cutting the weights is for rows too few to fill a tile on every thread, and for
// weights that are copied first, which each thread then does for its own part only.
Grid make_grid(int rows, int columns, bool copies, int threads) {
  if (threads <= 1 || rows <= 0) return {};
  Grid grid;
  if (copies || rows < threads * kMaxTileRows) {
    grid.column_parts = std::min(threads, columns);
    grid.row_parts = std::min(ceil_to_int(threads, grid.column_parts), ceil_to_int(rows, kMaxTileRows));
  } else {
    grid.row_parts = std::max(threads, round_up(ceil_to_int(rows, kRowBlock), threads));
  }
  return grid;
}

// Everything the tasks of one call share.
struct Context {
  const Isa* isa;
  const PackedBottleneck* weights;
  BottleneckLayer layer;
  BottleneckShape shape;
  const float* x;
  float* y;
  PixelLists lists;
  float* h1;
  std::ptrdiff_t h1_stride;
  float* h2;  // one row per active pixel
  std::ptrdiff_t h2_stride;
  GemmScratch* scratch;  // one per worker
  float** slices;        // one per worker, where channels are skipped
};

// Copied slices of weights are read once per few rows, so they have to stay in L2, beside the weights of the
// next slice, which are fetched meanwhile.
constexpr std::int64_t kSliceBytes = 256 << 10;

int slice_panels(const Isa& isa, const ConvolutionView& conv) {
  const std::int64_t panel = static_cast<std::int64_t>(conv.depth()) * isa.panel_width * 4;
  const int panels = ceil_to_int(conv.outputs, isa.panel_width);
  // An even number, since the kernels for weights in L2 take panels in pairs.
  return std::min(panels, std::max(2, static_cast<int>(kSliceBytes / panel) / 2 * 2));
}

// A convolution that comes after another, and the panels of it that the same thread computes.
struct Following {
  const ConvolutionView* conv = nullptr;
  Range panels{0, 0};
};

int fetch_end(const Isa& isa, const Following& then) {
  return then.conv ? std::min(then.panels.begin + slice_panels(isa, *then.conv), then.panels.end) : 0;
}

// Runs the product over panels [panels.begin, panels.end); first makes the copy of its weights where only
// some channels are active. `then` is what this thread probably computes next.
void product(const Context& c, Gemm& g, const ConvolutionView& conv, Range rows, Range panels,
             const Following& then, int worker) {
  Upcoming upcoming;
  g.upcoming = &upcoming;
  const auto expect = [&](const ConvolutionView* next, int begin, int end) {
    upcoming = next ? upcoming_slice(*c.isa, *next,
                                     {begin, std::min(end, ceil_to_int(next->outputs, c.isa->panel_width))})
                    : Upcoming{};
  };
  const int then_end = fetch_end(*c.isa, then);
  if (!conv.selects()) {
    expect(then.conv, then.panels.begin, then_end);
    g.source[0].b = conv.weights;
    c.isa->gemm(g, rows.begin, rows.end, panels.begin, panels.end, c.scratch[worker]);
    return;
  }
  const int step = slice_panels(*c.isa, conv);
  for (int p = panels.begin; p < panels.end; p += step) {
    const int end = std::min(p + step, panels.end);
    g.source[0].b = copy_slice(*c.isa, conv, {p, end}, c.slices[worker]);
    if (end < panels.end)
      expect(&conv, end, std::min(end + step, panels.end));
    else
      expect(then.conv, then.panels.begin, then_end);
    c.isa->gemm(g, rows.begin, rows.end, p, end, c.scratch[worker]);
  }
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
  g.epilogue.stride = c.h1_stride;
  g.epilogue.index = c.lists.dilated;
  product(c, g, w.conv1, rows, panels, then, worker);
}

// columns: panels of the only group, or groups
void conv2(const Context& c, const WeightsView& w, Range rows, Range columns, float* h2, int first,
           const Following& then, int worker) {
  const bool one = w.group_count == 1;
  for (int i = one ? 0 : columns.begin; i < (one ? 1 : columns.end); ++i) {
    const GroupView& group = w.groups[i];
    Gemm g;
    RowSource& a = g.source[0].a;
    a.base = c.h1 + group.first_input;
    a.stride = c.h1_stride;
    a.index = c.lists.centre;
    a.taps = 9;
    a.length = group.conv.inputs;
    a.valid = c.lists.valid;
    for (int t = 0; t < 9; ++t) {
      const std::ptrdiff_t pixels = (t / 3 - 1) * static_cast<std::ptrdiff_t>(c.shape.width) + (t % 3 - 1);
      a.tap_offset[t] = pixels * c.layer.dilation * c.h1_stride;
    }
    g.columns = group.conv.outputs;
    g.epilogue.bias = w.b2 + group.first_output;
    if (w.b2_stride) {
      g.epilogue.bias_class = c.lists.border;
      g.epilogue.bias_stride = w.b2_stride;
    }
    g.epilogue.relu = true;
    g.epilogue.subtract = w.subtract2 ? w.subtract2 + group.first_output : nullptr;
    g.epilogue.out = h2 + group.first_output;
    g.epilogue.stride = c.h2_stride;
    g.epilogue.first = first;
    const Range panels = one ? columns : Range{0, ceil_to_int(group.conv.outputs, c.isa->panel_width)};
    product(c, g, group.conv, rows, panels, one ? then : Following{}, worker);
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
  g.source[0].a.stride = c.h2_stride;
  g.source[0].a.first = first;
  g.source[0].a.length = w.middle;
  g.columns = c.layer.outputs;
  g.epilogue.bias = w.b3;
  g.epilogue.relu = true;
  g.epilogue.out = c.y;
  g.epilogue.stride = c.layer.outputs;
  g.epilogue.index = c.lists.active;
  if (c.layer.projection) {
    g.sources = 2;
    g.source[1].a = shortcut_rows(c, c.lists.centre);
    g.source[1].b = c.weights->projection();
  } else {
    g.epilogue.residual = c.x;
  }
  product(c, g, w.conv3, rows, panels, {}, worker);
}

// Pixels that no path computes: the shortcut alone.
void skipped_pixels(const Context& c, const std::int32_t* source, Range rows, int worker) {
  const int outputs = c.layer.outputs;
  if (!c.layer.projection) {
    for (int r = rows.begin; r < rows.end; ++r) {
      const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(c.lists.inactive[r]) * outputs;
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
  g.epilogue.index = c.lists.inactive;
  c.isa->gemm(g, rows.begin, rows.end, 0, ceil_to_int(outputs, c.isa->panel_width), c.scratch[worker]);
}

// Runs conv1 to conv3 with one set of weights over one range of both lists; `before` runs along.
void run_rows(const Context& c, const WeightsView& w, Range dilated, Range active, const Phase* before,
              const ThreadPool& pool) {
  const int threads = std::max(1, pool.threads);
  const int PW = c.isa->panel_width;
  const int panels1 = ceil_to_int(w.middle, PW);
  const int columns2 = w.group_count == 1 ? panels1 : w.group_count;
  const int panels3 = ceil_to_int(c.layer.outputs, PW);
  const bool copies = w.conv1.selects();
  const Grid grid1 = make_grid(dilated.size(), panels1, copies, threads);
  const Grid grid2 = make_grid(active.size(), columns2, copies, threads);
  const Grid grid3 = make_grid(active.size(), panels3, copies, threads);

  // The same task of the next phase probably falls to the same thread.
  const auto after = [](const ConvolutionView& conv, const Grid& grid, int columns, int task) {
    return Following{&conv, part(0, columns, task % grid.column_parts, grid.column_parts)};
  };
  const auto body1 = [&](int task, int worker) {
    conv1(c, w, part(dilated.begin, dilated.end, task / grid1.column_parts, grid1.row_parts),
          part(0, panels1, task % grid1.column_parts, grid1.column_parts),
          w.group_count == 1 ? after(w.groups[0].conv, grid2, columns2, task) : Following{}, worker);
  };
  const auto body2 = [&](int task, int worker) {
    conv2(c, w, part(active.begin, active.end, task / grid2.column_parts, grid2.row_parts),
          part(0, columns2, task % grid2.column_parts, grid2.column_parts), c.h2, active.begin,
          after(w.conv3, grid3, panels3, task), worker);
  };
  const auto body3 = [&](int task, int worker) {
    conv3(c, w, part(active.begin, active.end, task / grid3.column_parts, grid3.row_parts),
          part(0, panels3, task % grid3.column_parts, grid3.column_parts), c.h2, active.begin, worker);
  };
  // Row blocks keep h2 in the cache between the two convolutions, where weights need not be copied for each.
  const int blocks = ceil_to_int(active.size(), kRowBlock);
  const bool by_rows = !copies && grid2.column_parts == 1 && grid3.column_parts == 1;
  const int tasks23 = threads <= 1 ? blocks : round_up(blocks, threads);
  const auto body23 = [&](int task, int worker) {
    const Range rows = part(active.begin, active.end, task, tasks23);
    float* h2 = c.h2 + (rows.begin - active.begin) * c.h2_stride;
    conv2(c, w, rows, {0, columns2}, h2, rows.begin, {&w.conv3, {0, panels3}}, worker);
    conv3(c, w, rows, {0, panels3}, h2, rows.begin, worker);
  };

  Phase phases[4];
  int count = 0;
  if (before) phases[count++] = *before;
  if (dilated.size()) phases[count++] = Phase(grid1.tasks(), body1);
  if (active.size()) {
    if (by_rows) {
      phases[count++] = Phase(tasks23, body23);
    } else {
      phases[count++] = Phase(grid2.tasks(), body2);
      phases[count++] = Phase(grid3.tasks(), body3);
    }
  }
  run_phases(pool, phases, count);
}

// A sample all of whose channels are skipped: constants take the place of the convolutions.
void constant_block(const Context& c, Range active, int worker) {
  const int outputs = c.layer.outputs;
  const float* constant = c.weights->skipped_output();
  if (!c.layer.projection) {
    for (int r = active.begin; r < active.end; ++r) {
      const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(c.lists.active[r]) * outputs;
      c.isa->add_relu(c.x + at, constant, outputs, c.y + at);
    }
    return;
  }
  Gemm g;
  g.source[0].a = shortcut_rows(c, c.lists.centre);
  g.source[0].b = c.weights->projection();
  g.columns = outputs;
  g.epilogue.bias = constant;
  g.epilogue.relu = true;
  g.epilogue.out = c.y;
  g.epilogue.stride = outputs;
  g.epilogue.index = c.lists.active;
  c.isa->gemm(g, active.begin, active.end, 0, ceil_to_int(outputs, c.isa->panel_width), c.scratch[worker]);
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
  const bool want_inactive = layer.projection || !in_place;
  c.lists = call.spatial_mask ? make_lists(layer, shape, call.spatial_mask, call.mask_height, call.mask_width,
                                           want_inactive, workspace)
                              : make_full_lists(layer, shape, workspace);
  const int active = c.lists.active_begin[batch];
  const int inactive = c.lists.inactive_begin[batch];

  c.scratch = workspace.take<GemmScratch>(static_cast<std::size_t>(threads));
  const int panels = ceil_to_int(std::max(M, layer.outputs), c.isa->panel_width);
  auto* zeros = workspace.take<float>(static_cast<std::size_t>(round_up(M, kBlock)));
  std::fill(zeros, zeros + round_up(M, kBlock), 0.0f);
  for (int t = 0; t < threads; ++t) {
    c.scratch[t].a = workspace.take<float>(kGemmRowsFloats);
    c.scratch[t].accumulators = workspace.take<float>(gemm_accumulator_floats(panels, c.isa->panel_width));
    c.scratch[t].zeros = zeros;
  }
  // Rows start on cache lines.
  c.h1_stride = c.h2_stride = round_up(M, 16);
  c.h1 = workspace.take<float>(static_cast<std::size_t>(batch) * shape.height * shape.width * c.h1_stride);
  c.h2 = workspace.take<float>(static_cast<std::size_t>(active) * c.h2_stride);

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

  if (!call.channel_mask) {
    run_rows(c, weights.full(), {0, c.lists.dilated_begin[batch]}, {0, active}, inactive ? &skipped : nullptr,
             pool);
    return;
  }

  if (inactive) run_phases(pool, &skipped, 1);
  const int per_group = M / call.channel_groups;
  auto* on = workspace.take<std::uint8_t>(static_cast<std::size_t>(M));
  for (int n = 0; n < batch; ++n) {
    const Range dilated_rows{c.lists.dilated_begin[n], c.lists.dilated_begin[n + 1]};
    const Range active_rows{c.lists.active_begin[n], c.lists.active_begin[n + 1]};
    if (!active_rows.size()) continue;
    const float* bits = call.channel_mask + static_cast<std::ptrdiff_t>(n) * call.channel_groups;
    int count = 0;
    for (int i = 0; i < call.channel_groups; ++i) {
      const bool keep = bits[i] > 0.5f;
      std::memset(on + i * per_group, keep, static_cast<std::size_t>(per_group));
      count += keep ? per_group : 0;
    }
    const Workspace::Mark mark = workspace.mark();
    if (count == M) {
      run_rows(c, weights.full(), dilated_rows, active_rows, nullptr, pool);
    } else if (count == 0) {
      const int parts = std::min(threads, active_rows.size());
      const auto body = [&](int task, int worker) {
        constant_block(c, part(active_rows.begin, active_rows.end, task, parts), worker);
      };
      const Phase phase(parts, body);
      run_phases(pool, &phase, 1);
    } else {
      const WeightsView view = weights.select(on, count, workspace);
      std::size_t floats = 0;
      for (const ConvolutionView* conv : {&view.conv1, &view.conv3})
        floats = std::max(floats, slice_floats(*c.isa, *conv, slice_panels(*c.isa, *conv)));
      for (int g = 0; g < view.group_count; ++g)
        floats = std::max(
            floats, slice_floats(*c.isa, view.groups[g].conv, slice_panels(*c.isa, view.groups[g].conv)));
      c.slices = workspace.take<float*>(static_cast<std::size_t>(threads));
      for (int t = 0; t < threads; ++t) c.slices[t] = workspace.take<float>(floats);
      run_rows(c, view, dilated_rows, active_rows, nullptr, pool);
    }
    workspace.rewind(mark);
  }
}

}  // namespace dyndeploy::cpu
