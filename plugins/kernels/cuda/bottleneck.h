// Which kernels a bottleneck launches, and with which tiles.
#pragma once

#include <type_traits>

#include "convolution.h"
#include "excitation.h"
#include "grouped.h"
#include "lists.h"

namespace dyndeploy {
namespace cuda {

// Where 16-byte accesses fit all channel counts and pointers.
struct Vectors {
  bool others;  // all but conv2
  bool conv2;
};

inline bool narrow_groups(const BottleneckShape& s) { return GroupedKernel<float, false, 8>::fits(s); }

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

template <int kLayer, bool kChannels, class Tile, int kVector>
int launch_convolution(BottleneckArguments arguments, int rows, int columns, int layers, void* stream) {
  using Kernel = ConvolutionKernel<kLayer, kChannels, Tile, kVector>;
  arguments.row_tiles = divide_up(rows, Tile::kRows);
  arguments.column_tiles = divide_up(columns, Tile::kColumns);
  return launch<Kernel>(arguments.row_tiles * arguments.column_tiles, layers, arguments, stream);
}

// A tile and the width of its accesses, as a value that a function can be given.
template <class T, int kWidth>
struct Chosen {
  using Tile = T;
  static constexpr int kVector = kWidth;
};

// The one place where an architecture decides: kinds of tiles by type and capability, sizes by the work there
// is. Calls `use` with what it has Chosen.
template <int kLayer, bool kChannels, class Tiles, int kVector, class Use>
int best_tile(int rows, int columns, int layers, const DeviceTraits& device, const Use& use) {
  const int processors = device.processors;
  const double small = tile_cost<typename Tiles::Small>(rows, columns, layers, processors, 0.5);
  const double medium = tile_cost<typename Tiles::Medium>(rows, columns, layers, processors, 0.8);
  // With gathered columns a large tile needs more than 128 registers.
  using Largest = typename std::conditional<kChannels && kLayer != kConv3, typename Tiles::Medium,
                                            typename Tiles::Large>::type;
  const double large = tile_cost<Largest>(rows, columns, layers, processors, 1.0);
  const Size size = device.tiles != Size::kBest         ? device.tiles
                    : large <= medium && large <= small ? Size::kLarge
                    : medium <= small                   ? Size::kMedium
                                                        : Size::kSmall;
  if (size == Size::kLarge) return use(Chosen<Largest, kVector>());
  if (size == Size::kMedium) return use(Chosen<typename Tiles::Medium, kVector>());
  return use(Chosen<typename Tiles::Small, kVector>());
}

template <int kLayer, bool kChannels>
struct ChooseTile {
  template <class Use>
  static int run(bool vectors, int rows, int columns, int layers, const DeviceTraits& device, float,
                 const Use& use) {
    if (!vectors) return use(Chosen<Lanes<float>::Medium, 1>());
    return best_tile<kLayer, kChannels, Lanes<float>, 4>(rows, columns, layers, device, use);
  }
  template <class Use>
  static int run(bool vectors, int rows, int columns, int layers, const DeviceTraits& device, Half,
                 const Use& use) {
    if (!vectors) return use(Chosen<Lanes<Half>::Medium, 1>());
    if (device.capability >= 70) {
      return best_tile<kLayer, kChannels, Tensors, 8>(rows, columns, layers, device, use);
    }
    return best_tile<kLayer, kChannels, Lanes<Half>, 8>(rows, columns, layers, device, use);
  }
};

// Neighbouring blocks run at the same time and share what the smaller operand is read through: with columns
// first they read the same rows and all weights pass by, which is right while the weights fit the cache.
template <class T>
bool columns_first(const BottleneckArguments& a, int layer) {
  const double rows = static_cast<double>(a.shape.batch) * (layer == kConv1 ? a.in_pixels : a.out_pixels);
  const double depth = layer == kConv1 ? a.shape.inputs : a.shape.middle;
  const double columns = layer == kConv3 ? a.shape.outputs : a.shape.middle;
  const double taps = layer == kConv2 ? 9 : 1;
  return taps * depth * columns / a.shape.groups <= rows * depth;
}

// conv2 of narrow groups takes its large tile where these keep a multiprocessor busy. Calls `use` with the
// kernel.
template <bool kChannels, class T, class Use>
int choose_grouped(const BottleneckArguments& a, const DeviceTraits& device, const Use& use) {
  using Large = GroupedKernel<T, kChannels, 8>;
  using Small = GroupedKernel<T, kChannels, 2>;
  const double rows = static_cast<double>(a.shape.batch) * a.out_pixels;
  const double tiles = rows / Large::kRows * divide_up(a.shape.middle, Large::columns(a));
  const bool large = device.tiles == Size::kBest ? tiles >= device.processors : device.tiles != Size::kSmall;
  return large ? use(Large()) : use(Small());
}

template <bool kChannels, class T>
int run_grouped(BottleneckArguments a, const DeviceTraits& device, void* stream) {
  return choose_grouped<kChannels, T>(a, device, [&](auto chosen) {
    using Kernel = decltype(chosen);
    const int batch = a.shape.batch;
    a.row_tiles = divide_up(kChannels ? a.out_pixels : batch * a.out_pixels, Kernel::kRows);
    a.column_tiles = divide_up(a.shape.middle, Kernel::columns(a));
    return launch<Kernel>(a.row_tiles * a.column_tiles, kChannels ? batch : 1, a, stream);
  });
}

// The grid of a convolution in the worst case.
struct LayerGrid {
  int rows, columns, layers;
};
template <int kLayer>
LayerGrid layer_grid(const BottleneckArguments& a) {
  const bool channels = a.shape.channel_groups > 0;
  const int pixels = kLayer == kConv1 ? a.in_pixels : a.out_pixels;
  const int groups = kLayer == kConv2 ? a.shape.groups : 1;
  const int columns = kLayer == kConv3   ? a.shape.outputs
                      : kLayer == kConv2 ? a.group_channels
                                         : a.shape.middle;
  return {channels ? pixels : a.shape.batch * pixels, columns, channels ? groups * a.shape.batch : groups};
}

template <int kLayer, bool kChannels, class T>
int run_chosen(const BottleneckArguments& a, bool vectors, const DeviceTraits& device, void* stream) {
  const LayerGrid grid = layer_grid<kLayer>(a);
  return ChooseTile<kLayer, kChannels>::run(
      vectors, grid.rows, grid.columns, grid.layers, device, T(), [&](auto chosen) {
        using Choice = decltype(chosen);
        return launch_convolution<kLayer, kChannels, typename Choice::Tile, Choice::kVector>(
            a, grid.rows, grid.columns, grid.layers, stream);
      });
}

template <int kLayer, class T>
int run_layer(BottleneckArguments a, bool vectors, const DeviceTraits& device, void* stream) {
  a.columns_first = columns_first<T>(a, kLayer);
  if (kLayer == kConv2 && narrow_groups(a.shape)) {
    return a.shape.channel_groups > 0 ? run_grouped<true, T>(a, device, stream)
                                      : run_grouped<false, T>(a, device, stream);
  }
  return a.shape.channel_groups > 0 ? run_chosen<kLayer, true, T>(a, vectors, device, stream)
                                    : run_chosen<kLayer, false, T>(a, vectors, device, stream);
}

template <int kLayer, bool kChannels, class T>
int describe_chosen(const BottleneckArguments& a, bool vectors, const DeviceTraits& device,
                    BottleneckChoice* choice) {
  const LayerGrid grid = layer_grid<kLayer>(a);
  return ChooseTile<kLayer, kChannels>::run(vectors, grid.rows, grid.columns, grid.layers, device, T(),
                                            [&](auto chosen) {
                                              using Choice = decltype(chosen);
                                              using Tile = typename Choice::Tile;
                                              choice->vector = Choice::kVector;
                                              choice->tensor_cores = Tile::kTensorCores;
                                              choice->rows[kLayer] = Tile::kRows;
                                              choice->columns[kLayer] = Tile::kColumns;
                                              return 0;
                                            });
}

template <bool kChannels, class T>
int describe_grouped(const BottleneckArguments& a, const DeviceTraits& device, BottleneckChoice* choice) {
  return choose_grouped<kChannels, T>(a, device, [&](auto chosen) {
    choice->rows[kConv2] = decltype(chosen)::kRows;
    choice->columns[kConv2] = decltype(chosen)::columns(a);
    return 0;
  });
}

template <int kLayer, class T>
int describe_layer(const BottleneckArguments& a, bool vectors, const DeviceTraits& device,
                   BottleneckChoice* choice) {
  if (kLayer == kConv2 && narrow_groups(a.shape)) {
    return a.shape.channel_groups > 0 ? describe_grouped<true, T>(a, device, choice)
                                      : describe_grouped<false, T>(a, device, choice);
  }
  return a.shape.channel_groups > 0 ? describe_chosen<kLayer, true, T>(a, vectors, device, choice)
                                    : describe_chosen<kLayer, false, T>(a, vectors, device, choice);
}

template <class T>
BottleneckChoice describe_all(const BottleneckArguments& a, Vectors vectors, const DeviceTraits& device) {
  BottleneckChoice choice = {};
  describe_layer<kConv2, T>(a, vectors.conv2, device, &choice);
  describe_layer<kConv1, T>(a, vectors.others, device, &choice);
  describe_layer<kConv3, T>(a, vectors.others, device, &choice);
  return choice;
}

template <class T, int kVector>
int run_prepare(const BottleneckArguments& a, void* stream) {
  if (a.spatial && a.shape.batch > 1) {
    const int error = launch<CountKernel>(a.shape.batch, 1, a, stream);
    if (error != 0) return error;
  }
  const int blocks = PrepareKernel<T, kVector>::blocks(a);
  return blocks == 0 ? 0 : launch<PrepareKernel<T, kVector>>(blocks, 1, a, stream);
}

template <class T>
int run_all(const BottleneckArguments& a, Vectors vectors, void* stream) {
  constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  const DeviceTraits device = device_traits();
  int error = vectors.others ? run_prepare<T, kVector>(a, stream) : run_prepare<T, 1>(a, stream);
  if (error == 0) error = run_layer<kConv1, T>(a, vectors.others, device, stream);
  if (error == 0) error = run_layer<kConv2, T>(a, vectors.conv2, device, stream);
  if (error == 0 && a.excites) {
    error = vectors.others ? run_excitation<T, kVector>(a, stream) : run_excitation<T, 1>(a, stream);
  }
  if (error == 0) error = run_layer<kConv3, T>(a, vectors.others, device, stream);
  return error;
}

// One unit of compilation each, so that a build can run them side by side.
int run_float(const BottleneckArguments& arguments, Vectors vectors, void* stream);
int run_half(const BottleneckArguments& arguments, Vectors vectors, void* stream);

}  // namespace cuda
}  // namespace dyndeploy
