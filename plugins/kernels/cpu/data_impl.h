// Everything around the matrix product for one vector type: packing weights, gathering columns, reductions.
// The same rules as in gemm_impl.h hold.
#pragma once

#include "gemm.h"
#include "simd/bf16.h"
#include "simd/unroll.h"

namespace dyndeploy::cpu {
namespace {

// Stores the weights of one input: a row of their own, or one half of a row of pairs.
template <class V>
DYNDEPLOY_INLINE void store_input(float* tap, int input, typename V::Reg weights) {
  constexpr std::ptrdiff_t PW = V::kPanelVectors * V::kWidth;
  float* const to = tap + input / V::kInputsPerRow * PW;
  if constexpr (V::kInputsPerRow == 1)
    V::store(to, weights);
  else if (input % 2 == 0)
    V::store(to, V::pair_up(V::rounded(weights), true, V::zero(), true));
  else
    V::store(to, V::pair_up(V::load(to), false, V::rounded(weights), true));
}

template <class V>
void pack(const PackSource& source, int panel_begin, int panel_end, float* out) {
  constexpr int W = V::kWidth, PW = V::kPanelVectors * W;
  // An output's weights lie in a row of their own: W rows by W weights are turned at a time.
  const int taps = source.taps, inputs = source.inputs, depth = taps * inputs;
  const std::ptrdiff_t tap_floats =
      static_cast<std::ptrdiff_t>((inputs + V::kInputsPerRow - 1) / V::kInputsPerRow) * PW;
  for (int p = panel_begin; p < panel_end; ++p) {
    for (int v = 0; v < V::kPanelVectors; ++v) {
      const int n0 = p * PW + v * W;
      const int left = source.outputs - n0;
      const int columns = left < W ? (left < 0 ? 0 : left) : W;
      const float* from = source.weights + static_cast<std::ptrdiff_t>(n0) * depth;
      float* to = out + p * taps * tap_floats + v * W;
      int input = 0, tap = 0;
      for (int k0 = 0; k0 < depth; k0 += W) {
        const int count = depth - k0 < W ? depth - k0 : W;
        typename V::Reg rows[W];
        if (columns == W && count == W) {
          DYNDEPLOY_UNROLL
          for (int i = 0; i < W; ++i) rows[i] = V::load(from + static_cast<std::ptrdiff_t>(i) * depth + k0);
        } else {
          for (int i = 0; i < W; ++i) {
            rows[i] = i < columns ? V::load_first(from + static_cast<std::ptrdiff_t>(i) * depth + k0, count)
                                  : V::zero();
          }
        }
        V::transpose(rows);
        for (int i = 0; i < count; ++i) {
          store_input<V>(to + tap * tap_floats, input, rows[i]);
          if (++tap == taps) {
            tap = 0;
            ++input;
          }
        }
      }
    }
  }
}

// The packed panels that hold columns [begin, end) of a selection.
struct PanelRange {
  int begin;
  int end;
};
inline PanelRange source_panels(const std::int32_t* columns, int begin, int end, int panel_width) {
  const int first = columns ? columns[begin] : begin, last = columns ? columns[end - 1] : end - 1;
  return {first / panel_width, last / panel_width + 1};
}

// The packed row of the first input of row k of a selection.
template <class V>
DYNDEPLOY_INLINE std::ptrdiff_t listed_row(const std::int32_t* rows, int k) {
  return rows ? rows[k * V::kInputsPerRow] / V::kInputsPerRow : k;
}

// Selected rows of one vector of columns. Skipped rows defeat the hardware's prefetching.
template <class V>
struct RowCopy {
  const std::int32_t* rows;  // as in Selection
  std::ptrdiff_t row_stride;
  int count;
  float* out;
  std::ptrdiff_t out_stride;

