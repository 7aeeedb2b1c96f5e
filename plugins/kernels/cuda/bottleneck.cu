#include "bottleneck.h"
#include "layout.h"
#include "stand_in.h"

namespace dyndeploy {
namespace cuda {
namespace {

int output_size(int input, int stride) { return (input - 1) / stride + 1; }

BottleneckArguments plan(const BottleneckShape& shape, Type type, const BottleneckTensors& tensors,
                         void* workspace, const DeviceTraits& device, std::size_t& bytes) {
  const std::uintptr_t begin = reinterpret_cast<std::uintptr_t>(workspace);
  Layout layout = {begin};
  const BottleneckArguments a = plan_bottleneck(shape, element_size(type), tensors, device, layout);
  bytes = static_cast<std::size_t>(layout.at - begin);
  return a;
}

Vectors fits(const BottleneckShape& shape, Type type) {
  return shape_fits_vectors(shape, 16 / static_cast<int>(element_size(type)));
}

}  // namespace

BottleneckArguments plan_bottleneck(const BottleneckShape& shape, std::size_t element,
                                    const BottleneckTensors& tensors, const DeviceTraits& device,
                                    Layout& layout) {
  BottleneckArguments a = {};
  a.shape = shape;
  a.tensors = tensors;
  a.out_height = output_size(shape.height, shape.stride);
  a.out_width = output_size(shape.width, shape.stride);
  a.in_pixels = shape.height * shape.width;
  a.out_pixels = a.out_height * a.out_width;
  a.group_channels = shape.middle / shape.groups;
  a.spatial = shape.mask_height > 0;
  a.excites = shape.squeeze > 0;
  a.dense_mean = a.excites && a.spatial && !shape.pool_active;
  a.winograd = fits_winograd(shape) && has_winograd(device);

  const std::size_t batch = static_cast<std::size_t>(shape.batch);
  const std::size_t middle = static_cast<std::size_t>(shape.middle);
  const std::size_t in = batch * static_cast<std::size_t>(a.in_pixels);
  const std::size_t out = batch * static_cast<std::size_t>(a.out_pixels);
  a.h1 = layout.take<void>(in * middle * element);
  a.h2 = layout.take<void>(out * middle * element);
  if (a.spatial) {
    a.samples = layout.take<SampleRows>((batch + 1) * sizeof(SampleRows));
    a.in_list = layout.take<int>(in * sizeof(int));
    a.out_list = layout.take<int>(out * sizeof(int));
  }
  if (a.winograd) {
    a.patches = layout.take<void>(4 * out * middle * element);
    a.products = layout.take<void>(4 * out * middle * element);
    if (a.spatial) {
      a.patch_list = layout.take<int>(out / 4 * sizeof(int));
      a.pair_rows = layout.take<int>(out / 2 * sizeof(int));
    }
  }
  if (shape.channel_groups > 0) {
    a.channels = layout.take<int>(batch * middle * sizeof(int));
    a.channel_start = layout.take<int>(batch * static_cast<std::size_t>(shape.groups + 1) * sizeof(int));
  }
  if (a.excites) {
    a.parts = pooling_parts(a.out_pixels);
    a.partial = layout.take<float>(batch * static_cast<std::size_t>(a.parts) * middle * sizeof(float));
    a.squeezed = layout.take<float>(batch * static_cast<std::size_t>(shape.squeeze) * sizeof(float));
  }
  return a;
}

Vectors shape_fits_vectors(const BottleneckShape& s, int vector) {
  const bool all = s.inputs % vector == 0 && s.middle % vector == 0 && s.outputs % vector == 0;
  // The active channels of a later group begin wherever those of the groups before it end.
  return {all, all && s.middle / s.groups % vector == 0 && (s.channel_groups == 0 || s.groups == 1)};
}

const char* misaligned_tensor(const BottleneckShape& shape, Type type, const BottleneckTensors& t,
                              const void* workspace) {
  if (!fits(shape, type).others) return nullptr;
  return !aligned(t.x)         ? "x"
         : !aligned(t.y)       ? "y"
         : !aligned(t.w1)      ? "w1"
         : !aligned(t.w2)      ? "w2"
         : !aligned(t.w3)      ? "w3"
         : !aligned(t.wd)      ? "wd"
         : !aligned(workspace) ? "the workspace"
                               : nullptr;
}

int stand_in_masks(const BottleneckShape& shape, Type type, const TimingRates& rates,
                   BottleneckTensors* tensors, void* workspace, void* stream) {
  // In place of the hidden maps, which are written when the masks have been read.
  std::size_t bytes = 0;
  const BottleneckArguments a = plan(shape, type, *tensors, workspace, device_traits(), bytes);
  const std::size_t room = static_cast<std::size_t>(shape.batch) * static_cast<std::size_t>(a.in_pixels) *
                           static_cast<std::size_t>(shape.middle) * element_size(type);
  return fill_masks(shape, rates, &tensors->spatial_mask, &tensors->channel_mask, static_cast<float*>(a.h1),
                    room, stream);
}

BottleneckChoice bottleneck_choice(const BottleneckShape& shape, Type type, int capability, int processors,
                                   const Tiles& tiles) {
  const DeviceTraits device = capability > 0 ? traits_of(capability, processors) : device_traits();
  if (device.capability <= 0) return BottleneckChoice();
  std::size_t bytes = 0;
  const BottleneckArguments a = plan(shape, type, BottleneckTensors(), nullptr, device, bytes);
  const Vectors vectors = fits(shape, type);
  return type == Type::kHalf ? describe_all<Half>(a, vectors, device, tiles)
                             : describe_all<float>(a, vectors, device, tiles);
}

int bottleneck_candidates(const BottleneckShape& shape, Type type, int capability, int processors,
                          Tiles* candidates) {
  const DeviceTraits device = capability > 0 ? traits_of(capability, processors) : device_traits();
  if (device.capability <= 0) return 0;
  std::size_t bytes = 0;
  const BottleneckArguments a = plan(shape, type, BottleneckTensors(), nullptr, device, bytes);
  const Vectors vectors = fits(shape, type);
  return type == Type::kHalf ? candidates_of<Half>(a, vectors, device, candidates)
                             : candidates_of<float>(a, vectors, device, candidates);
}

const char* check_bottleneck(const BottleneckShape& s, Type type) {
  if (type != Type::kFloat && type != Type::kHalf) return "the type must be float or half";
  return check_shape(s);
}

const char* check_shape(const BottleneckShape& s) {
  if (s.batch < 1 || s.height < 1 || s.width < 1) return "x is empty";
  if (s.inputs < 1 || s.middle < 1 || s.outputs < 1) return "a convolution has no channels";
  if (s.groups < 1 || s.middle % s.groups != 0) return "the groups do not divide the hidden channels";
  if (s.stride != 1 && s.stride != 2) return "the stride must be 1 or 2";
  if (s.dilation < 1) return "the dilation must be positive";
  if (!s.projection && (s.stride != 1 || s.inputs != s.outputs)) {
    return "without a projection the stride must be 1 and the output must have the channels of x";
  }
  const int out_height = output_size(s.height, s.stride), out_width = output_size(s.width, s.stride);
  if ((s.mask_height == 0) != (s.mask_width == 0) || s.mask_height < 0 || s.mask_height > out_height ||
      s.mask_width < 0 || s.mask_width > out_width) {
    return "the spatial mask must have between one position and one for each output pixel";
  }
  if (s.channel_groups < 0 || (s.channel_groups > 0 && s.middle % s.channel_groups != 0)) {
    return "the channel groups do not divide the hidden channels";
  }
  if (s.squeeze < 0 || s.squeeze > 1 << 20) {
    return "the squeeze-and-excitation must have between 0 and 1048576 units";
  }
  // Pixels, tap coordinates and grids are counted in int; grids have at most 65535 blocks in their second
  // direction.
  const double limit = 2147483647.0;
  const double pixels = static_cast<double>(s.batch) * s.height * s.width;
  if (pixels > limit / 16 || static_cast<double>(s.dilation) > limit / 8) return "the map is too large";
  if (static_cast<double>(s.height) * s.mask_height > limit ||
      static_cast<double>(s.width) * s.mask_width > limit) {
    return "the spatial mask is too large";
  }
  if (static_cast<double>(s.batch) * s.groups > 65535.0) return "batch times groups must be at most 65535";
  const double widest = s.middle > s.outputs ? s.middle : s.outputs;
  if ((pixels / 16 + s.batch + 1) * (widest / 32 + 1) > limit || 16.0 * s.middle > limit ||
      (9.0 * s.groups) * (s.middle / s.groups) > limit ||
      (narrow_groups(s) && (pixels / 16 + s.batch) * (s.middle / 16.0 + 1) > limit)) {
    return "the channels are too many";
  }
  return nullptr;
}

std::size_t bottleneck_workspace(const BottleneckShape& shape, Type type) {
  std::size_t bytes = 0;
  plan(shape, type, BottleneckTensors(), nullptr, device_traits(), bytes);
  return bytes;
}

int run_bottleneck(const BottleneckShape& shape, Type type, const BottleneckTensors& tensors, void* workspace,
                   void* stream, const Tiles& tiles) {
  std::size_t bytes = 0;
  BottleneckArguments a = plan(shape, type, tensors, workspace, device_traits(), bytes);
  Vectors vectors = fits(shape, type);
  if (misaligned_tensor(shape, type, tensors, workspace) != nullptr) vectors = {false, false};
  const int vector = 16 / static_cast<int>(element_size(type));
  a.aligned_groups =
      vectors.others && shape.channel_groups > 0 && shape.middle / shape.channel_groups % vector == 0;
  Sequence sequence(stream);
  return type == Type::kHalf ? run_half(a, vectors, tiles, sequence) : run_float(a, vectors, tiles, sequence);
}

}  // namespace cuda
}  // namespace dyndeploy
