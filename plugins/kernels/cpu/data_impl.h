// Everything around the matrix product for one vector type: packing weights, gathering columns, reductions.
// The same rules as in gemm_impl.h hold.
#pragma once

#include "gemm.h"
#include "simd/unroll.h"

namespace dyndeploy::cpu {
namespace {

template <class V>
void pack(const PackSource& source, int panel_begin, int panel_end, float* out) {
  constexpr int PW = V::kPanelVectors * V::kWidth;
  constexpr int kInputs = 16;  // one cache line of each weight row at a time
  const std::ptrdiff_t depth = static_cast<std::ptrdiff_t>(source.taps) * source.inputs;
  for (int p = panel_begin; p < panel_end; ++p) {
    float* panel = out + p * depth * PW;
    const int left = source.outputs - p * PW;
    const int columns = left < PW ? left : PW;
    if (columns < PW) {
      for (std::ptrdiff_t i = 0; i < depth * PW; ++i) panel[i] = 0.0f;
    }
    const float* from = source.weights + static_cast<std::ptrdiff_t>(p) * PW * source.out_stride;
    for (int c0 = 0; c0 < source.inputs; c0 += kInputs) {
      const int c1 = c0 + kInputs < source.inputs ? c0 + kInputs : source.inputs;
      for (int n = 0; n < columns; ++n) {
        const float* row = from + n * source.out_stride;
        for (int t = 0; t < source.taps; ++t) {
          float* to = panel + static_cast<std::ptrdiff_t>(t) * source.inputs * PW + n;
          for (int c = c0; c < c1; ++c)
            to[static_cast<std::ptrdiff_t>(c) * PW] = row[c * source.in_stride + t];
        }
      }
    }
  }
}

template <class V>
void gather_columns(const ColumnGather& g) {
  constexpr int PW = V::kPanelVectors * V::kWidth;
  constexpr std::uint64_t kAll = PW == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << PW % 64) - 1;
  int column[64] = {};
  int total = 0;
  for (int n = 0; n < PW; ++n) {
    if (g.active >> n & 1u) column[total++] = n;
  }
  // Copies, because the compiler cannot know that the rows written do not overlap the description.
  const float* const panel = g.panel;
  const std::int32_t* const rows = g.rows;
  const int count = g.count;
  const std::ptrdiff_t stride = g.out_stride;
  const auto row = [=](int k) { return panel + static_cast<std::ptrdiff_t>(rows ? rows[k] : k) * PW; };
  // Skipped rows defeat the hardware's prefetching.
  constexpr int kAhead = 48;
  const auto fetch = [=](int k) {
    const float* next = row(k + kAhead < count ? k + kAhead : count - 1);
    for (int i = 0; i < PW; i += 16) __builtin_prefetch(next + i);
  };
  float* to = g.out;
  if (g.active == kAll) {
    for (int k = 0; k < count; ++k, to += stride) {
      const float* from = row(k);
      fetch(k);
      DYNDEPLOY_UNROLL
      for (int v = 0; v < V::kPanelVectors; ++v) V::store(to + v * V::kWidth, V::load(from + v * V::kWidth));
    }
    return;
  }
  if constexpr (V::kHasSelect) {
    static_assert(V::kPanelVectors == 2, "a panel is one pair of vectors");
    const auto first = V::lanes(column), second = V::lanes(column + V::kWidth);
    const bool two = total > V::kWidth;
    for (int k = 0; k < count; ++k, to += stride) {
      const float* from = row(k);
      fetch(k);
      const auto low = V::load(from), high = V::load(from + V::kWidth);
      // The lanes beyond the last column land where the next panel's columns will.
      V::store(to, V::select(low, high, first));
      if (two) V::store(to + V::kWidth, V::select(low, high, second));
    }
  } else {
    for (int k = 0; k < count; ++k, to += stride) {
      const float* from = row(k);
      fetch(k);
      for (int i = 0; i < total; ++i) to[i] = from[column[i]];
    }
  }
}

template <class V>
float pooled_dot(const PooledDot& d) {
  constexpr int U = 4;
  using Reg = typename V::Reg;
  Reg sum[U];
  for (int u = 0; u < U; ++u) sum[u] = V::zero();
  float rest = 0.0f;
  for (int y = 0; y < d.rows; ++y) {
    const float* pixel = d.x + y * d.row_stride;
    for (int x = 0; x < d.columns; ++x, pixel += d.pixel_stride) {
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
  // Pixel by pixel, as they lie in memory; four at a time, so that the sums are touched a quarter as often.
  float* const sums = s.sums;
  const int channels = s.channels;
  for (int c = 0; c < channels; ++c) sums[c] = 0.0f;
  int p = 0;
  for (; p + 4 <= s.pixels; p += 4) {
    const float* p0 = s.x + p * s.stride;
    const float *p1 = p0 + s.stride, *p2 = p1 + s.stride, *p3 = p2 + s.stride;
    int c = 0;
    for (; c + V::kWidth <= channels; c += V::kWidth) {
      const auto low = V::add(V::load(p0 + c), V::load(p1 + c));
      const auto high = V::add(V::load(p2 + c), V::load(p3 + c));
      V::store(sums + c, V::add(V::load(sums + c), V::add(low, high)));
    }
    for (; c < channels; ++c) sums[c] += (p0[c] + p1[c]) + (p2[c] + p3[c]);
  }
  for (; p < s.pixels; ++p) {
    const float* pixel = s.x + p * s.stride;
    for (int c = 0; c < channels; ++c) sums[c] += pixel[c];
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
