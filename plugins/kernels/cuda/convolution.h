// The three convolutions of a bottleneck as indirect matrix products. Rows are pixels found through lists;
// the sum runs over segments: the one of conv1, the nine taps of conv2, and for conv3 the hidden map and the
// projected input.
#pragma once

#include "arguments.h"
#include "pipeline.h"

namespace dyndeploy {
namespace cuda {

enum Layer { kConv1, kConv2, kConv3 };

// kWidth: elements of one access; 1 fits every shape, else all channel counts are multiples of it.
template <int kLayer, bool kChannels, class Chosen, int kWidth>
struct ConvolutionKernel {
  using Arguments = BottleneckArguments;
  using Tile = Chosen;
  using T = typename Tile::Element;
  static constexpr int kVector = kWidth;
  static constexpr int kThreads = Tile::kThreads;
  static constexpr int kBlocks = Strips<Tile, kVector>::kBlocks;
  static constexpr bool kGathers = kChannels && kLayer != kConv3;  // columns are active channels
  // A row goes on behind the last active channel, with whatever the memory held.
  static constexpr bool kOpenRows = kChannels;
  static constexpr bool kListed = kChannels && kLayer != kConv1;  // rows of the weights are active channels
  static constexpr bool kFindsInputs = false;                     // input() is more than k

  // One row of the tile. pixel: where the result goes, -1 behind the last row. first: where the row of the
  // first segment is, -1 if it has none. y, x: for conv2 the input position of the first tap, for conv3 y is
  // the pixel of the shortcut.
  struct Row {
    int pixel, first, y, x;
  };

  struct Place {
    int sample, group;
    int row0, rows;        // of the list
    int active;            // conv3: rows that have a hidden map
    int column0, columns;  // of the group's active channels, or of the output's
    int base;              // position of the group's first hidden channel in a hidden row
    int depth;             // hidden channels that are summed
  };

  static DYN_DEVICE void run(const Arguments& arguments, Index block) {
    if (!Strips<Tile, kVector>::kServes) return;
    Place place;
    if (!find(arguments, block, place)) return;
    ProductOf<ConvolutionKernel>::multiply(arguments, place);
  }

  // False when the block has nothing to do; it then leaves after reading one or two counts.
  static DYN_DEVICE bool find(const Arguments& a, Index block, Place& p) {
    const TileGrid::Tile tile = a.grid.of(block.x);
    const bool grouped = kLayer == kConv2 && a.shape.groups > 1;
    p.group = grouped ? rest(block.y, a.shape.groups) : 0;
    p.sample = grouped ? quotient(block.y, a.shape.groups) : block.y;
    p.row0 = tile.row * Tile::kRows;
    p.column0 = tile.column * Tile::kColumns;
    if (!find_rows(a, Tile::kRows, p)) return false;
    if (!kChannels && a.tile >= 0 && a.tiles.of(p.rows) != a.tile) return false;
    if (kChannels) {
      const int* start = a.channel_start + static_cast<std::size_t>(p.sample) * (a.shape.groups + 1);
      p.base = start[p.group];
      p.depth = kLayer == kConv2 ? start[p.group + 1] - p.base : start[a.shape.groups];
      p.columns = p.depth;
    } else {
      p.base = p.group * a.group_channels;
      p.depth = kLayer == kConv2 ? a.group_channels : a.shape.middle;
      p.columns = p.depth;
    }
    if (kLayer == kConv1) p.depth = a.shape.inputs;
    if (kLayer == kConv3) p.columns = a.shape.outputs;
    return p.column0 < p.columns;
  }

