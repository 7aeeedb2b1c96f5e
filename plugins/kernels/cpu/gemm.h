// An indirect matrix product: the rows of A are pixels found through a list, the taps of a convolution are
// neighbouring pixels, the rows of the result are scattered to pixels found through another list. No im2col.
//
//   out[out_index[r], n] = epilogue(sum over sources, taps t, channels c of A[pixel(r, t), c] * B[(t, c), n])
//
// Every sum runs over k in one fixed order with fused multiply-adds, whatever the blocking, so a result does
// not depend on the number of threads or on which other rows are computed.
#pragma once

#include <cstddef>
#include <cstdint>

#include "caches.h"
#include "regions_kernels.h"
#include "sampling_kernels.h"
#include "transformer_kernels.h"

namespace dyndeploy::cpu {

constexpr int kMaxTaps = 16;  // a tile of Winograd's convolution has 4 x 4 inputs
constexpr int kMaxTileRows = 32;
constexpr int kBlock = 16;       // floats of one row that lie together in a packed tile of A
constexpr int kChunk = 576;      // rows of B per pass when A is packed
constexpr int kBlockRows = 112;  // rows of A that share one pass over the weights, in whole tiles
constexpr int kCopyRows = 224;   // ... where the pass copies the weights of active channels first

// What one caller of Isa::gemm needs; every tap adds at most one partly filled block to a chunk.
constexpr std::size_t kGemmRowsFloats = std::size_t{kCopyRows} * (kChunk + kMaxTaps * kBlock);
constexpr std::size_t gemm_accumulator_floats(int panels, int panel_width) {
  return std::size_t{kCopyRows} * static_cast<std::size_t>(panels) * static_cast<std::size_t>(panel_width);
}

constexpr int kWinogradPlanes = 16;
constexpr int kMaxWinogradTiles = 128;  // that share one pass over the weights

constexpr int kMaxPanelWidth = 64;
constexpr std::size_t kGemmCopyFloats = kMaxSlice / 4;
static_assert(kGemmCopyFloats >= std::size_t{kChunk} * kMaxPanelWidth, "a chunk of one panel");

// Where the rows of A lie. Pixel `index[r]` (r - first without an index) starts at base + pixel * stride; tap
// t is tap_offset[t] floats further on, or all zeros where bit t of valid[r] is 0.
struct RowSource {
  const float* base = nullptr;
  std::ptrdiff_t stride = 0;
  const std::int32_t* index = nullptr;
  int first = 0;
  int taps = 1;
  int length = 0;  // contiguous numbers per tap
  // They are pairs of BF16 numbers already, each in the place of one float, which strides and offsets count.
  bool rounded = false;
  const std::uint16_t* valid = nullptr;
  std::ptrdiff_t tap_offset[kMaxTaps] = {};
};

// Where the rows of B lie: row k of panel p starts at base + p * panel_stride + k * row_stride.
struct PanelView {
  const float* base = nullptr;
  std::ptrdiff_t row_stride = 0;
  std::ptrdiff_t panel_stride = 0;
};

constexpr int kListMargin =
    96;  // entries beyond the end of a list of rows that are read, to fetch what they name

// Which rows and columns of packed weights the active channels leave.
struct Selection {
  // Inputs, inputs_per_row for each row that is left; -1 for none. Where a row holds a pair, each tap begins
  // with an even number. kListMargin more can be read. nullptr: all rows.
  const std::int32_t* rows = nullptr;
  const std::int32_t* columns = nullptr;  // nullptr: all of them
  // The same weights once more by pairs of columns, [pair][row][2], where `columns` come in pairs: of such
  // only the chosen ones have to come from memory. nullptr: from the panels.
  const float* pairs = nullptr;
  std::ptrdiff_t pair_stride = 0;

