// Which kernels a bottleneck launches, and with which tiles.
#pragma once

#include <cmath>

#include "choose.h"
#include "convolution.h"
#include "excitation.h"
#include "grouped.h"
#include "layout.h"
#include "lists.h"
#include "opening.h"
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
int launch_convolution(BottleneckArguments arguments, int rows, int columns, int layers, Sequence& sequence) {
  using Kernel = ConvolutionKernel<kLayer, kChannels, Tile, kVector>;
  arguments.grid =
      tile_grid(divide_up(rows, Tile::kRows), divide_up(columns, Tile::kColumns), arguments.columns_first);
  return launch<Kernel>(arguments.grid.blocks, layers, arguments, sequence);
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
int run_grouped(BottleneckArguments a, const DeviceTraits& device, Sequence& sequence) {
  return choose_grouped<kChannels, T>(a, device, [&](auto chosen) {
    using Kernel = decltype(chosen);
    const int batch = a.shape.batch;
    a.grid = tile_grid(divide_up(kChannels ? a.out_pixels : batch * a.out_pixels, Kernel::kRows),
                       divide_up(a.shape.middle, Kernel::columns(a)), a.columns_first);
    return launch<Kernel>(a.grid.blocks, kChannels ? batch : 1, a, sequence);
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

// The same of an engine's largest batch; without rows where that is not known.
template <int kLayer>
LayerGrid planned_grid(const BottleneckArguments& a) {
  BottleneckArguments planned = a;
  planned.shape.batch = a.shape.largest_batch;
  return layer_grid<kLayer>(planned);
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

// What a tile is chosen for.
template <int kLayer>
Work layer_work(const BottleneckArguments& a, const LayerGrid& grid) {
  return {grid.rows > 0 && grid.layers > 0 ? chosen_rows<kLayer>(a, grid.rows) : Rows(), grid.columns,
          grid.layers};
}

template <int kLayer, bool kChannels, class T>
int run_chosen(BottleneckArguments a, bool vectors, const DeviceTraits& device, Sequence& sequence) {
  const LayerGrid grid = layer_grid<kLayer>(a);
  const Work work = layer_work<kLayer>(a, grid);
  if (!kChannels && adapts_tiles<T>(vectors, work.rows, device)) {
    return each_tile<T>(work, device, [&](auto chosen, int tile, const TilesByRows& tiles, int most) {
      using Choice = decltype(chosen);
      a.tile = tile;
      a.tiles = tiles;
      return launch_convolution<kLayer, false, typename Choice::Tile, Choice::kVector>(
          a, smaller(most, grid.rows), grid.columns, grid.layers, sequence);
    });
  }
  a.tile = -1;
  constexpr bool kGathers = kChannels && kLayer != kConv3;
  const Work planned = layer_work<kLayer>(a, planned_grid<kLayer>(a));
  return ChooseTile<kGathers>::run(vectors, work, planned, device, T(), [&](auto chosen) {
    using Choice = decltype(chosen);
    return launch_convolution<kLayer, kChannels, typename Choice::Tile, Choice::kVector>(
        a, grid.rows, grid.columns, grid.layers, sequence);
  });
}

// Rows of the products that a tile is chosen for: the patches of conv2's pixels.
inline Rows patch_rows(const BottleneckArguments& a) {
  Rows rows = chosen_rows<kConv2>(a, a.shape.batch * a.out_pixels);
  for (int i = 0; i < rows.runs; ++i) rows.counts[i] = divide_up(rows.counts[i], 4);
  return rows;
}

template <int kLayer, class T>
int run_layer(BottleneckArguments a, bool vectors, const DeviceTraits& device, Sequence& sequence) {
  if (kLayer == kConv2 && a.winograd) return run_winograd<T>(a, vectors, patch_rows(a), device, sequence);
  a.columns_first = columns_first<T>(a, kLayer);
  if (kLayer == kConv2 && narrow_groups(a.shape)) {
    return a.shape.channel_groups > 0 ? run_grouped<true, T>(a, device, sequence)
                                      : run_grouped<false, T>(a, device, sequence);
  }
  return a.shape.channel_groups > 0 ? run_chosen<kLayer, true, T>(a, vectors, device, sequence)
                                    : run_chosen<kLayer, false, T>(a, vectors, device, sequence);
}

template <int kLayer, bool kChannels, class T>
Taken chosen_tile(const BottleneckArguments& a, bool vectors, const DeviceTraits& device) {
  const Work work = layer_work<kLayer>(a, layer_grid<kLayer>(a));
  const Work planned = layer_work<kLayer>(a, planned_grid<kLayer>(a));
  constexpr bool kGathers = kChannels && kLayer != kConv3;
  Taken taken = {};
  ChooseTile<kGathers>::run(vectors, work, planned, device, T(), Note{&taken});
  if (!kChannels && adapts_tiles<T>(vectors, work.rows, device)) note_adapted<T>(work, device, &taken);
  return taken;
}

template <bool kChannels, class T>
Taken grouped_tile(const BottleneckArguments& a, bool vectors, const DeviceTraits& device) {
  Taken taken = {vectors ? 16 / static_cast<int>(sizeof(T)) : 1, false, false, 0, 0, 1.0, false};
  choose_grouped<kChannels, T>(a, device, [&](auto chosen) {
    taken.rows = decltype(chosen)::kRows;
    taken.columns = decltype(chosen)::columns(a);
    return 0;
  });
  return taken;
}

// What a layer takes. Of the two kernels for narrow groups either is worth timing: no cost orders them.
template <int kLayer, class T>
Taken layer_tile(const BottleneckArguments& a, bool vectors, const DeviceTraits& device) {
  if (kLayer == kConv2 && a.winograd) {
    Taken taken = {};
    const Rows rows = patch_rows(a);
    choose_patch_tile<T>(vectors, rows, a.shape.middle, device, Note{&taken});
    if (adapts_tiles<T>(vectors, rows, device)) {
      note_adapted<T>({rows, a.shape.middle, kPlaces}, device, &taken);
    }
    return taken;
  }
  if (kLayer == kConv2 && narrow_groups(a.shape)) {
    return a.shape.channel_groups > 0 ? grouped_tile<true, T>(a, vectors, device)
                                      : grouped_tile<false, T>(a, vectors, device);
  }
  return a.shape.channel_groups > 0 ? chosen_tile<kLayer, true, T>(a, vectors, device)
                                    : chosen_tile<kLayer, false, T>(a, vectors, device);
}

template <class T>
BottleneckChoice describe_all(const BottleneckArguments& a, Vectors vectors, const DeviceTraits& device,
                              const Tiles& tiles) {
  const Taken taken[] = {layer_tile<kConv1, T>(a, vectors.others, with_size(device, tiles.sizes[kConv1])),
                         layer_tile<kConv2, T>(a, vectors.conv2, with_size(device, tiles.sizes[kConv2])),
                         layer_tile<kConv3, T>(a, vectors.others, with_size(device, tiles.sizes[kConv3]))};
  BottleneckChoice choice = {taken[kConv3].vector, taken[kConv3].tensor_cores, a.winograd, {}, {}, {}};
  for (int i = 0; i < 3; ++i) {
    choice.warpgroups[i] = taken[i].warpgroups;
    choice.rows[i] = taken[i].rows;
    choice.columns[i] = taken[i].columns;
  }
  return choice;
}

// Multiplications of a layer at rate 1.
template <int kLayer>
double multiplications(const BottleneckArguments& a) {
  const LayerGrid grid = layer_grid<kLayer>(a);
  const double depth = kLayer == kConv1   ? a.shape.inputs
                       : kLayer == kConv2 ? 9.0 * a.group_channels
                                          : a.shape.middle;
  return depth * grid.rows * grid.columns * grid.layers;
}

template <class T>
int candidates_of(const BottleneckArguments& a, Vectors vectors, const DeviceTraits& device,
                  Tiles* candidates) {
  const Size next[] = {
      next_size(device, [&](const DeviceTraits& d) { return layer_tile<kConv1, T>(a, vectors.others, d); }),
      next_size(device, [&](const DeviceTraits& d) { return layer_tile<kConv2, T>(a, vectors.conv2, d); }),
      next_size(device, [&](const DeviceTraits& d) { return layer_tile<kConv3, T>(a, vectors.others, d); })};
  const double work[] = {multiplications<kConv1>(a), multiplications<kConv2>(a), multiplications<kConv3>(a)};
  return combine(3, next, work, candidates);
}

template <class T, int kVector>
int run_prepare(const BottleneckArguments& a, Sequence& sequence) {
  if (a.spatial && a.shape.batch > 1) {
    const int error = launch<CountKernel>(a.shape.batch, 1, a, sequence);
    if (error != 0) return error;
  }
  const int blocks = PrepareKernel<T, kVector>::blocks(a);
  return blocks == 0 ? 0 : launch<PrepareKernel<T, kVector>>(blocks, 1, a, sequence);
}

template <class T>
int run_opening(const BottleneckArguments& a, Vectors vectors, const DeviceTraits& device,
                Sequence& sequence) {
  constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  const int error = vectors.others ? run_prepare<T, kVector>(a, sequence) : run_prepare<T, 1>(a, sequence);
  return error != 0 ? error : run_layer<kConv1, T>(a, vectors.others, device, sequence);
}

// Whether conv1 finds its rows itself, so that lists and copies are no launch of their own: of one sample,
// where what each of few blocks repeats takes less time than a launch.
inline bool opens_at_once(const BottleneckArguments& a, Vectors vectors) {
  return a.spatial && a.shape.batch == 1 && a.shape.channel_groups == 0 && !a.dense_mean && vectors.others &&
         RowBits::fits(a.shape);
}

// By the kind of the tile: from sm_80 on, one sample of a plan for many apart, whose warpgroups multiply
// together.
template <class Tile>
int open_at_once(BottleneckArguments a, Vectors, const DeviceTraits&, Sequence& sequence, std::true_type) {
  using Kernel = OpeningKernel<Tile, 16 / static_cast<int>(sizeof(typename Tile::Element))>;
  a.grid = tile_grid(divide_up(a.in_pixels, Tile::kRows), divide_up(a.shape.middle, Tile::kColumns),
                     a.columns_first);
  return launch<Kernel>(Kernel::blocks(a), 1, OpeningArguments(a), sequence);
}
template <class Tile>
int open_at_once(const BottleneckArguments& a, Vectors vectors, const DeviceTraits& device,
                 Sequence& sequence, std::false_type) {
  return run_opening<typename Tile::Element>(a, vectors, device, sequence);
}

// Lists, copies and conv1.
template <class T>
int open(const BottleneckArguments& a, Vectors vectors, const DeviceTraits& device, Sequence& sequence,
         std::false_type) {
  return run_opening<T>(a, vectors, device, sequence);
}
// Of halves.
template <class T>
int open(BottleneckArguments a, Vectors vectors, const DeviceTraits& device, Sequence& sequence,
         std::true_type) {
  if (!opens_at_once(a, vectors)) return run_opening<T>(a, vectors, device, sequence);
  a.columns_first = columns_first<T>(a, kConv1);
  const Work work = layer_work<kConv1>(a, layer_grid<kConv1>(a));
  const Work planned = layer_work<kConv1>(a, planned_grid<kConv1>(a));
  return ChooseTile<false>::run(true, work, planned, device, T(), [&](auto chosen) {
    using Tile = typename decltype(chosen)::Tile;
    constexpr bool kAtOnce = Tile::kAsync && !MultipliesByWarpgroups<Tile>::value;
    return open_at_once<Tile>(a, vectors, device, sequence, std::integral_constant<bool, kAtOnce>());
  });
}

template <class T>
int run_all(const BottleneckArguments& a, Vectors vectors, const Tiles& tiles, Sequence& sequence) {
  constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  const DeviceTraits device = device_traits();
  const auto sized = [&](int layer) { return with_size(device, tiles.sizes[layer]); };
  int error = open<T>(a, vectors, sized(kConv1), sequence, std::is_same<T, Half>());
  if (error == 0) error = run_layer<kConv2, T>(a, vectors.conv2, sized(kConv2), sequence);
  if (error == 0 && a.excites) {
    error = vectors.others ? run_excitation<T, kVector>(a, sequence) : run_excitation<T, 1>(a, sequence);
  }
  if (error == 0) error = run_layer<kConv3, T>(a, vectors.others, sized(kConv3), sequence);
  return error;
}

// One unit of compilation each, so that a build can run them side by side.
int run_float(const BottleneckArguments& arguments, Vectors vectors, const Tiles& tiles, Sequence& sequence);
int run_half(const BottleneckArguments& arguments, Vectors vectors, const Tiles& tiles, Sequence& sequence);

}  // namespace cuda
}  // namespace dyndeploy
