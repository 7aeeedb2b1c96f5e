// Sums of samples of maps, for every instruction set.
#pragma once

#include "sampling_kernels.h"
#include "simd/unroll.h"

namespace dyndeploy::cpu {
namespace {

constexpr int kTaps = 4;
constexpr int kSamples = 64;  // of a head that are looked up at a time

// The maps that samples [first, first + count) of a head are read from: a sample's own numbers each, so that
// find_taps() is one loop.
struct SampledMaps {
  std::int32_t widths[kSamples], heights[kSamples], starts[kSamples];
};
inline void fill_maps(const Sampling& s, int first, int count, SampledMaps& maps) {
  std::int32_t start = 0;
  for (int level = 0, i = 0; level < s.levels; ++level) {
    const std::int32_t height = s.sizes[2 * level], width = s.sizes[2 * level + 1];
    for (int point = 0; point < s.points; ++point, ++i) {
      if (i < first || i >= first + count) continue;
      maps.widths[i - first] = width;
      maps.heights[i - first] = height;
      maps.starts[i - first] = start;
    }
    start += height * width;
  }
}

// The cells of `count` samples, and their shares; 0 outside the map. Written without branches, so that a
// compiler makes vectors of it.
DYNDEPLOY_INLINE void find_taps(const float* locations, const float* weights, const SampledMaps& maps,
                                int count, std::int32_t* cells, float* shares) {
  for (int i = 0; i < count; ++i) {
    const std::int32_t width = maps.widths[i], height = maps.heights[i], start = maps.starts[i];
    const float columns = static_cast<float>(width), rows = static_cast<float>(height);
    const float x = locations[2 * i] * columns - 0.5f, y = locations[2 * i + 1] * rows - 0.5f;
    // False where a coordinate is no number, too.
    const bool inside = (x > -1.0f) & (x < columns) & (y > -1.0f) & (y < rows);
    const float column = inside ? x : 0.0f, row = inside ? y : 0.0f, weight = inside ? weights[i] : 0.0f;
    // Rounded down: neither is below -1.
    const std::int32_t left = static_cast<std::int32_t>(column + 1.0f) - 1;
    const std::int32_t top = static_cast<std::int32_t>(row + 1.0f) - 1;
    const float across = column - static_cast<float>(left), down = row - static_cast<float>(top);
    const std::int32_t right = left + 1, bottom = top + 1;
    const float of_left = left >= 0 ? 1.0f - across : 0.0f, of_right = right < width ? across : 0.0f;
    const float of_top = top >= 0 ? (1.0f - down) * weight : 0.0f;
    const float of_bottom = bottom < height ? down * weight : 0.0f;
    const std::int32_t x0 = left >= 0 ? left : 0, x1 = right < width ? right : width - 1;
    const std::int32_t upper = start + (top >= 0 ? top : 0) * width;
    const std::int32_t lower = start + (bottom < height ? bottom : height - 1) * width;
    cells[i] = upper + x0;
    cells[i + kSamples] = upper + x1;
    cells[i + 2 * kSamples] = lower + x0;
    cells[i + 3 * kSamples] = lower + x1;
    shares[i] = of_top * of_left;
    shares[i + kSamples] = of_top * of_right;
    shares[i + 2 * kSamples] = of_bottom * of_left;
    shares[i + 3 * kSamples] = of_bottom * of_right;
  }
}

// kVectors vectors of a head's channels, two sums of each, which hide a product's latency; `left` numbers of
// the last vector.
template <class V, int kVectors, bool kWhole>
DYNDEPLOY_INLINE void sum_taps(const float* value, std::ptrdiff_t row, const std::int32_t* cells,
                               const float* shares, int count, int left, bool adds, float* out) {
  typename V::Reg sums[2][kVectors];
  const auto load = [&](const float* from) { return kWhole ? V::load(from) : V::load_first(from, left); };
  DYNDEPLOY_UNROLL
  for (int v = 0; v < kVectors; ++v) {
    sums[0][v] = adds ? load(out + v * V::kWidth) : V::zero();
    sums[1][v] = V::zero();
  }
  for (int i = 0; i < count; ++i) {
    const std::int32_t* const cell = cells + i;
    const float* const share = shares + i;
    DYNDEPLOY_UNROLL
    for (int k = 0; k < kTaps; ++k) {
      const float* const from = value + cell[k * kSamples] * row;
      const typename V::Reg factor = V::broadcast(share + k * kSamples);
      DYNDEPLOY_UNROLL
      for (int v = 0; v < kVectors; ++v)
        sums[k % 2][v] = V::fma(factor, load(from + v * V::kWidth), sums[k % 2][v]);
    }
  }
  DYNDEPLOY_UNROLL
  for (int v = 0; v < kVectors; ++v) {
    const typename V::Reg sum = V::add(sums[0][v], sums[1][v]);
    if (kWhole)
      V::store(out + v * V::kWidth, sum);
    else
      V::store_first(out + v * V::kWidth, sum, left);
  }
}

// The queries [begin, end) of all images.
template <class V>
void sample_rows(const Sampling& given, int begin, int end) {
  const Sampling s = given;  // what is written does not overlap the description
  std::int32_t cells[kTaps * kSamples];
  float shares[kTaps * kSamples];
  SampledMaps maps;
  const int each = s.levels * s.points;
  const std::ptrdiff_t row = static_cast<std::ptrdiff_t>(s.heads) * s.channels;
  if (each <= kSamples) fill_maps(s, 0, each, maps);
  for (int query = begin; query < end; ++query) {
    const float* const image = s.value + query / s.queries * row * s.cells;
    for (int head = 0; head < s.heads; ++head) {
      const std::ptrdiff_t pair = static_cast<std::ptrdiff_t>(query) * s.heads + head;
      const float* const value = image + head * s.channels;
      float* const out = s.out + pair * s.channels;
      for (int first = 0; first < each; first += kSamples) {
        const int count = each - first < kSamples ? each - first : kSamples;
        if (each > kSamples) fill_maps(s, first, count, maps);
        find_taps(s.locations + 2 * (pair * each + first), s.weights + pair * each + first, maps, count,
                  cells, shares);
        int c = 0;
        for (; c + 4 * V::kWidth <= s.channels; c += 4 * V::kWidth)
          sum_taps<V, 4, true>(value + c, row, cells, shares, count, 0, first > 0, out + c);
        for (; c + 2 * V::kWidth <= s.channels; c += 2 * V::kWidth)
          sum_taps<V, 2, true>(value + c, row, cells, shares, count, 0, first > 0, out + c);
        for (; c + V::kWidth <= s.channels; c += V::kWidth)
          sum_taps<V, 1, true>(value + c, row, cells, shares, count, 0, first > 0, out + c);
        if (c < s.channels)
          sum_taps<V, 1, false>(value + c, row, cells, shares, count, s.channels - c, first > 0, out + c);
      }
    }
  }
}

}  // namespace
}  // namespace dyndeploy::cpu
