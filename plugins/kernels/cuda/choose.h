// Which tiles a product takes.
#pragma once

#include <initializer_list>
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
  double cost;  // tile_cost(), 0 where there is one size only
};

// The one place where an architecture decides: kinds of tiles by type and capability, sizes by the work there
// is. Calls `use` with what it has Chosen.
template <bool kGathers, class Tiles, int kVector, class Use>
int best_tile(const Rows& rows, int columns, int layers, const DeviceTraits& device, const Use& use) {
  using Largest = typename std::conditional<kGathers, typename Tiles::Gathers, typename Tiles::Large>::type;
  const Size sizes[] = {Size::kLarge, Size::kMedium, Size::kSmall, Size::kTiny};
  const int processors = device.processors;
  const double costs[] = {
      tile_cost<Largest>(rows, columns, layers, processors, Tiles::share(Size::kLarge)),
      tile_cost<typename Tiles::Medium>(rows, columns, layers, processors, Tiles::share(Size::kMedium)),
      tile_cost<typename Tiles::Small>(rows, columns, layers, processors, Tiles::share(Size::kSmall)),
      tile_cost<typename Tiles::Tiny>(rows, columns, layers, processors, Tiles::share(Size::kTiny))};
  int best = 0;
  for (int i = 1; i < 4; ++i) {
    best = device.tiles == Size::kBest ? (costs[i] < costs[best] ? i : best)
                                       : (sizes[i] == device.tiles ? i : best);
  }
  const double cost = costs[best];
  if (sizes[best] == Size::kLarge) return use(Chosen<Largest, kVector>{cost});
  if (sizes[best] == Size::kMedium) return use(Chosen<typename Tiles::Medium, kVector>{cost});
  if (sizes[best] == Size::kSmall) return use(Chosen<typename Tiles::Small, kVector>{cost});
  return use(Chosen<typename Tiles::Tiny, kVector>{cost});
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
  const auto costs = [&](int count, double (&to)[3]) {
    const Rows all = all_rows(count);
    to[0] =
        tile_cost<typename Tiles::Small>(all, columns, layers, device.processors, Tiles::share(Size::kSmall));
    to[1] = tile_cost<typename Tiles::Medium>(all, columns, layers, device.processors,
                                              Tiles::share(Size::kMedium));
    to[2] =
        tile_cost<typename Tiles::Large>(all, columns, layers, device.processors, Tiles::share(Size::kLarge));
  };
  const auto least = [&](int count, const bool (&among)[3]) {
    double cost[3];
    costs(count, cost);
    int best = -1;
    for (int i = 0; i < 3; ++i) {
      if (among[i] && (best < 0 || cost[i] <= cost[best])) best = i;
    }
    return best;
  };
  const bool all[3] = {true, true, true};
  bool among[3] = {false, false, false};
  for (int i = 0; i < rows.runs; ++i) among[least(rows.counts[i], all)] = true;
  TilesByRows tiles = {0};
  int most[3] = {0, 0, 0};
  for (int step = 0; step < TilesByRows::kSteps; ++step) {
    const int count = (step + 1) * TilesByRows::kStep;
    const int size = least(count, among);
    tiles.sizes |= static_cast<std::uint64_t>(size) << (2 * step);
    if (count < rows.counts[0] + TilesByRows::kStep) most[size] = count;
  }
  int error = 0;
  if (error == 0 && most[0] > 0) error = use(Chosen<typename Tiles::Small, kVector>(), 0, tiles, most[0]);
  if (error == 0 && most[1] > 0) error = use(Chosen<typename Tiles::Medium, kVector>(), 1, tiles, most[1]);
  if (error == 0 && most[2] > 0) error = use(Chosen<typename Tiles::Large, kVector>(), 2, tiles, most[2]);
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

// What a product takes, in numbers.
struct Taken {
  int vector;
  bool tensor_cores;
  int rows, columns;  // of the tile
  double cost;        // see Chosen
  bool several;       // the device chooses among kernels of several sizes
};
struct Note {
  Taken* taken;
  template <class Choice>
  int operator()(const Choice& chosen) const {
    using Tile = typename Choice::Tile;
    *taken = {Choice::kVector, Tile::kTensorCores, Tile::kRows, Tile::kColumns, chosen.cost, false};
    return 0;
  }
};

// Of a product that adapts_tiles(): whether there are several kernels, else which size is best for all
// counts.
template <class T>
void note_adapted(const Rows& rows, int columns, int layers, const DeviceTraits& device, Taken* taken) {
  Taken one = {};
  int kernels = 0;
  each_tile<T>(rows, columns, layers, device, [&](auto chosen, int, const TilesByRows&, int) {
    ++kernels;
    return Note{&one}(chosen);
  });
  taken->several = kernels > 1;
  if (taken->several) return;
  one.cost = taken->cost;
  *taken = one;
}

// Beyond it, a size is not expected to win against the one of the least cost: what the shares are modelled
// from differs by less between its optimistic and its pessimistic end.
constexpr double kWorthTiming = 1.5;

// The size of a product of the least cost beside the one that the formula takes, kBest where none is worth
// timing. take(DeviceTraits) tells what is Taken.
template <class Take>
Size next_size(const DeviceTraits& device, const Take& take) {
  const Taken first = take(device);
  Size next = Size::kBest;
  double least = kWorthTiming * first.cost;
  for (const Size size : {Size::kLarge, Size::kMedium, Size::kSmall, Size::kTiny}) {
    const Taken other = take(with_size(device, size));
    const bool same = !first.several && other.rows == first.rows && other.columns == first.columns;
    if (same || other.cost > least || (next != Size::kBest && other.cost == least)) continue;
    next = size;
    least = other.cost;
  }
  return next;
}

// The formula's choice and all combinations of the next sizes of those three products that multiply most.
inline int combine(int products, const Size* next, const double* multiplications, Tiles* candidates) {
  constexpr int kVaried = 3;
  static_assert(1 << kVaried == kMostCandidates, "a bit for each varied product");
  int varied[kVaried], count = 0;
  bool taken[kMostProducts] = {};
  while (count < kVaried) {
    int most = -1;
    for (int i = 0; i < products; ++i) {
      const bool open = next[i] != Size::kBest && !taken[i];
      if (open && (most < 0 || multiplications[i] > multiplications[most])) most = i;
    }
    if (most < 0) break;
    taken[most] = true;
    varied[count++] = most;
  }
  for (int bits = 0; bits < 1 << count; ++bits) {
    candidates[bits] = Tiles();
    for (int i = 0; i < count; ++i) {
      if (bits >> i & 1) candidates[bits].sizes[varied[i]] = next[varied[i]];
    }
  }
  return 1 << count;
}

}  // namespace cuda
}  // namespace dyndeploy
