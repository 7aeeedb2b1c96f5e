#include "layout.h"
#include "stand_in.h"
#include "transformer.h"

namespace dyndeploy {
namespace cuda {
namespace {

int larger(int a, int b) { return a > b ? a : b; }

std::size_t rows_bytes(const TransformerShape& s, Type type) {
  return static_cast<std::size_t>(s.batch) * static_cast<std::size_t>(s.tokens) *
         static_cast<std::size_t>(larger(s.width, s.heads * s.head_width)) * element_size(type);
}

TransformerArguments plan(const TransformerShape& shape, Type type, const TransformerTensors& tensors,
                          void* workspace, std::size_t& bytes) {
  TransformerArguments a = {};
  a.shape = shape;
  a.tensors = tensors;
  a.channels = shape.heads * shape.head_width;
  const std::size_t batch = static_cast<std::size_t>(shape.batch);
  const std::size_t tokens = batch * static_cast<std::size_t>(shape.tokens);
  const std::uintptr_t begin = reinterpret_cast<std::uintptr_t>(workspace);
  Layout layout = {begin};
  a.rows = layout.take<void>(rows_bytes(shape, type));
  a.middle = layout.take<void>(tokens * static_cast<std::size_t>(larger(3 * a.channels, shape.hidden)) *
                               element_size(type));
  a.samples = layout.take<SampleTokens>(batch * sizeof(SampleTokens));
  if (shape.token_mask) a.tokens = layout.take<int>(tokens * sizeof(int));
  if (shape.head_mask) {
    a.kept_heads = layout.take<int>(batch * static_cast<std::size_t>(shape.heads) * sizeof(int));
    a.channel_list = layout.take<int>(batch * static_cast<std::size_t>(a.channels) * sizeof(int));
    if (shape.head_mode == 1) {
      a.unit_list = layout.take<int>(batch * static_cast<std::size_t>(shape.hidden) * sizeof(int));
    }
  }
  bytes = static_cast<std::size_t>(layout.at - begin);
  return a;
}

bool fits_vectors(const TransformerShape& s, Type type) {
  const int vector = 16 / static_cast<int>(element_size(type));
  const bool units = !s.head_mask || s.head_mode != 1 || s.hidden / s.heads % vector == 0;
  return s.width % vector == 0 && s.head_width % vector == 0 && s.hidden % vector == 0 && units;
}

}  // namespace

const char* check_transformer(const TransformerShape& s, Type type) {
  if (type != Type::kFloat && type != Type::kHalf) return "the type must be float or half";
  if (s.batch < 1 || s.tokens < 1 || s.width < 1) return "x is empty";
  if (s.heads < 1 || s.head_width < 1) return "the attention has no heads";
  if (s.hidden < 1) return "the MLP has no hidden units";
  if (!(s.epsilon >= 0.0f) || s.epsilon > 1.0f) return "epsilon must be between 0 and 1";
  if (!(s.scale > 0.0f) || s.scale > 1e6f) return "the scale must be positive";
  if (s.head_mode < 0 || s.head_mode > 2) return "head_mode must be 0, 1 or 2";
  const double channels = static_cast<double>(s.heads) * s.head_width;
  if (s.head_mask && s.head_mode == 0 && channels != s.width) {
    return "with head_mode 0 the heads must be as wide as x together";
  }
  if (s.head_mask && s.head_mode == 1 && s.hidden % s.heads != 0) {
    return "with head_mode 1 the heads must divide the hidden units";
  }
  // Rows, columns and grids are counted in int; grids have at most 65535 blocks in their second direction.
  const double limit = 2147483647.0, rows = static_cast<double>(s.batch) * s.tokens;
  double widest = 3.0 * channels;
  if (s.hidden > widest) widest = s.hidden;
  if (s.width > widest) widest = s.width;
  if (static_cast<double>(s.batch) * s.heads > 65535.0) return "batch times heads must be at most 65535";
  if (rows > limit / 16) return "x has too many tokens";
  if (widest > limit / 16 || (s.tokens / 16.0 + 1) * (widest / 32.0 + 1) > limit) {
    return "the block is too wide";
  }
  return nullptr;
}

std::size_t transformer_workspace(const TransformerShape& shape, Type type) {
  std::size_t bytes = 0;
  plan(shape, type, TransformerTensors(), nullptr, bytes);
  return bytes;
}

const char* misaligned_tensor(const TransformerShape& shape, Type type, const TransformerTensors& t,
                              const void* workspace) {
  if (!fits_vectors(shape, type)) return nullptr;
  return !aligned(t.x)         ? "x"
         : !aligned(t.y)       ? "y"
         : !aligned(t.w_qkv)   ? "w_qkv"
         : !aligned(t.w_proj)  ? "w_proj"
         : !aligned(t.w_fc1)   ? "w_fc1"
         : !aligned(t.w_fc2)   ? "w_fc2"
         : !aligned(workspace) ? "the workspace"
                               : nullptr;
}

int stand_in_masks(const TransformerShape& shape, Type type, const TransformerRates& rates,
                   TransformerTensors* tensors, void* workspace, void* stream) {
  const int batch = shape.batch;
  struct {
    bool used;
    int bits, rate;
    const float** mask;
  } const masks[] = {{shape.token_mask, batch * shape.tokens, rates.tokens, &tensors->token_mask},
                     {shape.head_mask, batch * shape.heads, rates.heads, &tensors->head_mask},
                     {shape.sublayer_masks, batch, rates.attention, &tensors->attention_mask},
                     {shape.sublayer_masks, batch, rates.mlp, &tensors->mlp_mask}};
  std::size_t needed = 0;
  for (const auto& mask : masks)
    needed += mask.used && mask.rate > 0 ? static_cast<std::size_t>(mask.bits) : 0;
  // In place of the normalised rows, which are written when the masks have been read.
  std::size_t bytes = 0;
  float* memory = static_cast<float*>(plan(shape, type, *tensors, workspace, bytes).rows);
  if (needed * sizeof(float) > rows_bytes(shape, type)) return 0;
  for (const auto& mask : masks) {
    if (!mask.used || mask.rate <= 0) continue;
    const int error = fill_mask(memory, mask.bits, mask.rate, stream);
    if (error != 0) return error;
    *mask.mask = memory;
    memory += mask.bits;
  }
  return 0;
}

TransformerChoice transformer_choice(const TransformerShape& shape, Type type, int capability, int processors,
                                     const Tiles& tiles) {
  std::size_t bytes = 0;
  const TransformerArguments a = plan(shape, type, TransformerTensors(), nullptr, bytes);
  const bool vectors = fits_vectors(shape, type);
  const DeviceTraits device = capability > 0 ? traits_of(capability, processors) : device_traits();
  if (device.capability <= 0) return TransformerChoice();
  if (type == Type::kHalf) {
    return shape.head_mask ? describe_block<true, Half>(a, vectors, device, tiles)
                           : describe_block<false, Half>(a, vectors, device, tiles);
  }
  return shape.head_mask ? describe_block<true, float>(a, vectors, device, tiles)
                         : describe_block<false, float>(a, vectors, device, tiles);
}

int transformer_candidates(const TransformerShape& shape, Type type, int capability, int processors,
                           Tiles* candidates) {
  const DeviceTraits device = capability > 0 ? traits_of(capability, processors) : device_traits();
  if (device.capability <= 0) return 0;
  std::size_t bytes = 0;
  const TransformerArguments a = plan(shape, type, TransformerTensors(), nullptr, bytes);
  const bool vectors = fits_vectors(shape, type);
  if (type == Type::kHalf) {
    return shape.head_mask ? candidates_of<true, Half>(a, vectors, device, candidates)
                           : candidates_of<false, Half>(a, vectors, device, candidates);
  }
  return shape.head_mask ? candidates_of<true, float>(a, vectors, device, candidates)
                         : candidates_of<false, float>(a, vectors, device, candidates);
}

int run_transformer(const TransformerShape& shape, Type type, const TransformerTensors& tensors,
                    void* workspace, void* stream, const Tiles& tiles) {
  std::size_t bytes = 0;
  const TransformerArguments a = plan(shape, type, tensors, workspace, bytes);
  const bool vectors =
      fits_vectors(shape, type) && misaligned_tensor(shape, type, tensors, workspace) == nullptr;
  Sequence sequence(stream);
  return type == Type::kHalf ? run_transformer_half(a, vectors, tiles, sequence)
                             : run_transformer_float(a, vectors, tiles, sequence);
}

}  // namespace cuda
}  // namespace dyndeploy
