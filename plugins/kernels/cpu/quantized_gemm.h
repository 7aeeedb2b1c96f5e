// As gemm.h, in integers: rows of A are uint8 activations that are read in place, B are int8 weights, sums
// are int32 and are requantised to 8 bits as they are written:
//
//   requantise(sum, multiplier) = saturate16(round_half_even(float(sum) * multiplier))
//   out[out_index[r], n] = clamp(requantise(bias + sum over taps t, channels c of A * B) [+ residual], 0,
//   255)
//
// where the residual is a byte, or a projection shortcut that was requantised on its own. The same bits on
// every instruction set, whatever the blocking.
//
// Four inputs of a tap, a quad, lie together in A and in B: [panel][(tap, quad)][panel_width][4]; weights of
// inputs that do not exist are zero, and what A holds in their places counts for nothing.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dyndeploy::cpu {

constexpr int kQuad = 4;
constexpr int kQuantizedTaps = 9;

// Where the rows of A lie. Pixel `index[r]` (r - first without an index) starts at base + pixel * stride; tap
// t is tap_offset[t] bytes further on, or all zeros where bit t of valid[r] is 0. Whole quads can be read.
struct QuantizedRows {
  const std::uint8_t* base = nullptr;
  std::ptrdiff_t stride = 0;
  const std::int32_t* index = nullptr;
  int first = 0;
  int taps = 1;
  int inputs = 0;  // per tap
  const std::uint16_t* valid = nullptr;
  std::ptrdiff_t tap_offset[kQuantizedTaps] = {};
};

// The weights of active channels are copied from blocks of this many columns.
constexpr int kBlockColumns = 32;

// Which rows and columns of weights the active channels leave. Columns come from packed panels, where all
// inputs stay, or from blocks: [block][(tap, pair of inputs)][kBlockColumns][2], and a row of zeros behind
// each.
struct QuantizedSelection {
  const std::int8_t* blocks = nullptr;  // nullptr: from the panels
  std::ptrdiff_t block_stride = 0;
  // Rows of a block, in bytes from its beginning: two per quad, which holds their inputs one after the other,
  // or where `single` inputs are taken from pairs, four, plus 1 for the second input of its pair.
  const std::int32_t* rows = nullptr;
  bool single = false;
  const std::int32_t* columns = nullptr;  // nullptr: all of them
  // The weights of the panels once more by pairs of columns, [pair][quad][2][4], where `columns` come in
  // pairs: of such only the chosen ones have to come from memory. Whole cache lines can be read. nullptr:
  // from the panels.
  const std::int8_t* pairs = nullptr;
  std::ptrdiff_t pair_stride = 0;
  // What a skipped input of the convolution is: the copied weights' share of it is taken from the bias, which
  // counts all inputs. By quads of the inputs that are left; nullptr: nothing is taken.
  const std::uint8_t* constants = nullptr;
  // The taps that remain for each border class, where there are any, and the classes that occur.
  const std::uint16_t* class_taps = nullptr;
  unsigned classes = 1;
};

constexpr int kQuantizedClasses = 16;
// Entries beyond the end of the rows of a selection that are read, to fetch what they name.
constexpr int kQuantizedListMargin = 128;

// One convolution's weights. With a selection, bias and multiplier are those of all columns.
struct QuantizedPanels {
  const std::int8_t* base = nullptr;
  std::ptrdiff_t panel_stride = 0;     // bytes
  const std::int32_t* bias = nullptr;  // readable up to a whole number of panels, as is the multiplier
  std::ptrdiff_t bias_stride = 0;      // between border classes; 0: one bias for all
  const float* multiplier = nullptr;
  const QuantizedSelection* selection = nullptr;  // nullptr: all of them
};

struct QuantizedSource {
  QuantizedRows a;
  QuantizedPanels b;
};

// Makes one panel of the selected columns [column, column + count), with its biases and multipliers.
struct QuantizedCopy {
  QuantizedPanels from;
  int taps = 1;
  int quads = 0;  // of each tap, that are left
  int column = 0;
  int count = 0;
  std::int8_t* b = nullptr;  // quantized_copy_bytes()
  std::int32_t* bias = nullptr;
  std::ptrdiff_t bias_stride = 0;  // between border classes
  float* multiplier = nullptr;

  int source(int n) const {
    return from.selection->columns ? from.selection->columns[column + n] : column + n;
  }
};

