// The squeeze-and-excitation between conv2 and conv3: means of the hidden map in parts, the squeeze, then the
// excitation by the blocks that multiply the map with it. All sums are floats in a fixed order.
//
// The map is scaled in place, not when conv3 fetches it: conv3 has the next strip on its way while it
// multiplies one, and would have to wait for it before it could scale it. A board pays two passes over what
// is active of a map that its cache has mostly kept, one of the smallest of the block.
#pragma once

#include "arguments.h"
#include "pooling.h"

namespace dyndeploy {
namespace cuda {

template <class T, int kVector>
struct MeanKernel {
  using Arguments = BottleneckArguments;
  static constexpr int kThreads = kPoolThreads;
  static constexpr int kBlocks = 2;

  static DYN_DEVICE void run(const Arguments& a, Index block) {
    const int sample = block.y, part = block.x, middle = a.shape.middle;
    const HiddenRows rows = hidden_rows(a, sample);
    if (rows.count == 0) return;
    const T* from = static_cast<const T*>(a.h2) + static_cast<std::size_t>(rows.first) * middle;
    sum_rows<T, kVector>(from, rows.count, rows.channels, middle, part, a.parts,
                         a.partial + (static_cast<std::size_t>(sample) * a.parts + part) * middle);
  }
};

// One block for some units of a sample. Neighbouring threads are neighbouring units, as their weights are.
template <class T>
struct SqueezeKernel {
  using Arguments = BottleneckArguments;
  static constexpr int kThreads = kPoolThreads;
  static constexpr int kBlocks = 2;
  static constexpr int kUnits = 32;
  static constexpr int kSides = kThreads / kUnits;  // threads that share a unit
  static constexpr int kChunk = kThreads;           // of channels

  static DYN_DEVICE void run(const Arguments& a, Index block) {
    DYN_SHARED_ARRAY(float, means, kChunk);
    DYN_SHARED_ARRAY(float, sums, kThreads);
    const int sample = block.y, first = block.x * kUnits, middle = a.shape.middle, squeeze = a.shape.squeeze;
    const HiddenRows rows = hidden_rows(a, sample);
    if (rows.count == 0) return;
    const bool skips = a.shape.channel_groups > 0;
    const int* channels = a.channels + static_cast<std::size_t>(sample) * middle;
    const float* partial = a.partial + static_cast<std::size_t>(sample) * a.parts * middle;
    const T* weights = static_cast<const T*>(a.tensors.ws);
    PerThread<float, kThreads> sum;
    for_threads<kThreads>([&](int t) { sum[t] = 0.0f; });
    for (int chunk = 0; chunk < rows.channels; chunk += kChunk) {
      sync();
      for_threads<kThreads>([&](int t) {
        float total = 0.0f;
        if (chunk + t < rows.channels) {
          for (int part = 0; part < a.parts; ++part) {
            total += partial[static_cast<std::size_t>(part) * middle + chunk + t];
          }
        }
        means[t] = total / static_cast<float>(rows.count);
      });
      sync();
      for_threads<kThreads>([&](int t) {
        const int unit = first + t % kUnits, size = smaller(kChunk, rows.channels - chunk);
        if (unit >= squeeze) return;
        for (int i = t / kUnits; i < size; i += kSides) {
          const int channel = skips ? channels[chunk + i] : chunk + i;
          const float w = to_float(weights[static_cast<std::size_t>(channel) * squeeze + unit]);
          sum[t] = multiply_add(means[i], w, sum[t]);
        }
      });
    }
    for_threads<kThreads>([&](int t) { sums[t] = sum[t]; });
    sync();
    for_threads<kThreads>([&](int t) {
      if (t >= kUnits || first + t >= squeeze) return;
      float total = 0.0f;
      for (int side = 0; side < kSides; ++side) total += sums[side * kUnits + t];
      a.squeezed[static_cast<std::size_t>(sample) * squeeze + first + t] =
          relu(total + a.tensors.bs[first + t]);
    });
  }
};

// One block for some channels of some rows that conv3 reads: their factors, then the product.
template <class T, int kVector>
struct ScaleKernel {
  using Arguments = BottleneckArguments;
  static constexpr int kThreads = kPoolThreads;
  static constexpr int kBlocks = 2;
  static constexpr int kChannels = 64;
  static constexpr int kRows = 128;
  static constexpr int kSides = kThreads / kChannels;  // threads that share a factor
  static constexpr int kRuns = kChannels / kVector;