  // Length of the list; false when a tile of `size` rows from row0 on has none to compute.
  static DYN_DEVICE bool find_rows(const Arguments& a, int size, Place& p) {
    const int pixels = kLayer == kConv1 ? a.in_pixels : a.out_pixels;
    p.rows = p.active = kChannels ? pixels : a.shape.batch * pixels;
    if (a.spatial) {
      const SampleRows& rows = a.samples[kChannels ? p.sample : a.shape.batch];
      if (kLayer == kConv1) {
        p.active = kChannels ? rows.in_count : rows.in_start;
      } else if (kLayer == kConv3 || !a.dense_mean) {
        p.active = kChannels ? rows.out_count : rows.out_start;
      } else if (kChannels) {
        p.active = rows.out_count > 0 ? pixels : 0;
      }
      if (kLayer != kConv3 || !a.shape.projection) p.rows = p.active;
    }
    if (p.row0 >= p.rows) return false;
    if (kChannels || kLayer != kConv2 || !a.dense_mean) return true;
    const int last = smaller(p.row0 + size, p.rows) - 1;
    for (int n = p.row0 / pixels; n <= last / pixels; ++n) {
      if (a.samples[n].out_count > 0) return true;
    }
    return false;
  }

  // Row i of the block's list.
  static DYN_DEVICE Row row(const Arguments& a, const Place& p, int i) {
    if (i >= p.rows) return {-1, -1, 0, 0};
    if (kLayer == kConv1) {
      int pixel = i + (kChannels ? p.sample * a.in_pixels : 0);
      if (a.spatial) pixel = a.in_list[i + (kChannels ? a.samples[p.sample].in_start : 0)];
      return {pixel, pixel, 0, 0};
    }
    int slot = i + (kChannels ? p.sample * a.out_pixels : 0);
    int pixel = slot;
    if (kLayer == kConv2 && a.dense_mean) {
      if (!kChannels && a.samples[pixel / a.out_pixels].out_count == 0) return {-1, -1, 0, 0};
    } else if (a.spatial) {
      slot = i;
      if (kChannels) {
        const int start = a.samples[p.sample].out_start;
        slot += start;
        if (i >= p.active) {
          slot = a.samples[a.shape.batch].out_start + p.sample * a.out_pixels - start + i - p.active;
        }
      }
      pixel = a.out_list[slot];
      if (a.dense_mean) slot = pixel;
    }
    if (kLayer == kConv3 && !a.shape.projection) return {pixel, slot, pixel, 0};
    const int sample = pixel / a.out_pixels, at = pixel % a.out_pixels;
    const int y = at / a.out_width * a.shape.stride, x = at % a.out_width * a.shape.stride;
    if (kLayer == kConv2) {
      return {slot, sample * a.in_pixels, y - a.shape.dilation, x - a.shape.dilation};
    }
    return {pixel, i < p.active ? slot : -1, sample * a.in_pixels + y * a.shape.width + x, 0};
  }

  // Where a row of the left operand begins; null: zeros.
  static DYN_DEVICE const T* source(const Arguments& a, const Place& p, const Row& row, int segment) {
    const T* x = static_cast<const T*>(a.tensors.x);
    if (kLayer == kConv1) {
      return row.first < 0 ? nullptr : x + row_start(row.first, a.shape.inputs);
    }
    if (kLayer == kConv2) {
      const int y = row.y + segment / 3 * a.shape.dilation, column = row.x + segment % 3 * a.shape.dilation;
      if (row.first < 0 || y < 0 || y >= a.shape.height || column < 0 || column >= a.shape.width) {
        return nullptr;
      }
      const int pixel = row.first + y * a.shape.width + column;
      return static_cast<const T*>(a.h1) + row_start(pixel, a.shape.middle) + p.base;
    }
    if (segment == 1) return row.pixel < 0 ? nullptr : x + row_start(row.y, a.shape.inputs);
    if (row.first < 0) return nullptr;
    return static_cast<const T*>(a.h2) + row_start(row.first, a.shape.middle);
  }

  static DYN_DEVICE int length(const Arguments& a, const Place& p, int segment) {
    return kLayer == kConv3 && segment == 1 ? a.shape.inputs : p.depth;
  }

  static DYN_DEVICE const int* channels(const Arguments& a, const Place& p) {
    return a.channels + static_cast<std::size_t>(p.sample) * a.shape.middle + p.base;
  }

