// How the work of a bottleneck is cut: rows and panels among tasks, an image among threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "lists.h"
#include "shape.h"

namespace dyndeploy::cpu {

struct Range {
  int begin;
  int end;
  int size() const { return end - begin; }
};

inline Range part(int begin, int end, int index, int parts) {
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
inline Grid make_grid(int rows, int columns, bool copies, int threads, int block_rows) {
  if (threads <= 1 || rows <= 0) return {};
  Grid grid;
  if (copies || rows < threads * kThreadRows) {
    grid.column_parts = std::min(threads, columns);
    grid.row_parts = std::min(ceil_to_int(threads, grid.column_parts), ceil_to_int(rows, kThreadRows));
  } else {
    grid.row_parts = std::max(threads, round_up(ceil_to_int(rows, block_rows), threads));
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

// The dilated pixels that some active pixels, at least one, read.
inline Range halo(const PixelLists& lists, const BottleneckShape& shape, int dilation, Range active) {
  const int H = shape.height, W = shape.width, d = dilation;
  // Rows of pixels, counted over all samples.
  int first = lists.centre[active.begin] / W, last = lists.centre[active.end - 1] / W;
  if (const TileList& tiles = lists.tiles; tiles.of) {
    first = tiles.corner[tiles.of[active.begin]] / W;
    last = tiles.corner[tiles.of[active.end - 1]] / W;
    last = std::min(last + kTileSide - 1, last / H * H + H - 1);
  }
  const int top = std::max(first - d, first / H * H), bottom = std::min(last + d, last / H * H + H - 1) + 1;
  const std::int32_t* const begin = lists.dilated;
  const std::int32_t* const end = begin + lists.dilated_begin[shape.batch];
  return {static_cast<int>(std::lower_bound(begin, end, top * W) - begin),
          static_cast<int>(std::lower_bound(begin, end, bottom * W) - begin)};
}

// Cuts the active pixels into one strip per task, between samples where that leaves the tasks about equal.
// part_of(active, index, parts): where else they may be cut.
template <class PartOf>
void cut(const PixelLists& lists, const BottleneckShape& shape, int dilation, Range active, int tasks,
         const PartOf& part_of, Strip* strips) {
  int previous = active.begin;
  for (int t = 0; t < tasks; ++t) {
    int end = part_of(active, t, tasks).end;
    const std::int32_t* const samples = lists.active_begin;
    const std::int32_t* const after = std::upper_bound(samples, samples + shape.batch, end);
    for (const std::int32_t* at : {after - 1, after}) {
      if (std::abs(*at - end) <= active.size() / tasks / 16 && *at < active.end) end = *at;
    }
    strips[t].active = {previous, t + 1 == tasks ? active.end : std::max(end, previous)};
    previous = strips[t].active.end;
  }
  Strip* before = nullptr;
  int needed_end = 0;
  for (Strip* strip = strips; strip < strips + tasks; ++strip) {
    strip->shared = strip->own = {0, 0};
    if (!strip->active.size()) continue;
    const Range needed = halo(lists, shape, dilation, strip->active);
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

}  // namespace dyndeploy::cpu
