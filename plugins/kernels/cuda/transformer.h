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
  return ChooseTile<kGathers>::run(vectors, all_rows(a.shape.tokens), layer_columns<kLayer>(a), a.shape.batch,
                                   device, T(), use);
}

template <int kLayer, bool kHeads, class T>
int run_linear(TransformerArguments a, bool vectors, const DeviceTraits& device, Sequence& sequence) {
  const int columns = layer_columns<kLayer>(a);
  // As for convolutions: all weights pass by while they are fewer than the rows' elements.
  a.columns_first = columns <= a.shape.batch * a.shape.tokens;
  return choose_linear<kLayer, kHeads, T>(a, vectors, device, [&](auto chosen) {
    using Choice = decltype(chosen);
    using Kernel = LinearKernel<kLayer, kHeads, typename Choice::Tile, Choice::kVector>;
    a.row_tiles = divide_up(a.shape.tokens, Kernel::Tile::kRows);
    a.column_tiles = divide_up(columns, Kernel::Tile::kColumns);
    return launch<Kernel>(a.row_tiles * a.column_tiles, a.shape.batch, a, sequence);
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
int run_block(const TransformerArguments& a, bool vectors, Sequence& sequence) {
  constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  const DeviceTraits device = device_traits();
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
  if (error == 0) error = run_linear<kQkv, kHeads, T>(a, vectors, device, sequence);
  if (error == 0) error = run_attention(a, vectors, device, T(), sequence);
  if (error == 0) error = run_linear<kProj, kHeads, T>(a, vectors, device, sequence);
  if (error == 0) error = norm(true);
  if (error == 0) error = run_linear<kFc1, kHeads, T>(a, vectors, device, sequence);
  if (error == 0) error = run_linear<kFc2, kHeads, T>(a, vectors, device, sequence);
  return error;
}

template <int kLayer, bool kHeads, class T>
void describe_linear(const TransformerArguments& a, bool vectors, const DeviceTraits& device,
                     TransformerChoice* choice) {
  choose_linear<kLayer, kHeads, T>(a, vectors, device, [&](auto chosen) {
    using Choice = decltype(chosen);
    choice->vector = Choice::kVector;
    choice->tensor_cores = Choice::Tile::kTensorCores;
    choice->rows[kLayer] = Choice::Tile::kRows;
    choice->columns[kLayer] = Choice::Tile::kColumns;
    return 0;
  });
}

template <bool kHeads, class T>
TransformerChoice describe_block(const TransformerArguments& a, bool vectors, const DeviceTraits& device) {
  TransformerChoice choice = {};
  describe_linear<kQkv, kHeads, T>(a, vectors, device, &choice);
  describe_linear<kProj, kHeads, T>(a, vectors, device, &choice);
  describe_linear<kFc1, kHeads, T>(a, vectors, device, &choice);
  describe_linear<kFc2, kHeads, T>(a, vectors, device, &choice);
  return choice;
}

template <class T>
int run_any(const TransformerArguments& a, bool vectors, Sequence& sequence) {
  return a.shape.head_mask ? run_block<true, T>(a, vectors, sequence)
                           : run_block<false, T>(a, vectors, sequence);
}

// One unit of compilation each, so that a build can run them side by side.
int run_transformer_float(const TransformerArguments& arguments, bool vectors, Sequence& sequence);
int run_transformer_half(const TransformerArguments& arguments, bool vectors, Sequence& sequence);

}  // namespace cuda
}  // namespace dyndeploy
