// Reading boxes from a map, for every instruction set.
#pragma once

#include "regions_kernels.h"
#include "simd/unroll.h"

namespace dyndeploy::cpu {
namespace {

// kRows rows of the result, before their columns are summed: a vector of the box's columns from x on.
// Independent sums hide the latency of one.
template <class V, int kRows>
DYNDEPLOY_INLINE void region_rows(const Regions& r, const Region& region, const float* cells, int row,
                                  int x) {
  typename V::Reg sums[kRows];
  const float* from[kRows];
  const float* weights[kRows];
  DYNDEPLOY_UNROLL
  for (int i = 0; i < kRows; ++i) {
    sums[i] = V::zero();
    from[i] = cells + region.first[row + i] * region.width + x;
    weights[i] = region.row_weights + (row + i) * region.rows;
  }
  const int left = region.columns - x;
  if (left >= V::kWidth) {
    std::ptrdiff_t at = 0;
    for (int k = 0; k < region.rows; ++k, at += region.width) {
      DYNDEPLOY_UNROLL
      for (int i = 0; i < kRows; ++i)
        sums[i] = V::fma(V::broadcast(weights[i] + k), V::load(from[i] + at), sums[i]);
    }
  } else {
    std::ptrdiff_t at = 0;
    for (int k = 0; k < region.rows; ++k, at += region.width) {
      DYNDEPLOY_UNROLL
      for (int i = 0; i < kRows; ++i)
        sums[i] = V::fma(V::broadcast(weights[i] + k), V::load_first(from[i] + at, left), sums[i]);
    }
  }
  DYNDEPLOY_UNROLL
  for (int i = 0; i < kRows; ++i) V::store(r.scratch + (row + i) * r.scratch_stride + x, sums[i]);
}

// kRows rows of the result, a vector of its columns from column on; `end` is where the caller's numbers end.
template <class V, int kRows>
DYNDEPLOY_INLINE void region_columns(const Regions& r, const Region& region, int row, int column, float* out,
                                     const float* end) {
  typename V::Reg sums[kRows];
  DYNDEPLOY_UNROLL
  for (int i = 0; i < kRows; ++i) sums[i] = V::zero();
  const int padded = (r.size + kRegionLanes - 1) / kRegionLanes * kRegionLanes;
  const float* from = r.scratch + row * r.scratch_stride;
  const float* weights = region.column_weights + column;
  for (int x = 0; x < region.columns; ++x, weights += padded) {
    const typename V::Reg w = V::load(weights);
    DYNDEPLOY_UNROLL
    for (int i = 0; i < kRows; ++i)
      sums[i] = V::fma(V::broadcast(from + i * r.scratch_stride + x), w, sums[i]);
  }
  const int left = r.size - column;
  const int lanes = left < V::kWidth ? left : V::kWidth;
  float* to = out + row * r.size + column;
  // Where one vector holds a row, what is written beyond it is the next one's, which follows. Stores of some
  // lanes are slow.
  const bool whole = r.size <= V::kWidth && end - to >= kRows * r.size + V::kWidth;
  DYNDEPLOY_UNROLL
  for (int i = 0; i < kRows; ++i)
    whole ? V::store(to + i * r.size, sums[i]) : V::store_first(to + i * r.size, sums[i], lanes);
}

constexpr int kRegionRows = 7;  // divides the usual sizes

template <class V>
DYNDEPLOY_INLINE void region_result(const Regions& r, const Region& region, float* out, const float* end) {
  for (int column = 0; column < r.size; column += V::kWidth) {
    int row = 0;
    for (; row + kRegionRows <= r.size; row += kRegionRows)
      region_columns<V, kRegionRows>(r, region, row, column, out, end);
    for (; row < r.size; ++row) region_columns<V, 1>(r, region, row, column, out, end);
  }
}

template <class V>
void read_regions(const Regions& given) {
  const Regions r =
      given;  // what is written does not overlap the description, which the compiler cannot know
  using Half = typename V::Half;
  const std::ptrdiff_t square = static_cast<std::ptrdiff_t>(r.size) * r.size;
  for (int n = 0; n < r.count; ++n) {
    const Region region = r.regions[n];
    float* const result = r.out + static_cast<std::ptrdiff_t>(n) * r.channels * square;
    const float* const end = result + r.channel_end * square;
    for (int c = r.channel_begin; c < r.channel_end; ++c) {
      const float* const cells = region.cells + c * region.plane;
      for (int x = 0; x < region.columns; x += V::kWidth) {
        int row = 0;
        for (; row + kRegionRows <= r.size; row += kRegionRows)
          region_rows<V, kRegionRows>(r, region, cells, row, x);
        for (; row < r.size; ++row) region_rows<V, 1>(r, region, cells, row, x);
      }
      if (r.size <= Half::kWidth)
        region_result<Half>(r, region, result + c * square, end);
      else
        region_result<V>(r, region, result + c * square, end);
    }
  }
}

}  // namespace
}  // namespace dyndeploy::cpu
