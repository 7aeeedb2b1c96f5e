// What the kernels of transformer blocks and of their maskers are given. Rows that a product reads lie in
// tiles: [block][row][kBlock], each row's numbers in whole blocks with zeros behind the last one, so that a
// product needs no remainder. Whatever makes such rows (a normalisation, attention, GELU) writes them so.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dyndeploy::cpu {

// The rows of a call are cut into tiles: tile t holds rows [edges[t], edges[t + 1]).
struct RowTiles {
  const int* edges = nullptr;
  int count = 0;

  int rows(int tile) const { return edges[tile + 1] - edges[tile]; }
  int before(int tile) const { return edges[tile] - edges[0]; }
};

// Layer normalisation of one tile's rows, of some of their channels: parts of `length` channels, each
// beginning a block of its own. Mean and variance are those of all channels.
struct NormRows {
  const float* x = nullptr;
  std::ptrdiff_t stride = 0;
  const std::int32_t* index = nullptr;  // row r lies at x + index[r] * stride; nullptr: r
  int channels = 0;
  float epsilon = 0.0f;
  const float* weight = nullptr;  // nullptr: rows are only laid out
  const float* bias = nullptr;
  const std::int32_t* starts = nullptr;  // first channel of each part
  int parts = 0;
  int length = 0;
  float* out = nullptr;  // where the tile's first block of the first part begins
  int tile_rows = 0;     // rows of that tile; those that are written come first
};

// value = [GELU](sum + bias) [+ residual]
struct TileProduct {
  RowTiles tiles;
  const float* a = nullptr;  // tile t begins at a + tiles.before(t) * a_row
  std::ptrdiff_t a_row = 0;  // floats of a row, in all its blocks
  int blocks = 0;
  const std::int32_t* block_rows = nullptr;  // the row of B at which each block begins
  const float* b = nullptr;                  // row k of panel p: b + p * panel_stride + k * row_stride
  std::ptrdiff_t row_stride = 0;
  std::ptrdiff_t panel_stride = 0;
  int columns = 0;               // whole blocks of them where the result is packed
  const float* after = nullptr;  // weights that are read next, in the same rows; nullptr: unknown
  float* sums = nullptr;         // rows * panel_width
  const float* bias = nullptr;   // readable up to a whole number of panels
  bool gelu = false;
  // Packed: tile t's rows begin at out + tiles.before(t) * out_row. Else row r lies at out + index[r] *
  // out_row (index[r]: r without an index).
  bool packed = false;
  bool pairs = false;  // packed as products of this instruction set read it; else always floats
  float* out = nullptr;
  std::ptrdiff_t out_row = 0;
  int out_column = 0;               // packed: the place of column 0 in a row, a whole number of blocks
  const float* residual = nullptr;  // as out
  const std::int32_t* index = nullptr;
};

// One head's attention of one tile of queries to all keys: softmax(scale * q k^T) v. Floats, always.
struct TileAttention {
  const float* queries = nullptr;  // a tile
  int rows = 0;
  int depth = 0;                // numbers of a query, in whole blocks
  const float* keys = nullptr;  // panels of keys: [panel][depth][panel_width], zeros behind the last key
  const float* values = nullptr;
  std::ptrdiff_t value_stride = 0;  // rows of values; zeros up to a whole block of rows
  int count = 0;                    // keys
  int columns = 0;                  // of values and result, in whole blocks of the result
  float scale = 1.0f;
  float* scratch = nullptr;  // kAttentionFloats + tile rows * columns
  float* out = nullptr;      // where the head's first block of the tile begins, as products read it
};

constexpr int kAttentionKeys = 512;  // keys whose scores are kept at a time
constexpr std::size_t kAttentionFloats = std::size_t{16} * (kAttentionKeys + 128);

// Keys (row by row) to panels.
struct KeyPanels {
  const float* keys = nullptr;
  std::ptrdiff_t stride = 0;
  int count = 0;
  int depth = 0;         // numbers of a key, in whole blocks
  float* out = nullptr;  // as TileAttention::keys
};

// logits[m] = weights[m] . n(x) + bias[m], with n the normalisation without weight and bias, or nothing.
struct NormLogits {
  const float* x = nullptr;
  int channels = 0;
  bool normalise = false;
  float epsilon = 0.0f;
  const float* weights = nullptr;  // (count, channels)
  const float* bias = nullptr;
  int count = 0;
};

}  // namespace dyndeploy::cpu