  std::ptrdiff_t row(int k) const { return listed_row<V>(rows, k) * row_stride; }
  std::ptrdiff_t later(int k) const {
    constexpr int kAhead = 48;
    return row(k + kAhead < count ? k + kAhead : count - 1);
  }
  // Row k, made of what at() finds at an offset of rows.
  template <class At>
  DYNDEPLOY_INLINE auto read(int k, const At& at) const {
    if constexpr (V::kInputsPerRow == 2) {
      if (rows) {
        const int first = rows[2 * k], second = rows[2 * k + 1];
        if (first % 2 || second != first + 1) {
          const auto low = at(first / 2 * row_stride);
          return second < 0 ? V::pair_up(low, first % 2, decltype(low){}, false)
                            : V::pair_up(low, first % 2, at(second / 2 * row_stride), second % 2);
        }
      }
    }
    return at(row(k));
  }
};

// A vector of packed weights and the lanes of the result that it fills.
template <class V>
struct LaneSource {
  const float* base;
  typename V::Lanes lanes;
  typename V::Mask mask;
};

template <class V, int N>
void merge_rows(const RowCopy<V>& given, const LaneSource<V>* given_sources, int sources) {
  // Copies, because the compiler cannot know that the rows written do not overlap the description.
  const RowCopy<V> copy = given;
  constexpr int kKnown = N ? N : 1;
  LaneSource<V> known[kKnown];
  for (int i = 0; i < kKnown; ++i) known[i] = given_sources[i];
  float* to = copy.out;
  for (int k = 0; k < copy.count; ++k, to += copy.out_stride) {
    const std::ptrdiff_t later = copy.later(k);
    const auto merged = [&](std::ptrdiff_t row) __attribute__((always_inline)) {
      typename V::Reg x = V::zero();
      if (N) {
        DYNDEPLOY_UNROLL
        for (int i = 0; i < kKnown; ++i) {
          __builtin_prefetch(known[i].base + later);
          x = V::merge(x, V::load(known[i].base + row), known[i].lanes, known[i].mask);
        }
      } else {
        for (int i = 0; i < sources; ++i) {
          __builtin_prefetch(given_sources[i].base + later);
          x = V::merge(x, V::load(given_sources[i].base + row), given_sources[i].lanes,
                       given_sources[i].mask);
        }
      }
      return x;
    };
    V::store(to, copy.read(k, merged));
  }
}

// Columns that come in pairs: kWidth / 2 streams of pairs are turned into rows.
template <class V>
void copy_pairs(const SelectedCopy& s) {
  constexpr int kPairs = V::kWidth / 2;
  constexpr int kAhead = 512;  // floats
  for (int begin = s.column_begin; begin < s.column_end; begin += V::kWidth) {
    const float* from[kPairs];
    for (int i = 0; i < kPairs; ++i) {
      // Lanes beyond the last column hold anything.
      const int column = begin + 2 * i < s.column_end ? begin + 2 * i : begin;
      from[i] =
          s.selection.pairs + s.selection.columns[column] / 2 * s.selection.pair_stride + 2 * s.row_begin;
    }
    float* to = s.out + (begin - s.column_begin);
    const int rows = s.row_end - s.row_begin;
    int k = 0;
    for (; k + kPairs <= rows; k += kPairs) {
      typename V::Reg r[kPairs];
      DYNDEPLOY_UNROLL
      for (int i = 0; i < kPairs; ++i) {
        __builtin_prefetch(from[i] + 2 * k + kAhead);
        r[i] = V::load(from[i] + 2 * k);
      }
      V::transpose_pairs(r);
      DYNDEPLOY_UNROLL
      for (int i = 0; i < kPairs; ++i, to += s.out_stride) V::store(to, r[i]);
    }
    for (; k < rows; ++k, to += s.out_stride) {
      for (int i = 0; i < V::kWidth; ++i) to[i] = from[i / 2][2 * k + i % 2];
    }
  }
}

template <class V>
void copy_selected(const SelectedCopy& s) {
  if (s.selection.pairs) return copy_pairs<V>(s);
  constexpr int PW = V::kPanelVectors * V::kWidth;
  const std::int32_t* const columns = s.selection.columns;
  RowCopy<V> copy;
  copy.rows = s.selection.rows ? s.selection.rows + s.row_begin * V::kInputsPerRow : nullptr;
  copy.row_stride = s.b.row_stride;
  copy.count = s.row_end - s.row_begin;
  copy.out_stride = s.out_stride;
  const float* const base = s.b.base + (copy.rows ? 0 : s.row_begin * s.b.row_stride);
  for (int begin = s.column_begin; begin < s.column_end; begin += V::kWidth) {
    const int lanes = s.column_end - begin < V::kWidth ? s.column_end - begin : V::kWidth;
    copy.out = s.out + (begin - s.column_begin);
    const auto source = [=](int i) {
      const int column = columns ? columns[begin + i] : begin + i;
      return base + column / PW * s.b.panel_stride + column % PW;
    };
    if constexpr (V::kHasMerge) {
      LaneSource<V> sources[V::kWidth];
      int count = 0;
      for (int i = 0; i < lanes;) {
        int from[V::kWidth] = {};
        const int lane = static_cast<int>((columns ? columns[begin + i] : begin + i) % V::kWidth);
        const float* const vector = source(i) - lane;
        unsigned mask = 0;
        for (; i < lanes && source(i) >= vector && source(i) < vector + V::kWidth; ++i) {
          from[i] = static_cast<int>(source(i) - vector);
          mask |= 1u << i;
        }
        sources[count++] = LaneSource<V>{vector, V::lanes(from), static_cast<typename V::Mask>(mask)};
      }
      switch (count) {
        case 1:
          merge_rows<V, 1>(copy, sources, count);
          break;
        case 2:
          merge_rows<V, 2>(copy, sources, count);
          break;
        case 3:
          merge_rows<V, 3>(copy, sources, count);
          break;
        case 4:
          merge_rows<V, 4>(copy, sources, count);
          break;
        case 5:
          merge_rows<V, 5>(copy, sources, count);
          break;
        default:
          merge_rows<V, 0>(copy, sources, count);
      }
    } else {
      const float* from[V::kWidth];
      for (int i = 0; i < lanes; ++i) from[i] = source(i);
      float* to = copy.out;
      for (int k = 0; k < copy.count; ++k, to += copy.out_stride) {
        const std::ptrdiff_t later = copy.later(k);
        __builtin_prefetch(from[0] + later);
        __builtin_prefetch(from[lanes - 1] + later);
        for (int i = 0; i < lanes; ++i)
          to[i] = copy.read(k, [&](std::ptrdiff_t row) { return from[i][row]; });
      }
    }
  }
}

// Maskers go from the last pixel to the first: of a map larger than the caches, what was written last is
// still there, and what they read last is what the block behind them reads first.
template <class V>
float pooled_dot(const PooledDot& d) {
  constexpr int U = 4;
  using Reg = typename V::Reg;
  Reg sum[U];
  for (int u = 0; u < U; ++u) sum[u] = V::zero();
  float rest = 0.0f;
  for (int y = d.rows - 1; y >= 0; --y) {
    const float* pixel = d.x + y * d.row_stride + (d.columns - 1) * d.pixel_stride;
    for (int x = 0; x < d.columns; ++x, pixel -= d.pixel_stride) {
      int c = 0;
      for (; c + U * V::kWidth <= d.channels; c += U * V::kWidth) {
        DYNDEPLOY_UNROLL
        for (int u = 0; u < U; ++u)
          sum[u] = V::fma(V::load(pixel + c + u * V::kWidth), V::load(d.weight + c + u * V::kWidth), sum[u]);
      }
      for (; c + V::kWidth <= d.channels; c += V::kWidth)
        sum[0] = V::fma(V::load(pixel + c), V::load(d.weight + c), sum[0]);
      for (; c < d.channels; ++c) rest += pixel[c] * d.weight[c];
    }
  }
  return V::sum(V::add(V::add(sum[0], sum[1]), V::add(sum[2], sum[3]))) + rest;
}

template <class V>
float dot(const float* a, const float* b, int count) {
  PooledDot d;
  d.x = a;
  d.weight = b;
  d.rows = d.columns = 1;
  d.channels = count;
  return pooled_dot<V>(d);
}

template <class V>
void column_sums(const ColumnSums& s) {
  // Pixel by pixel; four at a time, so that the sums are touched a quarter as often.
  float* const sums = s.sums;
  const int channels = s.channels;
  for (int c = 0; c < channels; ++c) sums[c] = 0.0f;
  int p = s.pixels;
  for (; p >= 4; p -= 4) {
    const float* p0 = s.x + (p - 4) * s.stride;
    const float *p1 = p0 + s.stride, *p2 = p1 + s.stride, *p3 = p2 + s.stride;
    int c = 0;
    for (; c + V::kWidth <= channels; c += V::kWidth) {
      const auto low = V::add(V::load(p0 + c), V::load(p1 + c));
      const auto high = V::add(V::load(p2 + c), V::load(p3 + c));
      V::store(sums + c, V::add(V::load(sums + c), V::add(low, high)));
    }
    for (; c < channels; ++c) sums[c] += (p0[c] + p1[c]) + (p2[c] + p3[c]);
  }
  while (--p >= 0) {
    const float* pixel = s.x + p * s.stride;
    for (int c = 0; c < channels; ++c) sums[c] += pixel[c];
  }
}

// The pixels' bytes are added up first: whole numbers below 2^24 are exact in float.
template <class V>
float byte_dot(const BytePooledDot& d) {
  constexpr int U = 4;
  typename V::Reg sum[U];
  for (int u = 0; u < U; ++u) sum[u] = V::zero();
  const auto pooled = [&](int c) __attribute__((always_inline)) {
    const std::uint8_t* row = d.x + c;
    typename V::Reg bytes = V::zero();
    for (int y = 0; y < d.rows; ++y, row += d.row_stride) {
      const std::uint8_t* pixel = row;
      for (int x = 0; x < d.columns; ++x, pixel += d.pixel_stride)
        bytes = V::add(bytes, V::load_bytes(pixel));
    }
    return bytes;
  };
  int c = 0;
  for (; c + U * V::kWidth <= d.channels; c += U * V::kWidth) {
    DYNDEPLOY_UNROLL
    for (int u = 0; u < U; ++u)
      sum[u] = V::fma(pooled(c + u * V::kWidth), V::load(d.weight + c + u * V::kWidth), sum[u]);
  }
  for (; c + V::kWidth <= d.channels; c += V::kWidth)
    sum[0] = V::fma(pooled(c), V::load(d.weight + c), sum[0]);
  float rest = 0.0f;
  for (; c < d.channels; ++c) {
    int bytes = 0;
    for (int y = 0; y < d.rows; ++y) {
      for (int x = 0; x < d.columns; ++x) bytes += d.x[y * d.row_stride + x * d.pixel_stride + c];
    }
    rest += static_cast<float>(bytes) * d.weight[c];
  }
  return V::sum(V::add(V::add(sum[0], sum[1]), V::add(sum[2], sum[3]))) + rest;
}

constexpr int kSummedBytes = 64;  // channels whose sums stay in registers

// `count` pixels, at most 256, of kSummedBytes channels: in 16 bits nothing overflows.
struct SixteenBits {
  std::uint16_t sums[kSummedBytes];

