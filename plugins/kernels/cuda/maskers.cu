// Maskers: pooling and a small product, bound by reading x once. Sums are floats in a fixed order.
#include "bytes.h"
#include "layout.h"
#include "pooling.h"

namespace dyndeploy {
namespace cuda {
namespace {

constexpr int kLanes = 32;  // that share one output of a linear layer

// Sum over the block in a fixed tree, left in sums[0].
DYN_DEVICE void reduce(float (&sums)[kPoolThreads]) {
  for (int step = kPoolThreads / 2; step > 0; step /= 2) {
    for_threads<kPoolThreads>([&](int t) {
      if (t < step) sums[t] += sums[t + step];
    });
    sync();
  }
}

struct SpatialMaskerArguments {
  SpatialMaskerShape shape;
  const void* x;
  const float *weight, *bias;
  float* mask;
};

// One block for a position of the mask and a group. A row of its bin is contiguous in x.
template <class T, int kVector>
struct SpatialMaskerKernel {
  using Arguments = SpatialMaskerArguments;
  static constexpr int kThreads = kPoolThreads;
  static constexpr int kBlocks = 2;

  static DYN_DEVICE void run(const Arguments& a, Index block) {
    DYN_SHARED_ARRAY(float, sums, kPoolThreads);
    const SpatialMaskerShape& s = a.shape;
    const int positions = s.mask_height * s.mask_width;
    const int sample = block.x / positions, at = block.x % positions, group = block.y;
    const int row = at / s.mask_width, column = at % s.mask_width;
    const int y0 = row * s.height / s.mask_height, y1 = divide_up((row + 1) * s.height, s.mask_height);
    const int x0 = column * s.width / s.mask_width, x1 = divide_up((column + 1) * s.width, s.mask_width);
    const T* x =
        static_cast<const T*>(a.x) + static_cast<std::size_t>(sample) * s.height * s.width * s.channels;
    const float* weight = a.weight + static_cast<std::size_t>(group) * s.channels;
    const int length = (x1 - x0) * s.channels;
    for_threads<kThreads>([&](int t) {
      float sum = 0.0f;
      for (int y = y0; y < y1; ++y) {
        const T* from = x + (static_cast<std::size_t>(y) * s.width + x0) * s.channels;
        DYN_UNROLL4
        for (int i = t * kVector; i < length; i += kThreads * kVector) {
          const Vector<T, kVector> v = load_vector<T, kVector>(from + i);
          const float* w = weight + i % s.channels;
          DYN_UNROLL
          for (int e = 0; e < kVector; ++e) sum = multiply_add(to_float(v.v[e]), w[e], sum);
        }
      }
      sums[t] = sum;
    });
    sync();
    reduce(sums);
    for_threads<kThreads>([&](int t) {
      if (t != 0) return;
      const float logit = sums[0] / static_cast<float>((y1 - y0) * (x1 - x0)) + a.bias[group];
      a.mask[(static_cast<std::size_t>(sample) * s.groups + group) * positions + at] =
          logit >= 0.0f ? 1.0f : 0.0f;
    });
  }
};

template <class T, int kVector>
int launch_spatial(const SpatialMaskerArguments& a, void* stream) {
  const int positions = a.shape.mask_height * a.shape.mask_width;
  return launch<SpatialMaskerKernel<T, kVector>>(a.shape.batch * positions, a.shape.groups, a, stream);
}

struct ChannelMaskerArguments {
  ChannelMaskerShape shape;
  const void* x;
  const float *hidden_weight, *hidden_bias, *weight, *bias;
  float *mask, *partial, *features, *hidden;
  int parts;
};

// Sums of one part of a sample's pixels, for all channels.
template <class T, int kVector>
struct PoolKernel {
  using Arguments = ChannelMaskerArguments;
  static constexpr int kThreads = kPoolThreads;
  static constexpr int kBlocks = 2;

  static DYN_DEVICE void run(const Arguments& a, Index block) {
    const ChannelMaskerShape& s = a.shape;
    const int sample = block.y, part = block.x;
    const int pixels = s.height * s.width;
    const T* x = static_cast<const T*>(a.x) + static_cast<std::size_t>(sample) * pixels * s.channels;
    sum_rows<T, kVector>(x, pixels, s.channels, s.channels, part, a.parts,
                         a.partial + (static_cast<std::size_t>(sample) * a.parts + part) * s.channels);
  }
};

// One block for a sample: the mean from its parts, then the layers.
struct ChannelMaskerKernel {
  using Arguments = ChannelMaskerArguments;
  static constexpr int kThreads = kPoolThreads;
  static constexpr int kBlocks = 2;

