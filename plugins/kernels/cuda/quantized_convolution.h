// The convolutions of a bottleneck in integers: convolution.h's rows, with bytes. A projection is a launch of
// its own, because its sums are rounded before those of conv3 are added.
#pragma once

#include "byte_operands.h"
#include "convolution.h"

namespace dyndeploy {
namespace cuda {

enum QuantizedLayer { kQuantizedConv1, kQuantizedConv2, kQuantizedConv3, kProjection };
constexpr int kQuantizedLayers = 4;

struct QuantizedArguments : BottleneckArguments {
  const int* biases[kQuantizedLayers];
  const float* multipliers[kQuantizedLayers];
  const std::int8_t*
      weights[kQuantizedLayers];  // those of active channels come first, see quantized_gather.h
  std::int16_t* shortcut;         // (N, Ho, Wo, Co): the rounded projection of active rows

  // With channel skipping, of each sample: weights of active inputs and columns, one behind the other, and
  // biases to which skipped inputs have added their constants.
  std::int8_t* active2;  // (N, M, 9, M / groups)
  std::int8_t* active3;  // (N, Co, M)
  int* bias2;            // (N, 16, M) by border class
  int* bias3;            // (N, Co)
};

DYN_DEVICE float scaled(int sum, int bias, float multiplier) {
  return static_cast<float>(sum + bias) * multiplier;
}
DYN_DEVICE int to_byte(int sum, int bias, float multiplier) {
  return round_within(scaled(sum, bias, multiplier), 0.0f, static_cast<float>(kMostByte));
}
DYN_DEVICE int to_short(int sum, int bias, float multiplier) {
  return round_within(scaled(sum, bias, multiplier), -32768.0f, 32767.0f);
}
DYN_DEVICE int clamp_byte(int v) { return v < 0 ? 0 : smaller(v, kMostByte); }

// kWidth: 16 where runs of bytes fit every channel count, else 1.
template <int kLayer, bool kChannels, class Chosen, int kWidth>
struct QuantizedConvolutionKernel
    : ConvolutionKernel<kLayer == kProjection ? static_cast<int>(kConv3) : kLayer, kChannels, Chosen,
                        kWidth> {
  using Rows =
      ConvolutionKernel<kLayer == kProjection ? static_cast<int>(kConv3) : kLayer, kChannels, Chosen, kWidth>;
  using Arguments = QuantizedArguments;
  using Tile = Chosen;
  using typename Rows::Place;
  using typename Rows::Row;
  static constexpr int kVector = kWidth;
  static constexpr int kThreads = Tile::kThreads;
  static constexpr int kBlocks = Tile::kBlocks;
  static constexpr bool kSkips = kChannels && kLayer != kProjection;
  // Columns of conv1 are found through the list of channels; the others' weights are gathered before.
  static constexpr bool kGathers = kChannels && kLayer == kQuantizedConv1;
  static constexpr bool kOpenRows = kSkips && kLayer != kQuantizedConv1;
  static constexpr bool kServes = kVector == 1 ? DYN_BYTE_PRODUCTS : Tile::kServed;

  // As of ConvolutionKernel.
  static DYN_DEVICE void prefetches(const Arguments& a, Index block, Index blocks) {
    if (kChannels || kVector == 1 || a.shape.mask_height * a.shape.mask_width == 1) return;
    const bool wide = kLayer == kQuantizedConv3 || kLayer == kProjection;
    const std::size_t columns = static_cast<std::size_t>(wide ? a.shape.outputs : a.shape.middle);
    Share(block, blocks, columns * column_pitch(a, Place())).prefetch(a.weights[kLayer]);
  }

  static DYN_DEVICE void run(const Arguments& arguments, Index block) {
    if (!kServes) return;
    Place place;
    if (!Rows::find(arguments, block, place)) return;
    if (kLayer == kQuantizedConv3) {
      if (place.row0 >= place.active) return;
      place.rows = place.active;
    }
    ByteProductOf<QuantizedConvolutionKernel>::multiply(arguments, place);
  }

  static DYN_DEVICE int segments(const Arguments&) {
    return kLayer == kQuantizedConv2 ? 9 : kLayer == kProjection ? 2 : 1;
  }
  static DYN_DEVICE int first_segment(const Arguments&, const Place&) {
    return kLayer == kProjection ? 1 : 0;
  }

  static DYN_DEVICE std::size_t column_pitch(const Arguments& a, const Place&) {
    return static_cast<std::size_t>(kLayer == kQuantizedConv2   ? 9 * a.group_channels
                                    : kLayer == kQuantizedConv3 ? a.shape.middle
                                                                : a.shape.inputs);
  }
  static DYN_DEVICE const std::int8_t* weights(const Arguments& a, const Place& p, int segment) {
    const std::size_t pitch = column_pitch(a, p);
    if (kLayer == kQuantizedConv2) {
      const std::size_t first = kChannels ? static_cast<std::size_t>(p.sample) * a.shape.middle + p.base
                                          : static_cast<std::size_t>(p.base);
      const std::int8_t* from = kChannels ? a.active2 : a.weights[kLayer];
      return from + first * pitch + static_cast<std::size_t>(segment) * a.group_channels;
    }
    if (kLayer == kQuantizedConv3 && kChannels) {
      return a.active3 + static_cast<std::size_t>(p.sample) * a.shape.outputs * pitch;
    }
    return a.weights[kLayer];
  }

  // Bias and multiplier of some columns.
  template <int kCount>
  struct Columns {
    alignas(16) int bias[kCount];
    alignas(16) float multiplier[kCount];
  };
  template <int kCount>
  static DYN_DEVICE Columns<kCount> columns(const Arguments& a, const Place& p, int column) {
    Columns<kCount> c;
    const int first = (kLayer == kQuantizedConv2 ? p.base : 0) + column;
    const int* bias =
        kSkips ? a.bias3 + static_cast<std::size_t>(p.sample) * a.shape.outputs : a.biases[kLayer];
    if (kSkips && kLayer != kQuantizedConv3) {
      DYN_UNROLL
      for (int e = 0; e < kCount; ++e) {
        const int channel = Rows::channels(a, p)[column + e];
        c.multiplier[e] = a.multipliers[kLayer][channel];
        // conv2: see row_bias().
        c.bias[e] = kLayer == kQuantizedConv1 ? a.biases[kLayer][channel] : 0;
      }
    } else if (kCount % 4 == 0 && kVector > 1) {
      DYN_UNROLL
      for (int e = 0; e < kCount; e += 4) {
        load_global<16>(&c.bias[e], bias + first + e);
        load_global<16>(&c.multiplier[e], a.multipliers[kLayer] + first + e);
      }
    } else {
      DYN_UNROLL
      for (int e = 0; e < kCount; ++e) {
        c.bias[e] = bias[first + e];
        c.multiplier[e] = a.multipliers[kLayer][first + e];
      }
    }
    return c;
  }
  // Of conv2 with channel skipping a bias depends on which taps stand outside.
  static DYN_DEVICE const int* row_bias(const Arguments& a, const Place& p, const Row& row, int column) {
    const std::size_t classes = static_cast<std::size_t>(p.sample) * 16 + Rows::border(a, row);
    return a.bias2 + classes * a.shape.middle + p.base + column;
  }

  // The value of one element of y, h1 or h2.
  static DYN_DEVICE int value(int sum, int bias, float multiplier, int shortcut) {
    if (kLayer == kQuantizedConv3) return clamp_byte(to_short(sum, bias, multiplier) + shortcut);
    return to_byte(sum, bias, multiplier);
  }
  // Where a row of the projection waits for conv3.
  static DYN_DEVICE std::int16_t* waiting(const Arguments& a, const Row& row, int column) {
    return a.shortcut + static_cast<std::size_t>(row.first) * a.shape.outputs + column;
  }

  // All that is read of four rows is asked for before any of them is written, as in convolution.h.
  template <bool kProjects>
  static DYN_DEVICE void write_runs(const Arguments& a, const Place& p, const Row* rows, int column,
                                    const int* sums, int pitch) {
    constexpr int kRun = Tile::kRun;
    constexpr int kAll = Tile::kRowsAtOnce, kAtOnce = kAll < 4 ? kAll : kAll % 4 == 0 ? 4 : 3;
    static_assert(kAll % kAtOnce == 0, "whole groups of rows");
    constexpr bool kAdds = kLayer == kQuantizedConv3;
    const Columns<kRun> c = columns<kRun>(a, p, column);
    DYN_UNROLL
    for (int first = 0; first < kAll; first += kAtOnce) {
      Word<Byte, kRun> added[kAtOnce];
      Word<std::int16_t, kRun> projected[kAtOnce];
      std::size_t at[kAtOnce];
      Row row[kAtOnce];
      DYN_UNROLL
      for (int i = 0; i < kAtOnce; ++i) {
        row[i] = rows[(first + i) * Tile::kRowStride];
        const bool exists = row[i].pixel >= 0;
        at[i] = exists ? Rows::place(a, p, row[i], column) : 0;
        if (kAdds && kProjects) load_or_clear<2 * kRun>(&projected[i], waiting(a, row[i], column), exists);
        if (kAdds && !kProjects) {
          load_or_clear<kRun>(&added[i], static_cast<const Byte*>(a.tensors.x) + at[i], exists);
        }
      }
      DYN_UNROLL
      for (int i = 0; i < kAtOnce; ++i) {
        if (row[i].pixel < 0) continue;
        Vector<std::int16_t, kRun> wide;
        Vector<Byte, kRun> v;
        if (kAdds && kProjects) copy<2 * kRun>(&wide, &projected[i]);
        if (kAdds && !kProjects) copy<kRun>(&v, &added[i]);
        const bool waits = kLayer == kProjection && row[i].first >= 0;
        DYN_UNROLL
        for (int e = 0; e < kRun; ++e) {
          const int sum = sums[(first + i) * pitch + e];
          int bias = c.bias[e];
          if (kSkips && kLayer == kQuantizedConv2) bias = row_bias(a, p, row[i], column)[e];
          if (kLayer == kProjection) {
            const int rounded = to_short(sum, bias, c.multiplier[e]);
            wide.v[e] = static_cast<std::int16_t>(rounded);
            v.v[e] = static_cast<Byte>(clamp_byte(rounded));
          } else {
            const int shortcut = !kAdds ? 0 : kProjects ? wide.v[e] : v.v[e];
            v.v[e] = static_cast<Byte>(value(sum, bias, c.multiplier[e], shortcut));
          }
        }
        if (waits) {
          store_vector(waiting(a, row[i], column), wide);
        } else {
          store_vector(Rows::target(a) + at[i], v);
        }
      }
    }
  }

  // One of a few elements, for columns that no access of a whole run fits.
  static DYN_DEVICE void write_elements(const Arguments& a, const Place& p, const Row& row, int column,
                                        const int* sums, int count) {
    if (row.pixel < 0) return;
    for (int e = 0; e < count && column + e < p.columns; ++e) {
      const Columns<1> c = columns<1>(a, p, column + e);
      const std::size_t at = Rows::place(a, p, row, column + e);
      const int bias = kSkips && kLayer == kQuantizedConv2 ? *row_bias(a, p, row, column + e) : c.bias[0];
      if (kLayer == kProjection && row.first >= 0) {
        *waiting(a, row, column + e) = static_cast<std::int16_t>(to_short(sums[e], bias, c.multiplier[0]));
        continue;
      }
      int shortcut = 0;
      if (kLayer == kQuantizedConv3) {
        shortcut =
            a.shape.projection ? *waiting(a, row, column + e) : static_cast<const Byte*>(a.tensors.x)[at];
      }
      Rows::target(a)[at] = static_cast<Byte>(value(sums[e], bias, c.multiplier[0], shortcut));
    }
  }

  static DYN_DEVICE void write(const Arguments& a, const Place& p, const Row* rows, int column,
                               const int* sums, int pitch) {
    constexpr int kRun = Tile::kRun;
    if (column >= p.columns) return;
    // As in convolution.h.
    bool runs = kVector > 1 && (!kSkips || kLayer == kQuantizedConv3 || column + kRun <= p.columns);
    if (runs) {
      if (kLayer == kQuantizedConv3 && a.shape.projection)
        return write_runs<true>(a, p, rows, column, sums, pitch);
      return write_runs<false>(a, p, rows, column, sums, pitch);
    }
    DYN_UNROLL
    for (int i = 0; i < Tile::kRowsAtOnce; ++i) {
      write_elements(a, p, rows[i * Tile::kRowStride], column, sums + i * pitch, kRun);
    }
  }
};

}  // namespace cuda
}  // namespace dyndeploy