  static int blocks(const Arguments& a) {
    return divide_up(a.out_pixels, kRows) * divide_up(a.shape.middle, kChannels);
  }

  static DYN_DEVICE void run(const Arguments& a, Index block) {
    DYN_SHARED_ARRAY(float, sums, kThreads);
    DYN_SHARED_ARRAY(float, factors, kChannels);
    const int sample = block.y, middle = a.shape.middle, squeeze = a.shape.squeeze;
    const int slices = divide_up(middle, kChannels);
    const int first = block.x % slices * kChannels, row0 = block.x / slices * kRows;
    const HiddenRows rows = hidden_rows(a, sample);
    const int active = a.spatial ? a.samples[sample].out_count : a.out_pixels;
    if (row0 >= active || first >= rows.channels) return;
    const int* channels = a.channels + static_cast<std::size_t>(sample) * middle;
    const float* squeezed = a.squeezed + static_cast<std::size_t>(sample) * squeeze;
    const auto channel_of = [&](int position) {
      return a.shape.channel_groups > 0 ? channels[position] : position;
    };
    for_threads<kThreads>([&](int t) {
      const int position = first + t % kChannels;
      float sum = 0.0f;
      if (position < rows.channels) {
        const T* weights = static_cast<const T*>(a.tensors.we) + channel_of(position);
        for (int u = t / kChannels; u < squeeze; u += kSides) {
          sum = multiply_add(squeezed[u], to_float(weights[static_cast<std::size_t>(u) * middle]), sum);
        }
      }
      sums[t] = sum;
    });
    sync();
    for_threads<kThreads>([&](int t) {
      if (t >= kChannels) return;
      float factor = 0.0f;  // behind the last channel, where nobody reads
      if (first + t < rows.channels) {
        float sum = a.tensors.be[channel_of(first + t)];
        for (int side = 0; side < kSides; ++side) sum += sums[side * kChannels + t];
        factor = 1.0f / (1.0f + exponential(-sum));
      }
      factors[t] = factor;
    });
    sync();
    const int end = smaller(row0 + kRows, active);
    const int* list = a.dense_mean ? a.out_list + a.samples[sample].out_start : nullptr;
    for_threads<kThreads>([&](int t) {
      const int offset = t % kRuns * kVector;
      if (first + offset >= rows.channels) return;
      for (int i = row0 + t / kRuns; i < end; i += kThreads / kRuns) {
        const int row = list != nullptr ? list[i] : rows.first + i;
        T* at = static_cast<T*>(a.h2) + static_cast<std::size_t>(row) * middle + first + offset;
        Vector<T, kVector> v;
        copy<static_cast<int>(sizeof(T)) * kVector>(&v, at);
        DYN_UNROLL
        for (int e = 0; e < kVector; ++e) from_float(to_float(v.v[e]) * factors[offset + e], v.v[e]);
        store_vector(at, v);
      }
    });
  }
};

template <class T, int kVector>
int run_excitation(const BottleneckArguments& a, Sequence& sequence) {
  const int batch = a.shape.batch;
  int error = launch<MeanKernel<T, kVector>>(a.parts, batch, a, sequence);
  if (error == 0) {
    error =
        launch<SqueezeKernel<T>>(divide_up(a.shape.squeeze, SqueezeKernel<T>::kUnits), batch, a, sequence);
  }
  if (error == 0) {
    error = launch<ScaleKernel<T, kVector>>(ScaleKernel<T, kVector>::blocks(a), batch, a, sequence);
  }
  return error;
}

}  // namespace cuda
}  // namespace dyndeploy
