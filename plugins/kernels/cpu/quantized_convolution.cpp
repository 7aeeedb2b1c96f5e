#include "quantized_convolution.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "quantized_weights.h"
#include "schedule.h"

namespace dyndeploy::cpu {
namespace {

constexpr std::size_t kCacheLine = 64;
constexpr std::size_t kMarginBytes = 64;  // whole quads of the last pixel's inputs are read

std::size_t whole_lines(std::size_t bytes) { return (bytes + kCacheLine - 1) / kCacheLine * kCacheLine; }

// Everything the tasks of one call share.
struct Context {
  const QuantizedIsa* isa;
  const PackedImageConvolution* weights;
  ImageLayer layer;
  int height, width;  // of an image
  int rows, columns;  // of the map between convolution and pooling
  int pooled_rows, pooled_columns;
  const float* x;
  std::uint8_t* y;
  std::uint8_t* image;  // bytes, channels last, with its padding: (batch, padded height, row bytes)
  std::ptrdiff_t row_bytes;
  int padded_height;
  std::uint8_t* map;  // rows of the convolution that one worker's windows need
  std::ptrdiff_t map_row_bytes;
  bool pools;

  std::uint8_t* image_row(int n, int row) const {
    return image + (static_cast<std::ptrdiff_t>(n) * padded_height + row) * row_bytes;
  }
};

// Rows [begin, end) of all padded images, one after the other.
void quantize_rows(const Context& c, Range rows) {
  const ImageLayer& layer = c.layer;
  const int C = layer.inputs;
  const std::size_t before = static_cast<std::size_t>(layer.kernel.left * C);
  const std::ptrdiff_t plane = static_cast<std::ptrdiff_t>(c.height) * c.width;
  for (int r = rows.begin; r < rows.end; ++r) {
    const int n = r / c.padded_height, row = r % c.padded_height - layer.kernel.top;
    std::uint8_t* const to = c.image_row(n, r % c.padded_height);
    if (row < 0 || row >= c.height) {
      std::memset(to, layer.zero_point, static_cast<std::size_t>(c.row_bytes));
      continue;
    }
    const std::size_t pixels = static_cast<std::size_t>(c.width) * static_cast<std::size_t>(C);
    std::memset(to, layer.zero_point, before);
    QuantizedImageRow call;
    call.x = c.x + n * C * plane + static_cast<std::ptrdiff_t>(row) * c.width;
    call.plane = plane;
    call.channels = C;
    call.width = c.width;
    call.scale = layer.scale;
    call.zero_point = layer.zero_point;
    call.out = to + before;
    c.isa->quantize_row(call);
    std::memset(to + before + pixels, layer.zero_point,
                static_cast<std::size_t>(c.row_bytes) - before - pixels);
  }
}

// One row of the map.
void convolve_row(const Context& c, int n, int row, std::uint8_t* out, const QuantizedScratch& scratch) {
  const ImageLayer& layer = c.layer;
  QuantizedGemm g;
  QuantizedRows& a = g.product.a;
  a.base = c.image_row(n, row * layer.kernel.stride_height);
  a.stride = layer.kernel.stride_width * layer.inputs;
  a.taps = layer.kernel.height;
  a.inputs = layer.tap_inputs();
  for (int t = 0; t < a.taps; ++t) a.tap_offset[t] = t * c.row_bytes;
  g.product.b = c.weights->panels();
  g.columns = layer.outputs;
  g.out = out;
  g.stride = layer.outputs;
  c.isa->gemm(g, 0, c.columns, 0, ceil_to_int(layer.outputs, c.isa->panel_width), scratch);
}

// Rows [begin, end) of all outputs, one after the other.
void pooled_rows(const Context& c, Range rows, const QuantizedScratch& scratch, int worker) {
  const ImageLayer& layer = c.layer;
  const Windows& pool = layer.pool;
  const std::ptrdiff_t out_bytes = static_cast<std::ptrdiff_t>(c.pooled_columns) * layer.outputs;
  std::uint8_t* const map = c.map + worker * pool.height * c.map_row_bytes;
  int image = -1, done = 0;  // rows of this image that are in the map, or were
  for (int r = rows.begin; r < rows.end; ++r) {
    const int n = r / c.pooled_rows, row = r % c.pooled_rows;
    std::uint8_t* const out = c.y + r * out_bytes;
    if (!c.pools) {
      convolve_row(c, n, row, out, scratch);
      continue;
    }
    const int first = std::max(0, row * pool.stride_height - pool.top);
    const int end = std::min(c.rows, row * pool.stride_height - pool.top + pool.height);
    if (n != image) image = n, done = 0;
    const std::uint8_t* from[kMostPooledRows];
    QuantizedPool call;
    for (int i = first; i < end; ++i) {
      std::uint8_t* const place = map + i % pool.height * c.map_row_bytes;
      if (i >= done) convolve_row(c, n, i, place, scratch);
      from[i - first] = place;
    }
    done = std::max(done, end);
    call.rows = from;
    call.row_count = end - first;
    call.columns = c.columns;
    call.channels = layer.outputs;
    call.window = pool.width;
    call.stride = pool.stride_width;
    call.left = pool.left;
    call.out = out;
    call.out_columns = c.pooled_columns;
    c.isa->pool_row(call);
  }
}

}  // namespace

PackedImageConvolution::PackedImageConvolution(const QuantizedIsa& isa, const ImageLayer& layer,
                                               const std::int8_t* weights, const std::int32_t* bias,
                                               const float* multiplier, Arena& arena)
    : layer_(layer) {
  const int R = layer.kernel.height, S = layer.kernel.width, C = layer.inputs, Co = layer.outputs;
  const std::size_t count = static_cast<std::size_t>(Co) * static_cast<std::size_t>(C * R * S);
  isa_ = quantized_isa_for(isa, weights, count);
  // A tap is a row of the kernel: (column, channel), as the image has them.
  std::vector<std::int8_t> ordered(count);
  std::vector<std::int32_t> biases(bias, bias + Co);
  std::int8_t* to = ordered.data();
  for (int n = 0; n < Co; ++n) {
    const std::int8_t* const from = weights + static_cast<std::ptrdiff_t>(n) * C * R * S;
    std::int32_t sum = 0;
    for (int s = 0; s < S; ++s) {
      for (int k = 0; k < C; ++k) {
        for (int t = 0; t < R; ++t) sum += * to++ = from[(k * R + t) * S + s];
      }
    }
    // Unsigned: what overflows wraps around, as the sums of the products do.
    std::int32_t& b = biases[static_cast<std::size_t>(n)];
    b = static_cast<std::int32_t>(static_cast<std::uint32_t>(b) -
                                  static_cast<std::uint32_t>(layer.zero_point) *
                                      static_cast<std::uint32_t>(sum));
  }
  const std::size_t panels = static_cast<std::size_t>(ceil_to_int(Co, isa_->panel_width));
  const std::size_t columns = panels * static_cast<std::size_t>(isa_->panel_width);
  const std::size_t panel = quantized_panel_bytes(*isa_, R, layer.tap_inputs());
  const std::size_t bias_at = whole_lines(panels * panel);
  const std::size_t multiplier_at = bias_at + whole_lines(columns * sizeof(std::int32_t));
  const std::size_t bytes = multiplier_at + whole_lines(columns * sizeof(float));
  memory_ = arena.take(bytes);
  std::memset(memory_.get(), 0, bytes);
  char* const memory = static_cast<char*>(memory_.get());
  auto* const packed = reinterpret_cast<std::int8_t*>(memory);
  auto* const packed_bias = reinterpret_cast<std::int32_t*>(memory + bias_at);
  auto* const packed_multiplier = reinterpret_cast<float*>(memory + multiplier_at);
  pack_quantized_panels(ordered.data(), Co, layer.tap_inputs(), R, isa_->panel_width, packed);
  std::copy(biases.begin(), biases.end(), packed_bias);
  std::copy(multiplier, multiplier + Co, packed_multiplier);
  panels_.base = packed;
  panels_.panel_stride = static_cast<std::ptrdiff_t>(panel);
  panels_.bias = packed_bias;
  panels_.multiplier = packed_multiplier;
}

void run_image_convolution(const ImageConvolutionCall& call, Workspace& workspace, const ThreadPool& pool) {
  const PackedImageConvolution& weights = *call.weights;
  const ImageLayer& layer = weights.layer();
  const int threads = std::max(1, pool.threads);
  Context c{};
  c.isa = &weights.isa();
  c.weights = &weights;
  c.layer = layer;
  c.height = call.height;
  c.width = call.width;
  c.rows = layer.kernel.rows(call.height);
  c.columns = layer.kernel.columns(call.width);
  c.pooled_rows = layer.pool.rows(c.rows);
  c.pooled_columns = layer.pool.columns(c.columns);
  c.x = call.x;
  c.y = call.y;
  c.padded_height = call.height + layer.kernel.top + layer.kernel.bottom;
  const int padded_width = call.width + layer.kernel.left + layer.kernel.right;
  const std::size_t row_bytes =
      static_cast<std::size_t>(padded_width) * static_cast<std::size_t>(layer.inputs);
  c.row_bytes = static_cast<std::ptrdiff_t>(row_bytes);
  const int image_rows = call.batch * c.padded_height;
  c.image = workspace.take<std::uint8_t>(static_cast<std::size_t>(image_rows) * row_bytes + kMarginBytes);
  c.pools = layer.pool.height > 1 || layer.pool.width > 1 || layer.pool.stride_height > 1 ||
            layer.pool.stride_width > 1;
  if (c.pools) {
    const std::size_t map_row =
        whole_lines(static_cast<std::size_t>(c.columns) * static_cast<std::size_t>(layer.outputs));
    c.map_row_bytes = static_cast<std::ptrdiff_t>(map_row);
    c.map = workspace.take<std::uint8_t>(map_row * static_cast<std::size_t>(layer.pool.height) *
                                         static_cast<std::size_t>(threads));
  }
  QuantizedScratch scratch;
  const std::size_t zero_bytes = static_cast<std::size_t>(round_up(layer.tap_inputs(), kQuad));
  auto* const zeros = workspace.take<std::uint8_t>(zero_bytes);
  std::memset(zeros, 0, zero_bytes);
  scratch.zeros = zeros;

  const int image_parts = std::min(threads, image_rows);
  const auto image_body = [&](int task, int) { quantize_rows(c, part(0, image_rows, task, image_parts)); };
  const int out_rows = call.batch * c.pooled_rows, out_parts = std::min(threads, out_rows);
  const auto out_body = [&](int task, int worker) {
    pooled_rows(c, part(0, out_rows, task, out_parts), scratch, worker);
  };
  const Phase phases[] = {Phase(image_parts, image_body), Phase(out_parts, out_body)};
  run_phases(pool, phases, 2);
}

}  // namespace dyndeploy::cpu
