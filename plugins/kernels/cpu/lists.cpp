#include "lists.h"

#include <cstring>

namespace dyndeploy::cpu {
namespace {

// The border bits of every coordinate along one axis.
void mark_borders(int count, int size, int stride, int dilation, int low, int high, std::uint8_t* border) {
  for (int i = 0; i < count; ++i) {
    const int centre = i * stride;
    border[i] =
        static_cast<std::uint8_t>((centre < dilation ? low : 0) | (centre + dilation >= size ? high : 0));
  }
}

// Which of the four inputs along one axis lie inside the map, for every tile, as bits `step` apart. The
// product of a row's and a column's is the bit of every input inside.
void mark_inputs(int tiles, int size, int step, std::uint16_t* inside) {
  for (int i = 0; i < tiles; ++i) {
    unsigned bits = 0;
    for (int j = 0; j < kTileInputs; ++j) {
      const int at = i * kTileSide - 1 + j;
      bits |= at >= 0 && at < size ? 1u << j * step : 0u;
    }
    inside[i] = static_cast<std::uint16_t>(bits);
  }
}

// Everything about a call that its samples share, and where the lists have got to.
struct Builder {
  const BottleneckLayer& layer;
  const BottleneckShape& shape;
  std::uint8_t *row_border = nullptr, *column_border = nullptr;
  std::uint16_t taps[kBorderClasses] = {};
  std::uint16_t *row_inputs = nullptr, *column_inputs = nullptr;  // of tiles
  std::int32_t *active = nullptr, *centre = nullptr, *dilated = nullptr, *inactive = nullptr;
  std::uint16_t* valid = nullptr;
  std::uint8_t* border = nullptr;
  std::int32_t *corner = nullptr, *first = nullptr, *tile_of = nullptr;
  std::uint16_t* tile_valid = nullptr;
  std::uint8_t* tile_outputs = nullptr;
  int A = 0, D = 0, I = 0, T = 0;

  void add_active(int n, int y, int x) {
    const int c = row_border[y] | column_border[x], s = layer.stride;
    active[A] = (n * shape.out_height + y) * shape.out_width + x;
    if (centre != active) centre[A] = (n * shape.height + y * s) * shape.width + x * s;
    valid[A] = taps[c];
    border[A] = static_cast<std::uint8_t>(c);
    ++A;
  }

  // on: a byte per output pixel of sample n.
  void add_rows(int n, const std::uint8_t* on) {
    for (int y = 0; y < shape.out_height; ++y, on += shape.out_width) {
      for (int x = 0; x < shape.out_width; ++x) {
        if (on[x]) add_active(n, y, x);
      }
    }
  }