  // Row k of the right operand.
  static DYN_DEVICE const T* weights(const Arguments& a, const Place& p, int segment, int k) {
    if (kLayer == kConv1) {
      return static_cast<const T*>(a.tensors.w1) + row_start(k, a.shape.middle);
    }
    if (kLayer == kConv2) {
      if (kChannels) k = channels(a, p)[k] - p.group * a.group_channels;
      const int at = (9 * p.group + segment) * a.group_channels + k;
      return static_cast<const T*>(a.tensors.w2) + row_start(at, a.group_channels);
    }
    if (segment == 1) {
      return static_cast<const T*>(a.tensors.wd) + row_start(k, a.shape.outputs);
    }
    if (kChannels) k = channels(a, p)[k];
    return static_cast<const T*>(a.tensors.w3) + row_start(k, a.shape.outputs);
  }

  static DYN_DEVICE std::size_t pitch(const Arguments& a) {
    return static_cast<std::size_t>(kLayer == kConv1   ? a.shape.middle
                                    : kLayer == kConv2 ? a.group_channels
                                                       : a.shape.outputs);
  }

  // Where the k-th input of a sum stands in its row.
  static DYN_DEVICE int input(const Arguments&, const Place&, int, int k) { return k; }

  static DYN_DEVICE int segments(const Arguments& a) {
    return kLayer == kConv2 ? 9 : kLayer == kConv3 && a.shape.projection ? 2 : 1;
  }
  static DYN_DEVICE int first_segment(const Arguments&, const Place& p) {
    return kLayer == kConv3 && (p.row0 >= p.active || p.depth == 0) ? 1 : 0;
  }

  // The column of the weights that belongs to one of the result; for kGathers only.
  static DYN_DEVICE int weight_column(const Arguments& a, const Place& p, int column) {
    return channels(a, p)[column] - p.group * a.group_channels;
  }
  static DYN_DEVICE bool aligned_columns(const Arguments& a) { return a.aligned_groups; }

  // What the epilogue needs of some columns.
  template <int kCount>
  struct Columns {
    float bias[kCount];
    float other[kCount];  // what a skipped channel leaves, or the bias of the projection
  };

  template <int kCount>
  static DYN_DEVICE Columns<kCount> columns(const Arguments& a, const Place& p, int column) {
    Columns<kCount> c;
    DYN_UNROLL
    for (int e = 0; e < kCount; ++e) {
      c.other[e] = 0.0f;
      if (kLayer == kConv3) {
        const bool skips = kChannels && !a.excites;
        c.bias[e] = skips ? a.tensors.skipped_output[column + e] : a.tensors.b3[column + e];
        if (a.shape.projection) c.other[e] = a.tensors.bd[column + e];
      } else {
        const float* bias = kLayer == kConv1 ? a.tensors.b1 : a.tensors.b2;
        c.bias[e] = bias[kChannels ? channels(a, p)[column + e] : p.base + column + e];
        if (kChannels && !a.excites) c.other[e] = relu(c.bias[e]);
      }
    }
    return c;
  }

  // Which taps of the 3x3 stand outside; the first tap is at (row.y, row.x).
  static DYN_DEVICE int border(const Arguments& a, const Row& row) {
    if (kLayer != kConv2 || !kChannels) return 0;
    const int reach = 2 * a.shape.dilation;
    return (row.y < 0 ? 1 : 0) | (row.y + reach >= a.shape.height ? 2 : 0) | (row.x < 0 ? 4 : 0) |
           (row.x + reach >= a.shape.width ? 8 : 0);
  }

  // The value of one element: bias, shortcut and activation.
  static DYN_DEVICE float value(const Arguments& a, const Place& p, const Row& row, int column, float sum,
                                float bias, float other, float shortcut) {
    if (kLayer == kConv1 || (kLayer == kConv2 && !kChannels)) return relu(sum + bias) - other;
    if (kLayer == kConv2) {
      if (a.excites) return relu(sum + bias);
      const int channel = channels(a, p)[column];
      return relu(sum + a.tensors.border_bias[border(a, row) * a.shape.middle + channel]) - other;
    }
    if (row.first >= 0) sum += bias;
    return relu(sum + (a.shape.projection ? other : shortcut));
  }

