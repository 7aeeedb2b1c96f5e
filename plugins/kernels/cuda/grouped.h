// conv2 of narrow groups. A tile of convolution.h serves one group, and of 8 channels it would compute 32
// columns; here the columns of a block belong to several groups, and each thread sums over the inputs of its
// own.
#pragma once

#include "convolution.h"

namespace dyndeploy {
namespace cuda {

// A thread is a column and kEach rows, a warp 32 columns of the same rows. Sums are floats, tap by tap in the
// order of the inputs, also of halves: they are short, and the kernel is bound by what it reads.
template <class T, bool kChannels, int kEach>
struct GroupedKernel {
  using Arguments = BottleneckArguments;
  using Convolution = ConvolutionKernel<kConv2, kChannels, typename Lanes<T>::Small, 1>;
  using Row = typename Convolution::Row;
  using Place = typename Convolution::Place;
  static constexpr int kThreads = 256;
  static constexpr int kBlocks = 2;
  static constexpr int kRows = kThreads / 32 * kEach;
  static constexpr int kColumns = 32;
  static constexpr int kWidest = 31;  // channels of a group
  // Inputs of the groups that a block's columns belong to; with channel skipping the first and the last one
  // may begin before them and end behind them.
  static constexpr int kInputs = kChannels ? 96 : 32;
  static constexpr int kPitch = kRows + 4;

  struct alignas(16) Stage {
    float a[kInputs][kPitch];  // transposed: a thread reads its rows in one access
    float b[kWidest + 1][kColumns];
  };
  // A column: its group, its channel in the group, and where the group's inputs stand in a hidden row.
  struct Column {
    int group, channel, first, depth;
  };
  struct Sums {
    float v[kEach];
  };

  static bool fits(const BottleneckShape& s) { return s.groups > 1 && s.middle / s.groups <= kWidest; }
  // Without channel skipping a block takes whole groups.
  static DYN_BOTH int columns(const Arguments& a) {
    return kChannels ? kColumns : kColumns / a.group_channels * a.group_channels;
  }

  static DYN_DEVICE void run(const Arguments& a, Index block) {
    DYN_SHARED(Stage, stage);
    DYN_SHARED_ARRAY(Row, rows, kRows);
    DYN_SHARED_ARRAY(Column, columns_of, kColumns);
    Place p = {};
    const TileGrid::Tile tile = a.grid.of(block.x);
    p.sample = block.y;
    p.row0 = tile.row * kRows;
    p.column0 = tile.column * columns(a);
    if (!Convolution::find_rows(a, kRows, p)) return;
    const int* start = a.channel_start + static_cast<std::size_t>(p.sample) * (a.shape.groups + 1);
    const int total = kChannels ? start[a.shape.groups] : a.shape.middle;
    if (p.column0 >= total) return;
    p.columns = smaller(p.column0 + columns(a), total);
    const int* channels = a.channels + static_cast<std::size_t>(p.sample) * a.shape.middle;
    const int width = a.group_channels;
    // All inputs that a column of the block reads.
    const int first_group = (kChannels ? channels[p.column0] : p.column0) / width;
    const int last_group = (kChannels ? channels[p.columns - 1] : p.columns - 1) / width;
    const int begin = kChannels ? start[first_group] : first_group * width;
    const int end = kChannels ? start[last_group + 1] : (last_group + 1) * width;

    PerThread<Sums, kThreads> sums;
    for_threads<kThreads>([&](int t) {
      for (int i = t; i < kRows; i += kThreads) rows[i] = Convolution::row(a, p, p.row0 + i);
      if (t < kColumns) {
        const int position = p.column0 + t;
        Column column = {0, 0, begin, 0};
        if (position < p.columns) {
          const int channel = kChannels ? channels[position] : position;
          column.group = channel / width;
          column.channel = channel % width;
          column.first = kChannels ? start[column.group] : column.group * width;
          column.depth = kChannels ? start[column.group + 1] - column.first : width;
        }
        columns_of[t] = column;
      }
      DYN_UNROLL
      for (int i = 0; i < kEach; ++i) sums[t].v[i] = 0.0f;
    });

    for (int tap = 0; tap < 9; ++tap) {
      sync();
      for_threads<kThreads>(
          [&](int t) { fetch(a, p, rows, columns_of, channels, tap, begin, end, t, stage); });
      sync();
      for_threads<kThreads>([&](int t) {
        const int lane = t % 32, row = t / 32 * kEach;
        const int first = columns_of[lane].first - begin, depth = columns_of[lane].depth;
        for (int i = 0; i < depth; ++i) {
          alignas(16) float input[kEach];
          constexpr int kTake = kEach < 4 ? kEach : 4;
          DYN_UNROLL
          for (int r = 0; r < kEach; r += kTake) copy<4 * kTake>(input + r, &stage.a[first + i][row + r]);
          const float weight = stage.b[i][lane];
          DYN_UNROLL
          for (int r = 0; r < kEach; ++r) sums[t].v[r] = multiply_add(input[r], weight, sums[t].v[r]);
        }
      });
    }

    for_threads<kThreads>([&](int t) {
      const int position = p.column0 + t % 32;
      if (position >= p.columns) return;
      DYN_UNROLL
      for (int r = 0; r < kEach; ++r) {
        Convolution::write_elements(a, p, rows[t / 32 * kEach + r], position, &sums[t].v[r], 1);
      }
    });
  }

  // Eight inputs of four rows a warp: whole sectors of memory, and every bank of shared memory once.
  static DYN_DEVICE void fetch(const Arguments& a, const Place& p, const Row* rows, const Column* columns_of,
                               const int* channels, int tap, int begin, int end, int t, Stage& stage) {
    const int units = divide_up(end - begin, 8) * 8 * kRows;
    for (int unit = t; unit < units; unit += kThreads) {
      const int input = unit / (8 * kRows) * 8 + unit % 8, row = unit / 8 % kRows;
      const T* from = begin + input < end ? Convolution::source(a, p, rows[row], tap) : nullptr;
      float value = 0.0f;
      if (from != nullptr) {
        T element;
        load_global<static_cast<int>(sizeof(T))>(&element, from + begin + input);
        value = to_float(element);
      }
      stage.a[input][row] = value;
    }
    const int lane = t % 32, width = a.group_channels;
    const Column column = columns_of[lane];
    const std::size_t matrix = static_cast<std::size_t>(9 * column.group + tap) * width;
    const T* weights = static_cast<const T*>(a.tensors.w2) + matrix * width + column.channel;
    for (int i = t / 32; i < column.depth; i += kThreads / 32) {
      const int k = kChannels ? channels[column.first + i] - column.group * width : i;
      T element;
      load_global<static_cast<int>(sizeof(T))>(&element, weights + static_cast<std::size_t>(k) * width);
      stage.b[i][lane] = to_float(element);
    }
  }
};

}  // namespace cuda
}  // namespace dyndeploy
