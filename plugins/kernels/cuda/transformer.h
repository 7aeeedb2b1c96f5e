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
int run_linear(TransformerArguments a, bool vectors, const DeviceTraits& device, void* stream) {
  const int columns = layer_columns<kLayer>(a);
  // As for convolutions: all weights pass by while they are fewer than the rows' elements.
  return choose_linear<kLayer, kHeads, T>(a, vectors, device, [&](auto chosen) {
    using Choice = decltype(chosen);
    using Kernel = LinearKernel<kLayer, kHeads, typename Choice::Tile, Choice::kVector>;
    a.grid = tile_grid(divide_up(a.shape.tokens, Kernel::Tile::kRows),
                       divide_up(columns, Kernel::Tile::kColumns), columns <= a.shape.batch * a.shape.tokens);
    return launch<Kernel>(a.grid.blocks, a.shape.batch, a, stream);
  });
}

template <class T, class Tile, int kVector>
int launch_attention(const TransformerArguments& a, void* stream) {
  using Kernel = AttentionKernel<T, Tile, kVector>;
  return launch<Kernel>(Kernel::blocks(a), a.shape.batch * a.shape.heads, a, stream);
}
inline int run_attention(const TransformerArguments& a, bool vectors, const DeviceTraits&, float,
                         void* stream) {
  return vectors ? launch_attention<float, Lanes<float>::Medium, 4>(a, stream)
                 : launch_attention<float, Lanes<float>::Medium, 1>(a, stream);
}
inline int run_attention(const TransformerArguments& a, bool vectors, const DeviceTraits& device, Half,
                         void* stream) {
  if (!vectors) return launch_attention<Half, Lanes<float>::Medium, 1>(a, stream);
  if (device.capability >= 80) return launch_attention<Half, AsyncTensors::Attention, 8>(a, stream);
  return device.capability >= 70 ? launch_attention<Half, Tensors::Medium, 8>(a, stream)
                                 : launch_attention<Half, Lanes<float>::Medium, 8>(a, stream);
}

template <bool kHeads, class T>
int run_block(const TransformerArguments& a, bool vectors, void* stream) {
  constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  const DeviceTraits device = device_traits();
  const auto lists = [&] {
    using Wide = TokenListKernel<T, kVector>;
    using Narrow = TokenListKernel<T, 1>;
    return vectors ? launch<Wide>(Wide::blocks(a), 1, a, stream)
                   : launch<Narrow>(Narrow::blocks(a), 1, a, stream);
  };
  const auto norm = [&](bool mlp) {
    using Wide = LayerNormKernel<T, kVector>;
    using Narrow = LayerNormKernel<T, 1>;
    const int rows = divide_up(a.shape.tokens, kNormRows);
    return vectors ? launch<Wide>(rows, a.shape.batch, {a, mlp}, stream)
                   : launch<Narrow>(rows, a.shape.batch, {a, mlp}, stream);
  };
  int error = lists();
  if (error == 0) error = norm(false);
  if (error == 0) error = run_linear<kQkv, kHeads, T>(a, vectors, device, stream);
  if (error == 0) error = run_attention(a, vectors, device, T(), stream);
  if (error == 0) error = run_linear<kProj, kHeads, T>(a, vectors, device, stream);
  if (error == 0) error = norm(true);
  if (error == 0) error = run_linear<kFc1, kHeads, T>(a, vectors, device, stream);
  if (error == 0) error = run_linear<kFc2, kHeads, T>(a, vectors, device, stream);
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
int run_any(const TransformerArguments& a, bool vectors, void* stream) {
  return a.shape.head_mask ? run_block<true, T>(a, vectors, stream) : run_block<false, T>(a, vectors, stream);
}

// One unit of compilation each, so that a build can run them side by side.
int run_transformer_float(const TransformerArguments& arguments, bool vectors, void* stream);
int run_transformer_half(const TransformerArguments& arguments, bool vectors, void* stream);

}  // namespace cuda
}  // namespace dyndeploy
