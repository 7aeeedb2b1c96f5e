// Which pixels a spatial mask makes the convolutions compute.
#pragma once

#include <cstdint>

#include "shape.h"
#include "workspace.h"

namespace dyndeploy::cpu {

// The active pixels of a map in tiles of 2 x 2, for Winograd's convolution: tiles with at least one of them,
// row by row.
struct TileList {
  const std::int32_t* corner = nullptr;   // the input pixel under the tile's first output
  const std::uint16_t* valid = nullptr;   // bit 4 * row + column: an input of the tile that conv1 computes
  const std::uint8_t* outputs = nullptr;  // bit 2 * row + column: an active output
  const std::int32_t* first = nullptr;    // where its pixels begin among the active ones; one more at the end
  const std::int32_t* of = nullptr;       // the tile of each active pixel
};

constexpr int kTileSide = 2;    // outputs
constexpr int kTileInputs = 4;  // ... and inputs, per side
constexpr unsigned kWholeTile = 0xf;

// Samples follow each other; sample n's entries of a list are [begin[n], begin[n + 1]).
struct PixelLists {
  // Output pixels (n * Ho + y) * Wo + x to compute, and what the 3x3 needs to know of each.
  const std::int32_t* active = nullptr;
  const std::int32_t* centre = nullptr;  // the input pixel under the middle tap
  const std::uint16_t* valid = nullptr;  // bit t: tap t lies inside the map
  const std::uint8_t* border = nullptr;  // kBorder... of the taps outside
  const std::int32_t* active_begin = nullptr;
  // Input pixels under any tap of an active output pixel: where the first convolution is needed.
  const std::int32_t* dilated = nullptr;
  const std::int32_t* dilated_begin = nullptr;
  // Where the active pixels lie tile by tile instead of row by row; else its pointers are null.
  TileList tiles;
  // The other output pixels; only if asked for.
  const std::int32_t* inactive = nullptr;
  const std::int32_t* inactive_begin = nullptr;
};

constexpr int kBorderTop = 1;
constexpr int kBorderBottom = 2;
constexpr int kBorderLeft = 4;
constexpr int kBorderRight = 8;
constexpr int kBorderClasses = 16;

constexpr unsigned kAllTaps = 0x1ff;
// The taps (3 * row + column) that remain for a border class.
constexpr unsigned border_taps(int border) {
  return kAllTaps & ~((border & kBorderTop ? 0x007u : 0u) | (border & kBorderBottom ? 0x1c0u : 0u) |
                      (border & kBorderLeft ? 0x049u : 0u) | (border & kBorderRight ? 0x124u : 0u));
}

struct ListOptions {
  bool inactive = false;
  bool tiles = false;  // only where stride and dilation are 1
};

// mask: (batch, mask_height, mask_width), active where > 0.5. The lists live in the workspace.
PixelLists make_lists(const BottleneckLayer& layer, const BottleneckShape& shape, const float* mask,
                      int mask_height, int mask_width, const ListOptions& options, Workspace& workspace);

// Lists with every pixel active.
PixelLists make_full_lists(const BottleneckLayer& layer, const BottleneckShape& shape,
                           const ListOptions& options, Workspace& workspace);

}  // namespace dyndeploy::cpu
