// The four linear layers of a transformer block as indirect matrix products: rows are those of kept tokens,
// sums and columns run over what kept heads leave.
#pragma once

#include "pipeline.h"
#include "tokens.h"

namespace dyndeploy {
namespace cuda {

enum Linear { kQkv, kProj, kFc1, kFc2 };

// kHeads: heads are skipped. kWidth: elements of one access; 1 fits every shape, else D, d, F and the units
// of a head are multiples of it.
template <int kLayer, bool kHeads, class Chosen, int kWidth>
struct LinearKernel {
  using Arguments = TransformerArguments;
  using Tile = Chosen;
  using T = typename Tile::Element;
  static constexpr int kVector = kWidth;
  static constexpr int kThreads = Tile::kThreads;
  static constexpr int kBlocks = Strips<Tile, kVector>::kBlocks;
  static constexpr bool kGathers = kHeads && (kLayer == kQkv || kLayer == kFc1);
  static constexpr bool kOpenRows = false;
  static constexpr bool kListed = kHeads && kLayer != kQkv;  // rows of the weights are found through a list
  static constexpr bool kFindsInputs = kListed;

  // from: in the left operand, -1 behind the last row. to: of the result.
  struct Row {
    int from, to;
  };
  struct Place {
    int sample, row0, rows, column0, columns, depth;
    int channels;       // of kept heads
    const int* inputs;  // that are summed; nullptr: all, from the first
    const int* listed;  // channels or units among the columns
  };

  static DYN_DEVICE void run(const Arguments& arguments, Index block) {
    if (!Strips<Tile, kVector>::kServes) return;
    Place place;
    if (!find(arguments, block, place)) return;
    ProductOf<LinearKernel>::multiply(arguments, place);
  }

  // False when the block has nothing to do; it then leaves after reading the counts of its sample.
  static DYN_DEVICE bool find(const Arguments& a, Index block, Place& p) {
    const TileGrid::Tile tile = a.grid.of(block.x);
    const SampleTokens& counts = a.samples[block.y];
    p.sample = block.y;
    p.row0 = tile.row * Tile::kRows;
    p.column0 = tile.column * Tile::kColumns;
    p.rows = kLayer == kQkv || kLayer == kProj ? counts.attention_rows : counts.mlp_rows;
    if (p.row0 >= p.rows) return false;
    const std::size_t sample = static_cast<std::size_t>(p.sample);
    const int* channels = kHeads ? a.channel_list + sample * a.channels : nullptr;
    const int* units = kHeads && a.unit_list != nullptr ? a.unit_list + sample * a.shape.hidden : nullptr;
    p.inputs = p.listed = nullptr;
    p.channels = kHeads ? counts.channels : a.channels;
    if (kLayer == kQkv) {
      p.depth = a.shape.width;
      p.columns = 2 * p.channels + (passes(a) ? a.channels : p.channels);
      p.listed = channels;
    } else if (kLayer == kProj) {
      p.depth = passes(a) ? a.channels : p.channels;
      p.inputs = passes(a) ? nullptr : channels;
      p.columns = a.shape.width;
    } else if (kLayer == kFc1) {
      p.depth = kHeads && a.shape.head_mode == 0 ? p.channels : a.shape.width;
      p.inputs = kHeads && a.shape.head_mode == 0 ? channels : nullptr;
      p.columns = units != nullptr ? counts.units : a.shape.hidden;
      p.listed = units;
    } else {
      p.depth = units != nullptr ? counts.units : a.shape.hidden;
      p.inputs = units;
      p.columns = a.shape.width;
    }
    return p.column0 < p.columns;
  }

  // Whether a dropped head passes its v on, so that all of v and of proj is computed.
  static DYN_DEVICE bool passes(const Arguments& a) { return kHeads && a.shape.head_mode == 2; }

  static DYN_DEVICE Row row(const Arguments& a, const Place& p, int i) {
    if (i >= p.rows) return {-1, -1};
    const int base = p.sample * a.shape.tokens;
    int to = i;
    const bool listed = kLayer == kProj || (kLayer == kFc2 && a.shape.token_mlp);
    if (listed && a.tokens != nullptr) to = a.tokens[base + i];
    return {base + i, base + to};
  }

  static DYN_DEVICE int segments(const Arguments&) { return 1; }
  static DYN_DEVICE int first_segment(const Arguments&, const Place& p) { return p.depth > 0 ? 0 : 1; }
  static DYN_DEVICE int length(const Arguments&, const Place& p, int) { return p.depth; }

  static DYN_DEVICE const T* source(const Arguments& a, const Place&, const Row& row, int) {
    if (row.from < 0) return nullptr;
    const int width = kLayer == kProj ? a.channels : kLayer == kFc2 ? a.shape.hidden : a.shape.width;
    return static_cast<const T*>(kLayer == kFc2 ? a.middle : a.rows) + row_start(row.from, width);
  }
  static DYN_DEVICE int input(const Arguments&, const Place& p, int, int k) {
    return kHeads && p.inputs != nullptr ? p.inputs[k] : k;
  }

