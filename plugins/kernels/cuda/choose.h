// Which tiles a product takes.
#pragma once

#include <type_traits>

#include "tiles.h"

namespace dyndeploy {
namespace cuda {

// Work of the busiest multiprocessor under tiles of this size, in elements of the result. The efficiencies
// say what share of its lanes a tile keeps busy; they are estimates from counting instructions, to be
// replaced by measurements.
template <class Tile>
double tile_cost(int rows, int columns, int layers, int processors, double efficiency) {
  const double tiles =
      static_cast<double>(divide_up(rows, Tile::kRows)) * divide_up(columns, Tile::kColumns) * layers;
  const double share = static_cast<double>((static_cast<long long>(tiles) + processors - 1) / processors);
  return share * Tile::kRows * Tile::kColumns / efficiency;
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
int best_tile(int rows, int columns, int layers, const DeviceTraits& device, const Use& use) {
  const int processors = device.processors;
  const double small = tile_cost<typename Tiles::Small>(rows, columns, layers, processors, 0.5);
  const double medium = tile_cost<typename Tiles::Medium>(rows, columns, layers, processors, 0.8);
  // With gathered columns a large tile needs more than 128 registers.
  using Largest = typename std::conditional<kGathers, typename Tiles::Medium, typename Tiles::Large>::type;
  const double large = tile_cost<Largest>(rows, columns, layers, processors, 1.0);
  const Size size = device.tiles != Size::kBest         ? device.tiles
                    : large <= medium && large <= small ? Size::kLarge
                    : medium <= small                   ? Size::kMedium
                                                        : Size::kSmall;
  if (size == Size::kLarge) return use(Chosen<Largest, kVector>());
  if (size == Size::kMedium) return use(Chosen<typename Tiles::Medium, kVector>());
  return use(Chosen<typename Tiles::Small, kVector>());
}

template <bool kGathers>
struct ChooseTile {
  template <class Use>
  static int run(bool vectors, int rows, int columns, int layers, const DeviceTraits& device, float,
                 const Use& use) {
    if (!vectors) return use(Chosen<Lanes<float>::Medium, 1>());
    return best_tile<kGathers, Lanes<float>, 4>(rows, columns, layers, device, use);
  }
  template <class Use>
  static int run(bool vectors, int rows, int columns, int layers, const DeviceTraits& device, Half,
                 const Use& use) {
    if (!vectors) return use(Chosen<Lanes<Half>::Medium, 1>());
    if (device.capability >= 70) {
      return best_tile<kGathers, Tensors, 8>(rows, columns, layers, device, use);
    }
    return best_tile<kGathers, Lanes<Half>, 8>(rows, columns, layers, device, use);
  }
};

}  // namespace cuda
}  // namespace dyndeploy
