// A C interface to the CUDA kernels for test_kernels_cuda.py, over the GPU's library or the host's.
#include "kernels.h"
#include "traits.h"

#ifdef DYNDEPLOY_CUDA_HOST
#include "platform.h"
#endif

#define ENTRY extern "C" __attribute__((visibility("default")))

using namespace dyndeploy::cuda;

namespace {

int& largest_batch() {
  static thread_local int batch = 0;
  return batch;
}

// sizes: batch, height, width, inputs, middle, outputs, groups, stride, dilation, projection, mask height and
// width, channel groups, squeeze, pool active, winograd.
BottleneckShape shape_of(const int* s) {
  return {s[0],      s[1],  s[2],  s[3],  s[4],  s[5],       s[6],       s[7],           s[8],
          s[9] != 0, s[10], s[11], s[12], s[13], s[14] != 0, s[15] != 0, largest_batch()};
}

Tiles& asked_tiles() {
  thread_local Tiles tiles = {};
  return tiles;
}

void tell(const Tiles* candidates, int count, int* out) {
  for (int i = 0; i < count * kMostProducts; ++i) {
    out[i] = static_cast<int>(candidates[i / kMostProducts].sizes[i % kMostProducts]);
  }
}

}  // namespace

// Sizes of the tiles of the runs and choices that follow in this thread, by product.
ENTRY void dyn_tiles(const int* sizes) {
  for (int i = 0; i < kMostProducts; ++i) asked_tiles().sizes[i] = static_cast<Size>(sizes[i]);
}

// The largest batch that the calls to come are planned with; 0: not known.
ENTRY void dyn_plan_batch(int batch) { largest_batch() = batch; }

ENTRY const char* dyn_check_bottleneck(const int* sizes, int type) {
  return check_bottleneck(shape_of(sizes), static_cast<Type>(type));
}

ENTRY std::size_t dyn_bottleneck_workspace(const int* sizes, int type) {
  return bottleneck_workspace(shape_of(sizes), static_cast<Type>(type));
}

// out: elements of an access, whether tensor cores and behind that bit whether each layer's warpgroups
// multiply together, rows of the three tiles, their columns, whether Winograd.
ENTRY void dyn_bottleneck_choice(const int* sizes, int type, int capability, int processors, int* out) {
  const BottleneckChoice choice =
      bottleneck_choice(shape_of(sizes), static_cast<Type>(type), capability, processors, asked_tiles());
  out[0] = choice.vector;
  out[1] = choice.tensor_cores;
  for (int i = 0; i < 3; ++i) {
    out[1] |= choice.warpgroups[i] << (1 + i);
    out[2 + i] = choice.rows[i];
    out[5 + i] = choice.columns[i];
  }
  out[8] = choice.winograd;
}

// out: the sizes of four products for every candidate, at most eight; returns how many.
ENTRY int dyn_bottleneck_candidates(const int* sizes, int type, int capability, int processors, int* out) {
  Tiles candidates[kMostCandidates];
  const int count =
      bottleneck_candidates(shape_of(sizes), static_cast<Type>(type), capability, processors, candidates);
  tell(candidates, count, out);
  return count;
}
ENTRY int dyn_quantized_candidates(const int* sizes, int capability, int processors, int* out) {
  Tiles candidates[kMostCandidates];
  const int count = quantized_bottleneck_candidates(shape_of(sizes), capability, processors, candidates);
  tell(candidates, count, out);
  return count;
}

// tensors as for dyn_bottleneck; 1 where a mask is another afterwards.
ENTRY int dyn_stand_in_masks(const int* sizes, int type, const int* rates, void** t, void* workspace,
                             void* stream) {
  BottleneckTensors tensors = {};
  tensors.spatial_mask = static_cast<const float*>(t[1]);
  tensors.channel_mask = static_cast<const float*>(t[2]);
  const TimingRates asked = {rates[0], rates[1]};
  const int error =
      stand_in_masks(shape_of(sizes), static_cast<Type>(type), asked, &tensors, workspace, stream);
  const bool changed = tensors.spatial_mask != t[1] || tensors.channel_mask != t[2];
  t[1] = const_cast<float*>(tensors.spatial_mask);
  t[2] = const_cast<float*>(tensors.channel_mask);
  return error ? -1 : changed;
}

