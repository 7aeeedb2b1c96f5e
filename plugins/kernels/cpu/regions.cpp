#include "regions.h"

#include <algorithm>
#include <cmath>

#include "caches.h"
#include "regions_kernels.h"
#include "shape.h"

namespace dyndeploy::cpu {
namespace {

// The samples of a box along one axis.
struct Axis {
  float begin = 0.0f;   // in cells
  float length = 0.0f;  // of a bin
  int samples = 0;      // of a bin; 0: the box is empty
  int cells = 0;        // of the map
};

Axis axis_of(float from, float to, int stride, int cells, int size) {
  Axis axis;
  const float scale = 1.0f / static_cast<float>(stride);
  axis.begin = from * scale - 0.5f;
  axis.length = (to * scale - 0.5f - axis.begin) / static_cast<float>(size);
  axis.cells = cells;
  // The comparison is false where a coordinate is no number.
  if (axis.length > 0.0f && axis.length <= kMostSamples)
    axis.samples = static_cast<int>(std::ceil(axis.length));
  return axis;
}

// How many cells a bin reads, at most: its samples are at most a cell apart.
int most_cells(const Axis& axis) { return std::min(axis.samples + 2, axis.cells); }

struct Cells {
  int first = 0;
  int count = 0;
};

// The cells that a bin reads, and their weights; `weights` has room for most_cells().
Cells bin_of(const Axis& axis, int bin, float* weights) {
  Cells cells;
  const float begin = axis.begin + static_cast<float>(bin) * axis.length;
  const auto samples = static_cast<float>(axis.samples);
  const int last = axis.cells - 1;
  const auto add = [&](int cell, float weight) {
    if (!cells.count) cells.first = cell;
    for (; cells.first + cells.count <= cell; ++cells.count) weights[cells.count] = 0.0f;
    weights[cell - cells.first] += weight;
  };
  for (int i = 0; i < axis.samples; ++i) {
    float at = begin + (static_cast<float>(i) + 0.5f) * axis.length / samples;
    if (!(at >= -1.0f && at <= static_cast<float>(axis.cells))) continue;
    at = std::min(std::max(at, 0.0f), static_cast<float>(last));
    const int low = static_cast<int>(at);
    const float part = at - static_cast<float>(low);
    add(low, (1.0f - part) / samples);
    if (low < last) add(low + 1, part / samples);
  }
  return cells;
}

// The weights of all bins: bin i reads `count` cells from first[i] on, some of which weigh nothing.
struct Bins {
  std::int32_t* first;
  int count;
  float* weights;  // [size][count]
};
Bins bins_of(const Axis& axis, int size, Workspace& workspace) {
  Bins bins;
  bins.first = workspace.take<std::int32_t>(static_cast<std::size_t>(size));
  const int most = most_cells(axis);
  auto* apart = workspace.take<float>(static_cast<std::size_t>(size) * static_cast<std::size_t>(most));
  auto* counts = workspace.take<int>(static_cast<std::size_t>(size));
  bins.count = 0;
  for (int i = 0; i < size; ++i) {
    const Cells cells = bin_of(axis, i, apart + static_cast<std::ptrdiff_t>(i) * most);
    // A bin outside the map widens no window: it reads where its neighbour does.
    bins.first[i] = cells.count || !i ? cells.first : bins.first[i - 1];
    counts[i] = cells.count;
    bins.count = std::max(bins.count, cells.count);
  }
  bins.weights = workspace.take<float>(static_cast<std::size_t>(size) * static_cast<std::size_t>(bins.count));
  float* to = bins.weights;
  for (int i = 0; i < size; ++i, to += bins.count) {
    const float* const from = apart + static_cast<std::ptrdiff_t>(i) * most;
    const int before = std::max(bins.first[i] + bins.count - axis.cells, 0);
    bins.first[i] -= before;
    std::fill(to, to + bins.count, 0.0f);
    std::copy(from, from + counts[i], to + before);
  }
  return bins;
}

Region make_region(const RegionsCall& call, int index, Workspace& workspace) {
  const float* const box = call.boxes + 4 * static_cast<std::ptrdiff_t>(index);
  const PyramidLevel& level = call.levels[std::clamp<std::int64_t>(call.level[index], 0, kPyramidLevels - 1)];
  const int size = call.size;
  Region region;
  region.plane = static_cast<std::ptrdiff_t>(level.height) * level.width;
  region.width = level.width;
  const Bins rows = bins_of(axis_of(box[1], box[3], level.stride, level.height, size), size, workspace);
  region.first = rows.first;
  region.rows = rows.count;
  region.row_weights = rows.weights;
  const Bins columns = bins_of(axis_of(box[0], box[2], level.stride, level.width, size), size, workspace);
  const int left = *std::min_element(columns.first, columns.first + size);
  const int right = *std::max_element(columns.first, columns.first + size) + columns.count;
  region.columns = columns.count ? right - left : 0;
  region.cells = level.cells + left;
  const int padded = round_up(size, kRegionLanes);
  const std::size_t weights = static_cast<std::size_t>(region.columns) * static_cast<std::size_t>(padded);
  auto* table = workspace.take<float>(weights + kRegionSlack);
  std::fill(table, table + weights + kRegionSlack, 0.0f);
  for (int i = 0; i < size; ++i) {
    float* const to = table + static_cast<std::ptrdiff_t>(columns.first[i] - left) * padded + i;
    for (int k = 0; k < columns.count; ++k)
      to[static_cast<std::ptrdiff_t>(k) * padded] =
          columns.weights[static_cast<std::ptrdiff_t>(i) * columns.count + k];
  }
  region.column_weights = table;
  return region;
}

constexpr int kMostChannels = 8;  // that one task reads at a time

// Channels whose maps stay in L2 while all boxes are read from them.
int channels_at_a_time(const RegionsCall& call) {
  std::int64_t bytes = 0;
  for (const PyramidLevel& level : call.levels)
    bytes += static_cast<std::int64_t>(sizeof(float)) * level.height * level.width;
  return static_cast<int>(std::clamp<std::int64_t>(caches().l2 / 4 * 3 / bytes, 1, kMostChannels));
}

}  // namespace

void run_regions(const Isa& isa, const RegionsCall& call, Workspace& workspace, const ThreadPool& pool) {
  auto* regions = workspace.take<Region>(static_cast<std::size_t>(call.count));
  int widest = 0;
  for (int i = 0; i < call.count; ++i) {
    regions[i] = make_region(call, i, workspace);
    widest = std::max(widest, regions[i].columns);
  }
  const int threads = std::max(1, pool.threads);
  Regions all;
  all.regions = regions;
  all.count = call.count;
  all.channels = call.channels;
  all.size = call.size;
  all.out = call.out;
  all.scratch_stride = round_up(std::max(widest, 1), isa.vector_width);
  const auto scratch = static_cast<std::size_t>(all.scratch_stride) * static_cast<std::size_t>(call.size);
  auto* buffers = workspace.take<float>(scratch * static_cast<std::size_t>(threads));
  const int step = channels_at_a_time(call);
  const auto body = [&](int task, int worker) {
    Regions part = all;
    part.channel_begin = task * step;
    part.channel_end = std::min(part.channel_begin + step, call.channels);
    part.scratch = buffers + static_cast<std::size_t>(worker) * scratch;
    isa.read_regions(part);
  };
  const Phase phase(ceil_to_int(call.channels, step), body);
  run_phases(pool, &phase, 1);
}

}  // namespace dyndeploy::cpu
