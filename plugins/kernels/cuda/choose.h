// Which tiles a product takes.
#pragma once

#include <type_traits>

#include "mma_tile.h"
#include "rows.h"

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
  using Largest = typename std::conditional<kGathers, typename Tiles::Gathers, typename Tiles::Large>::type;
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

// Whether the device chooses between kernels of several sizes: where a mask may leave a few tiles alone, one
// size for any number of rows costs more than a launch that ends at once. Halves on lanes, whose sizes differ
// least in what they reach.
template <class T>
bool adapts_tiles(bool vectors, const Rows& rows, const DeviceTraits& device) {
  return sizeof(T) == 2 && vectors && device.capability < 70 && device.tiles == Size::kBest &&
         rows.runs > 1 && rows.counts[0] <= TilesByRows::kMost;
}

// Launches a kernel for each size that is best for one of the counts of rows. Calls `use` with what it has
// Chosen, its number, which rows are whose, and how many rows it may find.
template <class T, class Use>
int each_tile(const Rows& rows, int columns, int layers, const DeviceTraits& device, const Use& use) {
  using Tiles = Lanes<T>;
  constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  constexpr int kSizes = 4;
  const int processors = device.processors;
  const auto least = [&](int count, const bool (&among)[kSizes]) {
    const Rows all = all_rows(count);
    const double cost[kSizes] = {
        tile_cost<typename Tiles::Tiny>(all, columns, layers, processors, Tiles::share(Size::kTiny)),
        tile_cost<typename Tiles::Small>(all, columns, layers, processors, Tiles::share(Size::kSmall)),
        tile_cost<typename Tiles::Medium>(all, columns, layers, processors, Tiles::share(Size::kMedium)),
        tile_cost<typename Tiles::Large>(all, columns, layers, processors, Tiles::share(Size::kLarge))};
    int best = -1;
    for (int i = 0; i < kSizes; ++i) {
      if (among[i] && (best < 0 || cost[i] <= cost[best])) best = i;
    }
    return best;
  };
  const bool all[kSizes] = {true, true, true, true};
  bool among[kSizes] = {false, false, false, false};
  for (int i = 0; i < rows.runs; ++i) among[least(rows.counts[i], all)] = true;
  TilesByRows tiles = {0};
  int most[kSizes] = {0, 0, 0, 0};
  for (int step = 0; step < TilesByRows::kSteps; ++step) {
    const int count = (step + 1) * TilesByRows::kStep;
    const int size = least(count, among);
    tiles.sizes |= static_cast<std::uint64_t>(size) << (2 * step);
    if (count < rows.counts[0] + TilesByRows::kStep) most[size] = count;
  }
  int error = 0;
  if (error == 0 && most[0] > 0) error = use(Chosen<typename Tiles::Tiny, kVector>(), 0, tiles, most[0]);
  if (error == 0 && most[1] > 0) error = use(Chosen<typename Tiles::Small, kVector>(), 1, tiles, most[1]);
  if (error == 0 && most[2] > 0) error = use(Chosen<typename Tiles::Medium, kVector>(), 2, tiles, most[2]);
  if (error == 0 && most[3] > 0) error = use(Chosen<typename Tiles::Large, kVector>(), 3, tiles, most[3]);
  return error;
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
