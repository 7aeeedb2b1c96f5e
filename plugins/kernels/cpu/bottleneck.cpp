#include "bottleneck.h"

#include <algorithm>
#include <cstring>

#include "caches.h"
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

// Cutting the rows leaves each thread the same part of the image from one convolution and block to the next,
// mostly in its own cache. Cutting the weights is for rows too few to fill a tile on every thread, and for
// weights that are copied first, which each thread then does for its own part only.
constexpr int kThreadRows = 14;
Grid make_grid(int rows, int columns, bool copies, int threads) {
  if (threads <= 1 || rows <= 0) return {};
  Grid grid;
  if (copies || rows < threads * kThreadRows) {
    grid.column_parts = std::min(threads, columns);
    grid.row_parts = std::min(ceil_to_int(threads, grid.column_parts), ceil_to_int(rows, kThreadRows));
  } else {
    grid.row_parts = std::max(threads, round_up(ceil_to_int(rows, kBlockRows), threads));
  }
  return grid;
}

// The active pixels of one task, and the dilated ones whose first convolution falls to it: those that the
// task before needs as well come first, so that both can then go on alone.
struct Strip {
  Range active;
  Range shared;
  Range own;
};

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
  int h2_block;          // rows of a thread of its own
  bool rounded;          // h1 and h2 hold pairs of BF16 numbers
  bool winograd;         // conv2 runs tile by tile
  int winograd_tiles;    // that share a pass over its weights
  GemmScratch* scratch;  // one per worker
  Strip* strips;         // one per thread
};

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

