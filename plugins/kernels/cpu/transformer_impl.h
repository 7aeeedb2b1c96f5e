// The kernels of transformer blocks for one vector type V, and the vector type P of their products; the same
// rules as in gemm_impl.h hold.
#pragma once

#include "gemm_impl.h"
#include "transformer_kernels.h"

namespace dyndeploy::cpu {
namespace {

// --------------------------------------------------------------------------------------------- functions

// 2^x for x <= 0; below -126 it is 2^-126. Relative error 1e-7.
template <class V>
DYNDEPLOY_INLINE typename V::Reg exp2_negative(typename V::Reg x) {
  // Adding it leaves the nearest integer in the low bits.
  constexpr float kRound = 12582912.0f, kLeast = -126.0f;
  // A minimax polynomial of 2^f - 1 over f in [-1/2, 1/2].
  constexpr float kOrders[] = {1.53533052e-4f, 1.33988727e-3f, 9.61843785e-3f,
                               5.55033237e-2f, 2.40226477e-1f, 6.93147182e-1f};
  constexpr float kOne = 1.0f;
  x = V::max(x, V::broadcast(&kLeast));
  const typename V::Reg n = V::sub(V::add(x, V::broadcast(&kRound)), V::broadcast(&kRound));
  const typename V::Reg f = V::sub(x, n);
  typename V::Reg y = V::broadcast(&kOrders[0]);
  DYNDEPLOY_UNROLL
  for (int i = 1; i < 6; ++i) y = V::multiply_add(y, f, V::broadcast(&kOrders[i]));
  return V::scale2(V::multiply_add(y, f, V::broadcast(&kOne)), n);
}

// x * Phi(x), as max(x, 0) - |x| * Phi(-|x|), with Phi(-t) = exp(-t^2 / 2) * a polynomial of t. Absolute
// error 1.5e-7.
template <class V>
DYNDEPLOY_INLINE typename V::Reg gelu(typename V::Reg x) {
  constexpr float kEnd = 5.5f, kExponent = -0.721347520f;
  // A minimax polynomial over [0, 5.5] of exp(t^2 / 2) * Phi(-t), weighted with t * exp(-t^2 / 2).
  constexpr float kOrders[] = {9.07948049e-7f, -2.18752593e-5f, 2.36165870e-4f, -1.53121073e-3f,
                               6.79177418e-3f, -2.24604178e-2f, 5.92930056e-2f, -1.31390095e-1f,
                               2.49538988e-1f, -3.98875684e-1f, 4.99996662e-1f};
  const typename V::Reg zero = V::zero();
  const typename V::Reg t = V::min(V::max(x, V::sub(zero, x)), V::broadcast(&kEnd));
  const typename V::Reg e = exp2_negative<V>(V::mul(V::mul(t, V::broadcast(&kExponent)), t));
  typename V::Reg y = V::broadcast(&kOrders[0]);
  DYNDEPLOY_UNROLL
  for (int i = 1; i < 11; ++i) y = V::multiply_add(y, t, V::broadcast(&kOrders[i]));
  return V::sub(V::relu(x), V::mul(V::mul(t, e), y));
}

// -------------------------------------------------------------------------------------------- packed rows

// Inputs of one block.
template <class P>
constexpr int unit() {
  return kBlock * P::kInputsPerRow;
}

// Numbers [column, column + count) of one row, at `out` those of column 0. count is a multiple of the vector.
template <class V, class P>
DYNDEPLOY_INLINE void store_packed(const float* values, int count, int column, int tile_rows, float* out) {
  const std::ptrdiff_t step = static_cast<std::ptrdiff_t>(tile_rows) * kBlock;
  if constexpr (P::kInputsPerRow == 1) {
    for (int i = 0; i < count; i += V::kWidth, column += V::kWidth)
      V::store(out + column / kBlock * step + column % kBlock, V::load(values + i));
  } else {
    // Vectors come in pairs, so that no pair of numbers is cut.
    for (int i = 0; i < count; column += 2 * kBlock, i += 2 * kBlock) {
      const int n = min_of(count - i, 2 * kBlock);
      float* const to = out + column / (2 * kBlock) * step + column % (2 * kBlock) / 2;
      if (n == 2 * kBlock) {
        P::round_pairs(values + i, n, to);
        continue;
      }
      alignas(kLineBytes) float pairs[kBlock];
      P::round_pairs(values + i, n, pairs);
      for (int k = 0; k < n / 2; ++k) to[k] = pairs[k];
    }
  }
}

template <class V, class P>
void norm_rows(const NormRows& call, int row_begin, int row_end) {
  using Reg = typename V::Reg;
  constexpr int W = V::kWidth, U = unit<P>();
  const int channels = call.channels, length = call.length;
  const int whole = channels / W * W;
  const std::ptrdiff_t step = static_cast<std::ptrdiff_t>(call.tile_rows) * kBlock;
  const int part_blocks = ceil_div(length, U);
  for (int r = row_begin; r < row_end; ++r) {
    const float* const x = call.x + static_cast<std::ptrdiff_t>(call.index ? call.index[r] : r) * call.stride;
    float mean = 0.0f, factor = 1.0f;
    if (call.weight) {
      Reg sum[2] = {V::zero(), V::zero()};
      int c = 0;
      for (; c + 2 * W <= whole; c += 2 * W) {
        sum[0] = V::add(sum[0], V::load(x + c));
        sum[1] = V::add(sum[1], V::load(x + c + W));
      }
      for (; c < channels; c += W) sum[0] = V::add(sum[0], V::load_first(x + c, min_of(channels - c, W)));
      mean = V::sum(V::add(sum[0], sum[1])) / static_cast<float>(channels);
      const Reg m = V::broadcast(&mean);
      sum[0] = sum[1] = V::zero();
      for (c = 0; c + 2 * W <= whole; c += 2 * W) {
        const Reg a = V::sub(V::load(x + c), m), b = V::sub(V::load(x + c + W), m);
        sum[0] = V::multiply_add(a, a, sum[0]);
        sum[1] = V::multiply_add(b, b, sum[1]);
      }
      float rest = 0.0f;
      for (; c < whole; c += W) {
        const Reg a = V::sub(V::load(x + c), m);
        sum[0] = V::multiply_add(a, a, sum[0]);
      }
      for (; c < channels; ++c) rest += (x[c] - mean) * (x[c] - mean);
      const float variance = (V::sum(V::add(sum[0], sum[1])) + rest) / static_cast<float>(channels);
      factor = 1.0f / __builtin_sqrtf(variance + call.epsilon);
    }
    const Reg m = V::broadcast(&mean), f = V::broadcast(&factor);
    float* out = call.out + static_cast<std::ptrdiff_t>(r - row_begin) * kBlock;
    for (int p = 0; p < call.parts; ++p, out += part_blocks * step) {
      const int start = call.starts[p];
      for (int c = 0, block = 0; c < length; c += U, ++block) {
        alignas(kLineBytes) float values[U];
        for (int i = 0; i < U; i += W) {
          const int left = length - c - i, at = start + c + i;
          Reg v = V::zero();
          if (left >= W) {
            v = V::load(x + at);
            if (call.weight)
              v = V::multiply_add(V::mul(V::sub(v, m), f), V::load(call.weight + at),
                                  V::load(call.bias + at));
          } else if (left > 0) {
            v = V::load_first(x + at, left);
            if (call.weight)
              v = V::multiply_add(V::mul(V::sub(v, m), f), V::load_first(call.weight + at, left),
                                  V::load_first(call.bias + at, left));
          }
          if constexpr (P::kInputsPerRow == 1)
            V::store(out + block * step + i, v);
          else
            V::store(values + i, v);
        }
        if constexpr (P::kInputsPerRow == 2) P::round_pairs(values, U, out + block * step);
      }
    }
  }
}

// ------------------------------------------------------------------------------------------------ products

struct TileSums {
  const float* a;         // the first row's first block
  std::ptrdiff_t a_step;  // floats between blocks
  const float* b;
  std::ptrdiff_t b_stride;  // between rows
  const std::int32_t* block_rows;
  int blocks;
  const char* ahead;  // a panel of which this tile fetches its part: lines [line_begin, line_end) per block
  int line_begin;
  int line_end;
  bool first;
  float* sums;  // rows of whole panels, or of a half one
};

template <class V, int R, int NV>
DYNDEPLOY_NOINLINE void tile_sums(const TileSums& s) {
  using Reg = typename V::Reg;
  Reg c[R][NV];
  float* const sums = s.sums;
  if (s.first) {
    DYNDEPLOY_UNROLL
    for (int r = 0; r < R; ++r) {
      DYNDEPLOY_UNROLL
      for (int v = 0; v < NV; ++v) c[r][v] = V::zero();
    }
  } else {
    DYNDEPLOY_UNROLL
    for (int r = 0; r < R; ++r) {
      DYNDEPLOY_UNROLL
      for (int v = 0; v < NV; ++v) c[r][v] = V::load(sums + (r * NV + v) * V::kWidth);
    }
  }
  const float* a = s.a;
  const std::ptrdiff_t stride = s.b_stride, step = s.a_step;
  const std::int32_t* const block_rows = s.block_rows;
  const int blocks = s.blocks, line_begin = s.line_begin, line_end = s.line_end;
  const float* const base = s.b;
  const char* const ahead = s.ahead;
  for (int i = 0; i < blocks; ++i, a += step) {
    const std::ptrdiff_t row = block_rows[i] * stride;
    const float* b = base + row;
    for (int l = line_begin; l < line_end; ++l) prefetch(ahead + row * 4 + l * kLineBytes);
    if constexpr (V::kHasLanes) {
      for (int k = 0; k < kBlock; k += 4) {
        Reg x[R];
        DYNDEPLOY_UNROLL
        for (int r = 0; r < R; ++r) x[r] = V::load(a + r * kBlock + k);
        const auto multiply = [&](auto lane) __attribute__((always_inline)) {
          multiply_lane<V, decltype(lane)::value>(
              x, [=](int v) __attribute__((always_inline)) { return V::load(b + v * V::kWidth); }, c);
          b += stride;
        };
        multiply(Width<0>{});
        multiply(Width<1>{});
        multiply(Width<2>{});
        multiply(Width<3>{});
      }
    } else {
      DYNDEPLOY_UNROLL_BY_4
      for (int k = 0; k < kBlock; ++k, b += stride) {
        Reg w[NV];
        DYNDEPLOY_UNROLL
        for (int v = 0; v < NV; ++v) w[v] = V::load(b + v * V::kWidth);
        DYNDEPLOY_UNROLL
        for (int r = 0; r < R; ++r) {
          const Reg x = V::broadcast(a + r * kBlock + k);
          DYNDEPLOY_UNROLL
          for (int v = 0; v < NV; ++v) c[r][v] = V::fma(x, w[v], c[r][v]);
        }
      }
    }
  }
  DYNDEPLOY_UNROLL
  for (int r = 0; r < R; ++r) {
    DYNDEPLOY_UNROLL
    for (int v = 0; v < NV; ++v) V::store(sums + (r * NV + v) * V::kWidth, c[r][v]);
  }
}

template <class V, int NV, int R = V::kTileRows>
inline void run_tile_rows(int rows, const TileSums& s) {
  if constexpr (R > 0) {
    if (rows == R) return tile_sums<V, R, NV>(s);
    run_tile_rows<V, NV, R - 1>(rows, s);
  }
}

// As tile_sums(), for instruction sets that multiply matrices: they read whole tiles of kMatrixRows, of which
// the rows behind the last one are anything.
template <class V, bool Tall, bool Wide>
DYNDEPLOY_NOINLINE void matrix_sums(int rows, const TileSums& s) {
  using Matrix = typename V::Matrix;
  constexpr int kColumns = (Wide ? V::kPanelVectors : V::kPanelVectors / 2) * V::kWidth;
  alignas(kLineBytes) float sums[V::kTileRows * kColumns];
  const std::ptrdiff_t count = static_cast<std::ptrdiff_t>(rows) * kColumns;
  if (!s.first) {
    for (std::ptrdiff_t i = 0; i < count; i += V::kWidth) V::store(sums + i, V::load(s.sums + i));
    for (std::ptrdiff_t i = count; i < V::kTileRows * kColumns; i += V::kWidth) V::store(sums + i, V::zero());
  }
  Matrix::template load<Tall, Wide>(s.first ? nullptr : sums, kColumns);
  const float* a = s.a;
  for (int i = 0; i < s.blocks; ++i, a += s.a_step) {
    const std::ptrdiff_t row = s.block_rows[i] * s.b_stride;
    for (int l = s.line_begin; l < s.line_end; ++l) prefetch(s.ahead + row * 4 + l * kLineBytes);
    Matrix::template multiply<Tall, Wide>(a, s.b + row, s.b_stride);
  }
  Matrix::template store<Tall, Wide>(sums, kColumns);
  for (std::ptrdiff_t i = 0; i < count; i += V::kWidth) V::store(s.sums + i, V::load(sums + i));
}

template <class V>
inline void run_tile(int rows, bool narrow, const TileSums& s) {
  constexpr int NV = V::kPanelVectors;
  if constexpr (V::kHasMatrix) {
    if (rows > V::kMatrixRows)
      return narrow ? matrix_sums<V, true, false>(rows, s) : matrix_sums<V, true, true>(rows, s);
    return narrow ? matrix_sums<V, false, false>(rows, s) : matrix_sums<V, false, true>(rows, s);
  } else {
    narrow ? run_tile_rows<V, NV / 2>(rows, s) : run_tile_rows<V, NV>(rows, s);
  }
}

// What a product does with one tile's sums of one panel. NV vectors of sums per row.
template <class V, class P, int NV, bool Gelu>
DYNDEPLOY_NOINLINE void finish_tile(const TileProduct& call, int tile, int column, float* sums) {
  using Reg = typename V::Reg;
  constexpr int W = V::kWidth;
  const int rows = call.tiles.rows(tile), first = call.tiles.edges[tile];
  Reg bias[NV];
  DYNDEPLOY_UNROLL
  for (int v = 0; v < NV; ++v) bias[v] = V::load(call.bias + column + v * W);
  if (call.packed) {
    float* const out = call.out + call.tiles.before(tile) * call.out_row;
    const std::ptrdiff_t step = static_cast<std::ptrdiff_t>(rows) * kBlock;
    for (int r = 0; r < rows; ++r, sums += NV * W) {
      DYNDEPLOY_UNROLL
      for (int v = 0; v < NV; ++v) {
        Reg x = V::add(V::load(sums + v * W), bias[v]);
        if constexpr (Gelu) x = gelu<V>(x);
        if (P::kInputsPerRow == 1 || !call.pairs) {
          const int at = call.out_column + column + v * W;
          V::store(out + at / kBlock * step + r * kBlock + at % kBlock, x);
        } else {
          V::store(sums + v * W, x);
        }
      }
      if (P::kInputsPerRow == 2 && call.pairs)
        store_packed<V, P>(sums, NV * W, call.out_column + column, rows, out + r * kBlock);
    }
    return;
  }
  const int left = call.columns - column;
  for (int r = 0; r < rows; ++r, sums += NV * W) {
    const std::ptrdiff_t at =
        static_cast<std::ptrdiff_t>(call.index ? call.index[first + r] : first + r) * call.out_row + column;
    float* const out = call.out + at;
    DYNDEPLOY_UNROLL
    for (int v = 0; v < NV; ++v) {
      Reg x = V::add(V::load(sums + v * W), bias[v]);
      if constexpr (Gelu) x = gelu<V>(x);
      const int lanes = left - v * W;
      if (lanes >= W) {
        if (call.residual) x = V::add(x, V::load(call.residual + at + v * W));
        V::store(out + v * W, x);
      } else if (lanes > 0) {
        if (call.residual) x = V::add(x, V::load_first(call.residual + at + v * W, lanes));
        V::store_first(out + v * W, x, lanes);
      }
    }
  }
}

// Blocks per pass, so that a panel's part stays near while all tiles read it.
template <class P>
inline int pass_blocks() {
  constexpr int kRowBytes = 4 * (P::kPanelVectors * P::kWidth + P::kTileRows);
  const int fit = static_cast<int>(blocks().panel / (kBlock * kRowBytes));
  return fit < 1 ? 1 : fit;
}

template <class V, class P>
void tile_product(const TileProduct& call, int panel_begin, int panel_end) {
  constexpr int NV = P::kPanelVectors, PW = NV * P::kWidth;
  constexpr int kLines = kBlock * PW * 4 / kLineBytes;  // of one block of a panel
  if constexpr (P::kHasMatrix) P::Matrix::written();
  const int most = pass_blocks<P>();
  const int passes = ceil_div(call.blocks, most);
  const int tiles = call.tiles.count;
  for (int p = panel_begin; p < panel_end; ++p) {
    const bool narrow = NV > 1 && call.columns - p * PW <= PW / 2;
    const int width = narrow ? PW / 2 : PW;
    const float* const panel = call.b + p * call.panel_stride;
    const float* const ahead = p + 1 < panel_end ? panel + call.panel_stride : call.after;
    for (int pass = 0; pass < passes; ++pass) {
      const int begin = static_cast<int>(static_cast<std::int64_t>(call.blocks) * pass / passes);
      const int end = static_cast<int>(static_cast<std::int64_t>(call.blocks) * (pass + 1) / passes);
      for (int t = 0; t < tiles; ++t) {
        const int rows = call.tiles.rows(t), before = call.tiles.before(t);
        TileSums s;
        s.a_step = static_cast<std::ptrdiff_t>(rows) * kBlock;
        s.a = call.a + before * call.a_row + begin * s.a_step;
        s.b = panel;
        s.b_stride = call.row_stride;
        s.block_rows = call.block_rows + begin;
        s.blocks = end - begin;
        s.ahead = reinterpret_cast<const char*>(ahead);
        s.line_begin = ahead ? kLines * t / tiles : 0;
        s.line_end = ahead ? kLines * (t + 1) / tiles : 0;
        s.first = pass == 0;
        s.sums = call.sums + static_cast<std::ptrdiff_t>(before) * width;
        run_tile<P>(rows, narrow, s);
        if (pass + 1 < passes) continue;
        if (narrow)
          call.gelu ? finish_tile<V, P, NV / 2, true>(call, t, p * PW, s.sums)
                    : finish_tile<V, P, NV / 2, false>(call, t, p * PW, s.sums);
        else
          call.gelu ? finish_tile<V, P, NV, true>(call, t, p * PW, s.sums)
                    : finish_tile<V, P, NV, false>(call, t, p * PW, s.sums);
      }
    }
  }
}

template <class V, class P>
void product_rows(const TileProduct& call, int panel_begin, int panel_end) {
  if constexpr (P::kHasMatrix) {
    const typename P::Matrix matrix;
    return tile_product<V, P>(call, panel_begin, panel_end);
  }
  tile_product<V, P>(call, panel_begin, panel_end);
}

// ----------------------------------------------------------------------------------------------- attention

template <class V>
void key_panels(const KeyPanels& call) {
  using Reg = typename V::Reg;
  constexpr int W = V::kWidth, PW = V::kPanelVectors * W;
  const std::ptrdiff_t panel_floats = static_cast<std::ptrdiff_t>(call.depth) * PW;
  const int padded = ceil_div(call.count, PW) * PW;
  for (int key = 0; key < padded; key += W) {
    float* const to = call.out + key / PW * panel_floats + key % PW;
    const int left = call.count - key;
    for (int c = 0; c < call.depth; c += W) {
      Reg rows[W];
      if (left >= W) {
        DYNDEPLOY_UNROLL
        for (int i = 0; i < W; ++i) rows[i] = V::load(call.keys + (key + i) * call.stride + c);
      } else {
        for (int i = 0; i < W; ++i)
          rows[i] = i < left ? V::load(call.keys + (key + i) * call.stride + c) : V::zero();
      }
      V::transpose(rows);
      DYNDEPLOY_UNROLL
      for (int i = 0; i < W; ++i) V::store(to + (c + i) * PW, rows[i]);
    }
  }
}

template <class V>
DYNDEPLOY_INLINE float reduce_max(typename V::Reg x) {
  alignas(kLineBytes) float lanes[V::kWidth];
  V::store(lanes, x);
  float most = lanes[0];
  for (int i = 1; i < V::kWidth; ++i) most = lanes[i] > most ? lanes[i] : most;
  return most;
}

// Queries of at most V::kTileRows rows; they lie in a tile of `tile_rows`.
template <class V, class P>
void attend_rows(const TileAttention& call, const float* queries, int rows, float* out) {
  using Reg = typename V::Reg;
  constexpr int W = V::kWidth, NV = V::kPanelVectors, PW = NV * W;
  static_assert(V::kTileRows <= 16, "scratch size");
  float* const scores = call.scratch;  // rows * kAttentionKeys, [block][row][kBlock]
  float* const sums = scores + std::ptrdiff_t{16} * kAttentionKeys;  // rows * PW
  float* const results = sums + std::ptrdiff_t{16} * 128;            // rows * columns, panel by panel
  const std::ptrdiff_t panel_floats = static_cast<std::ptrdiff_t>(call.depth) * PW;
  const std::ptrdiff_t step = static_cast<std::ptrdiff_t>(rows) * kBlock;
  std::int32_t block_rows[kAttentionKeys / kBlock];
  for (int i = 0; i < kAttentionKeys / kBlock; ++i) block_rows[i] = i * kBlock;
  constexpr float kLog2e = 1.44269504f, kLowest = -3.0e38f;
  const float scale = call.scale * kLog2e;
  float most[V::kTileRows], total[V::kTileRows];
  for (int r = 0; r < rows; ++r) {
    most[r] = kLowest;
    total[r] = 0.0f;
  }
  const int passes = ceil_div(call.count, kAttentionKeys);
  for (int pass = 0; pass < passes; ++pass) {
    const int begin = pass * kAttentionKeys;
    const int count = min_of(call.count - begin, kAttentionKeys);
    const int key_blocks = ceil_div(count, kBlock);
    for (int key = 0; key < key_blocks * kBlock; key += PW) {
      TileSums s{};
      s.a = queries;
      s.a_step = static_cast<std::ptrdiff_t>(call.rows) * kBlock;
      s.b = call.keys + (begin + key) / PW * panel_floats;
      s.b_stride = PW;
      s.block_rows = block_rows;
      s.blocks = call.depth / kBlock;
      s.first = true;
      s.sums = sums;
      const bool narrow = key_blocks * kBlock - key <= PW / 2;
      const int vectors = narrow ? NV / 2 : NV;
      narrow ? run_tile_rows<V, NV / 2>(rows, s) : run_tile_rows<V, NV>(rows, s);
      for (int r = 0; r < rows; ++r) {
        for (int v = 0; v < vectors; ++v) {
          const int at = key + v * W;
          V::store(scores + at / kBlock * step + r * kBlock + at % kBlock,
                   V::mul(V::load(sums + (r * vectors + v) * W), V::broadcast(&scale)));
        }
      }
    }
    const int whole = count / W * W;
    for (int r = 0; r < rows; ++r) {
      float* const row = scores + r * kBlock;
      const auto at = [=](int key) { return row + key / kBlock * step + key % kBlock; };
      Reg high = V::broadcast(&kLowest);
      for (int key = 0; key < whole; key += W) high = V::max(high, V::load(at(key)));
      float top = reduce_max<V>(high);
      for (int key = whole; key < count; ++key) top = *at(key) > top ? *at(key) : top;
      const float before = most[r];
      if (top > before) most[r] = top;
      const Reg shift = V::broadcast(&most[r]);
      Reg sum = V::zero();
      for (int key = 0; key < whole; key += W) {
        const Reg e = exp2_negative<V>(V::sub(V::load(at(key)), shift));
        V::store(at(key), e);
        sum = V::add(sum, e);
      }
      float rest = 0.0f;
      if (whole < key_blocks * kBlock) {
        for (int key = whole; key < key_blocks * kBlock; key += W) {
          alignas(kLineBytes) float e[W];
          V::store(e, exp2_negative<V>(V::sub(V::load(at(key)), shift)));
          for (int i = 0; i < W; ++i) {
            if (key + i >= count) e[i] = 0.0f;
            rest += e[i];
          }
          V::store(at(key), V::load(e));
        }
      }
      const float row_sum = V::sum(sum) + rest;
      if (pass == 0) {
        total[r] = row_sum;
      } else {
        const float change[1] = {before - most[r]};
        alignas(kLineBytes) float shrunk[W];
        V::store(shrunk, exp2_negative<V>(V::broadcast(change)));
        total[r] = total[r] * shrunk[0] + row_sum;
        const Reg by = V::broadcast(shrunk);
        for (int column = 0; column < call.columns; column += PW) {
          const bool narrow = call.columns - column <= PW / 2;
          const int width = narrow ? PW / 2 : PW;
          float* const result = results + static_cast<std::ptrdiff_t>(rows) * column + r * width;
          for (int i = 0; i < width; i += W) V::store(result + i, V::mul(V::load(result + i), by));
        }
      }
    }
    for (int column = 0; column < call.columns; column += PW) {
      TileSums s{};
      s.a = scores;
      s.a_step = step;
      s.b = call.values + begin * call.value_stride + column;
      s.b_stride = call.value_stride;
      s.block_rows = block_rows;
      s.blocks = key_blocks;
      s.first = pass == 0;
      s.sums = results + static_cast<std::ptrdiff_t>(rows) * column;
      call.columns - column <= PW / 2 ? run_tile_rows<V, NV / 2>(rows, s) : run_tile_rows<V, NV>(rows, s);
    }
  }
  for (int column = 0; column < call.columns; column += PW) {
    const int width = call.columns - column <= PW / 2 ? PW / 2 : PW;
    float* result = results + static_cast<std::ptrdiff_t>(rows) * column;
    for (int r = 0; r < rows; ++r, result += width) {
      const float inverse = 1.0f / total[r];
      const Reg by = V::broadcast(&inverse);
      for (int i = 0; i < width; i += W) V::store(result + i, V::mul(V::load(result + i), by));
      store_packed<V, P>(result, width, column, call.rows, out + r * kBlock);
    }
  }
}

template <class V, class P>
void attend(const TileAttention& call) {
  const int parts = ceil_div(call.rows, V::kTileRows);
  for (int i = 0; i < parts; ++i) {
    const int begin = call.rows * i / parts, end = call.rows * (i + 1) / parts;
    attend_rows<V, P>(call, call.queries + begin * kBlock, end - begin, call.out + begin * kBlock);
  }
}

// ------------------------------------------------------------------------------------------------- maskers

template <class V>
void norm_logits(const NormLogits& call, float* logits) {
  using Reg = typename V::Reg;
  constexpr int W = V::kWidth;
  const int channels = call.channels, whole = channels / W * W;
  const float* const x = call.x;
  float mean = 0.0f, factor = 1.0f;
  if (call.normalise) {
    Reg sum = V::zero();
    for (int c = 0; c < channels; c += W) sum = V::add(sum, V::load_first(x + c, min_of(channels - c, W)));
    mean = V::sum(sum) / static_cast<float>(channels);
    const Reg m = V::broadcast(&mean);
    sum = V::zero();
    float rest = 0.0f;
    for (int c = 0; c < whole; c += W) {
      const Reg a = V::sub(V::load(x + c), m);
      sum = V::multiply_add(a, a, sum);
    }
    for (int c = whole; c < channels; ++c) rest += (x[c] - mean) * (x[c] - mean);
    factor = 1.0f / __builtin_sqrtf((V::sum(sum) + rest) / static_cast<float>(channels) + call.epsilon);
  }
  const Reg m = V::broadcast(&mean);
  for (int i = 0; i < call.count; ++i) {
    const float* const weights = call.weights + static_cast<std::ptrdiff_t>(i) * channels;
    Reg sum = V::zero();
    float rest = 0.0f;
    for (int c = 0; c < whole; c += W)
      sum = V::multiply_add(V::sub(V::load(x + c), m), V::load(weights + c), sum);
    for (int c = whole; c < channels; ++c) rest += (x[c] - mean) * weights[c];
    logits[i] = (V::sum(sum) + rest) * factor + call.bias[i];
  }
}

}  // namespace
}  // namespace dyndeploy::cpu
