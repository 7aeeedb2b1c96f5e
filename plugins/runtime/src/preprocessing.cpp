#include "preprocessing.h"

#include <algorithm>
#include <cmath>

#include "error.h"

namespace dyndeploy {
namespace runtime {
namespace {

// Half of a length, to the nearest, and to the even one of two that are equally near.
std::int64_t half(std::int64_t length) { return length / 2 + (length % 4 == 3 ? 1 : 0); }

}  // namespace

void require_pixels(const ImageView& image) {
  if (!image.pixels || image.height < 1 || image.width < 1 || image.stride < 3 * image.width)
    fail(DYNDEPLOY_INPUT, "An image of " + std::to_string(image.height) + " x " +
                              std::to_string(image.width) + " pixels and rows of " +
                              std::to_string(image.stride) + " bytes holds no RGB image.");
  if (image.height > kMostPixels / image.width)
    fail(DYNDEPLOY_INPUT, "An image of " + std::to_string(image.height) + " x " +
                              std::to_string(image.width) + " pixels is too large: at most " +
                              std::to_string(kMostPixels) + " are taken.");
}

Window centre_crop(std::int64_t image_height, std::int64_t image_width, std::int64_t resize,
                   std::int64_t height, std::int64_t width) {
  const std::int64_t shorter = std::min(image_height, image_width);
  // The crop must fit.
  const double factor = std::max(static_cast<double>(height) / static_cast<double>(image_height),
                                 static_cast<double>(width) / static_cast<double>(image_width));
  const std::int64_t needed = static_cast<std::int64_t>(std::ceil(static_cast<double>(shorter) * factor));
  const std::int64_t side = std::max(resize, needed);
  const auto scaled = [&](std::int64_t length, std::int64_t least) {
    return std::max(std::max(side * length / shorter, side), least);
  };
  Window window;
  window.height = scaled(image_height, height);
  window.width = scaled(image_width, width);
  window.top = half(window.height - height);
  window.left = half(window.width - width);
  window.rows = height;
  window.columns = width;
  return window;
}

Preprocessor::Preprocessor(const PreprocessingInfo& info, std::int64_t height, std::int64_t width)
    : interpolation_(info.interpolation), resize_(info.resize), height_(height), width_(width) {
  for (int channel = 0; channel < 3; ++channel) {
    const float mean = static_cast<float>(info.mean[channel]),
                deviation = static_cast<float>(info.std[channel]);
    for (int value = 0; value < 256; ++value)
      table_[channel][value] = (static_cast<float>(value) / 255.0f - mean) / deviation;
  }
  pixels_.resize(static_cast<std::size_t>(3 * height * width));
}

void Preprocessor::run(const ImageView& image, float* out) {
  require_pixels(image);
  const Window window = centre_crop(image.height, image.width, resize_, height_, width_);
  resampler_.run(image, window, interpolation_, pixels_.data());
  const std::int64_t count = height_ * width_;
  for (int channel = 0; channel < 3; ++channel) {
    const std::uint8_t* from = pixels_.data() + channel;
    float* to = out + channel * count;
    for (std::int64_t i = 0; i < count; ++i) to[i] = table_[channel][from[3 * i]];
  }
}

}  // namespace runtime
}  // namespace dyndeploy
