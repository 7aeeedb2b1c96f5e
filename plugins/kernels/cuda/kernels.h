// What the adapters see of the CUDA kernels. C++14; a board builds it with GCC 7.5 and CUDA 10.2.
//
// Activations are channels-last: x (N, H, W, C), y (N, Ho, Wo, Co), contiguous, of the given element type.
// Masks are float and active where > 0.5. Nothing here synchronises with the host, allocates, or depends on
// data in its launch: every function can be captured in a CUDA graph.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dyndeploy {
namespace cuda {

// kByte: activations of maskers alone, in units of their scale, which the first weight holds.
enum class Type : std::int32_t { kFloat = 0, kHalf = 1, kByte = 2 };

// The size of a product's tiles. kBest: that of the least cost by the formula of choose.h, or, where that
// says so, several of which the device takes what fits its masks. Where a kind has no tiny one, that is the
// small one. A size changes the time and no bit of the result.
enum class Size : int { kBest = 0, kSmall = 1, kMedium = 2, kLarge = 3, kTiny = 4 };
constexpr int kSizes = 5;

// A size for each product of a block: conv1, conv2, conv3, and in integers the projection; or qkv, proj, fc1
// and fc2.
constexpr int kMostProducts = 4;
struct Tiles {
  Size sizes[kMostProducts];
};
// What a builder may time: the formula's own choice first, then combinations of the two sizes of least cost
// of each product.
constexpr int kMostCandidates = 8;

// One dynamic bottleneck: relu(conv3(relu(conv2(relu(conv1(x))))) + shortcut), batch normalisation folded.
// With a squeeze-and-excitation what conv3 reads is multiplied, channel by channel, with
// sigmoid(we relu(ws mean + bs) + be), where `mean` is that of the map behind conv2.
struct BottleneckShape {
  int batch, height, width;
  int inputs, middle, outputs;   // C, M, Co
  int groups, stride, dilation;  // of the 3x3; padding equals the dilation
  bool projection;               // else outputs == inputs and stride == 1
  int mask_height, mask_width;   // 0: every pixel is active. (1, 1) skips whole samples (layer skipping)
  int channel_groups;            // 0: every channel is active
  int squeeze;                   // S, the width of a squeeze-and-excitation; 0: there is none
  bool pool_active;              // its mean is over active pixels, else over all of a sample that has any
  bool winograd;                 // w2 goes on with 16 * M rows: what Winograd's F(2x2, 3x3) makes of it
  // The largest batch that the caller plans with; 0: not known. All batches of one plan get the same bits,
  // and large ones may get kernels that round otherwise (warpgroups of sm_90a).
  int largest_batch;
};

// Device pointers. Weights have the element type of x and the layout of pack.py / the TensorRT graph:
//   w1 (C, M), w2 (groups, 9 * M / groups, M / groups) with row tap * M / groups + input, w3 (M, Co), wd (C,
//   Co). With `winograd` w2 has 16 * M more rows: row (4 i + j) * M + input is (G w G^T)[i][j] of the 3x3 w
//   of that input, G = [1 0 0; 1/2 1/2 1/2; 1/2 -1/2 1/2; 0 0 1]. They are read where winograd.h says.
// Biases and constants are float. Channel skipping sets skipped channels to their exact pre-BN constants:
//   border_bias (16, M): b2 + the 3x3 applied to the map of relu(b1), per border class (bit 0 top, 1 bottom,
//   2 left, 3 right taps outside); skipped_output (Co): b3 + w3 . relu(b2). With them conv1 gives relu(.) -
//   relu(b1) on active channels, conv2 adds border_bias, conv3 adds skipped_output, and skipped channels
//   contribute nothing.
// With a squeeze-and-excitation the channel mask stands behind the ReLUs: skipped channels are zero, and
// there are no such constants. ws (M, S), we (S, M).
struct BottleneckTensors {
  const void* x;
  const float* spatial_mask;  // (N, 1, mask_height, mask_width) or nullptr
  const float* channel_mask;  // (N, channel_groups) or nullptr
  const void *w1, *w2, *w3, *wd;
  const float *b1, *b2, *b3, *bd;
  const float *border_bias, *skipped_output;  // with channel_mask only, and without ws
  void* y;
  const void *ws, *we;
  const float *bs, *be;
};

// 0 or a cudaError_t. `shape` must satisfy check_bottleneck().
const char* check_bottleneck(const BottleneckShape& shape, Type type);  // nullptr or what is wrong
std::size_t bottleneck_workspace(const BottleneckShape& shape, Type type);
int run_bottleneck(const BottleneckShape& shape, Type type, const BottleneckTensors& tensors, void* workspace,
                   void* stream, const Tiles& tiles = Tiles());  // stream: cudaStream_t

// Masks for a run whose own masks say nothing, as while TensorRT times a plugin on uninitialised memory. Of a
// thousand bits so many are active, over the batch and at least one; 0 leaves a mask as it is.
struct TimingRates {
  std::int32_t spatial, channels;
};
// Writes them into the workspace and points `tensors` at them, for the run_bottleneck() that comes next on
// this stream with this workspace. Active bits are spread evenly, so that the 3x3 reads about as much as of
// random patches. A workspace that is too small for them leaves `tensors` as they are.
int stand_in_masks(const BottleneckShape& shape, Type type, const TimingRates& rates,
                   BottleneckTensors* tensors, void* workspace, void* stream);

// Which kernels run, for reports and logs.
struct BottleneckChoice {
  int vector;               // elements that move in one access
  bool tensor_cores;        // else lanes
  bool winograd;            // conv2 multiplies transformed patches; its tile is theirs
  bool warpgroups[3];       // tensor cores by warpgroups, of each convolution
  int rows[3], columns[3];  // tiles of conv1, conv2 and conv3
};
// With aligned pointers. capability (10 * major + minor) and processors of a GPU; capability 0: the current
// one, and nothing (vector 0) where there is none.
BottleneckChoice bottleneck_choice(const BottleneckShape& shape, Type type, int capability, int processors,
                                   const Tiles& tiles = Tiles());
// Which tiles are worth timing there: writes at most kMostCandidates, returns how many; 0 where there is no
// GPU.
int bottleneck_candidates(const BottleneckShape& shape, Type type, int capability, int processors,
                          Tiles* candidates);
// The first tensor whose address keeps a shape that fits vectors from using them ("x", "the workspace"), or
// nullptr.
const char* misaligned_tensor(const BottleneckShape& shape, Type type, const BottleneckTensors& tensors,
                              const void* workspace);

// The same in integers: activations are scale * byte, and
//   h1 = to_byte(w1 x + b1), h2 = to_byte(w2 h1 + b2), y = clamp(to_short(w3 h2 + b3) + shortcut, 0, 255),
// where to_byte(v) and to_short(v) are round_half_even(float(v) * m), cut to [0, 255] and [-32768, 32767],
// and the shortcut is x or to_short(wd x + bd). A pixel that is skipped is its shortcut, cut to [0, 255]; a
// skipped channel has sums of 0. Weights stand as in the operators, outputs first: w1 (M, C), w2 (M, 9, M /
// groups), w3 (Co, M), wd (Co, C). The result is the same to the bit on every GPU. Of a shape `squeeze` and
// `winograd` must be 0.
struct QuantizedBottleneckTensors {
  const std::uint8_t* x;
  const float *spatial_mask, *channel_mask;  // as of BottleneckTensors
  const std::int8_t *w1, *w2, *w3, *wd;
  const std::int32_t *b1, *b2, *b3, *bd;
  const float *m1, *m2, *m3, *md;
  std::uint8_t* y;
};
// Whether a GPU has instructions for products of bytes: from sm_61 on, but not sm_62.
bool multiplies_bytes(int capability);
// As the functions above. A GPU without such instructions gets cudaErrorNotSupported.
const char* check_quantized_bottleneck(const BottleneckShape& shape);
std::size_t quantized_bottleneck_workspace(const BottleneckShape& shape);
int run_quantized_bottleneck(const BottleneckShape& shape, const QuantizedBottleneckTensors& tensors,
                             void* workspace, void* stream, const Tiles& tiles = Tiles());
BottleneckChoice quantized_bottleneck_choice(const BottleneckShape& shape, int capability, int processors,
                                             const Tiles& tiles = Tiles());
int quantized_bottleneck_candidates(const BottleneckShape& shape, int capability, int processors,
                                    Tiles* candidates);
const char* misaligned_tensor(const BottleneckShape& shape, const QuantizedBottleneckTensors& tensors,
                              const void* workspace);
int stand_in_masks(const BottleneckShape& shape, const TimingRates& rates,
                   QuantizedBottleneckTensors* tensors, void* workspace, void* stream);

// Where bytes begin and end, for `count` elements: round_half_even(x / scale), cut to [0, 255] (NaN gives 0),
// and scale * x, rounded to the type of y. Of bytes, 4 begin at a multiple of 4.
int run_quantize(std::size_t count, Type type, const void* x, float scale, std::uint8_t* y, void* stream);
int run_dequantize(std::size_t count, Type type, const std::uint8_t* x, float scale, void* y, void* stream);

// mask (N, groups, mask_height, mask_width): adaptive average pooling of x, then a 1x1 convolution with
// weight (groups, C) and bias (groups) in float; 1 where the result is >= 0, else 0. Sums in float whatever
// the type of x.
struct SpatialMaskerShape {
  int batch, height, width, channels, groups, mask_height, mask_width;
};
int run_spatial_masker(const SpatialMaskerShape& shape, Type type, const void* x, const float* weight,
                       const float* bias, float* mask, void* stream);

// Elements of x that move in one access of a masker with an aligned x.
int masker_vector(int channels, Type type);

// mask (N, groups): global average pooling, [hidden layer (hidden, C) + ReLU], linear (groups, hidden or C);
// >= 0.
struct ChannelMaskerShape {
  int batch, height, width, channels, hidden, groups;  // hidden 0: none
};
std::size_t channel_masker_workspace(const ChannelMaskerShape& shape);
int run_channel_masker(const ChannelMaskerShape& shape, Type type, const void* x, const float* hidden_weight,
                       const float* hidden_bias, const float* weight, const float* bias, float* mask,
                       void* workspace, void* stream);

// One block of a vision transformer: x1 = x + proj(attention(norm1(x))), y = x1 + fc2(gelu(fc1(norm2(x1)))),
// for x (N, T, D). Only the rows of kept tokens attend, to each other, and only what the masks keep is
// computed.
struct TransformerShape {
  int batch, tokens, width;  // N, T, D
  int heads, head_width;     // A, d
  int hidden;                // F
  bool token_mask, head_mask, sublayer_masks;
  bool token_mlp;     // the token mask limits the MLP too
  int head_mode;      // dropped heads leave 0: inputs of fc1 out (A d = D), 1: hidden units, 2: pass their v
  float epsilon;      // of both layer normalisations
  float scale;        // of q k
  int largest_batch;  // as of BottleneckShape
};

// Device pointers. Weights have the element type of x, inputs first: w_qkv (D, 3, A, d), w_proj (A, d, D),
// w_fc1 (D, F), w_fc2 (F, D). Masks, biases and the parameters of both normalisations are float.
struct TransformerTensors {
  const void* x;
  const float *token_mask, *head_mask;     // (N, T) and (N, A), or nullptr
  const float *attention_mask, *mlp_mask;  // (N, 1, 1, 1), or nullptr
  const float *norm1_weight, *norm1_bias;  // (D)
  const void* w_qkv;
  const float* b_qkv;  // (3, A, d)
  const void* w_proj;
  const float* b_proj;
  const float *norm2_weight, *norm2_bias;
  const void* w_fc1;
  const float* b_fc1;
  const void* w_fc2;
  const float* b_fc2;
  void* y;
};

// As those of a bottleneck.
const char* check_transformer(const TransformerShape& shape, Type type);
std::size_t transformer_workspace(const TransformerShape& shape, Type type);
int run_transformer(const TransformerShape& shape, Type type, const TransformerTensors& tensors,
                    void* workspace, void* stream, const Tiles& tiles = Tiles());
struct TransformerRates {
  std::int32_t tokens, heads, attention, mlp;  // as TimingRates
};
int stand_in_masks(const TransformerShape& shape, Type type, const TransformerRates& rates,
                   TransformerTensors* tensors, void* workspace, void* stream);
struct TransformerChoice {
  int vector;
  bool tensor_cores;
  bool warpgroups[4];
  int rows[4], columns[4];  // tiles of qkv, proj, fc1 and fc2
};
TransformerChoice transformer_choice(const TransformerShape& shape, Type type, int capability, int processors,
                                     const Tiles& tiles = Tiles());
int transformer_candidates(const TransformerShape& shape, Type type, int capability, int processors,
                           Tiles* candidates);
const char* misaligned_tensor(const TransformerShape& shape, Type type, const TransformerTensors& tensors,
                              const void* workspace);

// mask (N, T): weight (D) times each row of x (N, T, D), plus a bias; 1 where the result is >= 0, and for the
// first `kept` tokens. With `normalise` a row is first brought to mean 0 and variance 1. All sums in float.
struct TokenMaskerShape {
  int batch, tokens, width;
  int kept;
  bool normalise;
  float epsilon;
};
int run_token_masker(const TokenMaskerShape& shape, Type type, const void* x, const float* weight,
                     const float* bias, float* mask, void* stream);

// mask (N, outputs): the same of token 0 alone, with weight (outputs, D) and bias (outputs).
struct ClassTokenMaskerShape {
  int batch, tokens, width;
  int outputs;
  bool normalise;
  float epsilon;
};
int run_class_token_masker(const ClassTokenMaskerShape& shape, Type type, const void* x, const float* weight,
                           const float* bias, float* mask, void* stream);

// y (N, Q, heads, channels): sums of bilinear samples of maps at points that each query chooses, in float
// whatever the type of value. value (N, cells, heads, channels) holds the maps one behind the other, row by
// row; locations (N, Q, heads, levels, points, 2), x before y in fractions of a map; weights (N, Q, heads,
// levels, points). Half-pixel coordinates, zeros outside the maps.
constexpr int kMostSampledMaps = 8;
struct DeformableAttentionShape {
  int batch, cells, heads, channels, queries, levels, points;
  int sizes[2 * kMostSampledMaps];  // height and width of every map
};
const char* check_deformable_attention(const DeformableAttentionShape& shape);
// Elements of value that move in one access with aligned pointers.
int deformable_attention_vector(const DeformableAttentionShape& shape, Type type);
int run_deformable_attention(const DeformableAttentionShape& shape, Type type, const void* value,
                             const float* locations, const float* weights, void* y, void* stream);

// y (count, channels, size, size): what boxes (count, 4), x1, y1, x2, y2 in pixels, hold of their level's map
// (channels, height, width): means of bilinear samples at half-pixel coordinates, as many per bin as it has
// cells. A level outside is taken for the nearest; a box that is none gives zeros.
constexpr int kPyramidLevels = 4;
struct RegionsShape {
  int channels, count, size;
  int heights[kPyramidLevels], widths[kPyramidLevels], strides[kPyramidLevels];
};
const char* check_regions(const RegionsShape& shape);
int run_regions(const RegionsShape& shape, Type type, const void* const* maps, const float* boxes,
                const std::int32_t* levels, void* y, void* stream);

}  // namespace cuda
}  // namespace dyndeploy