// columns: panels of the only group, or groups
void conv2(const Context& c, const WeightsView& w, Range rows, Range columns, float* h2, int first,
           const Following& then, int worker) {
  const bool one = w.group_count == 1;
  for (int i = one ? 0 : columns.begin; i < (one ? 1 : columns.end); ++i) {
    const GroupView& group = w.groups[i];
    Gemm g;
    RowSource& a = g.source[0].a;
    a.base = c.h1 + hidden_offset(c, group.first_input);
    a.rounded = c.rounded;
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

// The dilated pixels that some active pixels, at least one, read.
Range halo(const Context& c, Range active) {
  const int H = c.shape.height, W = c.shape.width, d = c.layer.dilation;
  // Rows of pixels, counted over all samples.
  int first = c.lists.centre[active.begin] / W, last = c.lists.centre[active.end - 1] / W;
  if (const TileList& tiles = c.lists.tiles; tiles.of) {
    first = tiles.corner[tiles.of[active.begin]] / W;
    last = tiles.corner[tiles.of[active.end - 1]] / W;
    last = std::min(last + kTileSide - 1, last / H * H + H - 1);
  }
  const int top = std::max(first - d, first / H * H), bottom = std::min(last + d, last / H * H + H - 1) + 1;
  const std::int32_t* const begin = c.lists.dilated;
  const std::int32_t* const end = begin + c.lists.dilated_begin[c.shape.batch];
  return {static_cast<int>(std::lower_bound(begin, end, top * W) - begin),
          static_cast<int>(std::lower_bound(begin, end, bottom * W) - begin)};
}

// Cuts the active pixels into one strip per task, between samples where that leaves the tasks about equal.
void cut(const Context& c, Range active, int tasks) {
  int previous = active.begin;
  for (int t = 0; t < tasks; ++t) {
    int end = part_of_active(c, active, t, tasks).end;
    const std::int32_t* const samples = c.lists.active_begin;
    const std::int32_t* const after = std::upper_bound(samples, samples + c.shape.batch, end);
    for (const std::int32_t* at : {after - 1, after}) {
      if (std::abs(*at - end) <= active.size() / tasks / 16 && *at < active.end) end = *at;
    }
    c.strips[t].active = {previous, t + 1 == tasks ? active.end : std::max(end, previous)};
    previous = c.strips[t].active.end;
  }
  Strip* before = nullptr;
  int needed_end = 0;
  for (Strip* strip = c.strips; strip < c.strips + tasks; ++strip) {
    strip->shared = strip->own = {0, 0};
    if (!strip->active.size()) continue;
    const Range needed = halo(c, strip->active);
    strip->shared = {needed.begin, needed.begin};
    if (before) {
      strip->shared.begin = std::max(needed.begin, before->shared.end);
      strip->shared.end = std::max(strip->shared.begin, needed_end);
      before->own.end = strip->shared.begin;
    }
    strip->own = {strip->shared.end, std::max(strip->shared.end, needed.end)};
    needed_end = needed.end;
    before = strip;
  }
}

constexpr int kBandRows = 2 * kBlockRows;

// conv1 to conv3 for one strip, a band of the image at a time.
void run_strip(const Context& c, const WeightsView& w, const Strip& strip, int worker) {
  const int panels1 = ceil_to_int(w.middle, c.isa->panel_width);
  const int columns2 = w.group_count == 1 ? panels1 : w.group_count;
  const int panels3 = ceil_to_int(c.layer.outputs, c.isa->panel_width);
  const int band_rows =
      std::max(kBandRows, static_cast<int>(blocks().band / (4 * c.layer.inputs)) / kBlockRows * kBlockRows);
  // Weights that are copied first are worth all rows at a time; then there is one strip, and all of h2 its.
  const bool copies = w.conv1.selects();
  const int bands = copies ? 1 : ceil_to_int(strip.active.size(), band_rows);
  float* const h2 = c.h2 + static_cast<std::ptrdiff_t>(worker) * c.h2_block * c.h2_stride;
  int done = strip.own.begin;
  for (int b = 0; b < bands; ++b) {
    const Range band = part_of_active(c, strip.active, b, bands);
    const int needed = b + 1 == bands ? strip.own.end : std::min(strip.own.end, halo(c, band).end);
    if (needed > done) {
      conv1(c, w, {done, needed}, {0, panels1},
            w.group_count == 1 ? Following{&second(c, w.groups[0]), {0, columns2}} : Following{}, worker);
      done = needed;
    }
    const int blocks = copies ? 1 : ceil_to_int(product_rows(c, band), block_rows(c));
    for (int i = 0; i < blocks; ++i) {
      const Range rows = part_of_active(c, band, i, blocks);
      conv2(c, w, rows, {0, columns2}, h2, rows.begin, {&w.conv3, {0, panels3}}, worker);
      conv3(c, w, rows, {0, panels3}, h2, rows.begin, worker);
    }
  }
}

// Whether conv2 takes less time tile by tile.
bool tiles_pay(const Context& c, Range active, bool copies) {
  return c.lists.tiles.of && winograd_pays(*c.isa, active.size(), tiles_of(c, active).size(), copies);
}

// Runs conv1 to conv3 with one set of weights over one range of both lists; `before` runs along.
void run_rows(const Context& c, const WeightsView& w, Range dilated, Range active, const Phase* before,
              const ThreadPool& pool) {
  const int threads = std::max(1, pool.threads);
  Phase phases[4];
  int count = 0;
  if (before) phases[count++] = *before;
  if (!active.size()) return run_phases(pool, phases, count);

  const bool copies = w.conv1.selects();
  const int rows2 = product_rows(c, active);
  bool by_strips = threads == 1 || (!copies && rows2 >= threads * kThreadRows);
  if (by_strips) {
    cut(c, active, threads);
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
  if (by_strips) {
    if (threads > 1) phases[count++] = Phase(2 * threads, shared_body);
    phases[count++] = Phase(threads, strip_body);
    return run_phases(pool, phases, count);
  }

  const int columns2 = w.group_count == 1 ? panels1 : w.group_count;
  const int panels3 = ceil_to_int(c.layer.outputs, PW);
  const Grid grid1 = make_grid(dilated.size(), panels1, copies, threads);
  const Grid grid2 = make_grid(rows2, columns2, copies, threads);
  const Grid grid3 = make_grid(active.size(), panels3, copies, threads);

  // The same task of the next phase probably falls to the same thread.
  const auto after = [](const ConvolutionView& conv, const Grid& grid, int columns, int task) {
    return Following{&conv, part(0, columns, task % grid.column_parts, grid.column_parts)};
  };
  const auto body1 = [&](int task, int worker) {
    conv1(c, w, part(dilated.begin, dilated.end, task / grid1.column_parts, grid1.row_parts),
          part(0, panels1, task % grid1.column_parts, grid1.column_parts),
          w.group_count == 1 ? after(second(c, w.groups[0]), grid2, columns2, task) : Following{}, worker);
  };
  const auto body2 = [&](int task, int worker) {
    conv2(c, w, part_of_active(c, active, task / grid2.column_parts, grid2.row_parts),
          part(0, columns2, task % grid2.column_parts, grid2.column_parts), c.h2, active.begin,
          after(w.conv3, grid3, panels3, task), worker);
  };
  const auto body3 = [&](int task, int worker) {
    conv3(c, w, part(active.begin, active.end, task / grid3.column_parts, grid3.row_parts),
          part(0, panels3, task % grid3.column_parts, grid3.column_parts), c.h2, active.begin, worker);
  };
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
  ListOptions options;
  options.inactive = layer.projection || !in_place;
  options.tiles = weights.has_winograd();
  c.lists = call.spatial_mask ? make_lists(layer, shape, call.spatial_mask, call.mask_height, call.mask_width,
                                           options, workspace)
                              : make_full_lists(layer, shape, options, workspace);
  const int active = c.lists.active_begin[batch];
  const int inactive = c.lists.inactive_begin[batch];

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
  c.rounded = c.isa->inputs_per_row == 2 && layer.groups == 1;
  // Rows start on cache lines.
  c.h1_stride = c.h2_stride = round_up(c.rounded ? ceil_to_int(M, 2) : M, 16);
  // Whole blocks of the last group's inputs are read, which may end beyond the last row.
  c.h1 = workspace.take<float>(static_cast<std::size_t>(batch) * shape.height * shape.width * c.h1_stride +
                               kBlock);
  c.h2 =
      workspace.take<float>(static_cast<std::size_t>(std::max(active, threads * c.h2_block)) * c.h2_stride);
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

  if (!call.channel_mask) {
    c.winograd = tiles_pay(c, {0, active}, false);
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
    c.winograd = tiles_pay(c, active_rows, count < M);
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
      const WeightsView selected = weights.select(on, count, workspace);
      if (selected_bytes(selected, c.winograd) > blocks().compact_weights) {
        run_rows(c, selected, dilated_rows, active_rows, nullptr, pool);
      } else {
        const CompactWeights small = compact(*c.isa, selected, c.winograd, workspace);
        const auto body = [&](int task, int) { c.isa->copy_selected(small.copies[task]); };
        const Phase copying(small.count, body);
        run_rows(c, small.view, dilated_rows, active_rows, &copying, pool);
      }
    }
    workspace.rewind(mark);
  }
}

}  // namespace dyndeploy::cpu
