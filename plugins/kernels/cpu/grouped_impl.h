// Grouped 3x3 convolutions with narrow groups for one vector type; the same rules as in gemm_impl.h hold.
#pragma once

#include "gemm_impl.h"

namespace dyndeploy::cpu {
namespace {

constexpr int kGroupedTaps = 9;
// Rows that find their pixels together; the address of each of a tile stays in a general register.
constexpr int kGroupedRows = 10;

// Rows of a tile whose sums, weights and activations fill the registers.
template <class V, int NV>
constexpr int grouped_rows() {
  // Where one load brings four activations of a row, they stay beside the sums.
  const int rows = V::kHasLanes ? (V::kRegisters - 1) / (NV + 1) : (V::kRegisters - 1 - NV) / NV;
  return rows < 1 ? 1 : rows < kGroupedRows ? rows : kGroupedRows;
}

// pixels: of the tile's first row, for each tap; those of the next tap come `pixel_rows` later
template <class V, int R, int NV, bool Listed>
DYNDEPLOY_NOINLINE void grouped_tile(const Grouped& g, const GroupPart& part, const float* const* pixels,
                                     int pixel_rows, float* out) {
  using Reg = typename V::Reg;
  constexpr std::ptrdiff_t kStride = NV * V::kWidth;
  Reg c[R][NV];
  DYNDEPLOY_UNROLL
  for (int r = 0; r < R; ++r) {
    DYNDEPLOY_UNROLL
    for (int v = 0; v < NV; ++v) c[r][v] = V::zero();
  }
  const float* b = part.weights;
  const std::int32_t* listed = part.rows;
  const std::ptrdiff_t inputs = part.inputs;
  for (int t = 0; t < kGroupedTaps; ++t, pixels += pixel_rows) {
    const float* a[R];
    DYNDEPLOY_UNROLL
    for (int r = 0; r < R; ++r) a[r] = pixels[r] + part.input;
    const auto next_row = [&]() __attribute__((always_inline)) {
      const float* const weights = Listed ? part.weights + *listed++ * kStride : b;
      if constexpr (!Listed) b += kStride;
      return weights;
    };
    std::ptrdiff_t k = 0;
    if constexpr (V::kHasLanes) {
      for (; k + 4 <= inputs; k += 4) {
        Reg x[R];
        DYNDEPLOY_UNROLL
        for (int r = 0; r < R; ++r) x[r] = V::load(a[r] + k);
        const auto multiply = [&](auto lane) __attribute__((always_inline)) {
          const float* const weights = next_row();
          multiply_lane<V, decltype(lane)::value>(
              x, [=](int v) __attribute__((always_inline)) { return V::load(weights + v * V::kWidth); }, c);
        };
        multiply(Width<0>{});
        multiply(Width<1>{});
        multiply(Width<2>{});
        multiply(Width<3>{});
      }
    }
    DYNDEPLOY_UNROLL_BY_4
    for (; k < inputs; ++k) {
      const float* const weights = next_row();
      Reg w[NV];
      DYNDEPLOY_UNROLL
      for (int v = 0; v < NV; ++v) w[v] = V::load(weights + v * V::kWidth);
      DYNDEPLOY_UNROLL
      for (int r = 0; r < R; ++r) {
        const Reg x = V::broadcast(a[r] + k);
        DYNDEPLOY_UNROLL
        for (int v = 0; v < NV; ++v) c[r][v] = V::fma(x, w[v], c[r][v]);
      }
    }
  }
  DYNDEPLOY_UNROLL
  for (int r = 0; r < R; ++r, out += g.stride) {
    const std::int32_t* lanes = part.lanes;
    float* to = out;
    DYNDEPLOY_UNROLL
    for (int v = 0; v < NV; ++v) {
      const Reg x = V::relu(V::add(c[r][v], V::load(part.bias + v * V::kWidth)));
      if constexpr (Listed) {
        V::store(to, V::permute(x, lanes + 1));
        to += *lanes;
        lanes += 1 + V::kWidth;
      } else {
        V::store(to + v * V::kWidth, x);
      }
    }
  }
}

template <class V, int NV, int R>
inline void run_grouped_rows(int rows, const Grouped& g, const GroupPart& part, const float* const* pixels,
                             int pixel_rows, float* out) {
  if constexpr (R > 0) {
    if (rows != R) return run_grouped_rows<V, NV, R - 1>(rows, g, part, pixels, pixel_rows, out);
    part.rows ? grouped_tile<V, R, NV, true>(g, part, pixels, pixel_rows, out)
              : grouped_tile<V, R, NV, false>(g, part, pixels, pixel_rows, out);
  }
}

// All rows that found their pixels, in tiles of about equal height.
template <class V, int NV = 1>
inline void grouped_part(const Grouped& g, const GroupPart& part, const float* const* pixels, int pixel_rows,
                         float* out) {
  if constexpr ((NV - 1) * V::kWidth < kMaxGroupOutputs) {
    if (part.vectors > NV) return grouped_part<V, NV + 1>(g, part, pixels, pixel_rows, out);
    constexpr int MR = grouped_rows<V, NV>();
    const int tiles = ceil_div(pixel_rows, MR);
    for (int t = 0, begin = 0; t < tiles; ++t) {
      const int end = pixel_rows * (t + 1) / tiles;
      run_grouped_rows<V, NV, MR>(end - begin, g, part, pixels + begin, pixel_rows, out + begin * g.stride);
      begin = end;
    }
  }
}

template <class V>
void grouped_by_rows(const Grouped& g, int row_begin, int row_end, const float* zeros) {
  const float* pixels[kGroupedTaps * kGroupedRows];
  const int rows = row_end - row_begin;
  const int tiles = ceil_div(rows, kGroupedRows);
  for (int t = 0; t < tiles; ++t) {
    const int begin = row_begin + static_cast<int>(static_cast<std::int64_t>(rows) * t / tiles);
    const int end = row_begin + static_cast<int>(static_cast<std::int64_t>(rows) * (t + 1) / tiles);
    const int n = end - begin;
    for (int r = 0; r < n; ++r) {
      const float* const pixel = pixel_of(g.a, begin + r);
      const unsigned valid = g.a.valid ? g.a.valid[begin + r] : ~0u;
      for (int s = 0; s < kGroupedTaps; ++s) {
        pixels[s * n + r] = valid >> s & 1u ? pixel + g.a.tap_offset[s] : zeros;
      }
    }
    float* const out = g.out + static_cast<std::ptrdiff_t>(begin - g.first) * g.stride;
    for (int i = 0; i < g.count; ++i) grouped_part<V>(g, g.parts[i], pixels, n, out + g.parts[i].output);
  }
}

template <class V>
int grouped_vector(int outputs) {
  // Two half vectors take as long as a whole one.
  using Half = typename V::Half;
  return outputs <= Half::kWidth ? Half::kWidth : V::kWidth;
}

template <class V>
void grouped(const Grouped& g, int row_begin, int row_end, const float* zeros) {
  if (row_begin >= row_end) return;
  if (grouped_vector<V>(g.outputs) < V::kWidth)
    grouped_by_rows<typename V::Half>(g, row_begin, row_end, zeros);
  else
    grouped_by_rows<V>(g, row_begin, row_end, zeros);
}

// Moves the outputs that are left of each row together: those of a vector at a time, each over what the one
// before wrote beyond its own.
template <class V>
void copy_group_by_vectors(const GroupCopy& c) {
  constexpr int kVectors = kMaxGroupOutputs / V::kWidth;
  const GroupPart& from = *c.from;
  const std::ptrdiff_t from_stride = static_cast<std::ptrdiff_t>(from.vectors) * V::kWidth;
  const std::ptrdiff_t stride = static_cast<std::ptrdiff_t>(ceil_div(c.count, V::kWidth)) * V::kWidth;
  struct Source {
    int offset;
    int count;
    std::int32_t lanes[V::kWidth];
  };
  Source sources[kVectors];
  int used = 0;
  for (int v = 0, i = 0; v < from.vectors; ++v) {
    Source& source = sources[used];
    source = {v * V::kWidth, 0, {}};
    const int first = from.input + source.offset;
    for (; i < c.count && c.channels[i] < first + V::kWidth; ++i)
      source.lanes[source.count++] = c.channels[i] - first;
    used += source.count > 0;
  }
  float* out = c.out;
  const auto copy = [&](const float* row) __attribute__((always_inline)) {
    float* to = out;
    // Outputs that are no channel's are computed as well.
    V::store(out + stride - V::kWidth, V::zero());
    for (int s = 0; s < used; ++s) {
      V::store(to, V::permute(V::load(row + sources[s].offset), sources[s].lanes));
      to += sources[s].count;
    }
    out += stride;
  };
  for (int t = 0; t < kGroupedTaps; ++t) {
    const float* const tap = from.weights + t * from.inputs * from_stride;
    for (int i = 0; i < c.count; ++i) copy(tap + (c.channels[i] - from.input) * from_stride);
  }
  copy(from.bias);
}

template <class V>
void copy_group(const GroupCopy& c) {
  if (grouped_vector<V>(c.outputs) < V::kWidth)
    copy_group_by_vectors<typename V::Half>(c);
  else
    copy_group_by_vectors<V>(c);
}

}  // namespace
}  // namespace dyndeploy::cpu