// tensors: x, spatial mask, channel mask, w1, w2, w3, wd, b1, b2, b3, bd, border bias, skipped output, y, ws,
// we, bs, be.
ENTRY int dyn_bottleneck(const int* sizes, int type, void* const* t, void* workspace, void* stream) {
  BottleneckTensors tensors = {};
  tensors.x = t[0];
  tensors.spatial_mask = static_cast<const float*>(t[1]);
  tensors.channel_mask = static_cast<const float*>(t[2]);
  tensors.w1 = t[3];
  tensors.w2 = t[4];
  tensors.w3 = t[5];
  tensors.wd = t[6];
  tensors.b1 = static_cast<const float*>(t[7]);
  tensors.b2 = static_cast<const float*>(t[8]);
  tensors.b3 = static_cast<const float*>(t[9]);
  tensors.bd = static_cast<const float*>(t[10]);
  tensors.border_bias = static_cast<const float*>(t[11]);
  tensors.skipped_output = static_cast<const float*>(t[12]);
  tensors.y = t[13];
  tensors.ws = t[14];
  tensors.we = t[15];
  tensors.bs = static_cast<const float*>(t[16]);
  tensors.be = static_cast<const float*>(t[17]);
  return run_bottleneck(shape_of(sizes), static_cast<Type>(type), tensors, workspace, stream, asked_tiles());
}

// sizes as above.
ENTRY const char* dyn_check_quantized_bottleneck(const int* sizes) {
  return check_quantized_bottleneck(shape_of(sizes));
}

ENTRY std::size_t dyn_quantized_bottleneck_workspace(const int* sizes) {
  return quantized_bottleneck_workspace(shape_of(sizes));
}

// out: elements of an access, whether tensor cores, rows of the three tiles, their columns.
ENTRY void dyn_quantized_bottleneck_choice(const int* sizes, int capability, int processors, int* out) {
  const BottleneckChoice choice =
      quantized_bottleneck_choice(shape_of(sizes), capability, processors, asked_tiles());
  out[0] = choice.vector;
  out[1] = choice.tensor_cores;
  for (int i = 0; i < 3; ++i) {
    out[2 + i] = choice.rows[i];
    out[5 + i] = choice.columns[i];
  }
}

// tensors: x, spatial mask, channel mask, w1, w2, w3, wd, b1, b2, b3, bd, m1, m2, m3, md, y. rates: of masks
// that stand in for those, or null.
ENTRY int dyn_quantized_bottleneck(const int* sizes, void* const* t, void* workspace, void* stream,
                                   const int* rates) {
  const auto floats = [&](int i) { return static_cast<const float*>(t[i]); };
  const auto bytes = [&](int i) { return static_cast<const std::int8_t*>(t[i]); };
  const auto integers = [&](int i) { return static_cast<const std::int32_t*>(t[i]); };
  QuantizedBottleneckTensors tensors = {static_cast<const std::uint8_t*>(t[0]),
                                        floats(1),
                                        floats(2),
                                        bytes(3),
                                        bytes(4),
                                        bytes(5),
                                        bytes(6),
                                        integers(7),
                                        integers(8),
                                        integers(9),
                                        integers(10),
                                        floats(11),
                                        floats(12),
                                        floats(13),
                                        floats(14),
                                        static_cast<std::uint8_t*>(t[15])};
  if (rates) {
    const int error = stand_in_masks(shape_of(sizes), {rates[0], rates[1]}, &tensors, workspace, stream);
    if (error) return error;
  }
  return run_quantized_bottleneck(shape_of(sizes), tensors, workspace, stream, asked_tiles());
}

ENTRY int dyn_quantize(long long count, int type, const void* x, float scale, std::uint8_t* y, void* stream) {
  return run_quantize(static_cast<std::size_t>(count), static_cast<Type>(type), x, scale, y, stream);
}