  bool any() const { return rows || columns; }
};

// Weights that are read after this product: while it computes, they are fetched towards the caches a row at a
// time, so that the memory is never idle while the arithmetic is busy.
struct Upcoming {
  const float* base = nullptr;
  std::ptrdiff_t row_stride = 0;
  std::ptrdiff_t panel_stride = 0;
  int panels = 0;                      // left to fetch
  const std::int32_t* rows = nullptr;  // as in Selection; nullptr: 0 ... count - 1
  int count = 0;                       // rows of each panel
  int row = 0;                         // next one
  int lines = 2;                       // of a row
  const std::int32_t* columns =
      nullptr;  // a "panel" is the pair of columns with the first of these; nullptr: 0, 1 ...
};

// The part of pairs of columns [column_begin, column_end), counted among the chosen ones, that holds rows
// [row_begin, row_begin + count).
inline Upcoming upcoming_pairs(const Selection& selection, int row_begin, int count, int column_begin,
                               int column_end) {
  constexpr int kRowsPerLine = 8;
  Upcoming upcoming;
  upcoming.base = selection.pairs + 2 * row_begin;
  upcoming.row_stride = 2 * kRowsPerLine;
  upcoming.panel_stride = selection.pair_stride;
  upcoming.panels = (column_end - column_begin) / 2;
  upcoming.count = (count + kRowsPerLine - 1) / kRowsPerLine;
  upcoming.lines = 1;
  upcoming.columns = selection.columns + column_begin;
  return upcoming;
}

struct GemmSource {
  RowSource a;
  PanelView b;
  Selection selection;  // of b; only the first source may select
};

// value = sum + bias [+ residual]; [relu]; [- subtract]
struct Epilogue {
  const float* bias = nullptr;               // readable up to a whole number of panels
  const std::uint8_t* bias_class = nullptr;  // row r uses bias + bias_class[r] * bias_stride
  std::ptrdiff_t bias_stride = 0;
  const float* residual = nullptr;  // laid out like out, found through the same index
  bool relu = false;
  const float* subtract = nullptr;  // readable up to a whole number of panels
  float* out = nullptr;
  std::ptrdiff_t stride = 0;
  bool rounded = false;                 // out holds pairs, as in RowSource; without residual
  const std::int32_t* index = nullptr;  // pixel of row r; r - first without an index
  int first = 0;
};

struct Gemm {
  GemmSource source[2];  // a projection shortcut is a second source of the same sum
  int sources = 1;
  int columns = 0;
  Epilogue epilogue;
  Upcoming* upcoming = nullptr;
};

// A 3x3 convolution of stride and dilation 1 by Winograd's F(2 x 2, 3 x 3): 16 products make 4 outputs, where
// the direct sum needs 36. A "row" of the product is a tile: source[0].a finds the first output's pixel, its
// taps are the tile's 4 x 4 inputs, and source[0].b holds transformed weights (winograd_weights()), plane by
// plane. The epilogue's rows are pixels. (A. Lavin, S. Gray, Fast Algorithms for Convolutional Neural
// Networks, CVPR 2016.)
struct Winograd {
  Gemm product;
  const std::uint8_t* outputs = nullptr;  // per tile, bit 2 * row + column: this output is asked for
  const std::int32_t* first = nullptr;    // per tile: the row of the epilogue of its first such output
};

// One group of a grouped 3x3 convolution, or what the active channels leave of it. Vectors of outputs follow
// each other as Isa::grouped_vector() tells.
struct GroupPart {
  int input = 0;                   // its first input among the numbers of a row
  int inputs = 0;                  // per tap
  int output = 0;                  // where its outputs begin in a row of the result
  int vectors = 0;                 // of outputs
  const float* weights = nullptr;  // [(tap, input)][vectors]
  const float* bias = nullptr;     // [vectors]
  // Those of the weights to use, `inputs` per tap, where the active channels leave as many vectors as there
  // were; nullptr: all.
  const std::int32_t* rows = nullptr;
  // With rows: for every vector of outputs how many are left, and for each of its lanes which one it takes.
  const std::int32_t* lanes = nullptr;
};

// Copies what the active channels leave of a group, in fewer vectors: a GroupPart's weights and its bias,
// which follows them.
struct GroupCopy {
  const GroupPart* from = nullptr;         // all channels
  const std::int32_t* channels = nullptr;  // those that are left, in order; the group's first is from->input
  int count = 0;
  int outputs = 0;       // of the group, all of them
  float* out = nullptr;  // a vector more than it fills may be written
};

// A grouped 3x3 convolution with groups too narrow for panels: a tile of rows finds its pixels once for all
// groups. value = relu(sum + bias). Whole vectors are written from each group's first output on, so that a
// row of the result needs room for one vector beyond its end.
struct Grouped {
  RowSource a;  // length counts for nothing
  const GroupPart* parts = nullptr;
  int count = 0;
  int outputs = 0;  // of one group of all channels
  float* out = nullptr;
  std::ptrdiff_t stride = 0;
  int first = 0;  // row r lies at out + (r - first) * stride
};

constexpr int kMaxGroupOutputs = 32;

// Memory for one caller of Isa::gemm or Isa::winograd at a time.
struct GemmScratch {
  float* a = nullptr;             // kGemmRowsFloats
  float* accumulators = nullptr;  // gemm_accumulator_floats() for the panels of the call
  float* b = nullptr;             // kGemmCopyFloats, if any source selects
  const float* zeros = nullptr;   // zeros: at least the longest tap, rounded up to a block
  float* planes = nullptr;        // winograd_plane_floats()
  float* products = nullptr;      // winograd_product_floats()
};

// x[row * stride + c] *= factors[c]; row is index[r], or r.
struct RowScaling {
  float* x = nullptr;
  std::ptrdiff_t stride = 0;
  const std::int32_t* index = nullptr;
  int row_begin = 0;
  int row_end = 0;
  int channels = 0;
  const float* factors = nullptr;
};

struct PackSource {
  const float* weights = nullptr;  // (output, input, tap), as PyTorch keeps them
  int taps = 1;
  int inputs = 0;
  int outputs = 0;
};

// Copies the selected part of packed weights: rows [row_begin, row_end) and columns [column_begin,
// column_end), counted among the selected ones.
struct SelectedCopy {
  PanelView b;
  Selection selection;
  int row_begin = 0;
  int row_end = 0;
  int column_begin = 0;
  int column_end = 0;
  float* out = nullptr;
  std::ptrdiff_t out_stride = 0;  // between rows; their last vector may be written whole
};

struct PooledDot {
  const float* x = nullptr;
  std::ptrdiff_t row_stride = 0;    // floats between image rows
  std::ptrdiff_t pixel_stride = 0;  // floats between pixels of a row
  int rows = 0;
  int columns = 0;
  const float* weight = nullptr;
  int channels = 0;
};

// sums[c] = sum over pixels of x[pixel * stride + c]
struct ColumnSums {
  const float* x = nullptr;
  std::ptrdiff_t stride = 0;
  int pixels = 0;
  int channels = 0;
  float* sums = nullptr;
};

// As PooledDot, of bytes: strides count bytes.
struct BytePooledDot {
  const std::uint8_t* x = nullptr;
  std::ptrdiff_t row_stride = 0;
  std::ptrdiff_t pixel_stride = 0;
  int rows = 0;
  int columns = 0;  // rows * columns <= 2^16
  const float* weight = nullptr;
  int channels = 0;
};

constexpr int kMaxSummedPixels = 1 << 23;  // as many bytes add up to less than 2^31

// sums[c] = sum over the pixels of a rectangle of x[..., c]: exact, then rounded to float
struct ByteSums {
  const std::uint8_t* x = nullptr;
  std::ptrdiff_t row_stride = 0;    // between image rows
  std::ptrdiff_t pixel_stride = 0;  // between pixels of a row
  int rows = 0;
  int columns = 0;  // rows * columns <= kMaxSummedPixels
  int channels = 0;
  float* sums = nullptr;
};

// The kernels of one instruction set. All are plain functions over caller-owned memory and never throw.
struct Isa {
  const char* name;
  int vector_width;
  int panel_width;  // output channels per weight panel
  int tile_rows;
  // Inputs of one tap that a row of weights holds for each column: 1, or a pair of BF16 numbers in the place
  // of one float, the second zero where the inputs end. Strides and offsets count floats in either case.
  int inputs_per_row;
  bool (*supported)();
  // rows [row_begin, row_end) x weight panels [panel_begin, panel_end)
  void (*gemm)(const Gemm&, int row_begin, int row_end, int panel_begin, int panel_end, const GemmScratch&);
  // tiles [tile_begin, tile_end) x weight panels [panel_begin, panel_end), `block` tiles at a time; nullptr
  // where the elements are too coarse for differences of inputs.
  void (*winograd)(const Winograd&, int tile_begin, int tile_end, int panel_begin, int panel_end, int block,
                   const GemmScratch&);
  // rows [row_begin, row_end) of all groups, of floats whatever inputs_per_row is; zeros as in GemmScratch
  void (*grouped)(const Grouped&, int row_begin, int row_end, const float* zeros);
  // Floats of a vector for groups of so many outputs.
  int (*grouped_vector)(int outputs);
  void (*copy_group)(const GroupCopy&);
  // [panel][(tap, input)][panel_width], padded with zero columns; panels [panel_begin, panel_end). Where
  // inputs_per_row is 2, [panel][(tap, pair of inputs)][panel_width].
  void (*pack)(const PackSource&, int panel_begin, int panel_end, float* out);
  void (*copy_selected)(const SelectedCopy&);
  float (*pooled_dot)(const PooledDot&);
  float (*dot)(const float* a, const float* b, int count);
  void (*column_sums)(const ColumnSums&);
  float (*byte_dot)(const BytePooledDot&);
  void (*byte_sums)(const ByteSums&);
  void (*scale_rows)(const RowScaling&);
  // y = max(x + bias, 0), or max(x, 0) without bias; y may be x
  void (*add_relu)(const float* x, const float* bias, int count, float* y);
  // Of transformer blocks. Rows of a tile of products, at most; the floats that one of their numbers takes is
  // 1 / inputs_per_row.
  int product_rows;
  // rows [row_begin, row_end): the first ones of a tile
  void (*norm_rows)(const NormRows&, int row_begin, int row_end);
  void (*tile_product)(const TileProduct&, int panel_begin, int panel_end);
  void (*key_panels)(const KeyPanels&);
  void (*attend)(const TileAttention&);
  void (*norm_logits)(const NormLogits&, float* logits);
  // Of detectors; scratch by one caller at a time.
  void (*read_regions)(const Regions&);
  // queries [begin, end) of all images
  void (*sample_rows)(const Sampling&, int begin, int end);
};

// out (output, input, plane): what Isa::pack packs for Isa::winograd, from weights (output, input, tap).
void winograd_weights(const float* weights, std::size_t count, float* out);
// Whether Isa::winograd takes less time than the direct sum. copies: only some channels are active, so that
// weights are copied first.
bool winograd_pays(const Isa& isa, int pixels, int tiles, bool copies);
// How many tiles share a pass over the weights: their inputs stay in L2 beside it.
int winograd_block(const Isa& isa, int inputs);
std::size_t winograd_plane_floats(int inputs, int block);
std::size_t winograd_product_floats(const Isa& isa, int block);

// What the products are made of: floats, or weights and activations rounded to BF16 with sums in float.
// Maskers compute in floats either way.
enum class Precision { kFloat32, kBfloat16 };

// nullptr when this build or this machine cannot run it
const Isa* find_isa(const char* name);
// The best one, or the one that DYNDEPLOY_CPU_ISA names ("_bf16" is appended to it for BF16); nullptr when
// none can run here. BF16 without instructions for it is plain C++ for tests, which has to be asked for by
// name.
const Isa* select_isa(Precision precision = Precision::kFloat32);
// The instruction sets for floats that run here, best first; returns the count.
int available_isas(const Isa** out, int capacity);

}  // namespace dyndeploy::cpu