  // Where a run of columns of a row goes. The shortcut stands at the same place of x.
  static DYN_DEVICE std::size_t place(const Arguments& a, const Place& p, const Row& row, int column) {
    const int width = kLayer == kConv3 ? a.shape.outputs : a.shape.middle;
    return row_start(row.pixel, width) + (kLayer == kConv2 ? p.base : 0) + column;
  }
  static DYN_DEVICE T* target(const Arguments& a) {
    return static_cast<T*>(kLayer == kConv1 ? a.h1 : kLayer == kConv2 ? a.h2 : a.tensors.y);
  }
  static DYN_DEVICE bool adds(const Arguments& a) { return kLayer == kConv3 && !a.shape.projection; }

  // All that is read of four rows is asked for before any of them is written: else each waits for memory.
  // kAdds: the shortcut is x itself.
  template <bool kAdds>
  static DYN_DEVICE void write_runs(const Arguments& a, const Place& p, const Row* rows, int column,
                                    const float* sums, int pitch) {
    constexpr int kRun = Tile::kRun;
    constexpr int kBytes = static_cast<int>(sizeof(T)) * kRun;
    constexpr int kAll = Tile::kRowsAtOnce, kAtOnce = kAll < 4 ? kAll : kAll == 6 ? 3 : 4;
    const Columns<kRun> c = columns<kRun>(a, p, column);
    DYN_UNROLL
    for (int first = 0; first < kAll; first += kAtOnce) {
      Word<T, kRun> added[kAtOnce];
      std::size_t at[kAtOnce];
      Row row[kAtOnce];
      DYN_UNROLL
      for (int i = 0; i < kAtOnce && first + i < kAll; ++i) {
        row[i] = rows[(first + i) * Tile::kRowStride];
        at[i] = row[i].pixel >= 0 ? place(a, p, row[i], column) : 0;
        if (kAdds) {
          load_or_clear<kBytes>(&added[i], static_cast<const T*>(a.tensors.x) + at[i], row[i].pixel >= 0);
        }
      }
      DYN_UNROLL
      for (int i = 0; i < kAtOnce && first + i < kAll; ++i) {
        Vector<T, kRun> v;
        if (kAdds) copy<kBytes>(&v, &added[i]);
        DYN_UNROLL
        for (int e = 0; e < kRun; ++e) {
          const float sum = sums[(first + i) * pitch + e];
          // Every row of an identity block has a hidden map.
          const float result = kAdds ? relu(sum + c.bias[e] + to_float(v.v[e]))
                                     : value(a, p, row[i], column + e, sum, c.bias[e], c.other[e], 0.0f);
          from_float(result, v.v[e]);
        }
        if (row[i].pixel >= 0) store_vector(target(a) + at[i], v);
      }
    }
  }

  // One of a few elements, for columns that no access of a whole run fits.
  static DYN_DEVICE void write_elements(const Arguments& a, const Place& p, const Row& row, int column,
                                        const float* sums, int count) {
    if (row.pixel < 0) return;
    for (int e = 0; e < count && column + e < p.columns; ++e) {
      const Columns<1> c = columns<1>(a, p, column + e);
      const std::size_t at = place(a, p, row, column + e);
      const float before = adds(a) ? to_float(static_cast<const T*>(a.tensors.x)[at]) : 0.0f;
      from_float(value(a, p, row, column + e, sums[e], c.bias[0], c.other[0], before), target(a)[at]);
    }
  }

  static DYN_DEVICE void write(const Arguments& a, const Place& p, const Row* rows, int column,
                               const float* sums, int pitch) {
    constexpr int kRun = Tile::kRun;
    constexpr bool kWhole = kVector % kRun == 0;
    if (column >= p.columns) return;
    // Without lists of columns their number is a multiple of a vector's.
    // No constant for the compiler, which would call the rest unreachable in kernels without lists.
    bool runs = kWhole && (!kGathers || column + kRun <= p.columns);
    if (runs) {
      if (adds(a)) return write_runs<kLayer == kConv3>(a, p, rows, column, sums, pitch);
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