ENTRY int dyn_dequantize(long long count, int type, const std::uint8_t* x, float scale, void* y,
                         void* stream) {
  return run_dequantize(static_cast<std::size_t>(count), static_cast<Type>(type), x, scale, y, stream);
}

// sizes: batch, height, width, channels, groups, mask height and width.
ENTRY int dyn_spatial_masker(const int* s, int type, const void* x, const float* weight, const float* bias,
                             float* mask, void* stream) {
  const SpatialMaskerShape shape = {s[0], s[1], s[2], s[3], s[4], s[5], s[6]};
  return run_spatial_masker(shape, static_cast<Type>(type), x, weight, bias, mask, stream);
}

// sizes: batch, height, width, channels, hidden, groups.
ENTRY std::size_t dyn_channel_masker_workspace(const int* s) {
  return channel_masker_workspace({s[0], s[1], s[2], s[3], s[4], s[5]});
}

ENTRY int dyn_channel_masker(const int* s, int type, const void* x, const float* hidden_weight,
                             const float* hidden_bias, const float* weight, const float* bias, float* mask,
                             void* workspace, void* stream) {
  const ChannelMaskerShape shape = {s[0], s[1], s[2], s[3], s[4], s[5]};
  return run_channel_masker(shape, static_cast<Type>(type), x, hidden_weight, hidden_bias, weight, bias, mask,
                            workspace, stream);
}

namespace {

// sizes: batch, tokens, width, heads, head width, hidden, whether there are masks of tokens, heads and
// sublayers, token MLP, head mode. numbers: epsilon, scale.
TransformerShape block_of(const int* s, const float* numbers) {
  return {s[0],      s[1],      s[2],      s[3],  s[4],       s[5],       s[6] != 0,
          s[7] != 0, s[8] != 0, s[9] != 0, s[10], numbers[0], numbers[1], largest_batch()};
}

TransformerTensors tensors_of(void* const* t) {
  const auto floats = [&](int i) { return static_cast<const float*>(t[i]); };
  return {t[0], floats(1),  floats(2),  floats(3),  floats(4), floats(5),  floats(6), t[7],       floats(8),
          t[9], floats(10), floats(11), floats(12), t[13],     floats(14), t[15],     floats(16), t[17]};
}

}  // namespace

ENTRY const char* dyn_check_transformer(const int* sizes, const float* numbers, int type) {
  return check_transformer(block_of(sizes, numbers), static_cast<Type>(type));
}

ENTRY std::size_t dyn_transformer_workspace(const int* sizes, const float* numbers, int type) {
  return transformer_workspace(block_of(sizes, numbers), static_cast<Type>(type));
}

// out: elements of an access, tensor cores as above, rows of the four tiles, their columns.
ENTRY void dyn_transformer_choice(const int* sizes, const float* numbers, int type, int capability,
                                  int processors, int* out) {
  const TransformerChoice choice = transformer_choice(block_of(sizes, numbers), static_cast<Type>(type),
                                                      capability, processors, asked_tiles());
  out[0] = choice.vector;
  out[1] = choice.tensor_cores;
  for (int i = 0; i < 4; ++i) {
    out[1] |= choice.warpgroups[i] << (1 + i);
    out[2 + i] = choice.rows[i];
    out[6 + i] = choice.columns[i];
  }
}

ENTRY int dyn_transformer_candidates(const int* sizes, const float* numbers, int type, int capability,
                                     int processors, int* out) {
  Tiles candidates[kMostCandidates];
  const int count = transformer_candidates(block_of(sizes, numbers), static_cast<Type>(type), capability,
                                           processors, candidates);
  tell(candidates, count, out);
  return count;
}

// tensors: x, masks of tokens, heads, attention and MLP, then the weights in the order of the operator, y.
ENTRY int dyn_transformer(const int* sizes, const float* numbers, int type, void* const* t, void* workspace,
                          void* stream) {
  return run_transformer(block_of(sizes, numbers), static_cast<Type>(type), tensors_of(t), workspace, stream,
                         asked_tiles());
}

