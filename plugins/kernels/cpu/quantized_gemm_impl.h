// The matrix product in integers for one vector type; the same rules as in gemm_impl.h hold.
#pragma once

#include <cstring>
#include <type_traits>

#include "caches.h"
#include "quantized_gemm.h"
#include "quantized_image_impl.h"
#include "simd/unroll.h"

namespace dyndeploy::cpu {
namespace {

constexpr int kCacheLine = 64;
constexpr int kQuadsPerFetch = 4;
constexpr int kMostFetched = 8;  // lines at a time

inline int at_most(int a, int b) { return a < b ? a : b; }
inline int quads_of(const QuantizedRows& a) { return (a.inputs + kQuad - 1) / kQuad; }

template <class V>
constexpr int panel_columns() {
  return V::kVectors * V::kWidth;
}
template <class V>
constexpr std::ptrdiff_t row_bytes() {
  return panel_columns<V>() * kQuad;
}

// Into the first level: fetches into the second are slower.
inline void fetch_line(const void* p) { __builtin_prefetch(p, 0, 3); }

DYNDEPLOY_INLINE void fetch_next(QuantizedUpcoming* u) {
  const std::int8_t* const block = u->columns ? u->base + *u->columns / 2 * u->stride : u->base;
  fetch_line(block + (u->rows ? u->rows[u->line] : u->line * kCacheLine));
  if (++u->line < u->count) return;
  u->line = 0;
  if (u->columns)
    u->columns += 2;
  else
    u->base += u->stride;
  if (--u->blocks == 0 && u->then) *u = *u->then;
}

// ------------------------------------------------------------------------------------------ one tile of rows

// What the tiles of some panels share, from the first of these on; source 0 is the product, 1 the shortcut.
struct PanelCall {
  const QuantizedGemm* gemm = nullptr;
  const std::int8_t* b[2] = {};
  std::ptrdiff_t panel_stride[2] = {};
  const std::int32_t* bias[2] = {};
  std::ptrdiff_t bias_stride = 0;  // of source 0
  const float* multiplier[2] = {};
  // Where V::kFlips: 128 times the sum of the weights, by column, which is added to the bias.
  const std::int32_t* flipped[2] = {};
  int sources = 1;
  int taps[2] = {1, 1};
  int quads[2] = {};
  int column = 0;
  QuantizedUpcoming* upcoming = nullptr;
  int pace = 0;  // lines of it per kQuadsPerFetch quads
};

// What the panels of one tile of rows share.
template <class V>
struct TileRows {
  int row = 0;
  std::uint8_t* out[V::kRows];
  const std::uint8_t* residual[V::kRows];                    // with one only
  const std::uint8_t* pixels[2][kQuantizedTaps * V::kRows];  // of each source: of the rows, for each tap
  const std::uint8_t* next[V::kRows];                        // the rows of the following tile
};

// fetches: this panel fetches the rows of the following tile.
template <class V, int R, int NV, int Source>
DYNDEPLOY_INLINE void accumulate_quads(const PanelCall& call, const TileRows<V>& tile, int panel,
                                       bool fetches, typename V::Sums (&c)[R][NV]) {
  const std::uint8_t* const classes = Source == 0 ? call.gemm->bias_class : nullptr;
  DYNDEPLOY_UNROLL
  for (int r = 0; r < R; ++r) {
    const std::int32_t* bias = call.bias[Source] + panel * panel_columns<V>();
    if (classes) bias += classes[tile.row + r] * call.bias_stride;
    DYNDEPLOY_UNROLL
    for (int v = 0; v < NV; ++v) {
      c[r][v] = V::load(bias + v * V::kWidth);
      if constexpr (V::kFlips)
        c[r][v] = V::sum(c[r][v], V::load(call.flipped[Source] + panel * panel_columns<V>() + v * V::kWidth));
    }
  }
  const std::int8_t* b = call.b[Source] + panel * call.panel_stride[Source];
  const std::ptrdiff_t quads = call.quads[Source];
  const std::uint8_t* const* pixels = tile.pixels[Source];
  QuantizedUpcoming* const upcoming = call.upcoming;
  for (int s = 0; s < call.taps[Source]; ++s, pixels += R) {
    const std::uint8_t* a[R];
    DYNDEPLOY_UNROLL
    for (int r = 0; r < R; ++r) a[r] = pixels[r];
    const auto step = [&](std::ptrdiff_t k) __attribute__((always_inline)) {
      typename V::Weights w[NV];
      DYNDEPLOY_UNROLL
      for (int v = 0; v < NV; ++v) w[v] = V::weights(b + v * V::kWidth * kQuad);
      b += row_bytes<V>();
      DYNDEPLOY_UNROLL
      for (int r = 0; r < R; ++r) {
        const typename V::Inputs x = V::inputs(a[r] + k * kQuad);
        DYNDEPLOY_UNROLL
        for (int v = 0; v < NV; ++v) c[r][v] = V::dot(x, w[v], c[r][v]);
      }
    };
    std::ptrdiff_t k = 0;
    for (; k + kQuadsPerFetch <= quads; k += kQuadsPerFetch) {
      for (int n = 0; n < call.pace && upcoming->blocks > 0; ++n) fetch_next(upcoming);
      if (Source == 0 && fetches && k * kQuad % kCacheLine == 0) {
        DYNDEPLOY_UNROLL
        for (int r = 0; r < R; ++r) fetch_line(tile.next[r] + k * kQuad);
      }
      if constexpr (V::kHasLanes) {
        // Four quads of each row at a time: the product takes its quad from any lane of a register.
        typename V::Inputs x[R];
        DYNDEPLOY_UNROLL
        for (int r = 0; r < R; ++r) x[r] = V::four_quads(a[r] + k * kQuad);
        const auto lane = [&](auto n) __attribute__((always_inline)) {
          DYNDEPLOY_UNROLL
          for (int v = 0; v < NV; ++v) {
            const typename V::Weights w = V::weights(b + v * V::kWidth * kQuad);
            DYNDEPLOY_UNROLL
            for (int r = 0; r < R; ++r) c[r][v] = V::template dot_lane<decltype(n)::value>(x[r], w, c[r][v]);
          }
          b += row_bytes<V>();
        };
        lane(std::integral_constant<int, 0>{});
        lane(std::integral_constant<int, 1>{});
        lane(std::integral_constant<int, 2>{});
        lane(std::integral_constant<int, 3>{});
      } else {
        step(k);
        step(k + 1);
        step(k + 2);
        step(k + 3);
      }
    }
    for (; k < quads; ++k) step(k);
  }
}

template <class V, int R, int NV, bool Shortcut>
DYNDEPLOY_NOINLINE void quantized_tile(const PanelCall& call, const TileRows<V>& tile, int panel,
                                       bool fetches) {
  using Words = typename V::template Words<NV>;
  const QuantizedGemm& g = *call.gemm;
  const int first = panel * panel_columns<V>();
  const std::ptrdiff_t column = call.column + first;
  for (int r = 0; r < R; ++r) fetch_line((g.residual ? tile.residual[r] : tile.out[r]) + column);
  typename V::Sums c[R][NV];
  Words identity[Shortcut ? R : 1];
  if constexpr (Shortcut) {
    // First: its result waits in memory while the product needs all registers.
    accumulate_quads<V, R, NV, 1>(call, tile, panel, false, c);
    DYNDEPLOY_UNROLL
    for (int r = 0; r < R; ++r) identity[r] = V::template requantise<NV>(c[r], call.multiplier[1] + first);
  }
  accumulate_quads<V, R, NV, 0>(call, tile, panel, fetches, c);
  const int count = at_most(g.columns - call.column - first, NV * V::kWidth);
  const auto words = [&](int r) __attribute__((always_inline)) {
    const Words w = V::template requantise<NV>(c[r], call.multiplier[0] + first);
    return Shortcut ? V::template add<NV>(w, identity[Shortcut ? r : 0]) : w;
  };
  if (count < NV * V::kWidth) {
    DYNDEPLOY_UNROLL
    for (int r = 0; r < R; ++r) {
      Words w = words(r);
      if (g.residual) w = V::template add<NV>(w, V::template bytes<NV>(tile.residual[r] + column, count));
      V::template store<NV>(tile.out[r] + column, w, count);
    }
  } else if (g.residual) {
    DYNDEPLOY_UNROLL
    for (int r = 0; r < R; ++r) {
      const Words x = V::template bytes<NV>(tile.residual[r] + column);
      V::template store<NV>(tile.out[r] + column, V::template add<NV>(words(r), x));
    }
  } else {
    DYNDEPLOY_UNROLL
    for (int r = 0; r < R; ++r) V::template store<NV>(tile.out[r] + column, words(r));
  }
}

template <class V, int R, int NV>
inline void run_quantized_vectors(int vectors, const PanelCall& call, const TileRows<V>& tile, int panel,
                                  bool fetches) {
  if constexpr (NV > 0) {
    if (vectors != NV) return run_quantized_vectors<V, R, NV - 1>(vectors, call, tile, panel, fetches);
    call.sources > 1 ? quantized_tile<V, R, NV, true>(call, tile, panel, fetches)
                     : quantized_tile<V, R, NV, false>(call, tile, panel, fetches);
  }
}

template <class V, int R = V::kRows>
inline void run_quantized_tile(int rows, int vectors, const PanelCall& call, const TileRows<V>& tile,
                               int panel, bool fetches) {
  if constexpr (R > 0) {
    if (rows != R) return run_quantized_tile<V, R - 1>(rows, vectors, call, tile, panel, fetches);
    run_quantized_vectors<V, R, V::kVectors>(vectors, call, tile, panel, fetches);
  }
}

inline const std::uint8_t* pixel_of(const QuantizedRows& a, int row) {
  return a.base + static_cast<std::ptrdiff_t>(a.index ? a.index[row] : row - a.first) * a.stride;
}

// The pixels of rows [begin, begin + n), for each tap.
inline void find_pixels(const QuantizedRows& a, int begin, int n, const std::uint8_t* zeros,
                        const std::uint8_t** to) {
  const unsigned all = (1u << a.taps) - 1u;
  for (int r = 0; r < n; ++r) {
    const std::uint8_t* const pixel = pixel_of(a, begin + r);
    const unsigned valid = a.valid ? a.valid[begin + r] : all;
    if ((valid & all) == all) {
      for (int s = 0; s < a.taps; ++s) to[s * n + r] = pixel + a.tap_offset[s];
    } else {
      for (int s = 0; s < a.taps; ++s) to[s * n + r] = valid >> s & 1u ? pixel + a.tap_offset[s] : zeros;
    }
  }
}

// ------------------------------------------------------------------------------- weights of active channels

// Where the copied weights' shares of the constants of skipped inputs are summed up: a row per tap, written
// in whole vectors.
template <class V>
constexpr int through_columns() {
  return panel_columns<V>() + V::kWidth;
}

// One quad of one column.
inline void read_quad(const QuantizedSelection& s, const std::int8_t* block, int column, int row,
                      std::int8_t* to) {
  block += 2 * column;
  if (s.single) {
    for (int i = 0; i < kQuad; ++i) {
      const std::int32_t from = s.rows[kQuad * row + i];
      to[i] = block[from];
    }
  } else {
    std::memcpy(to, block + s.rows[2 * row], 2);
    std::memcpy(to + 2, block + s.rows[2 * row + 1], 2);
  }
}

// Column by column.
template <class V>
inline void copy_columns(const QuantizedCopy& copy, std::int32_t* through) {
  constexpr int PW = panel_columns<V>();
  const QuantizedSelection& s = *copy.from.selection;
  for (int n = 0; n < copy.count; ++n) {
    const int column = copy.source(n);
    std::int8_t* to = copy.b + n * kQuad;
    for (int t = 0, row = 0; t < copy.taps; ++t) {
      std::int32_t sum = 0;
      for (int q = 0; q < copy.quads; ++q, ++row, to += row_bytes<V>()) {
        if (s.blocks) {
          read_quad(s, s.blocks + column / kBlockColumns * s.block_stride, column % kBlockColumns, row, to);
        } else {
          const std::int8_t* const panel = copy.from.base + column / PW * copy.from.panel_stride;
          std::memcpy(to, panel + row * row_bytes<V>() + column % PW * kQuad, kQuad);
        }
        for (int i = 0; s.constants && i < kQuad; ++i) sum += to[i] * s.constants[q * kQuad + i];
      }
      through[t * through_columns<V>() + n] = sum;
    }
  }
}

template <class V>
void copy_quantized(const QuantizedCopy& copy) {
  constexpr int PW = panel_columns<V>();
  constexpr int kLineNumbers = 16;
  const QuantizedSelection& s = *copy.from.selection;
  const auto occurs = [&](int c) { return (s.classes >> c & 1u) != 0; };
  const int classes = copy.from.bias_stride ? kQuantizedClasses : 1;
  const int first = copy.source(0), last = copy.source(copy.count - 1);
  for (int n = first; n <= last; n += kLineNumbers) {
    fetch_line(copy.from.multiplier + n);
    for (int c = 0; c < classes; ++c) {
      if (occurs(c)) fetch_line(copy.from.bias + c * copy.from.bias_stride + n);
    }
  }
  std::int32_t through[kQuantizedTaps * through_columns<V>()] = {};
  bool copied = false;
  if constexpr (V::kCopies) {
    copied = V::copies(s);
    if (copied) V::copy(copy, through);
  }
  if (!copied) copy_columns<V>(copy, through);
  std::int32_t columns[PW];
  for (int n = 0; n < PW && s.columns; ++n) columns[n] = n < copy.count ? copy.source(n) : first;
  const auto choose = [&](const auto* from, auto* to) __attribute__((always_inline)) {
    if (!s.columns) {
      std::memcpy(to, from + first, PW * sizeof *to);
      return;
    }
    for (int n = 0; n < PW; ++n) to[n] = from[columns[n]];
  };
  choose(copy.from.multiplier, copy.multiplier);
  for (int c = 0; c < classes; ++c) {
    if (!occurs(c)) continue;
    const unsigned taps = s.class_taps ? s.class_taps[c] : 1u;
    std::int32_t sum[PW];
    choose(copy.from.bias + c * copy.from.bias_stride, sum);
    for (int t = 0; s.constants && t < copy.taps; ++t) {
      if (!(taps >> t & 1u)) continue;
      const std::int32_t* const share = through + t * through_columns<V>();
      for (int n = 0; n < PW; ++n) sum[n] -= share[n];
    }
    std::memcpy(copy.bias + c * copy.bias_stride, sum, sizeof sum);
  }
}

// What copying panel p reads.
template <class V>
inline QuantizedUpcoming upcoming_copy(const QuantizedSource& source, int columns, int p) {
  constexpr int PW = panel_columns<V>();
  const QuantizedSelection& s = *source.b.selection;
  const int rows = source.a.taps * quads_of(source.a);
  const int first = s.columns ? s.columns[p * PW] : p * PW;
  if (s.pairs) return upcoming_pairs(s, rows, p * PW, at_most((p + 1) * PW, columns));
  const int end = at_most((p + 1) * PW, columns) - 1;
  const int last = s.columns ? s.columns[end] : end;
  const int unit = s.blocks ? kBlockColumns : PW;
  QuantizedUpcoming u;
  u.stride = s.blocks ? s.block_stride : source.b.panel_stride;
  u.base = (s.blocks ? s.blocks : source.b.base) + first / unit * u.stride;
  u.blocks = last / unit - first / unit + 1;
  u.rows = s.rows;
  u.count = s.blocks ? rows * (s.single ? 4 : 2) : static_cast<int>(rows * row_bytes<V>() / kCacheLine);
  return u;
}

inline QuantizedUpcoming upcoming_panels(const QuantizedPanels& b, int begin, int end) {
  QuantizedUpcoming u;
  u.base = b.base + begin * b.panel_stride;
  u.stride = b.panel_stride;
  u.count = static_cast<int>(b.panel_stride / kCacheLine);
  u.blocks = end - begin;
  return u;
}

// ------------------------------------------------------------------------------------------------ the
// product

template <class V>
inline void quantized_rows(const PanelCall& call, int row_begin, int row_end, int panels,
                           const std::uint8_t* zeros) {
  constexpr int MR = V::kRows, PW = panel_columns<V>();
  const QuantizedGemm& g = *call.gemm;
  TileRows<V> tile;
  const QuantizedRows& a = g.product.a;
  // The taps of a 3x3 were written just before and are still near.
  const bool far = a.taps == 1;
  const int rows = row_end - row_begin;
  const int tiles = (rows + MR - 1) / MR;
  for (int t = 0, begin = row_begin, end; t < tiles; ++t, begin = end) {
    end = row_begin + static_cast<int>(static_cast<std::int64_t>(rows) * (t + 1) / tiles);
    const int n = end - begin;
    tile.row = begin;
    find_pixels(a, begin, n, zeros, tile.pixels[0]);
    if (g.shortcut) find_pixels(g.shortcut->a, begin, n, zeros, tile.pixels[1]);
    for (int r = 0; far && r < n; ++r) tile.next[r] = pixel_of(a, at_most(end + r, row_end - 1));
    for (int r = 0; r < n; ++r) {
      const std::ptrdiff_t at = (g.index ? g.index[begin + r] : begin + r - g.first) * g.stride;
      tile.out[r] = g.out + at;
      tile.residual[r] = g.residual ? g.residual + at : nullptr;
    }
    for (int p = 0; p < panels; ++p) {
      const int left = g.columns - call.column - p * PW;
      const int vectors = at_most((left + V::kWidth - 1) / V::kWidth, V::kVectors);
      run_quantized_tile<V>(n, vectors, call, tile, p, far && p == 0);
    }
  }
}

// What V::kFlips asks to add to the sums of one panel: `quads` rows of weights.
template <class V>
inline void flipped_sums(const std::int8_t* b, std::int64_t quads, std::int32_t* out) {
  constexpr int PW = panel_columns<V>();
  std::int32_t sums[PW * kQuad] = {};
  for (std::int64_t k = 0; k < quads; ++k, b += row_bytes<V>()) {
    for (int i = 0; i < PW * kQuad; ++i) sums[i] += b[i];
  }
  for (int n = 0; n < PW; ++n) {
    const std::int32_t* const quad = sums + n * kQuad;
    out[n] = 128 * (quad[0] + quad[1] + quad[2] + quad[3]);
  }
}

// Lines of what comes next per kQuadsPerFetch quads, so that all of them are fetched meanwhile.
inline int fetching_pace(const QuantizedUpcoming& u, std::int64_t quads) {
  std::int64_t lines = 0;
  for (const QuantizedUpcoming* part = &u; part; part = part->then)
    lines += std::int64_t{part->blocks} * part->count;
  if (lines <= 0) return 0;
  const std::int64_t pace = (lines * kQuadsPerFetch + quads - 1) / (quads > 0 ? quads : 1);
  return pace < kMostFetched ? static_cast<int>(pace) : kMostFetched;
}

template <class V>
void quantized_gemm(const QuantizedGemm& g, int row_begin, int row_end, int panel_begin, int panel_end,
                    const QuantizedScratch& scratch) {
  constexpr int MR = V::kRows, PW = panel_columns<V>();
  if (row_begin >= row_end || panel_begin >= panel_end) return;
  const QuantizedSource& source = g.product;
  PanelCall call;
  call.gemm = &g;
  call.sources = g.shortcut ? 2 : 1;
  std::int64_t quads = 0;  // of one row
  for (int i = 0; i < call.sources; ++i) {
    const QuantizedRows& a = i ? g.shortcut->a : source.a;
    call.taps[i] = a.taps;
    call.quads[i] = quads_of(a);
    quads += std::int64_t{a.taps} * call.quads[i];
  }
  const std::int64_t tiles = (row_end - row_begin + MR - 1) / MR;
  const std::int64_t fit = blocks().slice / (quads * row_bytes<V>() + 1);
  const bool copies = source.b.selection != nullptr;
  constexpr int kMostFlipped = V::kFlips ? 16 : 1;  // panels
  const std::int64_t most = V::kFlips ? at_most(kMostFlipped, panel_end) : panel_end;
  const int step = copies || fit < 1 ? 1 : static_cast<int>(fit < most ? fit : most);
  std::int32_t flipped[2][kMostFlipped * PW];
  QuantizedUpcoming upcoming, shortcut;
  call.upcoming = &upcoming;
  for (int p = panel_begin; p < panel_end; p += step) {
    const int end = at_most(p + step, panel_end);
    call.column = p * PW;
    for (int i = 0; i < call.sources; ++i) {
      const QuantizedPanels& b = i ? g.shortcut->b : source.b;
      call.panel_stride[i] = b.panel_stride;
      call.b[i] = b.base + p * b.panel_stride;
      call.bias[i] = b.bias + p * PW;
      call.multiplier[i] = b.multiplier + p * PW;
    }
    call.bias_stride = source.b.bias_stride;
    if (copies) {
      QuantizedCopy copy;
      copy.from = source.b;
      copy.taps = source.a.taps;
      copy.quads = call.quads[0];
      copy.column = p * PW;
      copy.count = at_most(PW, g.columns - p * PW);
      copy.b = scratch.b;
      copy.bias = scratch.bias;
      copy.bias_stride = PW;
      copy.multiplier = scratch.multiplier;
      copy_quantized<V>(copy);
      call.b[0] = scratch.b;
      call.bias[0] = scratch.bias;
      call.bias_stride = source.b.bias_stride ? PW : 0;
      call.multiplier[0] = scratch.multiplier;
    }
    if constexpr (V::kFlips) {
      for (int i = 0; i < call.sources; ++i) {
        call.flipped[i] = flipped[i];
        for (int n = p; n < end; ++n) {
          flipped_sums<V>(call.b[i] + (n - p) * call.panel_stride[i],
                          std::int64_t{call.taps[i]} * call.quads[i], flipped[i] + (n - p) * PW);
        }
      }
    }
    if (end >= panel_end) {
      upcoming = g.upcoming;
    } else {
      const int next_end = at_most(end + step, panel_end);
      upcoming = copies ? upcoming_copy<V>(source, g.columns, end) : upcoming_panels(source.b, end, next_end);
      if (g.shortcut) {
        shortcut = upcoming_panels(g.shortcut->b, end, next_end);
        upcoming.then = &shortcut;
      }
    }
    call.pace = fetching_pace(upcoming, tiles * (end - p) * quads);
    quantized_rows<V>(call, row_begin, row_end, end - p, scratch.zeros);
  }
}

template <class V>
constexpr QuantizedIsa make_quantized_isa(const char* name, bool (*supported)(),
                                          const QuantizedIsa* wider = nullptr) {
  static_assert(panel_columns<V>() <= kMaxQuantizedPanel, "scratch sizes");
  return QuantizedIsa{name,
                      panel_columns<V>(),
                      V::kWeightLimit,
                      wider,
                      supported,
                      &quantized_gemm<V>,
                      &copy_quantized<V>,
                      &quantize_image_row,
                      &pool_quantized_row,
                      V::kCopies};
}

}  // namespace
}  // namespace dyndeploy::cpu
