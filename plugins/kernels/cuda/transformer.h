// Which kernels a transformer block launches, and with which tiles.
#pragma once

#include "attention.h"
#include "choose.h"
#include "linear.h"

namespace dyndeploy {
namespace cuda {

// The grid of a layer in the worst case, for one sample.
template <int kLayer>
int layer_columns(const TransformerArguments& a) {
  return kLayer == kQkv ? 3 * a.channels : kLayer == kFc1 ? a.shape.hidden : a.shape.width;
}

template <int kLayer, bool kHeads, class T, class Use>
int choose_linear(const TransformerArguments& a, bool vectors, const DeviceTraits& device, const Use& use) {
  constexpr bool kGathers = kHeads && (kLayer == kQkv || kLayer == kFc1);
  const Work work = {all_rows(a.shape.tokens), layer_columns<kLayer>(a), a.shape.batch};
  Work planned = work;
  planned.layers = a.shape.largest_batch;
  if (planned.layers < 1) planned.rows = Rows();
  return ChooseTile<kGathers>::run(vectors, work, planned, device, T(), use);
}

template <int kLayer, bool kHeads, class T>
int run_linear(TransformerArguments a, bool vectors, const DeviceTraits& device, Sequence& sequence) {
  const int columns = layer_columns<kLayer>(a);
  // As for convolutions: all weights pass by while they are fewer than the rows' elements.
  return choose_linear<kLayer, kHeads, T>(a, vectors, device, [&](auto chosen) {
    using Choice = decltype(chosen);
    using Kernel = LinearKernel<kLayer, kHeads, typename Choice::Tile, Choice::kVector>;
    a.grid = tile_grid(divide_up(a.shape.tokens, Kernel::Tile::kRows),
                       divide_up(columns, Kernel::Tile::kColumns), columns <= a.shape.batch * a.shape.tokens);
    return launch<Kernel>(a.grid.blocks, a.shape.batch, a, sequence);
  });
}

template <class T, class Tile, int kVector>
int launch_attention(const TransformerArguments& a, Sequence& sequence) {
  using Kernel = AttentionKernel<T, Tile, kVector>;
  return launch<Kernel>(Kernel::blocks(a), a.shape.batch * a.shape.heads, a, sequence);
}
inline int run_attention(const TransformerArguments& a, bool vectors, const DeviceTraits&, float,
                         Sequence& sequence) {
  return vectors ? launch_attention<float, Lanes<float>::Medium, 4>(a, sequence)
                 : launch_attention<float, Lanes<float>::Medium, 1>(a, sequence);
}
inline int run_attention(const TransformerArguments& a, bool vectors, const DeviceTraits& device, Half,
                         Sequence& sequence) {
  if (!vectors) return launch_attention<Half, Lanes<float>::Medium, 1>(a, sequence);
  if (device.capability >= 80) return launch_attention<Half, AsyncTensors::Attention, 8>(a, sequence);
  return device.capability >= 70 ? launch_attention<Half, Tensors::Medium, 8>(a, sequence)
                                 : launch_attention<Half, Lanes<float>::Medium, 8>(a, sequence);
}

template <bool kHeads, class T>
int run_block(const TransformerArguments& a, bool vectors, const Tiles& tiles, Sequence& sequence) {
  constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  const DeviceTraits device = device_traits();
  const auto sized = [&](int layer) { return with_size(device, tiles.sizes[layer]); };
  const auto lists = [&] {
    using Wide = TokenListKernel<T, kVector>;
    using Narrow = TokenListKernel<T, 1>;
    return vectors ? launch<Wide>(Wide::blocks(a), 1, a, sequence)
                   : launch<Narrow>(Narrow::blocks(a), 1, a, sequence);
  };
  const auto norm = [&](bool mlp) {
    using Wide = LayerNormKernel<T, kVector>;
    using Narrow = LayerNormKernel<T, 1>;
    const int rows = divide_up(a.shape.tokens, kNormRows);
    return vectors ? launch<Wide>(rows, a.shape.batch, {a, mlp}, sequence)
                   : launch<Narrow>(rows, a.shape.batch, {a, mlp}, sequence);
  };
  int error = lists();
  if (error == 0) error = norm(false);
  if (error == 0) error = run_linear<kQkv, kHeads, T>(a, vectors, sized(kQkv), sequence);
  if (error == 0) error = run_attention(a, vectors, device, T(), sequence);
  if (error == 0) error = run_linear<kProj, kHeads, T>(a, vectors, sized(kProj), sequence);
  if (error == 0) error = norm(true);
  if (error == 0) error = run_linear<kFc1, kHeads, T>(a, vectors, sized(kFc1), sequence);
  if (error == 0) error = run_linear<kFc2, kHeads, T>(a, vectors, sized(kFc2), sequence);
  return error;
}

template <int kLayer, bool kHeads, class T>
Taken linear_tile(const TransformerArguments& a, bool vectors, const DeviceTraits& device) {
  Taken taken = {};
  choose_linear<kLayer, kHeads, T>(a, vectors, device, Note{&taken});
  return taken;
}

template <bool kHeads, class T>
TransformerChoice describe_block(const TransformerArguments& a, bool vectors, const DeviceTraits& device,
                                 const Tiles& tiles) {
  const auto sized = [&](int layer) { return with_size(device, tiles.sizes[layer]); };
  const Taken taken[] = {linear_tile<kQkv, kHeads, T>(a, vectors, sized(kQkv)),
                         linear_tile<kProj, kHeads, T>(a, vectors, sized(kProj)),
                         linear_tile<kFc1, kHeads, T>(a, vectors, sized(kFc1)),
                         linear_tile<kFc2, kHeads, T>(a, vectors, sized(kFc2))};
  TransformerChoice choice = {taken[kFc2].vector, taken[kFc2].tensor_cores, {}, {}, {}};
  for (int i = 0; i < 4; ++i) {
    choice.warpgroups[i] = taken[i].warpgroups;
    choice.rows[i] = taken[i].rows;
    choice.columns[i] = taken[i].columns;
  }
  return choice;
}

template <bool kHeads, class T>
int candidates_of(const TransformerArguments& a, bool vectors, const DeviceTraits& device,
                  Tiles* candidates) {
  const Size next[] = {
      next_size(device, [&](const DeviceTraits& d) { return linear_tile<kQkv, kHeads, T>(a, vectors, d); }),
      next_size(device, [&](const DeviceTraits& d) { return linear_tile<kProj, kHeads, T>(a, vectors, d); }),
      next_size(device, [&](const DeviceTraits& d) { return linear_tile<kFc1, kHeads, T>(a, vectors, d); }),
      next_size(device, [&](const DeviceTraits& d) { return linear_tile<kFc2, kHeads, T>(a, vectors, d); })};
  // Of a row of x; all products have as many rows.
  const double width = a.shape.width, channels = a.channels, hidden = a.shape.hidden;
  const double work[] = {3.0 * width * channels, channels * width, width * hidden, hidden * width};
  return combine(4, next, work, candidates);
}

template <class T>
int run_any(const TransformerArguments& a, bool vectors, const Tiles& tiles, Sequence& sequence) {
  return a.shape.head_mask ? run_block<true, T>(a, vectors, tiles, sequence)
                           : run_block<false, T>(a, vectors, tiles, sequence);
}

// One unit of compilation each, so that a build can run them side by side.
int run_transformer_float(const TransformerArguments& arguments, bool vectors, const Tiles& tiles,
                          Sequence& sequence);
int run_transformer_half(const TransformerArguments& arguments, bool vectors, const Tiles& tiles,
                         Sequence& sequence);

}  // namespace cuda
}  // namespace dyndeploy
