// The matrix product for one vector type; included by one translation unit per instruction set. Everything
// sits in an unnamed namespace and no standard template is instantiated here: a weak symbol compiled with
// this unit's instruction-set flags could otherwise replace the baseline one in the rest of the library.
#pragma once

#include <cstring>

#include "gemm.h"
#include "simd/unroll.h"

namespace dyndeploy::cpu {
namespace {

constexpr int kDirectBytes = 640 << 10;  // weights below this stay in L2: rows of A are then read in place

inline int min_of(int a, int b) { return a < b ? a : b; }
inline int ceil_div(int a, int b) { return (a + b - 1) / b; }
inline void prefetch_near(const void* p) { __builtin_prefetch(p, 0, 3); }
inline void prefetch_l2(const void* p) { __builtin_prefetch(p, 0, 2); }

// Fetches one row of a panel of the weights that come next.
template <class V>
DYNDEPLOY_INLINE void fetch_upcoming(Upcoming* u) {
  constexpr std::ptrdiff_t kRow = V::kPanelVectors * V::kWidth;
  const float* line = u->base + (u->rows ? u->rows[u->row] : u->row) * kRow;
  prefetch_l2(line);
  if (kRow > 16) prefetch_l2(line + 16);
  if (++u->row == u->count) {
    u->row = 0;
    u->base += u->panel_stride;
    --u->panels;
  }
}

inline const float* pixel_of(const RowSource& a, int row) {
  const std::ptrdiff_t pixel = a.index ? a.index[row] : row - a.first;
  return a.base + pixel * a.stride;
}

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

template <class V, int R, int NV>
DYNDEPLOY_INLINE void finish(typename V::Reg (&c)[R][NV], const Epilogue& e, int row, int column,
                             int columns) {
  RowTargets<R> t;
  locate<R>(e, row, t);
  const int left = columns - column;
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

// ---------------------------------------------------------------------------------------- A packed into
// tiles

struct TileCall {
  const float* a;  // [segment][block][row][kBlock]
  const float* b;  // first row of B
  std::ptrdiff_t row_stride;
  int segments;
  int length;  // rows of B per segment
  float* accumulators;
  bool first;
  bool last;
  const char* prefetch;  // one line per row of B, prefetch_step apart
  std::ptrdiff_t prefetch_step;
  bool prefetch_pair;  // and the line after it
  const Gemm* gemm;
  int row;
  int column;
};

template <class V, int R, int NV>
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
  Upcoming* upcoming = call.gemm->upcoming;
  const std::ptrdiff_t stride = call.row_stride;
  const char* ahead = call.prefetch;
  const std::ptrdiff_t step = call.prefetch_step;
  const std::ptrdiff_t pair = call.prefetch_pair ? 64 : 0;
  for (int s = 0; s < call.segments; ++s) {
    for (int done = 0; done < call.length; done += kBlock, a += R * kBlock) {
      const int count = min_of(kBlock, call.length - done);
      for (int i = 0; i < 4 && upcoming && upcoming->panels > 0; ++i) fetch_upcoming<V>(upcoming);
      DYNDEPLOY_UNROLL_BY_4
      for (int k = 0; k < count; ++k) {
        Reg w[NV];
        DYNDEPLOY_UNROLL
        for (int v = 0; v < NV; ++v) w[v] = V::load(b + v * V::kWidth);
        prefetch_near(b + 16 * stride);
        if (V::kWidth >= 16) prefetch_near(b + 16 * stride + V::kWidth);
        b += stride;
        prefetch_l2(ahead);
        prefetch_l2(ahead + pair);
        ahead += step;
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

template <class V, int NV, int R = V::kTileRows>
inline void run_packed_tile(int rows, const TileCall& call) {
  if constexpr (R > 0) {
    if (rows == R) return packed_tile<V, R, NV>(call);
    run_packed_tile<V, NV, R - 1>(rows, call);
  }
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

// Steps through the chunks of all sources; returns false at the end.
inline bool next_chunk(const Gemm& g, Chunk& c, bool start) {
  if (start) {
    c = Chunk{0, 0, 0, 0, 0, 0};
  } else {
    const RowSource& a = g.source[c.source].a;
    c.offset += c.length;
    if (c.offset >= a.length) {
      c.offset = 0;
      c.segment += c.segments;
    }
    if (c.segment >= a.taps) {
      if (++c.source >= g.sources) return false;
      c.segment = 0;
    }
  }
  const RowSource& a = g.source[c.source].a;
  if (a.length > kChunk) {
    const int pieces = ceil_div(a.length, kChunk);
    c.segments = 1;
    c.length = min_of(ceil_div(ceil_div(a.length, pieces), kBlock) * kBlock, a.length - c.offset);
  } else {
    const int most = kChunk / a.length;
    const int groups = ceil_div(a.taps, most);
    c.segments = min_of(ceil_div(a.taps, groups), a.taps - c.segment);
    c.length = a.length;
  }
  c.row = c.segment * a.length + c.offset;
  return true;
}

inline int chunk_blocks(const Chunk& c) { return c.segments * ceil_div(c.length, kBlock); }

template <class V>
inline void pack_row(const RowSource& a, const Chunk& chunk, int row, int tile_rows, float* out) {
  const float* pixel = pixel_of(a, row) + chunk.offset;
  const unsigned valid = a.valid ? a.valid[row] : ~0u;
  const std::ptrdiff_t step = static_cast<std::ptrdiff_t>(tile_rows) * kBlock;
  for (int s = 0; s < chunk.segments; ++s) {
    const int tap = chunk.segment + s;
    if (valid >> tap & 1u) {
      const float* from = pixel + a.tap_offset[tap];
      int k = 0;
      for (; k + kBlock <= chunk.length; k += kBlock, out += step) {
        DYNDEPLOY_UNROLL
        for (int v = 0; v < kBlock; v += V::kWidth) V::store(out + v, V::load(from + k + v));
      }
      if (k < chunk.length) {
        for (int i = 0; k < chunk.length; ++i, ++k) out[i] = from[k];
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

template <class V>
void gemm_packed(const Gemm& g, int row_begin, int row_end, int panel_begin, int panel_end,
                 const GemmScratch& scratch) {
  constexpr int MR = V::kTileRows;
  constexpr int NV = V::kPanelVectors;
  constexpr int PW = NV * V::kWidth;
  const int rows = row_end - row_begin;
  const int tiles = ceil_div(rows, MR);
  const int blocks = ceil_div(tiles, kMaxBlockTiles);
  for (int block = 0; block < blocks; ++block) {
    const int tile_begin = static_cast<int>(static_cast<std::int64_t>(tiles) * block / blocks);
    const int tile_end = static_cast<int>(static_cast<std::int64_t>(tiles) * (block + 1) / blocks);
    const int count = tile_end - tile_begin;
    int edge[kMaxBlockTiles + 1];
    for (int t = 0; t <= count; ++t)
      edge[t] = row_begin + static_cast<int>(static_cast<std::int64_t>(rows) * (tile_begin + t) / tiles);
    Chunk chunk;
    bool more = next_chunk(g, chunk, true);
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
      more = next_chunk(g, following, false);
      const float* after = nullptr;
      if (more) {
        const PanelView& b = g.source[following.source].b;
        after = b.base + panel_begin * b.panel_stride + following.row * b.row_stride;
      } else if (block + 1 < blocks) {
        after = source.b.base + panel_begin * source.b.panel_stride;
      }
      TileCall call;
      call.row_stride = source.b.row_stride;
      call.segments = chunk.segments;
      call.length = chunk.length;
      call.first = first;
      call.last = !more;
      call.gemm = &g;
      call.prefetch_pair = count == 1;
      for (int p = panel_begin; p < panel_end; ++p) {
        const float* panel = source.b.base + p * source.b.panel_stride;
        call.b = panel + chunk.row * source.b.row_stride;
        call.column = p * PW;
        const float* ahead = p + 1 < panel_end ? call.b + source.b.panel_stride : after;
        const std::ptrdiff_t lines = static_cast<std::ptrdiff_t>(chunk_rows) * PW * 4;
        call.prefetch_step = ahead ? PW * 4 / count : 0;
        for (int t = 0; t < count; ++t) {
          const int n = edge[t + 1] - edge[t];
          call.a = scratch.a + (edge[t] - edge[0]) * depth;
          call.accumulators = scratch.accumulators +
                              (static_cast<std::ptrdiff_t>(p - panel_begin) * kMaxBlockTiles + t) * MR * PW;
          call.row = edge[t];
          call.prefetch =
              reinterpret_cast<const char*>(ahead ? ahead : scratch.a) + (ahead ? lines / count * t : 0);
          const bool narrow = g.columns - call.column <= PW / 2;
          narrow ? run_packed_tile<V, NV / 2>(n, call) : run_packed_tile<V, NV>(n, call);
        }
      }
      first = false;
      chunk = following;
    }
  }
}

// ------------------------------------------------------------------------------------------ A read in place

template <class V, int R, int NV>
DYNDEPLOY_NOINLINE void direct_tile(const Gemm& g, const float* const* pixels, int row, int panel) {
  using Reg = typename V::Reg;
  constexpr int kPerPanel = V::kPanelVectors;
  Reg c[R][NV];
  DYNDEPLOY_UNROLL
  for (int r = 0; r < R; ++r) {
    DYNDEPLOY_UNROLL
    for (int v = 0; v < NV; ++v) c[r][v] = V::zero();
  }
  constexpr int kPanels = (NV + kPerPanel - 1) / kPerPanel;
  constexpr int kNear = NV < kPerPanel ? NV : kPerPanel;  // vectors per panel
  Upcoming* const upcoming = g.upcoming;
  for (int i = 0; i < g.sources; ++i) {
    const GemmSource& source = g.source[i];
    const std::ptrdiff_t stride = source.b.row_stride;
    const std::ptrdiff_t ahead = 12 * stride;
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
            w[p * kNear + v] = V::load(b[p] + v * V::kWidth);
            prefetch_near(b[p] + ahead + v * V::kWidth);
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
        step(k);
        step(k + 1);
        step(k + 2);
        step(k + 3);
      }
      for (; k < length; ++k) step(k);
    }
  }
  finish<V, R, NV>(c, g.epilogue, row, panel * kPerPanel * V::kWidth, g.columns);
}

template <class V, int R>
inline void run_direct_tile(int rows, const Gemm& g, const float* const* pixels, int row, int panel_begin,
                            int panel_end) {
  if constexpr (R > 0) {
    if (rows != R) return run_direct_tile<V, R - 1>(rows, g, pixels, row, panel_begin, panel_end);
    constexpr int kPanels = V::kDirectVectors / V::kPanelVectors;
    constexpr int PW = V::kPanelVectors * V::kWidth;
    int p = panel_begin;
    while (p < panel_end) {
      const int left = g.columns - p * PW;
      if (p + kPanels <= panel_end && left > (kPanels - 1) * PW) {
        direct_tile<V, R, V::kDirectVectors>(g, pixels, row, p);
        p += kPanels;
      } else {
        left > PW / 2 ? direct_tile<V, R, V::kPanelVectors>(g, pixels, row, p)
                      : direct_tile<V, R, V::kPanelVectors / 2>(g, pixels, row, p);
        ++p;
      }
    }
  }
}

template <class V>
void gemm_direct(const Gemm& g, int row_begin, int row_end, int panel_begin, int panel_end,
                 const float* zeros) {
  constexpr int MR = V::kDirectRows;
  const float* pixels[2 * kMaxTaps * MR];
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
    run_direct_tile<V, MR>(n, g, pixels, begin, panel_begin, panel_end);
  }
}

template <class V>
void gemm(const Gemm& g, int row_begin, int row_end, int panel_begin, int panel_end,
          const GemmScratch& scratch) {
  if (row_begin >= row_end || panel_begin >= panel_end) return;
  std::int64_t depth = 0;
  for (int i = 0; i < g.sources; ++i) {
    depth += static_cast<std::int64_t>(g.source[i].a.taps) * g.source[i].a.length;
  }
  const std::int64_t bytes = depth * (panel_end - panel_begin) * V::kPanelVectors * V::kWidth * 4;
  if (bytes <= kDirectBytes)
    gemm_direct<V>(g, row_begin, row_end, panel_begin, panel_end, scratch.zeros);
  else
    gemm_packed<V>(g, row_begin, row_end, panel_begin, panel_end, scratch);
}

}  // namespace
}  // namespace dyndeploy::cpu
