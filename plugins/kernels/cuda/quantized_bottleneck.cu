// Which kernels a bottleneck in integers launches, and with which tiles.
#include "bottleneck.h"
#include "quantized_gather.h"

namespace dyndeploy {
namespace cuda {
namespace {

constexpr int kNotSupported = 801;  // cudaErrorNotSupported

// How convolution.h calls the layer that has a layer's grid.
constexpr int like(int layer) { return layer == kProjection ? static_cast<int>(kConv3) : layer; }

// Kinds of tiles by capability; see ChooseTile.
template <class Use>
int choose_byte_tile(bool vectors, const Rows& rows, int columns, int layers, const DeviceTraits& device,
                     const Use& use) {
  if (!vectors) return use(Chosen<ByteLanes::Single, 1>());
  if (device.capability >= 90 && device.capability < 120) {
    return best_tile<false, HopperByteTensors, kByteRun>(rows, columns, layers, device, use);
  }
  if (device.capability >= 80) {
    return best_tile<false, AsyncByteTensors, kByteRun>(rows, columns, layers, device, use);
  }
  if (device.capability >= 75) {
    return best_tile<false, ByteTensors, kByteRun>(rows, columns, layers, device, use);
  }
  if (device.capability == 72) {
    return best_tile<false, ByteWmmaTensors, kByteRun>(rows, columns, layers, device, use);
  }
  return best_tile<false, ByteLanes, kByteRun>(rows, columns, layers, device, use);
}

// Calls use(chosen, grid).
template <int kLayer, class Use>
int choose_layer(const QuantizedArguments& a, Vectors vectors, const DeviceTraits& device, const Use& use) {
  const LayerGrid grid = layer_grid<like(kLayer)>(a);
  // conv3 visits active pixels alone, as conv2 does.
  const Rows rows = kLayer == kProjection       ? all_rows(grid.rows)
                    : kLayer == kQuantizedConv1 ? chosen_rows<kConv1>(a, grid.rows)
                                                : chosen_rows<kConv2>(a, grid.rows);
  return choose_byte_tile(kLayer == kQuantizedConv2 ? vectors.conv2 : vectors.others, rows, grid.columns,
                          grid.layers, device, [&](auto chosen) { return use(chosen, grid); });
}

template <int kLayer, bool kChannels>
int run_layer(QuantizedArguments a, Vectors vectors, const DeviceTraits& device, void* stream) {
  a.tile = -1;
  a.columns_first = columns_first<Byte>(a, like(kLayer));
  return choose_layer<kLayer>(a, vectors, device, [&](auto chosen, const LayerGrid& grid) {
    using Choice = decltype(chosen);
    using Kernel = QuantizedConvolutionKernel<kLayer, kChannels, typename Choice::Tile, Choice::kVector>;
    a.grid = tile_grid(divide_up(grid.rows, Kernel::Tile::kRows),
                       divide_up(grid.columns, Kernel::Tile::kColumns), a.columns_first);
    return launch<Kernel>(a.grid.blocks, grid.layers, a, stream);
  });
}

template <bool kChannels>
int run_layers(const QuantizedArguments& a, Vectors vectors, const DeviceTraits& device, void* stream) {
  int error = 0;
  if (kChannels)
    error = launch<QuantizedGatherKernel>(QuantizedGatherKernel::blocks(a), a.shape.batch, a, stream);
  if (error == 0) error = run_layer<kQuantizedConv1, kChannels>(a, vectors, device, stream);
  if (error == 0) error = run_layer<kQuantizedConv2, kChannels>(a, vectors, device, stream);
  if (error == 0 && a.shape.projection) error = run_layer<kProjection, kChannels>(a, vectors, device, stream);
  if (error == 0) error = run_layer<kQuantizedConv3, kChannels>(a, vectors, device, stream);
  return error;
}

QuantizedArguments plan_quantized(const BottleneckShape& shape, const QuantizedBottleneckTensors& t,
                                  void* workspace, const DeviceTraits& device, std::size_t& bytes) {
  BottleneckTensors tensors = {};
  tensors.x = t.x;
  tensors.y = t.y;
  tensors.spatial_mask = t.spatial_mask;
  tensors.channel_mask = t.channel_mask;
  const std::uintptr_t begin = reinterpret_cast<std::uintptr_t>(workspace);
  Layout layout = {begin};
  QuantizedArguments a = {};
  static_cast<BottleneckArguments&>(a) = plan_bottleneck(shape, sizeof(Byte), tensors, device, layout);
  const std::int8_t* const weights[] = {t.w1, t.w2, t.w3, t.wd};
  const int* const biases[] = {t.b1, t.b2, t.b3, t.bd};
  const float* const multipliers[] = {t.m1, t.m2, t.m3, t.md};
  for (int i = 0; i < kQuantizedLayers; ++i) {
    a.weights[i] = weights[i];
    a.biases[i] = biases[i];
    a.multipliers[i] = multipliers[i];
  }
  const std::size_t batch = static_cast<std::size_t>(shape.batch),
                    middle = static_cast<std::size_t>(shape.middle);
  const std::size_t outputs = static_cast<std::size_t>(shape.outputs);
  if (shape.projection) {
    const std::size_t rows = batch * static_cast<std::size_t>(a.out_pixels);
    a.shortcut = layout.take<std::int16_t>(rows * outputs * sizeof(std::int16_t));
  }
  if (shape.channel_groups > 0) {
    a.active2 = layout.take<std::int8_t>(batch * middle * 9 * static_cast<std::size_t>(a.group_channels));
    a.active3 = layout.take<std::int8_t>(batch * outputs * middle);
    a.bias2 = layout.take<int>(batch * QuantizedGatherKernel::kClasses * middle * sizeof(int));
    a.bias3 = layout.take<int>(batch * outputs * sizeof(int));
  }
  bytes = static_cast<std::size_t>(layout.at - begin);
  return a;
}

}  // namespace

bool multiplies_bytes(int capability) { return capability >= 61 && capability != 62; }

const char* check_quantized_bottleneck(const BottleneckShape& s) {
  if (s.squeeze != 0) return "no kernel in integers has a squeeze-and-excitation";
  if (s.winograd) return "no kernel in integers takes Winograd's algorithm";
  return check_shape(s);
}

std::size_t quantized_bottleneck_workspace(const BottleneckShape& shape) {
  std::size_t bytes = 0;
  plan_quantized(shape, QuantizedBottleneckTensors(), nullptr, device_traits(), bytes);
  return bytes;
}

const char* misaligned_tensor(const BottleneckShape& shape, const QuantizedBottleneckTensors& t,
                              const void* workspace) {
  if (!shape_fits_vectors(shape, kByteRun).others) return nullptr;
  const struct {
    const void* address;
    const char* name;
  } tensors[] = {{t.x, "x"},   {t.y, "y"},   {t.w1, "w1"}, {t.w2, "w2"}, {t.w3, "w3"},
                 {t.wd, "wd"}, {t.b1, "b1"}, {t.b2, "b2"}, {t.b3, "b3"}, {t.bd, "bd"},
                 {t.m1, "m1"}, {t.m2, "m2"}, {t.m3, "m3"}, {t.md, "md"}, {workspace, "the workspace"}};
  for (const auto& tensor : tensors) {
    if (!aligned(tensor.address)) return tensor.name;
  }
  return nullptr;
}

BottleneckChoice quantized_bottleneck_choice(const BottleneckShape& shape, int capability, int processors) {
  const DeviceTraits device = capability > 0 ? DeviceTraits{capability, processors} : device_traits();
  BottleneckChoice choice = {};
  if (!multiplies_bytes(device.capability)) return choice;
  std::size_t bytes = 0;
  const QuantizedArguments a = plan_quantized(shape, QuantizedBottleneckTensors(), nullptr, device, bytes);
  const Vectors vectors = shape_fits_vectors(shape, kByteRun);
  const auto note = [&](int layer) {
    return [&choice, layer](auto chosen, const LayerGrid&) {
      using Choice = decltype(chosen);
      choice.vector = Choice::kVector;
      choice.tensor_cores = Choice::Tile::kTensorCores;
      choice.rows[layer] = Choice::Tile::kRows;
      choice.columns[layer] = Choice::Tile::kColumns;
      return 0;
    };
  };
  choose_layer<kQuantizedConv2>(a, vectors, device, note(kConv2));
  choose_layer<kQuantizedConv1>(a, vectors, device, note(kConv1));
  choose_layer<kQuantizedConv3>(a, vectors, device, note(kConv3));
  return choice;
}

int run_quantized_bottleneck(const BottleneckShape& shape, const QuantizedBottleneckTensors& tensors,
                             void* workspace, void* stream) {
  const DeviceTraits device = device_traits();
  if (!multiplies_bytes(device.capability)) return kNotSupported;
  std::size_t bytes = 0;
  const QuantizedArguments a = plan_quantized(shape, tensors, workspace, device, bytes);
  Vectors vectors = shape_fits_vectors(shape, kByteRun);
  if (misaligned_tensor(shape, tensors, workspace) != nullptr) vectors = {false, false};
  const int error = vectors.others ? run_prepare<Byte, kByteRun>(a, stream) : run_prepare<Byte, 1>(a, stream);
  if (error != 0) return error;
  return shape.channel_groups > 0 ? run_layers<true>(a, vectors, device, stream)
                                  : run_layers<false>(a, vectors, device, stream);
}

}  // namespace cuda
}  // namespace dyndeploy
