#include "image_convolution_op.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace dyndeploy::ort {
namespace {

constexpr std::int64_t kLargest = 1 << 15;  // other attributes and sizes are smaller
enum Input { kX, kW, kB, kM };

}  // namespace

void ImageConvolutionKernel::refuse(const std::string& what) const {
  throw InvalidArgument(std::string("dyndeploy.") + op_.name + ": " + what);
}

cpu::Windows ImageConvolutionKernel::windows(const KernelInfo& info, const char* strides,
                                             const char* pads) const {
  const auto read = [&](const char* name, std::size_t count, std::int64_t least) {
    std::vector<std::int64_t> values = info.integers(name);
    bool fits = values.size() == count;
    for (const std::int64_t v : values) fits = fits && v >= least && v < kLargest;
    if (!fits) {
      refuse(std::string("attribute ") + name + " is " + to_string(values) + ", expected " +
             std::to_string(count) + " integers from " + std::to_string(least) + " on");
    }
    return values;
  };
  const std::vector<std::int64_t> stride = read(strides, 2, 1), pad = read(pads, 4, 0);
  cpu::Windows w;
  w.stride_height = static_cast<int>(stride[0]);
  w.stride_width = static_cast<int>(stride[1]);
  w.top = static_cast<int>(pad[0]);
  w.left = static_cast<int>(pad[1]);
  w.bottom = static_cast<int>(pad[2]);
  w.right = static_cast<int>(pad[3]);
  return w;
}

ImageConvolutionKernel::ImageConvolutionKernel(const tables::Operator& op, const KernelInfo& info,
                                               const Registration& registration)
    : op_(op),
      isa_(registration.quantized_isa()),
      threads_(registration.threads()),
      workspaces_(registration.workspaces()) {
  layer_.kernel = windows(info, "strides", "pads");
  layer_.pool = windows(info, "pool_strides", "pool_pads");
  const std::vector<std::int64_t> pool = info.integers("pool_shape");
  if (pool.size() != 2 || pool[0] < 1 || pool[0] > cpu::kMostPooledRows || pool[1] < 1 ||
      pool[1] >= kLargest) {
    refuse("attribute pool_shape is " + to_string(pool) + ", expected 1 to " +
           std::to_string(cpu::kMostPooledRows) + " rows, and columns");
  }
  layer_.pool.height = static_cast<int>(pool[0]);
  layer_.pool.width = static_cast<int>(pool[1]);
  if (std::max(layer_.pool.top, layer_.pool.bottom) >= layer_.pool.height ||
      std::max(layer_.pool.left, layer_.pool.right) >= layer_.pool.width)
    refuse("attribute pool_pads has to be smaller than pool_shape");
  layer_.scale = info.real("scale", 0.0f);
  if (!std::isfinite(layer_.scale) || layer_.scale < std::numeric_limits<float>::min())
    refuse("attribute scale is " + std::to_string(layer_.scale) + ", expected a positive number");
  const std::int64_t zero_point = info.integer("zero_point", -1);
  if (zero_point < 0 || zero_point > 255)
    refuse("attribute zero_point is " + std::to_string(zero_point) + ", expected 0 to 255");
  layer_.zero_point = static_cast<int>(zero_point);
  const OrtValue* const values[] = {info.constant_input(kW), info.constant_input(kB),
                                    info.constant_input(kM)};
  if (!values[0] || !values[1] || !values[2]) return;
  pack(read_tensor(info.api(), values[0], op_, kW), read_tensor(info.api(), values[1], op_, kB),
       read_tensor(info.api(), values[2], op_, kM), registration.arena(), packed_);
}

