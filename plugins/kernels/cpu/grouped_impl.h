// Grouped 3x3 convolutions with narrow groups for one vector type; the same rules as in gemm_impl.h hold.
#pragma once

#include "gemm_impl.h"

namespace dyndeploy::cpu {
namespace {

constexpr int kGroupedTaps = 9;
// Each row's address stays in a general register.
constexpr int kMaxGroupedRows = 10;

// Rows of a tile whose sums, weights and activations fill the registers.
template <class V, int NV>
constexpr int grouped_rows() {
  // Where one load brings four activations of a row, they stay beside the sums.
  const int rows = V::kHasLanes ? (V::kRegisters - 1) / (NV + 1) : (V::kRegisters - 1 - NV) / NV;
  return rows < 1 ? 1 : rows < kMaxGroupedRows ? rows : kMaxGroupedRows;
}

template <class V, int R, int NV, bool Listed>
DYNDEPLOY_NOINLINE void grouped_tile(const Grouped& g, const GroupPart& part, const float* const* pixels,
                                     int row) {
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
  for (int t = 0; t < kGroupedTaps; ++t, pixels += R) {
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
  float* out = g.out + static_cast<std::ptrdiff_t>(row - g.first) * g.stride + part.output;
  DYNDEPLOY_UNROLL
  for (int r = 0; r < R; ++r, out += g.stride) {
    const std::int32_t* lanes = part.lanes;
    float* to = out;
    DYNDEPLOY_UNROLL
    for (int v = 0; v < NV; ++v) {
      Reg x = V::relu(V::add(c[r][v], V::load(part.bias + v * V::kWidth)));
      if (lanes) {
        x = V::permute(x, lanes + 1);
        V::store(to, x);
        to += *lanes;
        lanes += 1 + V::kWidth;
      } else {
        V::store(to + v * V::kWidth, x);
      }
    }
  }
}

template <class V, int NV, int R>
inline void run_grouped_rows(int rows, const Grouped& g, const float* const* pixels, int row) {
  if constexpr (R > 0) {
    if (rows != R) return run_grouped_rows<V, NV, R - 1>(rows, g, pixels, row);
    for (int i = 0; i < g.count; ++i) {
      const GroupPart& part = g.parts[i];
      part.rows ? grouped_tile<V, R, NV, true>(g, part, pixels, row)
                : grouped_tile<V, R, NV, false>(g, part, pixels, row);
    }
  }
}

template <class V, int NV>
void grouped_by_rows(const Grouped& g, int row_begin, int row_end, const float* zeros) {
  constexpr int MR = grouped_rows<V, NV>();
  const float* pixels[kGroupedTaps * MR];
  const int rows = row_end - row_begin;
  const int tiles = ceil_div(rows, MR);
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
    run_grouped_rows<V, NV, MR>(n, g, pixels, begin);
  }
}

// NV vectors hold all outputs of a group.
template <class V, int NV = 1>
inline void grouped_by_width(const Grouped& g, int row_begin, int row_end, const float* zeros) {
  if constexpr ((NV - 1) * V::kWidth < kMaxGroupOutputs) {
    if (g.outputs > NV * V::kWidth) return grouped_by_width<V, NV + 1>(g, row_begin, row_end, zeros);
    grouped_by_rows<V, NV>(g, row_begin, row_end, zeros);
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
    grouped_by_width<typename V::Half>(g, row_begin, row_end, zeros);
  else
    grouped_by_width<V>(g, row_begin, row_end, zeros);
}

}  // namespace
}  // namespace dyndeploy::cpu
