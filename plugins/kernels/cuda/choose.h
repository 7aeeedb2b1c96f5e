// Which tiles a product takes.
#pragma once

#include <type_traits>

#include "mma_tile.h"

namespace dyndeploy {
namespace cuda {

// Rows of a product in the runs that a tile is chosen for, which count alike.
struct Rows {
  int runs;
  int counts[3];
};
inline Rows all_rows(int rows) { return {1, {rows, 0, 0}}; }

// Time of the busiest multiprocessor under tiles of this size, in elements of the result at the peak rate.
// share: of the tile, see Lanes.
template <class Tile>
double tile_cost(const Rows& rows, int columns, int layers, int processors, int share) {
  double cost = 0.0;
  for (int i = 0; i < rows.runs; ++i) {
    const long long tiles = static_cast<long long>(divide_up(rows.counts[i], Tile::kRows)) *
                            divide_up(columns, Tile::kColumns) * layers;
    const long long most = (tiles + processors - 1) / processors;
    cost += static_cast<double>(most) * Tile::kRows * Tile::kColumns / (share * Tile::busy(most));
  }
  return cost;
}

// A tile and the width of its accesses, as a value that a function can be given.
template <class T, int kWidth>
struct Chosen {
  using Tile = T;
  static constexpr int kVector = kWidth;
};

// The one place where an architecture decides: kinds of tiles by type and capability, sizes by the work there
// is. Calls `use` with what it has Chosen.
template <bool kGathers, class Tiles, int kVector, class Use>
int best_tile(const Rows& rows, int columns, int layers, const DeviceTraits& device, const Use& use) {
  // With gathered columns a large tile needs too many registers.
  using Largest = typename std::conditional<kGathers, typename Tiles::Medium, typename Tiles::Large>::type;
  Size size = device.tiles;
  if (size == Size::kBest) {
    const Size sizes[] = {Size::kLarge, Size::kMedium, Size::kSmall, Size::kTiny};
    const int processors = device.processors;
    const double costs[] = {
        tile_cost<Largest>(rows, columns, layers, processors, Tiles::share(Size::kLarge)),
        tile_cost<typename Tiles::Medium>(rows, columns, layers, processors, Tiles::share(Size::kMedium)),
        tile_cost<typename Tiles::Small>(rows, columns, layers, processors, Tiles::share(Size::kSmall)),
        tile_cost<typename Tiles::Tiny>(rows, columns, layers, processors, Tiles::share(Size::kTiny))};
    int best = 0;
    for (int i = 1; i < 4; ++i) best = costs[i] < costs[best] ? i : best;
    size = sizes[best];
  }
  if (size == Size::kLarge) return use(Chosen<Largest, kVector>());
  if (size == Size::kMedium) return use(Chosen<typename Tiles::Medium, kVector>());
  if (size == Size::kSmall) return use(Chosen<typename Tiles::Small, kVector>());
  return use(Chosen<typename Tiles::Tiny, kVector>());
}

template <bool kGathers>
struct ChooseTile {
  template <class Use>
  static int run(bool vectors, const Rows& rows, int columns, int layers, const DeviceTraits& device, float,
                 const Use& use) {
    if (!vectors) return use(Chosen<Lanes<float>::Single, 1>());
    return best_tile<kGathers, Lanes<float>, 4>(rows, columns, layers, device, use);
  }
  template <class Use>
  static int run(bool vectors, const Rows& rows, int columns, int layers, const DeviceTraits& device, Half,
                 const Use& use) {
    if (!vectors) return use(Chosen<Lanes<Half>::Single, 1>());
    if (device.capability >= 90 && device.capability < 120) {
      return best_tile<kGathers, HopperTensors, 8>(rows, columns, layers, device, use);
    }
    if (device.capability >= 80) {
      return best_tile<kGathers, AsyncTensors, 8>(rows, columns, layers, device, use);
    }
    if (device.capability >= 70) {
      return best_tile<kGathers, Tensors, 8>(rows, columns, layers, device, use);
    }
    return best_tile<kGathers, Lanes<Half>, 8>(rows, columns, layers, device, use);
  }
};

}  // namespace cuda
}  // namespace dyndeploy