  static DYN_DEVICE void run(const Arguments& a, Index block) {
    DYN_SHARED_ARRAY(float, sums, kPoolThreads);
    const ChannelMaskerShape& s = a.shape;
    const int sample = block.x;
    const float pixels = static_cast<float>(s.height) * static_cast<float>(s.width);
    const float* partial = a.partial + static_cast<std::size_t>(sample) * a.parts * s.channels;
    float* features = a.features + static_cast<std::size_t>(sample) * s.channels;
    float* hidden = a.hidden + static_cast<std::size_t>(sample) * s.hidden;
    float* mask = a.mask + static_cast<std::size_t>(sample) * s.groups;
    for_threads<kThreads>([&](int t) {
      for (int c = t; c < s.channels; c += kThreads) {
        float sum = 0.0f;
        for (int part = 0; part < a.parts; ++part)
          sum += partial[static_cast<std::size_t>(part) * s.channels + c];
        features[c] = sum / pixels;
      }
    });
    sync();
    if (s.hidden > 0) {
      linear(sums, features, s.channels, a.hidden_weight, a.hidden_bias, s.hidden,
             [&](int unit, float value) { hidden[unit] = relu(value); });
      sync();
    }
    linear(sums, s.hidden > 0 ? hidden : features, s.hidden > 0 ? s.hidden : s.channels, a.weight, a.bias,
           s.groups, [&](int group, float value) { mask[group] = value >= 0.0f ? 1.0f : 0.0f; });
  }

  template <class F>
  static DYN_DEVICE void linear(float (&sums)[kPoolThreads], const float* input, int inputs,
                                const float* weight, const float* bias, int outputs, const F& f) {
    constexpr int kTogether = kThreads / kLanes;
    for (int first = 0; first < outputs; first += kTogether) {
      for_threads<kThreads>([&](int t) {
        const int unit = first + t / kLanes;
        float sum = 0.0f;
        if (unit < outputs) {
          const float* w = weight + static_cast<std::size_t>(unit) * inputs;
          for (int i = t % kLanes; i < inputs; i += kLanes) sum = multiply_add(input[i], w[i], sum);
        }
        sums[t] = sum;
      });
      sync();
      for_threads<kThreads>([&](int t) {
        const int unit = first + t;
        if (t >= kTogether || unit >= outputs) return;
        float sum = 0.0f;
        for (int i = 0; i < kLanes; ++i) sum += sums[t * kLanes + i];
        f(unit, sum + bias[unit]);
      });
      sync();
    }
  }
};

template <class T, int kVector>
int launch_channel(const ChannelMaskerArguments& a, void* stream) {
  Sequence sequence(stream);
  const int error = launch<PoolKernel<T, kVector>>(a.parts, a.shape.batch, a, sequence);
  return error != 0 ? error : launch<ChannelMaskerKernel>(a.shape.batch, 1, a, sequence);
}

// Elements of x, and how many of them move in one access.
template <class T, int kWidth>
struct Taken {
  using Element = T;
  static constexpr int kVector = kWidth;
};

// Calls use(taken) for an x of that type.
template <class Use>
int choose_access(Type type, int channels, const void* x, const Use& use) {
  const bool vectors = masker_vector(channels, type) > 1 && reinterpret_cast<std::uintptr_t>(x) % 16 == 0;
  switch (type) {
    case Type::kByte:
      return vectors ? use(Taken<Byte, 16>()) : use(Taken<Byte, 1>());
    case Type::kHalf:
      return vectors ? use(Taken<Half, 8>()) : use(Taken<Half, 1>());
    default:
      return vectors ? use(Taken<float, 4>()) : use(Taken<float, 1>());
  }
}

std::size_t round_up(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace

int masker_vector(int channels, Type type) {
  const int vector = 16 / static_cast<int>(element_size(type));
  return channels % vector == 0 ? vector : 1;
}

int run_spatial_masker(const SpatialMaskerShape& shape, Type type, const void* x, const float* weight,
                       const float* bias, float* mask, void* stream) {
  const SpatialMaskerArguments a = {shape, x, weight, bias, mask};
  return choose_access(type, shape.channels, x, [&](auto taken) {
    using Choice = decltype(taken);
    return launch_spatial<typename Choice::Element, Choice::kVector>(a, stream);
  });
}

std::size_t channel_masker_workspace(const ChannelMaskerShape& s) {
  const std::size_t batch = static_cast<std::size_t>(s.batch);
  const std::size_t channels = batch * static_cast<std::size_t>(s.channels) * sizeof(float);
  return round_up(static_cast<std::size_t>(pooling_parts(s.height * s.width)) * channels) +
         round_up(channels) + round_up(batch * static_cast<std::size_t>(s.hidden) * sizeof(float));
}

int run_channel_masker(const ChannelMaskerShape& shape, Type type, const void* x, const float* hidden_weight,
                       const float* hidden_bias, const float* weight, const float* bias, float* mask,
                       void* workspace, void* stream) {
  const int parts = pooling_parts(shape.height * shape.width);
  const std::size_t channels =
      static_cast<std::size_t>(shape.batch) * static_cast<std::size_t>(shape.channels) * sizeof(float);
  char* memory = static_cast<char*>(workspace);
  float* partial = reinterpret_cast<float*>(memory);
  float* features = reinterpret_cast<float*>(memory + round_up(static_cast<std::size_t>(parts) * channels));
  float* hidden = reinterpret_cast<float*>(reinterpret_cast<char*>(features) + round_up(channels));
  const ChannelMaskerArguments a = {shape, x,       hidden_weight, hidden_bias, weight, bias,
                                    mask,  partial, features,      hidden,      parts};
  return choose_access(type, shape.channels, x, [&](auto taken) {
    using Choice = decltype(taken);
    return launch_channel<typename Choice::Element, Choice::kVector>(a, stream);
  });
}

}  // namespace cuda
}  // namespace dyndeploy