  // Columns of the right operand.
  static DYN_DEVICE int width(const Arguments& a) {
    return kLayer == kQkv ? 3 * a.channels : kLayer == kFc1 ? a.shape.hidden : a.shape.width;
  }
  static DYN_DEVICE const T* weights(const Arguments& a, const Place& p, int segment, int k) {
    const void* all = kLayer == kQkv    ? a.tensors.w_qkv
                      : kLayer == kProj ? a.tensors.w_proj
                      : kLayer == kFc1  ? a.tensors.w_fc1
                                        : a.tensors.w_fc2;
    return static_cast<const T*>(all) + static_cast<std::size_t>(input(a, p, segment, k)) * width(a);
  }
  static DYN_DEVICE std::size_t pitch(const Arguments& a) { return static_cast<std::size_t>(width(a)); }
  static DYN_DEVICE int weight_column(const Arguments& a, const Place& p, int column) {
    if (!kGathers || p.listed == nullptr) return column;
    if (kLayer == kFc1) return p.listed[column];
    if (column < p.channels) return p.listed[column];
    if (column < 2 * p.channels) return a.channels + p.listed[column - p.channels];
    column -= 2 * p.channels;
    return 2 * a.channels + (passes(a) ? column : p.listed[column]);
  }
  // A vector never reaches into another head or its units.
  static DYN_DEVICE bool aligned_columns(const Arguments&) { return true; }

  static constexpr bool kAdds = kLayer == kProj || kLayer == kFc2;

  static DYN_DEVICE const float* biases(const Arguments& a) {
    return kLayer == kQkv    ? a.tensors.b_qkv
           : kLayer == kProj ? a.tensors.b_proj
           : kLayer == kFc1  ? a.tensors.b_fc1
                             : a.tensors.b_fc2;
  }
  static DYN_DEVICE float value(const Arguments& a, int column, float sum, float bias, float before) {
    sum += bias;
    // q alone is scaled, so that halves keep the products with k in their range.
    if (kLayer == kQkv) return column < a.channels ? sum * a.shape.scale : sum;
    if (kAdds) return before + sum;
    return 0.5f * sum * (1.0f + error_function(sum * 0.70710678118654752f));
  }

  // Where a row of the result begins, and the row that it is added to. Each element is read and written by
  // one thread, so fc2 adds to y in place.
  static DYN_DEVICE T* target(const Arguments& a, const Row& row) {
    return static_cast<T*>(kAdds ? a.tensors.y : a.middle) + row_start(kAdds ? row.to : row.from, width(a));
  }
  static DYN_DEVICE const T* before(const Arguments& a, const Row& row) {
    return static_cast<const T*>(kLayer == kProj ? a.tensors.x : a.tensors.y) + row_start(row.to, width(a));
  }

  static DYN_DEVICE void write(const Arguments& a, const Place& p, const Row* rows, int column,
                               const float* sums, int pitch) {
    if (column >= p.columns) return;
    if (kVector > 1 && column + Tile::kRun <= p.columns) {
      write_runs(a, rows, weight_column(a, p, column), sums, pitch);
      return;
    }
    DYN_UNROLL
    for (int i = 0; i < Tile::kRowsAtOnce; ++i) {
      write_elements(a, p, rows[i * Tile::kRowStride], column, sums + i * pitch);
    }
  }

  // All that is read of some rows is asked for before any of them is written, and biases once: else each row
  // waits for memory.
  static DYN_DEVICE void write_runs(const Arguments& a, const Row* rows, int at, const float* sums,
                                    int pitch) {
    constexpr int kRun = Tile::kRun, kBytes = static_cast<int>(sizeof(T)) * kRun;
    constexpr int kAll = Tile::kRowsAtOnce, kAtOnce = kAll < 4 ? kAll : kAll == 6 ? 3 : 4;
    float bias[kRun];
    DYN_UNROLL
    for (int e = 0; e < kRun; ++e) bias[e] = biases(a)[at + e];
    DYN_UNROLL
    for (int first = 0; first < kAll; first += kAtOnce) {
      Word<T, kRun> added[kAtOnce];
      Row row[kAtOnce];
      DYN_UNROLL
      for (int i = 0; i < kAtOnce && first + i < kAll; ++i) {
        row[i] = rows[(first + i) * Tile::kRowStride];
        added[i] = Word<T, kRun>();
        // Not as what is only read: fc2 reads y.
        if (kAdds && row[i].from >= 0) copy<kBytes>(&added[i], before(a, row[i]) + at);
      }
      DYN_UNROLL
      for (int i = 0; i < kAtOnce && first + i < kAll; ++i) {
        if (row[i].from < 0) continue;
        Vector<T, kRun> v;
        if (kAdds) copy<kBytes>(&v, &added[i]);
        DYN_UNROLL
        for (int e = 0; e < kRun; ++e) {
          const float sum = sums[(first + i) * pitch + e];
          from_float(value(a, at + e, sum, bias[e], kAdds ? to_float(v.v[e]) : 0.0f), v.v[e]);
        }
        store_vector(target(a, row[i]) + at, v);
      }
    }
  }
  static DYN_DEVICE void write_elements(const Arguments& a, const Place& p, const Row& row, int column,
                                        const float* sums) {
    if (row.from < 0) return;
    for (int e = 0; e < Tile::kRun && column + e < p.columns; ++e) {
      const int at = weight_column(a, p, column + e);
      const float added = kAdds ? to_float(before(a, row)[at]) : 0.0f;
      from_float(value(a, at, sums[e], biases(a)[at], added), target(a, row)[at]);
    }
  }
};

}  // namespace cuda
}  // namespace dyndeploy
