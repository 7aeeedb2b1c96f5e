// Which tile of a result a block computes.
#pragma once

#include "platform.h"

namespace dyndeploy {
namespace cuda {

// The tiles of a result as one row of blocks, of which neighbours share rows or columns.
struct TileGrid {
  int inner, blocks;
  // 2^32 / inner, rounded up: a division would be a quarter of what a block does before its first product.
  // 0: the last blocks would be found wrong by it.
  std::uint32_t reciprocal;
  bool columns_first;

  DYN_DEVICE int slow(int block) const {
    if (reciprocal == 0) return block / inner;
    return static_cast<int>(static_cast<std::uint64_t>(static_cast<std::uint32_t>(block)) * reciprocal >> 32);
  }
  struct Tile {
    int row, column;
  };
  DYN_DEVICE Tile of(int block) const {
    const int outer = slow(block), within = block - outer * inner;
    return columns_first ? Tile{outer, within} : Tile{within, outer};
  }
};

inline TileGrid tile_grid(int row_tiles, int column_tiles, bool columns_first) {
  // A direction of one tile is the outer one, which leaves a reciprocal of 32 bits.
  if (row_tiles == 1 || column_tiles == 1) columns_first = row_tiles == 1;
  const int inner = columns_first ? column_tiles : row_tiles;
  TileGrid grid = {inner, row_tiles * column_tiles, 0, columns_first};
  const std::uint64_t all = static_cast<std::uint64_t>(1) << 32;
  const std::uint64_t divisor = static_cast<std::uint64_t>(inner < 2 ? 2 : inner);
  const std::uint64_t up = (all + divisor - 1) / divisor;
  // What the rounding adds to a quotient stays below a part of the divisor.
  if (static_cast<std::uint64_t>(grid.blocks) * (up * divisor - all) < all) {
    grid.reciprocal = static_cast<std::uint32_t>(up);
  }
  return grid;
}

}  // namespace cuda
}  // namespace dyndeploy