  DYNDEPLOY_INLINE void add(const std::uint8_t* pixel, std::ptrdiff_t stride, int count) {
    int p = 0;
    for (; p + 4 <= count; p += 4, pixel += 4 * stride) {
      const std::uint8_t *p1 = pixel + stride, *p2 = p1 + stride, *p3 = p2 + stride;
      for (int c = 0; c < kSummedBytes; ++c) {
        const auto low = static_cast<std::uint16_t>(pixel[c] + p1[c]);
        const auto high = static_cast<std::uint16_t>(p2[c] + p3[c]);
        sums[c] = static_cast<std::uint16_t>(sums[c] + static_cast<std::uint16_t>(low + high));
      }
    }
    for (; p < count; ++p, pixel += stride) {
      for (int c = 0; c < kSummedBytes; ++c) sums[c] = static_cast<std::uint16_t>(sums[c] + pixel[c]);
    }
  }
};

// Plain loops of known length, which compilers turn into vectors of any instruction set.
inline void byte_sums(const ByteSums& s) {
  constexpr int kMost = 256;  // pixels: 256 * 255 < 2^16
  int c0 = 0;
  for (; c0 + kSummedBytes <= s.channels; c0 += kSummedBytes) {
    std::int32_t total[kSummedBytes] = {};
    SixteenBits part{};
    int summed = 0;
    const auto flush = [&] {
      for (int c = 0; c < kSummedBytes; ++c) total[c] += part.sums[c];
      part = SixteenBits{};
      summed = 0;
    };
    for (int y = 0; y < s.rows; ++y) {
      const std::uint8_t* row = s.x + y * s.row_stride + c0;
      for (int x = 0; x < s.columns;) {
        if (summed == kMost) flush();
        const int left = kMost - summed;
        const int count = s.columns - x < left ? s.columns - x : left;
        part.add(row + x * s.pixel_stride, s.pixel_stride, count);
        summed += count;
        x += count;
      }
    }
    flush();
    for (int c = 0; c < kSummedBytes; ++c) s.sums[c0 + c] = static_cast<float>(total[c]);
  }
  if (c0 == s.channels) return;
  std::int32_t total[kSummedBytes] = {};
  for (int y = 0; y < s.rows; ++y) {
    const std::uint8_t* pixel = s.x + y * s.row_stride + c0;
    for (int x = 0; x < s.columns; ++x, pixel += s.pixel_stride) {
      for (int c = 0; c < s.channels - c0; ++c) total[c] += pixel[c];
    }
  }
  for (int c = 0; c < s.channels - c0; ++c) s.sums[c0 + c] = static_cast<float>(total[c]);
}

template <class V>
void scale_rows(const RowScaling& s) {
  const float* const factors = s.factors;
  const int channels = s.channels;
  for (int r = s.row_begin; r < s.row_end; ++r) {
    float* const x = s.x + static_cast<std::ptrdiff_t>(s.index ? s.index[r] : r) * s.stride;
    int c = 0;
    for (; c + V::kWidth <= channels; c += V::kWidth)
      V::store(x + c, V::mul(V::load(x + c), V::load(factors + c)));
    for (; c < channels; ++c) x[c] *= factors[c];
  }
}

template <class V>
void add_relu(const float* x, const float* bias, int count, float* y) {
  int i = 0;
  for (; i + V::kWidth <= count; i += V::kWidth) {
    typename V::Reg v = V::load(x + i);
    if (bias) v = V::add(v, V::load(bias + i));
    V::store(y + i, V::relu(v));
  }
  for (; i < count; ++i) {
    const float v = bias ? x[i] + bias[i] : x[i];
    y[i] = v < 0.0f ? 0.0f : v;
  }
}

}  // namespace
}  // namespace dyndeploy::cpu
