// Winograd's convolution for one vector type; the same rules as in gemm_impl.h hold. The transforms add and
// subtract only, in one fixed order.
#pragma once

#include "gemm_impl.h"

namespace dyndeploy::cpu {
namespace {

// B^T d B of one tile for a vector of channels, each plane to a place of its own.
template <class V>
DYNDEPLOY_INLINE void transform_inputs(const float* const (&from)[kWinogradPlanes], std::ptrdiff_t channel,
                                       float* to, std::ptrdiff_t plane) {
  using Reg = typename V::Reg;
  Reg t[4][4];
  DYNDEPLOY_UNROLL
  for (int x = 0; x < 4; ++x) {
    const Reg d0 = V::load(from[x] + channel), d1 = V::load(from[4 + x] + channel);
    const Reg d2 = V::load(from[8 + x] + channel), d3 = V::load(from[12 + x] + channel);
    t[0][x] = V::sub(d0, d2);
    t[1][x] = V::add(d1, d2);
    t[2][x] = V::sub(d2, d1);
    t[3][x] = V::sub(d1, d3);
  }
  DYNDEPLOY_UNROLL
  for (int y = 0; y < 4; ++y) {
    V::store(to, V::sub(t[y][0], t[y][2]));
    V::store(to + plane, V::add(t[y][1], t[y][2]));
    V::store(to + 2 * plane, V::sub(t[y][2], t[y][1]));
    V::store(to + 3 * plane, V::sub(t[y][1], t[y][3]));
    to += 4 * plane;
  }
}

// The inputs of tiles [begin, end), packed as packed_tile() reads them.
template <class V>
void pack_planes(const RowSource& a, int begin, int end, const float* zeros, float* out,
                 std::ptrdiff_t plane) {
  const int n = end - begin;
  for (int r = 0; r < n; ++r) {
    const float* from[kWinogradPlanes];
    const float* const pixel = pixel_of(a, begin + r);
    for (int i = 0; i < kWinogradPlanes; ++i)
      from[i] = a.valid[begin + r] >> i & 1u ? pixel + a.tap_offset[i] : zeros;
    float* to = out + r * kBlock;
    // Rows are readable up to a whole block; what lies beyond the inputs meets no weight.
    for (int k = 0; k < a.length; k += kBlock, to += n * kBlock) {
      DYNDEPLOY_UNROLL
      for (int v = 0; v < kBlock; v += V::kWidth) transform_inputs<V>(from, k + v, to + v, plane);
    }
  }
}

// A^T m A of tiles [begin, end) for NV vectors of outputs, and the epilogue of those that are asked for.
template <class V, int NV>
void finish_tiles(const Winograd& w, int begin, int end, int column, const float* products,
                  std::ptrdiff_t plane) {
  using Reg = typename V::Reg;
  const Epilogue& e = w.product.epilogue;
  for (int t = begin; t < end; ++t, products += NV * V::kWidth) {
    const unsigned outputs = w.outputs[t];
    float* out[4];
    const float* bias[4];
    int row = w.first[t];
    for (int i = 0; i < 4; ++i) {
      const std::ptrdiff_t pixel = e.index ? e.index[row] : row - e.first;
      out[i] = e.out + pixel * e.stride;
      bias[i] = e.bias_class ? e.bias + e.bias_class[row] * e.bias_stride : e.bias;
      if (outputs >> i & 1u && outputs >> (i + 1)) ++row;
    }
    DYNDEPLOY_UNROLL
    for (int v = 0; v < NV; ++v) {
      const int n = column + v * V::kWidth;
      const int lanes = w.product.columns - n;
      if (lanes <= 0) break;
      const float* m = products + v * V::kWidth;
      Reg s[2][4];
      DYNDEPLOY_UNROLL
      for (int x = 0; x < 4; ++x, m += plane) {
        const Reg m0 = V::load(m), m1 = V::load(m + 4 * plane), m2 = V::load(m + 8 * plane);
        s[0][x] = V::add(V::add(m0, m1), m2);
        s[1][x] = V::sub(V::sub(m1, m2), V::load(m + 12 * plane));
      }
      DYNDEPLOY_UNROLL
      for (int i = 0; i < 4; ++i) {
        if (!(outputs >> i & 1u)) continue;
        const Reg* const line = s[i / 2];
        Reg x = i % 2 ? V::sub(V::sub(line[1], line[2]), line[3]) : V::add(V::add(line[0], line[1]), line[2]);
        x = V::add(x, V::load(bias[i] + n));
        if (e.relu) x = V::relu(x);
        if (e.subtract) x = V::sub(x, V::load(e.subtract + n));
        if (lanes >= V::kWidth)
          V::store(out[i] + n, x);
        else
          V::store_first(out[i] + n, x, lanes);
      }
    }
  }
}

template <class V>
void winograd(const Winograd& w, int tile_begin, int tile_end, int panel_begin, int panel_end,
              int block_tiles, const GemmScratch& scratch) {
  constexpr int MR = V::kTileRows;
  constexpr int NV = V::kPanelVectors;
  constexpr int PW = NV * V::kWidth;
  constexpr int kMaxTiles = kMaxWinogradTiles / MR + 1;
  const Gemm& g = w.product;
  const GemmSource& source = g.source[0];
  const int depth = source.a.length;
  const bool copied = source.selection.any();
  const int rows = tile_end - tile_begin;
  const int blocks = rows > 0 && panel_begin < panel_end ? ceil_div(rows, block_tiles) : 0;
  for (int block = 0; block < blocks; ++block) {
    const int begin = tile_begin + static_cast<int>(static_cast<std::int64_t>(rows) * block / blocks);
    const int end = tile_begin + static_cast<int>(static_cast<std::int64_t>(rows) * (block + 1) / blocks);
    const int count = ceil_div(end - begin, MR);
    int edge[kMaxTiles + 1];
    for (int t = 0; t <= count; ++t) edge[t] = begin + (end - begin) * t / count;
    const std::ptrdiff_t row_floats = static_cast<std::ptrdiff_t>(ceil_div(depth, kBlock)) * kBlock;
    const std::ptrdiff_t plane = row_floats * (end - begin);
    for (int t = 0; t < count; ++t) {
      pack_planes<V>(source.a, edge[t], edge[t + 1], scratch.zeros,
                     scratch.planes + (edge[t] - begin) * row_floats, plane);
    }
    const bool lone = count == 1 && !copied;
    for (int p = panel_begin; p < panel_end; ++p) {
      const bool narrow = g.columns - p * PW <= PW / 2;
      const int width = narrow ? PW / 2 : PW;
      const std::ptrdiff_t product_plane = static_cast<std::ptrdiff_t>(end - begin) * width;
      Upcoming next_copy;
      TileCall call;
      call.rows = nullptr;
      call.row_stride = copied ? PW : source.b.row_stride;
      call.segments = 1;
      call.length = depth;
      call.first = true;
      call.last = false;
      call.gemm = &g;
      call.column = p * PW;
      for (int i = 0; i < kWinogradPlanes; ++i) {
        const float* const weights = source.b.base + p * source.b.panel_stride +
                                     static_cast<std::ptrdiff_t>(i) * depth * source.b.row_stride;
        call.b = weights;
        call.upcoming = g.upcoming;
        call.pace = g.upcoming ? kPace : 0;
        const bool last_plane = i + 1 == kWinogradPlanes;
        if (copied) {
          copy_panel<V>(g, source, i * depth, depth, p, scratch.b);
          call.b = scratch.b;
          if (!last_plane || p + 1 < panel_end) {
            const int panel = last_plane ? p + 1 : p;
            next_copy =
                upcoming_copy<V>(g, source, last_plane ? 0 : (i + 1) * depth, depth, panel, panel + 1);
            call.upcoming = &next_copy;
            call.pace = ceil_div(next_copy.panels * next_copy.count, count * ceil_div(depth, kBlock));
          }
        }
        // Planes and panels follow each other; the pass of the next block begins anew.
        const float* const ahead =
            copied || (last_plane && p + 1 == panel_end) ? nullptr : weights + depth * source.b.row_stride;
        call.ahead_lines = ahead ? ahead_lines<V>(count) : 0;
        for (int t = 0; t < count; ++t) {
          const int n = edge[t + 1] - edge[t];
          call.a = scratch.planes + i * plane + (edge[t] - begin) * row_floats;
          call.accumulators = scratch.products + i * product_plane + (edge[t] - begin) * width;
          call.row = edge[t];
          call.ahead = ahead ? ahead_part<V>(ahead, ceil_div(depth, kBlock), count, t) : nullptr;
          run_packed_tile<V>(n, narrow, lone ? Pass::kMemory : Pass::kCached, call);
        }
      }
      narrow ? finish_tiles<V, NV / 2>(w, begin, end, call.column, scratch.products, product_plane)
             : finish_tiles<V, NV>(w, begin, end, call.column, scratch.products, product_plane);
    }
  }
}

}  // namespace
}  // namespace dyndeploy::cpu
