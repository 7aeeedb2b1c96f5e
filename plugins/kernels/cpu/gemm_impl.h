// The matrix product for one vector type; included by one translation unit per instruction set. Everything
// sits in an unnamed namespace and no standard template is instantiated here: a weak symbol compiled with
// this unit's instruction-set flags could otherwise replace the baseline one in the rest of the library.
#pragma once

#include <cstring>

#include "data_impl.h"
#include "gemm.h"
#include "simd/unroll.h"

namespace dyndeploy::cpu {
namespace {

constexpr int kPace = 4;  // rows of the next weights to fetch per 16 rows of the present ones

constexpr int kLineBytes = 64;
constexpr int kFarLength = 512;
constexpr int kWorthCopying = 64;  // rows of A that read each selected row of B

inline int min_of(int a, int b) { return a < b ? a : b; }
inline int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Rows of B per pass. Vectors of many floats take rows of a panel from L2 at the pace of the arithmetic;
// cores with few to a vector also have small L2s, shared ones, so that the part of a panel in use stays in
// L1.
template <class V>
inline int chunk_rows() {
  if constexpr (V::kPanelInL1) {
    constexpr int kRowBytes = 4 * (V::kPanelVectors * V::kWidth + V::kTileRows);
    const int fit = static_cast<int>(blocks().panel / (kBlock * kRowBytes)) * kBlock;
    return fit < kBlock ? kBlock : min_of(fit, kChunk);
  }
  return kChunk;
}

// Into the first level, also for rows that are read much later: fetches into the second are slower.
inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }

// Fetches one row of a panel of the weights that come next.
template <class V>
DYNDEPLOY_INLINE void fetch_upcoming(Upcoming* u) {
  const float* line = u->base + listed_row<V>(u->rows, u->row) * u->row_stride;
  if (u->columns) line += *u->columns / 2 * u->panel_stride;
  prefetch(line);
  if (u->lines > 1) prefetch(line + 16);
  if (++u->row == u->count) {
    u->row = 0;
    --u->panels;
    if (u->columns)
      u->columns += 2;
    else
      u->base += u->panel_stride;
  }
}

inline const float* pixel_of(const RowSource& a, int row) {
  const std::ptrdiff_t pixel = a.index ? a.index[row] : row - a.first;
  return a.base + pixel * a.stride;
}

template <int N>
struct Width {
  static constexpr int value = N;
};

template <int R>
struct RowTargets {
  float* out[R];
  const float* residual[R];
  const float* bias[R];
};

template <int R>
DYNDEPLOY_INLINE void locate(const Epilogue& e, int row, RowTargets<R>& t) {
  for (int r = 0; r < R; ++r) {
    const std::ptrdiff_t pixel = e.index ? e.index[row + r] : row + r - e.first;
    t.out[r] = e.out + pixel * e.stride;
    t.residual[r] = e.residual ? e.residual + pixel * e.stride : nullptr;
    t.bias[r] = e.bias_class ? e.bias + e.bias_class[row + r] * e.bias_stride : e.bias;
  }
}

// Fetches what finish() will read or overwrite; not where the rows fall into the same sets of L1.
template <class V, int R, int NV>
DYNDEPLOY_INLINE void fetch_targets(const Epilogue& e, int row, int column) {
  constexpr int kLine = 16, kWay = 1024;
  if (e.stride % kWay == 0) return;
  for (int r = 0; r < R; ++r) {
    const std::ptrdiff_t pixel = e.index ? e.index[row + r] : row + r - e.first;
    const float* const from = (e.residual ? e.residual : e.out) + pixel * e.stride + column;
    for (int n = 0; n < NV * V::kWidth; n += kLine) prefetch(from + n);
  }
}

template <class V, int NV>
DYNDEPLOY_NOINLINE void finish_rows(const float* sums, int rows, const Epilogue& e, int row, int column,
                                    int columns);

template <class V, int R, int NV>
DYNDEPLOY_INLINE void finish(typename V::Reg (&c)[R][NV], const Epilogue& e, int row, int column,
                             int columns) {
  if constexpr (V::kFinishesFromMemory && R > 1) {
    // The code below needs more registers than there are, and compilers then spill sums in inner loops too.
    alignas(kLineBytes) float sums[R * NV * V::kWidth];
    DYNDEPLOY_UNROLL
    for (int r = 0; r < R; ++r) {
      DYNDEPLOY_UNROLL
      for (int v = 0; v < NV; ++v) V::store(sums + (r * NV + v) * V::kWidth, c[r][v]);
    }
    return finish_rows<V, NV>(sums, R, e, row, column, columns);
  }
  RowTargets<R> t;
  locate<R>(e, row, t);
  const int left = columns - column;
  if constexpr (V::kInputsPerRow == 2) {
    if (e.rounded) {
      for (int r = 0; r < R; ++r) {
        alignas(kLineBytes) float values[NV * V::kWidth], pairs[V::kRoundedPairs];
        for (int v = 0; v < NV; ++v) {
          const int n = column + v * V::kWidth;
          typename V::Reg x = V::add(c[r][v], V::load(t.bias[r] + n));
          if (e.relu) x = V::relu(x);
          if (e.subtract) x = V::sub(x, V::load(e.subtract + n));
          V::store(values + v * V::kWidth, x);
        }
        const int count = min_of(left, NV * V::kWidth);
        for (int n = 0; n < count; n += 2 * V::kRoundedPairs) {
          const int numbers = min_of(count - n, 2 * V::kRoundedPairs);
          V::round_pairs(values + n, numbers, pairs);
          float* const to = t.out[r] + (column + n) / 2;
          for (int p = 0; p < V::kRoundedPairs; p += V::kWidth) {
            const int lanes = min_of((numbers + 1) / 2 - p, V::kWidth);
            if (lanes > 0) V::store_first(to + p, V::load(pairs + p), lanes);
          }
        }
      }
      return;
    }
  }
  if (left >= NV * V::kWidth) {
    DYNDEPLOY_UNROLL
    for (int r = 0; r < R; ++r) {
      DYNDEPLOY_UNROLL
      for (int v = 0; v < NV; ++v) {
        const int n = column + v * V::kWidth;
        typename V::Reg x = V::add(c[r][v], V::load(t.bias[r] + n));
        if (e.residual) x = V::add(x, V::load(t.residual[r] + n));
        if (e.relu) x = V::relu(x);
        if (e.subtract) x = V::sub(x, V::load(e.subtract + n));
        V::store(t.out[r] + n, x);
      }
    }
    return;
  }
  DYNDEPLOY_UNROLL
  for (int r = 0; r < R; ++r) {
    DYNDEPLOY_UNROLL
    for (int v = 0; v < NV; ++v) {
      const int n = column + v * V::kWidth;
      const int lanes = min_of(columns - n, V::kWidth);
      if (lanes > 0) {
        typename V::Reg x = V::add(c[r][v], V::load(t.bias[r] + n));
        if (e.residual) x = V::add(x, V::load_first(t.residual[r] + n, lanes));
        if (e.relu) x = V::relu(x);
        if (e.subtract) x = V::sub(x, V::load(e.subtract + n));
        V::store_first(t.out[r] + n, x, lanes);
      }
    }
  }
}

// c += the numbers in one lane of x, one of each row of A, times a row of B. A vector of the latter is loaded
// only when all rows are ready for it: with x and the sums it takes the last of the registers.
template <class V, int Lane, int R, int NV, class Load>
DYNDEPLOY_INLINE void multiply_lane(const typename V::Reg (&x)[R], const Load& load,
                                    typename V::Reg (&c)[R][NV]) {
  static_assert(V::kWidth == 4, "tiles take four lanes from a vector");
  DYNDEPLOY_UNROLL
  for (int v = 0; v < NV; ++v) {
    const typename V::Reg w = load(v);
    DYNDEPLOY_UNROLL
    for (int r = 0; r < R; ++r) c[r][v] = V::template fma_lane<Lane>(x[r], w, c[r][v]);
  }
}

// ---------------------------------------------------------------------------------------- A packed into
// tiles

struct TileCall {
  const float* a;  // [segment][block][row][kBlock]
  const float* b;  // first row of B
  std::ptrdiff_t row_stride;
  const std::int32_t* rows;  // of B to use, counted from b; nullptr: one after the other
  int segments;
  int length;  // rows of B per segment
  float* accumulators;
  bool first;
  bool last;
  const char* ahead;  // what comes after these rows of B: a tile that shares a pass fetches its part of it
  int ahead_lines;    // per block
  const Gemm* gemm;
  int row;
  int column;
  Upcoming* upcoming;
  int pace;  // rows of it to fetch per block
};

// How a tile comes by the rows of B: one after the other or found through a list, and from the caches, where
// the tile before or a copy has put them, or from memory, at this tile's own pace.
enum class Pass { kCached, kMemory, kListedCached, kListedMemory };
constexpr bool is_listed(Pass kind) { return kind == Pass::kListedCached || kind == Pass::kListedMemory; }
constexpr bool is_memory(Pass kind) { return kind == Pass::kMemory || kind == Pass::kListedMemory; }

template <class V, int R, int NV, Pass Kind>
DYNDEPLOY_NOINLINE void packed_tile(const TileCall& call) {
  using Reg = typename V::Reg;
  Reg c[R][NV];
  if (call.first) {
    DYNDEPLOY_UNROLL
    for (int r = 0; r < R; ++r) {
      DYNDEPLOY_UNROLL
      for (int v = 0; v < NV; ++v) c[r][v] = V::zero();
    }
  } else {
    DYNDEPLOY_UNROLL
    for (int r = 0; r < R; ++r) {
      DYNDEPLOY_UNROLL
      for (int v = 0; v < NV; ++v) c[r][v] = V::load(call.accumulators + (r * NV + v) * V::kWidth);
    }
  }
  const float* a = call.a;
  const float* b = call.b;
  if (call.last) fetch_targets<V, R, NV>(call.gemm->epilogue, call.row, call.column);
  Upcoming* const upcoming = call.upcoming;
  const int pace = call.pace;
  const std::ptrdiff_t stride = call.row_stride;
  const char* ahead = call.ahead;
  const int ahead_lines = call.ahead_lines;
  // Far enough ahead to cover the memory's latency: fewer rows of A take less time per row of B.
  constexpr int kNear = R > 8 ? 96 : 64;
  static_assert(kNear <= kListMargin, "lists are read that far beyond their end");
  const std::ptrdiff_t near = kNear * stride;
  const std::int32_t* listed = call.rows;
  for (int s = 0; s < call.segments; ++s) {
    for (int done = 0; done < call.length; done += kBlock, a += R * kBlock) {
      const int count = min_of(kBlock, call.length - done);
      for (int i = 0; i < pace && upcoming->panels > 0; ++i) fetch_upcoming<V>(upcoming);
      if constexpr (!is_memory(Kind)) {
        for (int i = 0; i < ahead_lines; ++i, ahead += kLineBytes) prefetch(ahead);
      }
      int begin = 0;
      if constexpr (V::kHasLanes) {
        for (; begin + 4 <= count; begin += 4) {
          Reg x[R];
          DYNDEPLOY_UNROLL
          for (int r = 0; r < R; ++r) x[r] = V::load(a + r * kBlock + begin);
          const auto multiply = [&](auto lane) __attribute__((always_inline)) {
            const float* const row = is_listed(Kind) ? b + *listed * stride : b;
            if constexpr (is_memory(Kind)) prefetch(is_listed(Kind) ? b + listed[kNear] * stride : b + near);
            if constexpr (is_listed(Kind))
              ++listed;
            else
              b += stride;
            multiply_lane<V, decltype(lane)::value>(
                x, [=](int v) __attribute__((always_inline)) { return V::load(row + v * V::kWidth); }, c);
          };
          multiply(Width<0>{});
          multiply(Width<1>{});
          multiply(Width<2>{});
          multiply(Width<3>{});
        }
      }
      DYNDEPLOY_UNROLL_BY_4
      for (int k = begin; k < count; ++k) {
        Reg w[NV];
        const float* const row = is_listed(Kind) ? b + *listed * stride : b;
        DYNDEPLOY_UNROLL
        for (int v = 0; v < NV; ++v) w[v] = V::load(row + v * V::kWidth);
        if constexpr (is_memory(Kind)) {
          const float* const later = is_listed(Kind) ? b + listed[kNear] * stride : b + near;
          prefetch(later);
          if (V::kWidth >= 16) prefetch(later + V::kWidth);
        }
        if constexpr (is_listed(Kind))
          ++listed;
        else
          b += stride;
        DYNDEPLOY_UNROLL
        for (int r = 0; r < R; ++r) {
          const Reg x = V::broadcast(a + r * kBlock + k);
          DYNDEPLOY_UNROLL
          for (int v = 0; v < NV; ++v) c[r][v] = V::fma(x, w[v], c[r][v]);
        }
      }
    }
  }
  if (call.last) {
    finish<V, R, NV>(c, call.gemm->epilogue, call.row, call.column, call.gemm->columns);
    return;
  }
  DYNDEPLOY_UNROLL
  for (int r = 0; r < R; ++r) {
    DYNDEPLOY_UNROLL
    for (int v = 0; v < NV; ++v) V::store(call.accumulators + (r * NV + v) * V::kWidth, c[r][v]);
  }
}

template <class V, int NV, Pass Kind, int R = V::kTileRows>
inline void run_packed_rows(int rows, const TileCall& call) {
  if constexpr (R > 0) {
    if (rows == R) return packed_tile<V, R, NV, Kind>(call);
    run_packed_rows<V, NV, Kind, R - 1>(rows, call);
  }
}

// finish() for rows of sums in memory: what the rows share is read once.
template <class V, int NV>
void finish_rows(const float* sums, int rows, const Epilogue& e, int row, int column, int columns) {
  using Reg = typename V::Reg;
  constexpr int W = V::kWidth;
  if (columns - column < NV * W || e.bias_class || NV < 2) {
    for (int r = 0; r < rows; ++r) {
      Reg c[1][NV];
      DYNDEPLOY_UNROLL
      for (int v = 0; v < NV; ++v) c[0][v] = V::load(sums + (r * NV + v) * W);
      finish<V, 1, NV>(c, e, row + r, column, columns);
    }
    return;
  }
  Reg bias[NV], subtract[NV];
  DYNDEPLOY_UNROLL
  for (int v = 0; v < NV; ++v) {
    bias[v] = V::load(e.bias + column + v * W);
    subtract[v] = e.subtract ? V::load(e.subtract + column + v * W) : V::zero();
  }
  for (int r = 0; r < rows; ++r, sums += NV * W) {
    const std::ptrdiff_t at = (e.index ? e.index[row + r] : row + r - e.first) * e.stride;
    Reg x[NV];
    DYNDEPLOY_UNROLL
    for (int v = 0; v < NV; ++v) {
      x[v] = V::add(V::load(sums + v * W), bias[v]);
      if (e.residual) x[v] = V::add(x[v], V::load(e.residual + at + column + v * W));
      if (e.relu) x[v] = V::relu(x[v]);
      if (e.subtract) x[v] = V::sub(x[v], subtract[v]);
    }
    if constexpr (V::kInputsPerRow == 2) {
      if (e.rounded) {
        DYNDEPLOY_UNROLL
        for (int v = 0; v < NV; v += 2)
          V::store(e.out + at + (column + v * W) / 2, V::round_pair(x[v], x[v + 1]));
        continue;
      }
    }
    DYNDEPLOY_UNROLL
    for (int v = 0; v < NV; ++v) V::store(e.out + at + column + v * W, x[v]);
  }
}

// As packed_tile(), for instruction sets that multiply matrices.
template <class V, bool Tall, bool Wide>
DYNDEPLOY_NOINLINE void matrix_tile(int rows, Pass kind, const TileCall& call) {
  using Matrix = typename V::Matrix;
  constexpr int NV = Wide ? V::kPanelVectors : V::kPanelVectors / 2;
  constexpr int kColumns = NV * V::kWidth;
  Matrix::template load<Tall, Wide>(call.first ? nullptr : call.accumulators, kColumns);
  const float* a = call.a;
  const float* b = call.b;
  const char* ahead = call.ahead;
  const std::ptrdiff_t stride = call.row_stride;
  const std::ptrdiff_t near = 64 * stride;
  for (int r = 0; call.last && r < rows; ++r)
    fetch_targets<V, 1, NV>(call.gemm->epilogue, call.row + r, call.column);
  for (int s = 0; s < call.segments; ++s) {
    for (int done = 0; done < call.length; done += kBlock, a += rows * kBlock) {
      const int count = min_of(kBlock, call.length - done);
      for (int i = 0; i < call.pace && call.upcoming->panels > 0; ++i) fetch_upcoming<V>(call.upcoming);
      if (is_memory(kind)) {
        for (int k = 0; k < kBlock; ++k) {
          prefetch(b + near + k * stride);
          if (Wide) prefetch(b + near + k * stride + V::kWidth);
        }
      } else {
        for (int i = 0; i < call.ahead_lines; ++i, ahead += kLineBytes) prefetch(ahead);
      }
      if (count == kBlock) {
        Matrix::template multiply<Tall, Wide>(a, b, stride);
      } else {
        // What lies beyond the last row may be no number, which zeros in a do not undo.
        alignas(kLineBytes) float last[kBlock * kColumns] = {};
        for (int k = 0; k < count; ++k) {
          for (int v = 0; v < kColumns; v += V::kWidth)
            V::store(last + k * kColumns + v, V::load(b + k * stride + v));
        }
        Matrix::template multiply<Tall, Wide>(a, last, kColumns);
      }
      b += count * stride;
    }
  }
  if (!call.last) return Matrix::template store<Tall, Wide>(call.accumulators, kColumns);
  alignas(kLineBytes) float sums[V::kTileRows * kColumns];
  Matrix::template store<Tall, Wide>(sums, kColumns);
  finish_rows<V, NV>(sums, rows, call.gemm->epilogue, call.row, call.column, call.gemm->columns);
}

// narrow: half a panel.
template <class V>
inline void run_packed_tile(int rows, bool narrow, Pass kind, const TileCall& call) {
  constexpr int NV = V::kPanelVectors;
  if constexpr (V::kHasMatrix) {
    if (rows > V::kMatrixRows)
      return narrow ? matrix_tile<V, true, false>(rows, kind, call)
                    : matrix_tile<V, true, true>(rows, kind, call);
    return narrow ? matrix_tile<V, false, false>(rows, kind, call)
                  : matrix_tile<V, false, true>(rows, kind, call);
  } else {
    const auto run = [=, &call](auto width) {
      constexpr int kVectors = decltype(width)::value;
      switch (kind) {
        case Pass::kCached:
          return run_packed_rows<V, kVectors, Pass::kCached>(rows, call);
        case Pass::kMemory:
          return run_packed_rows<V, kVectors, Pass::kMemory>(rows, call);
        case Pass::kListedCached:
          return run_packed_rows<V, kVectors, Pass::kListedCached>(rows, call);
        case Pass::kListedMemory:
          return run_packed_rows<V, kVectors, Pass::kListedMemory>(rows, call);
      }
    };
    narrow ? run(Width<NV / 2>{}) : run(Width<NV>{});
  }
}

// Rows of B per tap.
template <class V>
inline int tap_rows(const RowSource& a) {
  return ceil_div(a.length, V::kInputsPerRow);
}

// One pass over B: whole segments, or a slice of one segment.
struct Chunk {
  int source;
  int segment;
  int segments;
  int offset;
  int length;
  int row;  // first row of B
};

// Steps through the chunks of all sources, none longer than `most` rows; returns false at the end.
template <class V>
inline bool next_chunk(const Gemm& g, Chunk& c, bool start, int most) {
  if (start) {
    c = Chunk{0, 0, 0, 0, 0, 0};
  } else {
    const RowSource& a = g.source[c.source].a;
    c.offset += c.length;
    if (c.offset >= tap_rows<V>(a)) {
      c.offset = 0;
      c.segment += c.segments;
    }
    if (c.segment >= a.taps) {
      if (++c.source >= g.sources) return false;
      c.segment = 0;
    }
  }
  const RowSource& a = g.source[c.source].a;
  const int length = tap_rows<V>(a);
  if (length > most) {
    const int pieces = ceil_div(length, most);
    c.segments = 1;
    c.length = min_of(ceil_div(ceil_div(length, pieces), kBlock) * kBlock, length - c.offset);
  } else {
    const int groups = ceil_div(a.taps, most / length);
    c.segments = min_of(ceil_div(a.taps, groups), a.taps - c.segment);
    c.length = length;
  }
  c.row = c.segment * length + c.offset;
  return true;
}

inline int chunk_blocks(const Chunk& c) { return c.segments * ceil_div(c.length, kBlock); }

// Tiles that share a pass fetch what comes after it, each its part: so many lines per block of their own
// rows.
template <class V>
inline int ahead_lines(int tiles) {
  return ceil_div(kBlock * V::kPanelVectors * V::kWidth * 4 / kLineBytes, tiles);
}
template <class V>
inline const char* ahead_part(const float* ahead, int blocks, int tiles, int tile) {
  return reinterpret_cast<const char*>(ahead) +
         static_cast<std::ptrdiff_t>(tile) * blocks * ahead_lines<V>(tiles) * kLineBytes;
}

template <class V>
inline void pack_row(const RowSource& a, const Chunk& chunk, int row, int tile_rows, float* out) {
  const float* pixel = pixel_of(a, row) + chunk.offset * (a.rounded ? 1 : V::kInputsPerRow);
  const unsigned valid = a.valid ? a.valid[row] : ~0u;
  const std::ptrdiff_t step = static_cast<std::ptrdiff_t>(tile_rows) * kBlock;
  for (int s = 0; s < chunk.segments; ++s) {
    const int tap = chunk.segment + s;
    if (valid >> tap & 1u) {
      const float* from = pixel + a.tap_offset[tap];
      if constexpr (V::kInputsPerRow == 2) {
        const int inputs = a.rounded ? 0 : min_of(2 * chunk.length, a.length - 2 * chunk.offset);
        for (int k = 0; k < inputs; k += 2 * kBlock, out += step) {
          static_assert(V::kRoundedPairs == kBlock, "one call per block");
          V::round_pairs(from + k, min_of(2 * kBlock, inputs - k), out);
        }
        if (!a.rounded) continue;
      }
      int k = 0;
      for (; k + kBlock <= chunk.length; k += kBlock, out += step) {
        DYNDEPLOY_UNROLL
        for (int v = 0; v < kBlock; v += V::kWidth) V::store(out + v, V::load(from + k + v));
      }
      if (k < chunk.length) {
        // Matrix tiles also multiply what lies beyond.
        for (int i = 0; i < kBlock; ++i, ++k) out[i] = k < chunk.length ? from[k] : 0.0f;
        out += step;
      }
    } else {
      for (int k = 0; k < chunk.length; k += kBlock, out += step) {
        DYNDEPLOY_UNROLL
        for (int v = 0; v < kBlock; v += V::kWidth) V::store(out + v, V::zero());
      }
    }
  }
}

// The rows [row_begin, row_begin + count) of packed weights that copying panels [panel_begin, panel_end) will
// read.
template <class V>
inline Upcoming upcoming_copy(const Gemm& g, const GemmSource& source, int row_begin, int count,
                              int panel_begin, int panel_end) {
  constexpr int PW = V::kPanelVectors * V::kWidth;
  const int end = min_of(panel_end * PW, g.columns);
  if (source.selection.pairs)
    return upcoming_pairs(source.selection, row_begin, count, panel_begin * PW, end);
  const PanelRange panels = source_panels(source.selection.columns, panel_begin * PW, end, PW);
  Upcoming upcoming;
  upcoming.base = source.b.base + panels.begin * source.b.panel_stride;
  if (source.selection.rows)
    upcoming.rows = source.selection.rows + row_begin * V::kInputsPerRow;
  else
    upcoming.base += row_begin * source.b.row_stride;
  upcoming.row_stride = source.b.row_stride;
  upcoming.panel_stride = source.b.panel_stride;
  upcoming.panels = panels.end - panels.begin;
  upcoming.count = count;
  upcoming.lines = PW > 16 ? 2 : 1;
  return upcoming;
}

// Rows [row_begin, row_begin + count) of the selected weights of one panel.
template <class V>
inline void copy_panel(const Gemm& g, const GemmSource& source, int row_begin, int count, int panel,
                       float* out) {
  constexpr int PW = V::kPanelVectors * V::kWidth;
  SelectedCopy copy;
  copy.b = source.b;
  copy.selection = source.selection;
  copy.row_begin = row_begin;
  copy.row_end = row_begin + count;
  copy.column_begin = panel * PW;
  copy.column_end = min_of((panel + 1) * PW, g.columns);
  copy.out = out;
  copy.out_stride = PW;
  copy_selected<V>(copy);
}

// Rows alone can be found through their list; columns, or pairs that have to be put together anew, are
// copied.
template <class V>
inline bool must_copy(const Selection& selection) {
  return selection.columns || (V::kInputsPerRow == 2 && selection.rows);
}

template <class V>
void gemm_packed(const Gemm& g, int row_begin, int row_end, int panel_begin, int panel_end,
                 const GemmScratch& scratch) {
  constexpr int MR = V::kTileRows;
  constexpr int PW = V::kPanelVectors * V::kWidth;
  constexpr int kMaxTiles = kCopyRows / MR;
  const int rows = row_end - row_begin;
  const int tiles = ceil_div(rows, MR);
  const bool copies = must_copy<V>(g.source[0].selection);
  const int blocks = ceil_div(tiles, (copies ? kCopyRows : kBlockRows) / MR);
  for (int block = 0; block < blocks; ++block) {
    const int tile_begin = static_cast<int>(static_cast<std::int64_t>(tiles) * block / blocks);
    const int tile_end = static_cast<int>(static_cast<std::int64_t>(tiles) * (block + 1) / blocks);
    const int count = tile_end - tile_begin;
    int edge[kMaxTiles + 1];
    for (int t = 0; t <= count; ++t)
      edge[t] = row_begin + static_cast<int>(static_cast<std::int64_t>(rows) * (tile_begin + t) / tiles);
    // A lone tile has room for longer chunks, so that weights are read in the order in which they lie.
    const bool lone = count == 1 && !copies;
    const int most = lone ? kChunk * (kBlockRows / MR) : chunk_rows<V>();
    Chunk chunk;
    bool more = next_chunk<V>(g, chunk, true, most);
    bool first = true;
    while (more) {
      const GemmSource& source = g.source[chunk.source];
      const int chunk_rows = chunk.segments * chunk.length;
      const std::ptrdiff_t depth = static_cast<std::ptrdiff_t>(chunk_blocks(chunk)) * kBlock;
      for (int t = 0; t < count; ++t) {
        const int n = edge[t + 1] - edge[t];
        float* tile = scratch.a + (edge[t] - edge[0]) * depth;
        for (int r = 0; r < n; ++r) pack_row<V>(source.a, chunk, edge[t] + r, n, tile + r * kBlock);
      }
      Chunk following = chunk;
      more = next_chunk<V>(g, following, false, most);
      const float* after = nullptr;
      if (more) {
        const PanelView& b = g.source[following.source].b;
        after = b.base + panel_begin * b.panel_stride + following.row * b.row_stride;
      } else if (block + 1 < blocks) {
        after = source.b.base + panel_begin * source.b.panel_stride;
      }
      const bool copied = must_copy<V>(source.selection);
      Upcoming next_copy;
      TileCall call;
      call.rows = copied || !source.selection.rows ? nullptr : source.selection.rows + chunk.row;
      call.row_stride = copied ? PW : source.b.row_stride;
      call.segments = chunk.segments;
      call.length = chunk.length;
      call.first = first;
      call.last = !more;
      call.gemm = &g;
      for (int p = panel_begin; p < panel_end; ++p) {
        const float* panel = source.b.base + p * source.b.panel_stride;
        if (!call.rows) panel += chunk.row * source.b.row_stride;
        call.b = panel;
        call.column = p * PW;
        call.upcoming = g.upcoming;
        call.pace = g.upcoming ? kPace : 0;
        if (copied) {
          copy_panel<V>(g, source, chunk.row, chunk_rows, p, scratch.b);
          call.b = scratch.b;
          const bool here = p + 1 < panel_end;
          if (here || (more && must_copy<V>(g.source[following.source].selection))) {
            const Chunk& then = here ? chunk : following;
            const int panel_then = here ? p + 1 : panel_begin;
            next_copy = upcoming_copy<V>(g, g.source[then.source], then.row, then.segments * then.length,
                                         panel_then, panel_then + 1);
            call.upcoming = &next_copy;
            call.pace = ceil_div(next_copy.panels * next_copy.count, count * chunk_blocks(chunk));
          }
        }
        const float* ahead = p + 1 < panel_end ? panel + source.b.panel_stride : after;
        if (copied || call.rows) ahead = nullptr;
        call.ahead_lines = ahead ? ahead_lines<V>(count) : 0;
        for (int t = 0; t < count; ++t) {
          const int n = edge[t + 1] - edge[t];
          call.a = scratch.a + (edge[t] - edge[0]) * depth;
          call.accumulators =
              scratch.accumulators + (static_cast<std::ptrdiff_t>(p - panel_begin) * kMaxTiles + t) * MR * PW;
          call.row = edge[t];
          call.ahead = ahead ? ahead_part<V>(ahead, chunk_blocks(chunk), count, t) : nullptr;
          const Pass kind = call.rows ? (t ? Pass::kListedCached : Pass::kListedMemory)
                                      : (lone ? Pass::kMemory : Pass::kCached);
          run_packed_tile<V>(n, g.columns - call.column <= PW / 2, kind, call);
        }
      }
      first = false;
      chunk = following;
    }
  }
}

// ------------------------------------------------------------------------------------------ A read in place

// next: the rows of the following tile, to be fetched meanwhile; or nullptr.
template <class V, int R, int NV>
DYNDEPLOY_NOINLINE void direct_tile(const Gemm& g, const float* const* pixels, const float* const* next,
                                    int row, int panel) {
  using Reg = typename V::Reg;
  constexpr int kPerPanel = V::kPanelVectors;
  Reg c[R][NV];
  DYNDEPLOY_UNROLL
  for (int r = 0; r < R; ++r) {
    DYNDEPLOY_UNROLL
    for (int v = 0; v < NV; ++v) c[r][v] = V::zero();
  }
  fetch_targets<V, R, NV>(g.epilogue, row, panel * kPerPanel * V::kWidth);
  constexpr int kPanels = (NV + kPerPanel - 1) / kPerPanel;
  constexpr int kNear = NV < kPerPanel ? NV : kPerPanel;  // vectors per panel
  Upcoming* const upcoming = g.upcoming;
  for (int i = 0; i < g.sources; ++i) {
    const GemmSource& source = g.source[i];
    const std::ptrdiff_t stride = source.b.row_stride;
    const float* b[kPanels];
    DYNDEPLOY_UNROLL
    for (int p = 0; p < kPanels; ++p) b[p] = source.b.base + (panel + p) * source.b.panel_stride;
    for (int s = 0; s < source.a.taps; ++s, pixels += R) {
      const float* a[R];
      DYNDEPLOY_UNROLL
      for (int r = 0; r < R; ++r) a[r] = pixels[r];
      const std::ptrdiff_t length = source.a.length;
      const auto step = [&](std::ptrdiff_t k) __attribute__((always_inline)) {
        Reg w[NV];
        DYNDEPLOY_UNROLL
        for (int p = 0; p < kPanels; ++p) {
          DYNDEPLOY_UNROLL
          for (int v = 0; v < kNear; ++v) {
            if (p * kNear + v < NV) w[p * kNear + v] = V::load(b[p] + v * V::kWidth);
          }
          b[p] += stride;
        }
        DYNDEPLOY_UNROLL
        for (int r = 0; r < R; ++r) {
          const Reg x = V::broadcast(a[r] + k);
          DYNDEPLOY_UNROLL
          for (int v = 0; v < NV; ++v) c[r][v] = V::fma(x, w[v], c[r][v]);
        }
      };
      std::ptrdiff_t k = 0;
      for (; k + 4 <= length; k += 4) {
        if (upcoming && upcoming->panels > 0) fetch_upcoming<V>(upcoming);
        if (next && k % 16 == 0) {
          DYNDEPLOY_UNROLL
          for (int r = 0; r < R; ++r) prefetch(next[r] + k);
        }
        if constexpr (V::kHasLanes) {
          Reg x[R];
          DYNDEPLOY_UNROLL
          for (int r = 0; r < R; ++r) x[r] = V::load(a[r] + k);
          const auto multiply = [&](auto lane) __attribute__((always_inline)) {
            multiply_lane<V, decltype(lane)::value>(
                x,
                [&](int v) __attribute__((always_inline)) {
                  return V::load(b[v / kPerPanel] + v % kPerPanel * V::kWidth);
                },
                c);
            DYNDEPLOY_UNROLL
            for (int p = 0; p < kPanels; ++p) b[p] += stride;
          };
          multiply(Width<0>{});
          multiply(Width<1>{});
          multiply(Width<2>{});
          multiply(Width<3>{});
        } else {
          step(k);
          step(k + 1);
          step(k + 2);
          step(k + 3);
        }
      }
      for (; k < length; ++k) step(k);
    }
  }
  finish<V, R, NV>(c, g.epilogue, row, panel * kPerPanel * V::kWidth, g.columns);
}

template <class V, int R>
inline void run_direct_tile(int rows, const Gemm& g, const float* const* pixels, const float* const* next,
                            int row, int panel_begin, int panel_end) {
  if constexpr (R > 0) {
    if (rows != R) return run_direct_tile<V, R - 1>(rows, g, pixels, next, row, panel_begin, panel_end);
    constexpr int kPanels = V::kDirectVectors / V::kPanelVectors;
    constexpr int PW = V::kPanelVectors * V::kWidth;
    int p = panel_begin;
    while (p < panel_end) {
      const int left = g.columns - p * PW;
      if (p + kPanels <= panel_end && left > (kPanels - 1) * PW) {
        // The last panel may be half empty.
        left > kPanels* PW - PW / 2
            ? direct_tile<V, R, V::kDirectVectors>(g, pixels, next, row, p)
            : direct_tile<V, R, V::kDirectVectors - V::kPanelVectors / 2>(g, pixels, next, row, p);
        p += kPanels;
      } else {
        left > PW / 2 ? direct_tile<V, R, V::kPanelVectors>(g, pixels, next, row, p)
                      : direct_tile<V, R, V::kPanelVectors / 2>(g, pixels, next, row, p);
        ++p;
      }
      next = nullptr;
    }
  }
}

template <class V>
void gemm_direct(const Gemm& g, int row_begin, int row_end, int panel_begin, int panel_end,
                 const float* zeros) {
  constexpr int MR = V::kDirectRows;
  const float* pixels[2 * kMaxTaps * MR];
  const float* next[MR];
  const RowSource& a0 = g.source[0].a;
  const int rows = row_end - row_begin;
  const int tiles = ceil_div(rows, MR);
  for (int t = 0; t < tiles; ++t) {
    const int begin = row_begin + static_cast<int>(static_cast<std::int64_t>(rows) * t / tiles);
    const int end = row_begin + static_cast<int>(static_cast<std::int64_t>(rows) * (t + 1) / tiles);
    const int n = end - begin;
    const float** to = pixels;
    for (int i = 0; i < g.sources; ++i) {
      const RowSource& a = g.source[i].a;
      for (int r = 0; r < n; ++r) {
        const float* pixel = pixel_of(a, begin + r);
        const unsigned valid = a.valid ? a.valid[begin + r] : ~0u;
        for (int s = 0; s < a.taps; ++s) to[s * n + r] = valid >> s & 1u ? pixel + a.tap_offset[s] : zeros;
      }
      to += a.taps * n;
    }
    // The taps of a 3x3 were written just before and are still near; two tiles of long rows exceed L1.
    const bool far = a0.taps == 1 && a0.length <= kFarLength;
    for (int r = 0; far && r < n; ++r) next[r] = pixel_of(a0, min_of(end + r, row_end - 1));
    run_direct_tile<V, MR>(n, g, pixels, far ? next : nullptr, begin, panel_begin, panel_end);
  }
}

// The only source selects. Slices of its weights are copied that stay in L2 beside what the next copy reads.
template <class V>
void gemm_sliced(const Gemm& g, int row_begin, int row_end, int panel_begin, int panel_end,
                 const GemmScratch& scratch) {
  constexpr int PW = V::kPanelVectors * V::kWidth;
  constexpr int kPair = V::kDirectVectors / V::kPanelVectors;
  const GemmSource& from = g.source[0];
  const int depth = from.a.taps * from.a.length;
  const std::ptrdiff_t panel = static_cast<std::ptrdiff_t>(depth) * PW;
  const int pairs = static_cast<int>(blocks().slice / 4 / (panel * kPair));
  const int step = kPair * (pairs > 0 ? pairs : 1);
  Gemm slice = g;
  slice.source[0].selection = {};
  Upcoming next;
  for (int p = panel_begin; p < panel_end; p += step) {
    const int end = min_of(p + step, panel_end);
    for (int i = p; i < end; ++i) copy_panel<V>(g, from, 0, depth, i, scratch.b + (i - p) * panel);
    slice.source[0].b = PanelView{scratch.b - p * panel, PW, panel};
    slice.upcoming = g.upcoming;
    if (end < panel_end) {
      next = upcoming_copy<V>(g, from, 0, depth, end, min_of(end + step, panel_end));
      slice.upcoming = &next;
    }
    gemm_direct<V>(slice, row_begin, row_end, p, end, scratch.zeros);
  }
}

template <class V>
void gemm(const Gemm& g, int row_begin, int row_end, int panel_begin, int panel_end,
          const GemmScratch& scratch) {
  if (row_begin >= row_end || panel_begin >= panel_end) return;
  if constexpr (V::kHasMatrix) {
    const typename V::Matrix matrix;
    return gemm_packed<V>(g, row_begin, row_end, panel_begin, panel_end, scratch);
  }
  // Rows in place are floats: those that are multiplied in BF16 have to be rounded on the way.
  if constexpr (V::kInputsPerRow == 1) {
    std::int64_t depth = 0;
    for (int i = 0; i < g.sources; ++i)
      depth += static_cast<std::int64_t>(g.source[i].a.taps) * g.source[i].a.length;
    const std::int64_t row_bytes = V::kPanelVectors * V::kWidth * 4;
    // Rows that are only read a few times are found through their list instead.
    const bool copies = must_copy<V>(g.source[0].selection) ||
                        (g.source[0].selection.any() && row_end - row_begin >= kWorthCopying);
    // A second source is read whole for every slice, which packed rows do better.
    if (copies && g.sources == 1 &&
        depth * row_bytes * (V::kDirectVectors / V::kPanelVectors) <= blocks().widest_slice)
      return gemm_sliced<V>(g, row_begin, row_end, panel_begin, panel_end, scratch);
    // One vector of sums for each of a few rows keeps too few multiply-adds in flight.
    const bool narrow =
        g.columns - panel_begin * V::kPanelVectors * V::kWidth <= V::kPanelVectors / 2 * V::kWidth;
    if (!g.source[0].selection.any() && !narrow &&
        depth * row_bytes * (panel_end - panel_begin) <= blocks().resident_weights)
      return gemm_direct<V>(g, row_begin, row_end, panel_begin, panel_end, scratch.zeros);
  }
  gemm_packed<V>(g, row_begin, row_end, panel_begin, panel_end, scratch);
}

}  // namespace
}  // namespace dyndeploy::cpu