void ImageConvolutionKernel::pack(const Tensor& w, const Tensor& b, const Tensor& m, cpu::Arena& arena,
                                  std::unique_ptr<cpu::PackedImageConvolution>& packed) const {
  const std::vector<std::int64_t>& shape = w.shape;
  if (shape[0] < 1 || shape[1] < 1 || shape[1] > cpu::kMostImageChannels || shape[2] < 1 ||
      shape[2] > cpu::kQuantizedTaps || shape[3] < 1 || shape[3] >= kLargest || shape[0] >= kLargest) {
    refuse("input 1 (w) has shape " + to_string(shape) + ", expected at most " +
           std::to_string(cpu::kMostImageChannels) + " channels and " + std::to_string(cpu::kQuantizedTaps) +
           " rows");
  }
  expect_shape(b, op_, kB, {shape[0]});
  expect_shape(m, op_, kM, {shape[0]});
  cpu::ImageLayer layer = layer_;
  layer.outputs = static_cast<int>(shape[0]);
  layer.inputs = static_cast<int>(shape[1]);
  layer.kernel.height = static_cast<int>(shape[2]);
  layer.kernel.width = static_cast<int>(shape[3]);
  packed = std::make_unique<cpu::PackedImageConvolution>(isa_, layer, w.as<std::int8_t>(),
                                                         b.as<std::int32_t>(), m.floats(), arena);
}

void ImageConvolutionKernel::compute(KernelContext& context) {
  std::unique_ptr<cpu::PackedImageConvolution> fresh;
  if (!packed_) {
    cpu::Arena arena(0);  // what one run packs shares no buffer with what stays
    pack(context.tensor(op_, kW), context.tensor(op_, kB), context.tensor(op_, kM), arena, fresh);
  }
  cpu::ImageConvolutionCall call;
  call.weights = packed_ ? packed_.get() : fresh.get();
  const cpu::ImageLayer& layer = call.weights->layer();
  const Tensor x = context.tensor(op_, kX);
  expect_shape(x, op_, kX, {-1, layer.inputs, -1, -1});
  const std::int64_t batch = x.shape[0], height = x.shape[2], width = x.shape[3];
  if (height >= kLargest || width >= kLargest || batch * (height + 2 * kLargest) > INT32_MAX)
    refuse("input 0 (x) has shape " + to_string(x.shape) + ", which is too large");
  const auto fits = [](const cpu::Windows& w, std::int64_t rows, std::int64_t columns) {
    return rows + w.top + w.bottom >= w.height && columns + w.left + w.right >= w.width;
  };
  bool windows = fits(layer.kernel, height, width);
  int rows = 0, columns = 0;
  if (windows) {
    rows = layer.kernel.rows(static_cast<int>(height));
    columns = layer.kernel.columns(static_cast<int>(width));
    windows = fits(layer.pool, rows, columns);
  }
  if (!windows) refuse("input 0 (x) has shape " + to_string(x.shape) + ", smaller than a window");
  call.batch = static_cast<int>(batch);
  call.height = static_cast<int>(height);
  call.width = static_cast<int>(width);
  call.x = x.floats();
  call.y = context.output<std::uint8_t>(
      0, {batch, layer.pool.rows(rows), layer.pool.columns(columns), layer.outputs});
  const cpu::WorkspacePool::Lease workspace(*workspaces_);
  cpu::run_image_convolution(call, *workspace, context.pool(threads_));
}

void ImageConvolutionKernel::infer(const tables::Operator&, const ShapeInference& inference) {
  const ShapeInference::Shape x = inference.input(kX), w = inference.input(kW);
  if (x.size() != 4 || w.size() != 4) return;
  const auto pooled = [&](std::size_t axis) {
    ShapeInference::Dim dim;
    std::int64_t size = x[axis + 2].size;
    const auto moved = [&](std::int64_t window, const char* strides, const char* pads) {
      const std::vector<std::int64_t> stride = inference.integers(strides), pad = inference.integers(pads);
      const bool known = stride.size() == 2 && pad.size() == 4 && stride[axis] > 0 && size > 0 && window > 0;
      size = known ? (size + pad[axis] + pad[axis + 2] - window) / stride[axis] + 1 : -1;
    };
    moved(w[axis + 2].size, "strides", "pads");
    const std::vector<std::int64_t> pool = inference.integers("pool_shape");
    moved(pool.size() == 2 ? pool[axis] : -1, "pool_strides", "pool_pads");
    dim.size = size > 0 ? size : -1;
    return dim;
  };
  inference.set_output({x[0], pooled(0), pooled(1), w[0]});
}

}  // namespace dyndeploy::ort
