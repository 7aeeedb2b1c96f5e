// Which kernels a bottleneck launches, and with which tiles.
#pragma once

#include <cmath>

#include "choose.h"
#include "convolution.h"
#include "excitation.h"
#include "grouped.h"
#include "layout.h"
#include "lists.h"
#include "winograd.h"

namespace dyndeploy {
namespace cuda {

// Where 16-byte accesses fit all channel counts and pointers.
struct Vectors {
  bool others;  // all but conv2
  bool conv2;
};

Vectors shape_fits_vectors(const BottleneckShape& shape, int vector);

// Sizes, tensors and the part of the workspace that lists and hidden maps of elements of so many bytes take.
BottleneckArguments plan_bottleneck(const BottleneckShape& shape, std::size_t element,
                                    const BottleneckTensors& tensors, const DeviceTraits& device,
                                    Layout& layout);
const char* check_shape(const BottleneckShape& shape);  // as check_bottleneck(), for any type

inline bool narrow_groups(const BottleneckShape& s) { return GroupedKernel<float, false, 8>::fits(s); }

template <int kLayer, bool kChannels, class Tile, int kVector>
int launch_convolution(BottleneckArguments arguments, int rows, int columns, int layers, void* stream) {
  using Kernel = ConvolutionKernel<kLayer, kChannels, Tile, kVector>;
  arguments.grid =
      tile_grid(divide_up(rows, Tile::kRows), divide_up(columns, Tile::kColumns), arguments.columns_first);
  return launch<Kernel>(arguments.grid.blocks, layers, arguments, stream);
}

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
  const bool large = device.tiles == Size::kBest
                         ? tiles >= device.processors
                         : device.tiles == Size::kMedium || device.tiles == Size::kLarge;
  return large ? use(Large()) : use(Small());
}

template <bool kChannels, class T>
int run_grouped(BottleneckArguments a, const DeviceTraits& device, void* stream) {
  return choose_grouped<kChannels, T>(a, device, [&](auto chosen) {
    using Kernel = decltype(chosen);
    const int batch = a.shape.batch;
    a.grid = tile_grid(divide_up(kChannels ? a.out_pixels : batch * a.out_pixels, Kernel::kRows),
                       divide_up(a.shape.middle, Kernel::columns(a)), a.columns_first);
    return launch<Kernel>(a.grid.blocks, kChannels ? batch : 1, a, stream);
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

// Share of the inputs of a 3x3 that reads around patches of `side` pixels, of which `rate` are active at
// random.
inline double read_share(double rate, int side) {
  const double edge = side > 2 ? static_cast<double>(side - 2) : 0.0, off = 1.0 - rate;
  if (side == 1) return 1.0 - std::pow(off, 9);
  const double within = edge * edge * rate + 4 * edge * (1.0 - off * off) + 4 * (1.0 - off * off * off * off);
  return within / (static_cast<double>(side) * side);
}

// Rows that a tile is chosen for. Which pixels are active is not known when kernels are launched: all, half
// and a quarter of them count alike.
template <int kLayer>
Rows chosen_rows(const BottleneckArguments& a, int rows) {
  if (!a.spatial || a.dense_mean || (kLayer == kConv3 && a.shape.projection)) return all_rows(rows);
  if (a.shape.mask_height * a.shape.mask_width == 1) return all_rows(rows);  // of whole samples
  const int side = a.shape.stride * a.out_height / a.shape.mask_height;
  Rows chosen = {3, {rows, 0, 0}};
  for (int i = 1; i < 3; ++i) {
    const double rate = i == 1 ? 0.5 : 0.25;
    const double share = kLayer == kConv1 ? read_share(rate, side < 1 ? 1 : side) : rate;
    const int count = static_cast<int>(share * rows + 0.5);
    chosen.counts[i] = count < 1 ? 1 : count;
  }
  return chosen;
}

template <int kLayer, bool kChannels, class T>
int run_chosen(BottleneckArguments a, bool vectors, const DeviceTraits& device, void* stream) {
  const LayerGrid grid = layer_grid<kLayer>(a);
  const Rows rows = chosen_rows<kLayer>(a, grid.rows);
  if (!kChannels && adapts_tiles<T>(vectors, rows, device)) {
    return each_tile<T>(rows, grid.columns, grid.layers, device,
                        [&](auto chosen, int tile, const TilesByRows& tiles, int most) {
                          using Choice = decltype(chosen);
                          a.tile = tile;
                          a.tiles = tiles;
                          return launch_convolution<kLayer, false, typename Choice::Tile, Choice::kVector>(
                              a, smaller(most, grid.rows), grid.columns, grid.layers, stream);
                        });
  }
  a.tile = -1;
  constexpr bool kGathers = kChannels && kLayer != kConv3;
  return ChooseTile<kGathers>::run(vectors, rows, grid.columns, grid.layers, device, T(), [&](auto chosen) {
    using Choice = decltype(chosen);
    return launch_convolution<kLayer, kChannels, typename Choice::Tile, Choice::kVector>(
        a, grid.rows, grid.columns, grid.layers, stream);
  });
}

// Rows of the products that a tile is chosen for: the patches of conv2's pixels.
inline Rows patch_rows(const BottleneckArguments& a) {
  Rows rows = chosen_rows<kConv2>(a, a.shape.batch * a.out_pixels);
  for (int i = 0; i < rows.runs; ++i) rows.counts[i] = divide_up(rows.counts[i], 4);
  return rows;
}

template <int kLayer, class T>
int run_layer(BottleneckArguments a, bool vectors, const DeviceTraits& device, void* stream) {
  if (kLayer == kConv2 && a.winograd) return run_winograd<T>(a, vectors, patch_rows(a), device, stream);
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
  return ChooseTile < kChannels &&
         kLayer != kConv3 > ::run(vectors, chosen_rows<kLayer>(a, grid.rows), grid.columns, grid.layers,
                                  device, T(), [&](auto chosen) {
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
  if (kLayer == kConv2 && a.winograd) {
    return choose_patch_tile<T>(vectors, patch_rows(a), a.shape.middle, device, [&](auto chosen) {
      using Tile = typename decltype(chosen)::Tile;
      choice->rows[kConv2] = Tile::kRows;
      choice->columns[kConv2] = Tile::kColumns;
      return 0;
    });
  }
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
  choice.winograd = a.winograd;
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