// Weights that are read after this product: they are fetched towards the caches while it computes.
struct QuantizedUpcoming {
  const std::int8_t* base = nullptr;
  std::ptrdiff_t stride = 0;              // between blocks
  const std::int32_t* rows = nullptr;     // where the lines of a block lie; nullptr: one after the other
  int count = 0;                          // lines of each block
  int blocks = 0;                         // left to fetch
  int line = 0;                           // next one
  const std::int32_t* columns = nullptr;  // a block is the pair with the first of these; nullptr: 0, 1 ...
  const QuantizedUpcoming* then = nullptr;
};

struct QuantizedGemm {
  QuantizedSource product;
  // A projection shortcut, added after it was requantised; without a selection. nullptr: none.
  const QuantizedSource* shortcut = nullptr;
  int columns = 0;
  const std::uint8_t* bias_class = nullptr;  // row r uses the bias of this class
  const std::uint8_t* residual = nullptr;    // laid out like out, found through the same index
  std::uint8_t* out = nullptr;
  std::ptrdiff_t stride = 0;
  const std::int32_t* index = nullptr;  // pixel of row r; r - first without an index
  int first = 0;
  QuantizedUpcoming upcoming;
};

// Memory for one caller of QuantizedIsa::gemm at a time, for selections only but for the zeros.
struct QuantizedScratch {
  const std::uint8_t* zeros = nullptr;  // the longest tap, in whole quads
  std::int8_t* b = nullptr;             // quantized_copy_bytes()
  std::int32_t* bias = nullptr;         // quantized_bias_count()
  float* multiplier = nullptr;          // a panel
};

constexpr int kMostPooledRows = 9;
constexpr int kMostImageChannels = 4;

// A row of a float image, channel by channel, to bytes channels last.
struct QuantizedImageRow {
  const float* x = nullptr;
  std::ptrdiff_t plane = 0;  // from one channel to the next
  int channels = 0;          // at most kMostImageChannels
  int width = 0;
  float scale = 1.0f;
  int zero_point = 0;
  std::uint8_t* out = nullptr;
};

// One row of windows over rows of bytes, channels last: the largest byte of each, at least one of whose
// columns exists.
struct QuantizedPool {
  const std::uint8_t* const* rows = nullptr;
  int row_count = 0;
  int columns = 0;
  int channels = 0;
  int window = 1;
  int stride = 1;
  int left = 0;
  std::uint8_t* out = nullptr;
  int out_columns = 0;
};

// The kernels of one instruction set. All are plain functions over caller-owned memory and never throw.
struct QuantizedIsa {
  const char* name;
  int panel_width;  // output channels per weight panel: at most kMaxQuantizedPanel
  // Sums are exact for weights of [-weight_limit, weight_limit]; others take `wider`, with the same panels.
  int weight_limit;
  const QuantizedIsa* wider;
  bool (*supported)();
  // rows [row_begin, row_end) x weight panels [panel_begin, panel_end)
  void (*gemm)(const QuantizedGemm&, int row_begin, int row_end, int panel_begin, int panel_end,
               const QuantizedScratch&);
  void (*copy)(const QuantizedCopy&);
  void (*quantize_row)(const QuantizedImageRow&);
  void (*pool_row)(const QuantizedPool&);
  bool copies_pairs;  // of columns, if it finds them in a selection
};

constexpr int kMaxQuantizedPanel = 64;

// The part of pairs of columns [begin, end), counted among the chosen ones.
inline QuantizedUpcoming upcoming_pairs(const QuantizedSelection& selection, int quads, int begin, int end) {
  constexpr int kQuadsPerLine = 8;
  QuantizedUpcoming u;
  u.base = selection.pairs;
  u.stride = selection.pair_stride;
  u.columns = selection.columns + begin;
  u.count = (quads + kQuadsPerLine - 1) / kQuadsPerLine;
  u.blocks = (end - begin) / 2;
  return u;
}

// For a copied panel of a convolution of so many quads per tap.
std::size_t quantized_copy_bytes(const QuantizedIsa& isa, int taps, int quads);
std::size_t quantized_bias_count(const QuantizedIsa& isa);

// nullptr when this build or this machine cannot run it
const QuantizedIsa* find_quantized_isa(const char* name);
// The best one, or the one that DYNDEPLOY_CPU_ISA names or allows: the name of an instruction set for floats
// stands for the best for integers that needs nothing beyond it. nullptr when none can run here.
const QuantizedIsa* select_quantized_isa();
// Those that run here, best first; returns the count.
int available_quantized_isas(const QuantizedIsa** out, int capacity);

}  // namespace dyndeploy::cpu