  // needed: a byte per input pixel of sample n.
  void add_tiles(int n, const std::uint8_t* on, const std::uint8_t* needed) {
    const int H = shape.height, W = shape.width;
    for (int y = 0; y < H; y += kTileSide) {
      const std::uint8_t* const row = on + static_cast<std::size_t>(y) * W;
      const std::uint8_t* const below = y + 1 < H ? row + W : nullptr;
      for (int x = 0; x < W; x += kTileSide) {
        const bool right = x + 1 < W;
        const unsigned outputs = row[x] | (right ? row[x + 1] << 1 : 0) |
                                 (below ? below[x] << 2 | (right ? below[x + 1] << 3 : 0) : 0);
        if (!outputs) continue;
        unsigned inputs = unsigned{row_inputs[y / kTileSide]} * column_inputs[x / kTileSide];
        for (int i = 0; outputs != kWholeTile && i < kTileInputs * kTileInputs; ++i) {
          if (inputs >> i & 1u &&
              !needed[static_cast<std::ptrdiff_t>(y - 1 + i / kTileInputs) * W + x - 1 + i % kTileInputs])
            inputs &= ~(1u << i);
        }
        corner[T] = (n * H + y) * W + x;
        tile_valid[T] = static_cast<std::uint16_t>(inputs);
        tile_outputs[T] = static_cast<std::uint8_t>(outputs);
        first[T] = A;
        for (int i = 0; i < kTileSide * kTileSide; ++i) {
          if (!(outputs >> i & 1u)) continue;
          tile_of[A] = T;
          add_active(n, y + i / kTileSide, x + i % kTileSide);
        }
        ++T;
      }
    }
  }
};

}  // namespace

PixelLists make_lists(const BottleneckLayer& layer, const BottleneckShape& shape, const float* mask,
                      int mask_height, int mask_width, const ListOptions& options, Workspace& workspace) {
  const int batch = shape.batch, H = shape.height, W = shape.width, Ho = shape.out_height,
            Wo = shape.out_width;
  const int s = layer.stride, d = layer.dilation;
  const std::size_t in_pixels = static_cast<std::size_t>(batch) * H * W;
  const std::size_t out_pixels = static_cast<std::size_t>(batch) * Ho * Wo;
  const int tile_rows = ceil_to_int(Ho, kTileSide), tile_columns = ceil_to_int(Wo, kTileSide);
  const std::size_t tiles =
      options.tiles ? static_cast<std::size_t>(batch) * tile_rows * static_cast<std::size_t>(tile_columns)
                    : 0;

  Builder b{layer, shape};
  // One more than there can be, because a pixel is written before it is known whether it counts.
  b.active = workspace.take<std::int32_t>(out_pixels);
  b.centre = s == 1 ? b.active : workspace.take<std::int32_t>(out_pixels);
  b.valid = workspace.take<std::uint16_t>(out_pixels);
  b.border = workspace.take<std::uint8_t>(out_pixels);
  b.dilated = workspace.take<std::int32_t>(in_pixels + 1);
  b.inactive = options.inactive ? workspace.take<std::int32_t>(out_pixels + 1) : nullptr;
  auto* active_begin = workspace.take<std::int32_t>(batch + 1);
  auto* dilated_begin = workspace.take<std::int32_t>(batch + 1);
  auto* inactive_begin = workspace.take<std::int32_t>(batch + 1);
  if (options.tiles) {
    b.corner = workspace.take<std::int32_t>(tiles);
    b.tile_valid = workspace.take<std::uint16_t>(tiles);
    b.tile_outputs = workspace.take<std::uint8_t>(tiles);
    b.first = workspace.take<std::int32_t>(tiles + 1);
    b.tile_of = workspace.take<std::int32_t>(out_pixels);
    b.row_inputs = workspace.take<std::uint16_t>(tile_rows);
    b.column_inputs = workspace.take<std::uint16_t>(tile_columns);
    mark_inputs(tile_rows, H, kTileInputs, b.row_inputs);
    mark_inputs(tile_columns, W, 1, b.column_inputs);
  }
  b.row_border = workspace.take<std::uint8_t>(Ho);
  b.column_border = workspace.take<std::uint8_t>(Wo);
  mark_borders(Ho, H, s, d, kBorderTop, kBorderBottom, b.row_border);
  mark_borders(Wo, W, s, d, kBorderLeft, kBorderRight, b.column_border);
  for (int c = 0; c < kBorderClasses; ++c) b.taps[c] = static_cast<std::uint16_t>(border_taps(c));

  auto* mask_column = workspace.take<std::int32_t>(Wo);
  for (int x = 0; x < Wo; ++x)
    mask_column[x] = static_cast<std::int32_t>(static_cast<std::int64_t>(x) * mask_width / Wo);
  auto* const on = workspace.take<std::uint8_t>(static_cast<std::size_t>(Ho) * Wo);
  auto* const under =
      workspace.take<std::uint8_t>(W);  // input columns under the taps of the present mask row
  auto* const needed = workspace.take<std::uint8_t>(static_cast<std::size_t>(H) * W);

  for (int n = 0; n < batch; ++n) {
    active_begin[n] = b.A;
    dilated_begin[n] = b.D;
    inactive_begin[n] = b.I;
    const float* sample = mask + static_cast<std::size_t>(n) * mask_height * mask_width;
    std::memset(needed, 0, static_cast<std::size_t>(H) * W);
    int previous = -1;
    bool any = false;
    for (int y = 0; y < Ho; ++y) {
      std::uint8_t* const line = on + static_cast<std::size_t>(y) * Wo;
      const int row = static_cast<int>(static_cast<std::int64_t>(y) * mask_height / Ho);
      if (row == previous) {
        std::memcpy(line, line - Wo, static_cast<std::size_t>(Wo));
      } else {
        previous = row;
        any = false;
        const float* bits = sample + static_cast<std::size_t>(row) * mask_width;
        std::memset(under, 0, static_cast<std::size_t>(W));
        for (int x = 0; x < Wo; ++x) {
          line[x] = bits[mask_column[x]] > 0.5f;
          if (!line[x]) continue;
          any = true;
          const int c = x * s;
          if (c >= d) under[c - d] = 1;
          under[c] = 1;
          if (c + d < W) under[c + d] = 1;
        }
      }
      for (int t = -1; any && t <= 1; ++t) {
        const int from = y * s + t * d;
        if (from < 0 || from >= H) continue;
        std::uint8_t* to = needed + static_cast<std::size_t>(from) * W;
        for (int x = 0; x < W; ++x) to[x] |= under[x];
      }
    }
    const std::int32_t in = n * H * W, out = n * Ho * Wo;
    for (int i = 0; i < H * W; ++i) {
      b.dilated[b.D] = in + i;
      b.D += needed[i];
    }
    for (int i = 0; options.inactive && i < Ho * Wo; ++i) {
      b.inactive[b.I] = out + i;
      b.I += !on[i];
    }
    options.tiles ? b.add_tiles(n, on, needed) : b.add_rows(n, on);
  }
  active_begin[batch] = b.A;
  dilated_begin[batch] = b.D;
  inactive_begin[batch] = b.I;
  if (options.tiles) b.first[b.T] = b.A;

  PixelLists lists;
  lists.active = b.active;
  lists.centre = b.centre;
  lists.valid = b.valid;
  lists.border = b.border;
  lists.active_begin = active_begin;
  lists.dilated = b.dilated;
  lists.dilated_begin = dilated_begin;
  lists.inactive = b.inactive;
  lists.inactive_begin = inactive_begin;
  lists.tiles = {b.corner, b.tile_valid, b.tile_outputs, b.first, b.tile_of};
  return lists;
}

PixelLists make_full_lists(const BottleneckLayer& layer, const BottleneckShape& shape,
                           const ListOptions& options, Workspace& workspace) {
  auto* ones = workspace.take<float>(static_cast<std::size_t>(shape.batch));
  for (int n = 0; n < shape.batch; ++n) ones[n] = 1.0f;
  return make_lists(layer, shape, ones, 1, 1, options, workspace);
}

}  // namespace dyndeploy::cpu