// 1 where a mask is another afterwards.
ENTRY int dyn_stand_in_transformer_masks(const int* sizes, const float* numbers, int type, const int* rates,
                                         void** t, void* workspace, void* stream) {
  TransformerTensors tensors = tensors_of(t);
  const TransformerRates asked = {rates[0], rates[1], rates[2], rates[3]};
  const int error =
      stand_in_masks(block_of(sizes, numbers), static_cast<Type>(type), asked, &tensors, workspace, stream);
  const float* masks[] = {tensors.token_mask, tensors.head_mask, tensors.attention_mask, tensors.mlp_mask};
  bool changed = false;
  for (int i = 0; i < 4; ++i) {
    changed = changed || masks[i] != t[1 + i];
    t[1 + i] = const_cast<float*>(masks[i]);
  }
  return error ? -1 : changed;
}

// sizes: batch, tokens, width, kept, normalise.
ENTRY int dyn_token_masker(const int* s, float epsilon, int type, const void* x, const float* weight,
                           const float* bias, float* mask, void* stream) {
  const TokenMaskerShape shape = {s[0], s[1], s[2], s[3], s[4] != 0, epsilon};
  return run_token_masker(shape, static_cast<Type>(type), x, weight, bias, mask, stream);
}

// sizes: batch, tokens, width, outputs, normalise.
ENTRY int dyn_class_token_masker(const int* s, float epsilon, int type, const void* x, const float* weight,
                                 const float* bias, float* mask, void* stream) {
  const ClassTokenMaskerShape shape = {s[0], s[1], s[2], s[3], s[4] != 0, epsilon};
  return run_class_token_masker(shape, static_cast<Type>(type), x, weight, bias, mask, stream);
}

// sizes: batch, cells, heads, channels, queries, levels, points, then height and width of every map.
ENTRY int dyn_deformable_attention(const int* s, int type, const void* value, const float* locations,
                                   const float* weights, void* y, void* stream) {
  DeformableAttentionShape shape = {s[0], s[1], s[2], s[3], s[4], s[5], s[6], {}};
  for (int i = 0; i < 2 * shape.levels; ++i) shape.sizes[i] = s[7 + i];
  if (check_deformable_attention(shape)) return -1;
  return run_deformable_attention(shape, static_cast<Type>(type), value, locations, weights, y, stream);
}

// sizes: channels, count, size, then height, width and stride of every map; tensors: the maps, y.
ENTRY int dyn_regions(const int* s, int type, void* const* t, const float* boxes, const std::int32_t* levels,
                      void* stream) {
  RegionsShape shape = {s[0], s[1], s[2], {}, {}, {}};
  for (int i = 0; i < kPyramidLevels; ++i) {
    shape.heights[i] = s[3 + 3 * i];
    shape.widths[i] = s[4 + 3 * i];
    shape.strides[i] = s[5 + 3 * i];
  }
  if (check_regions(shape)) return -1;
  return run_regions(shape, static_cast<Type>(type), t, boxes, levels, t[kPyramidLevels], stream);
}

// tiles: a Size; 0 for capability and processors leaves what the GPU has.
#ifdef DYNDEPLOY_CUDA_HOST
ENTRY void dyn_host_device(int capability, int processors, int tiles, int reverse) {
  DeviceTraits traits = traits_of(capability, processors);
  traits.tiles = static_cast<Size>(tiles);
  host::device() = {traits, reverse != 0, 0, 0};
}
ENTRY int dyn_host_launches() { return host::device().launches; }
// Of these, those that may begin before the one before them has ended.
ENTRY int dyn_host_early_launches() { return host::device().early; }
#elif defined(DYN_PLAYED_DEVICE)
// What this build plays where nobody asks for more: 0, the GPU that runs it.
ENTRY int dyn_capability() {
#if defined(DYN_LANES_ONLY)
  return 62;
#else
  return 0;
#endif
}
ENTRY void dyn_play_device(int capability, int processors, int tiles) {
  played_device() = {capability, processors, static_cast<Size>(tiles)};
}
#endif
