// Which tiles a product takes.
#pragma once

#include <initializer_list>
#include <type_traits>

#include "mma_tile.h"
#include "rows.h"
#include "wgmma_tile.h"

namespace dyndeploy {
namespace cuda {

// Rows of a product in the runs that a tile is chosen for, which count alike.
struct Rows {
  int runs;
  int counts[3];
};
inline Rows all_rows(int rows) { return {1, {rows, 0, 0}}; }

// A product: its rows, columns, and how many there are side by side.
struct Work {
  Rows rows;
  int columns, layers;
};

// Time of the busiest multiprocessor under tiles of this size, in elements of the result at the peak rate.
// share: of the tile, see Lanes.
template <class Tile>
double tile_cost(const Work& work, int processors, int share) {
  double cost = 0.0;
  for (int i = 0; i < work.rows.runs; ++i) {
    const long long tiles = static_cast<long long>(divide_up(work.rows.counts[i], Tile::kRows)) *
                            divide_up(work.columns, Tile::kColumns) * work.layers;
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

// Sizes of a kind, largest first, and what they cost.
template <class Tiles, class Largest = typename Tiles::Large>
struct Sizes {
  static constexpr int kCount = 4;
  static Size at(int i) {
    const Size sizes[] = {Size::kLarge, Size::kMedium, Size::kSmall, Size::kTiny};
    return sizes[i];
  }
  static int place(Size size) {
    int i = 0;
    while (at(i) != size) ++i;
    return i;
  }
  static double cost(const Work& work, int processors, int i) {
    const int share = Tiles::share(at(i));
    return i == 0   ? tile_cost<Largest>(work, processors, share)
           : i == 1 ? tile_cost<typename Tiles::Medium>(work, processors, share)
           : i == 2 ? tile_cost<typename Tiles::Small>(work, processors, share)
                    : tile_cost<typename Tiles::Tiny>(work, processors, share);
  }
  static int best(const Work& work, int processors) {
    int best = 0;
    for (int i = 1; i < kCount; ++i) {
      best = cost(work, processors, i) < cost(work, processors, best) ? i : best;
    }
    return best;
  }
  static double least(const Work& work, int processors) {
    return cost(work, processors, best(work, processors));
  }
};

template <bool kGathers, class Tiles>
struct LargestOf {
  using Tile = typename Tiles::Gathers;
};
template <class Tiles>
struct LargestOf<false, Tiles> {
  using Tile = typename Tiles::Large;
};

// The tile of least cost among those of a kind, or of the size that is asked for. Calls `use` with what it
// has Chosen.
template <bool kGathers, class Tiles, int kVector, class Use>
int best_tile(const Work& work, const DeviceTraits& device, const Use& use) {
  using Largest = typename LargestOf<kGathers, Tiles>::Tile;
  using All = Sizes<Tiles, Largest>;
  Size size = device.tiles;
  if (size == Size::kBest) size = All::at(All::best(work, device.processors));
  const double cost = All::cost(work, device.processors, All::place(size));
  if (size == Size::kLarge) return use(Chosen<Largest, kVector>{cost});
  if (size == Size::kMedium) return use(Chosen<typename Tiles::Medium, kVector>{cost});
  if (size == Size::kSmall) return use(Chosen<typename Tiles::Small, kVector>{cost});
  return use(Chosen<typename Tiles::Tiny, kVector>{cost});
}

// Tiles of halves on sm_90. The kind follows from the work that is planned, the largest batch of an engine,
// not from the one at hand: so a sample keeps its bits in any batch.
template <bool kGathers>
struct HopperTile {
  template <class Use>
  static int run(const Work& work, const Work&, const DeviceTraits& device, const Use& use) {
    return best_tile<kGathers, HopperTensors, 8>(work, device, use);
  }
};
template <>
struct HopperTile<false> {
  template <class Use>
  static int run(const Work& work, const Work& planned, const DeviceTraits& device, const Use& use) {
    if (device.warpgroups && planned.rows.runs > 0) {
      const int processors = device.processors;
      const double costs[] = {Sizes<HopperTensors>::least(planned, processors),
                              Sizes<Warpgroups<64>>::least(planned, processors),
                              Sizes<Warpgroups<128>>::least(planned, processors),
                              Sizes<Warpgroups<256>>::least(planned, processors)};
      int best = 0;
      for (int i = 1; i < 4; ++i) best = costs[i] < costs[best] ? i : best;
      if (best == 1) return best_tile<false, Warpgroups<64>, 8>(work, device, use);
      if (best == 2) return best_tile<false, Warpgroups<128>, 8>(work, device, use);
      if (best == 3) return best_tile<false, Warpgroups<256>, 8>(work, device, use);
    }
    return best_tile<false, HopperTensors, 8>(work, device, use);
  }
};

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
int each_tile(const Work& work, const DeviceTraits& device, const Use& use) {
  using Tiles = Lanes<T>;
  constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  constexpr int kSizes = 4;
  const int processors = device.processors;
  const auto least = [&](int count, const bool (&among)[kSizes]) {
    const Work all = {all_rows(count), work.columns, work.layers};
    const double cost[kSizes] = {
        tile_cost<typename Tiles::Tiny>(all, processors, Tiles::share(Size::kTiny)),
        tile_cost<typename Tiles::Small>(all, processors, Tiles::share(Size::kSmall)),
        tile_cost<typename Tiles::Medium>(all, processors, Tiles::share(Size::kMedium)),
        tile_cost<typename Tiles::Large>(all, processors, Tiles::share(Size::kLarge))};
    int best = -1;
    for (int i = 0; i < kSizes; ++i) {
      if (among[i] && (best < 0 || cost[i] <= cost[best])) best = i;
    }
    return best;
  };
  const bool all[kSizes] = {true, true, true, true};
  bool among[kSizes] = {false, false, false, false};
  for (int i = 0; i < work.rows.runs; ++i) among[least(work.rows.counts[i], all)] = true;
  TilesByRows tiles = {0};
  int most[kSizes] = {0, 0, 0, 0};
  for (int step = 0; step < TilesByRows::kSteps; ++step) {
    const int count = (step + 1) * TilesByRows::kStep;
    const int size = least(count, among);
    tiles.sizes |= static_cast<std::uint64_t>(size) << (2 * step);
    if (count < work.rows.counts[0] + TilesByRows::kStep) most[size] = count;
  }
  int error = 0;
  if (error == 0 && most[0] > 0) error = use(Chosen<typename Tiles::Tiny, kVector>(), 0, tiles, most[0]);
  if (error == 0 && most[1] > 0) error = use(Chosen<typename Tiles::Small, kVector>(), 1, tiles, most[1]);
  if (error == 0 && most[2] > 0) error = use(Chosen<typename Tiles::Medium, kVector>(), 2, tiles, most[2]);
  if (error == 0 && most[3] > 0) error = use(Chosen<typename Tiles::Large, kVector>(), 3, tiles, most[3]);
  return error;
}

// The one place where an architecture decides: kinds of tiles by type and capability, sizes by the work there
// is. Calls `use` with what it has Chosen. planned: the work of an engine's largest batch, without rows where
// that is not known.
template <bool kGathers>
struct ChooseTile {
  template <class Use>
  static int run(bool vectors, const Work& work, const Work&, const DeviceTraits& device, float,
                 const Use& use) {
    if (!vectors) return use(Chosen<Lanes<float>::Single, 1>());
    return best_tile<kGathers, Lanes<float>, 4>(work, device, use);
  }
  template <class Use>
  static int run(bool vectors, const Work& work, const Work& planned, const DeviceTraits& device, Half,
                 const Use& use) {
    if (!vectors) return use(Chosen<Lanes<Half>::Single, 1>());
    if (device.capability >= 90 && device.capability < 120) {
      return HopperTile<kGathers>::run(work, planned, device, use);
    }
    if (device.capability >= 80) return best_tile<kGathers, AsyncTensors, 8>(work, device, use);
    if (device.capability >= 70) return best_tile<kGathers, Tensors, 8>(work, device, use);
    return best_tile<kGathers, Lanes<Half>, 8>(work, device, use);
  }
};

// What a product takes, in numbers.
struct Taken {
  int vector;
  bool tensor_cores, warpgroups;
  int rows, columns;  // of the tile
  double cost;        // see Chosen
  bool several;       // the device chooses among kernels of several sizes
};
struct Note {
  Taken* taken;
  template <class Choice>
  int operator()(const Choice& chosen) const {
    using Tile = typename Choice::Tile;
    *taken = {Choice::kVector,
              Tile::kTensorCores,
              MultipliesByWarpgroups<Tile>::value,
              Tile::kRows,
              Tile::kColumns,
              chosen.cost,
              false};
    return 0;
  }
};

// Of a product that adapts_tiles(): whether there are several kernels, else which size is best for all
// counts.
template <class T>
void note_adapted(const Work& work, const DeviceTraits& device, Taken* taken) {
  Taken one = {};
  int kernels = 0;
  each_tile<T>(work, device, [&](auto chosen, int, const TilesByRows&, int) {
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
