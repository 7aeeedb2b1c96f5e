#include "bilinear.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

namespace dyndeploy {
namespace runtime {
namespace {

constexpr int kOne = 1 << 11;

bool is_half(const ImageView& image, std::int64_t height, std::int64_t width) {
  return image.height == 2 * height && image.width == 2 * width;
}

// Of the four pixels that become one.
template <class Value, class Mean>
void halve(const ImageView& image, std::int64_t height, std::int64_t width, Value* out, Mean mean) {
  for (std::int64_t y = 0; y < height; ++y) {
    const std::uint8_t* top = image.pixels + 2 * y * image.stride;
    const std::uint8_t* bottom = top + image.stride;
    for (std::int64_t x = 0; x < width; ++x, top += 6, bottom += 6)
      for (int channel = 0; channel < 3; ++channel)
        *out++ = mean(top[channel], top[channel + 3], bottom[channel], bottom[channel + 3]);
  }
}

// The share in float32 first, as OpenCV has it, then to the nearest, and to the even one of two.
std::int32_t fixed(float share) { return static_cast<std::int32_t>(std::lrintf(share * kOne)); }

}  // namespace

// Place: what OpenCV computes places in. Of bytes, its scale is one over that of the result.
template <class Place>
void BilinearResizer::compute(std::vector<Tap>& taps, std::int64_t in, std::int64_t out) {
  const double from = static_cast<double>(in), to = static_cast<double>(out);
  const double scale = std::is_same<Place, float>::value ? 1.0 / (to / from) : from / to;
  taps.resize(static_cast<std::size_t>(out));
  for (std::int64_t i = 0; i < out; ++i) {
    const double place = static_cast<Place>((static_cast<double>(i) + 0.5) * scale - 0.5);
    const double below = std::floor(place);
    const std::int64_t first = static_cast<std::int64_t>(below);
    const auto inside = [in](std::int64_t at) { return std::min(std::max<std::int64_t>(at, 0), in - 1); };
    taps[static_cast<std::size_t>(i)] = {inside(first), inside(first + 1), place - below};
  }
}

template <class Value, class Across, class Down>
void BilinearResizer::convolve(const ImageView& image, std::vector<Value> (&rows)[2], Across across,
                               Down down) {
  const std::size_t pitch = 3 * across_.size();
  std::int64_t held[2] = {-1, -1};
  for (std::vector<Value>& row : rows) row.resize(pitch);
  // An image that grows reads the same row again and again.
  const auto row_of = [&](std::int64_t y, int place) {
    if (held[place] == y) return;
    if (held[1 - place] == y) {
      std::swap(rows[0], rows[1]);
      std::swap(held[0], held[1]);
      return;
    }
    across(image.pixels + y * image.stride, rows[place].data());
    held[place] = y;
  };
  for (std::size_t y = 0; y < down_.size(); ++y) {
    const Tap& tap = down_[y];
    row_of(tap.first, 0);
    const bool twice = tap.second == tap.first;
    if (!twice) row_of(tap.second, 1);
    down(y, rows[0].data(), rows[twice ? 0 : 1].data(), pitch);
  }
}

void BilinearResizer::run(const ImageView& image, std::int64_t height, std::int64_t width,
                          std::uint8_t* out) {
  if (is_half(image, height, width))
    return halve(image, height, width, out, [](int a, int b, int c, int d) {
      return static_cast<std::uint8_t>((a + b + c + d + 2) >> 2);
    });
  compute<float>(across_, image.width, width);
  compute<float>(down_, image.height, height);
  weights_.clear();
  for (Tap& tap : across_) {
    const float share = tap.first == tap.second ? 0.0f : static_cast<float>(tap.share);
    weights_.push_back(fixed(1.0f - share));
    weights_.push_back(fixed(share));
  }
  const auto across = [this](const std::uint8_t* row, std::int32_t* to) {
    const std::int32_t* weights = weights_.data();
    for (const Tap& tap : across_) {
      const std::uint8_t *first = row + 3 * tap.first, *second = row + 3 * tap.second;
      for (int channel = 0; channel < 3; ++channel)
        *to++ = first[channel] * weights[0] + second[channel] * weights[1];
      weights += 2;
    }
  };
  const auto down = [this, out](std::size_t y, const std::int32_t* top, const std::int32_t* bottom,
                                std::size_t pitch) {
    const float share = static_cast<float>(down_[y].share);
    const std::int32_t first = fixed(1.0f - share), second = fixed(share);
    std::uint8_t* to = out + y * pitch;
    for (std::size_t x = 0; x < pitch; ++x)
      to[x] = static_cast<std::uint8_t>(
          ((first * (top[x] >> 4) >> 16) + (second * (bottom[x] >> 4) >> 16) + 2) >> 2);
  };
  convolve(image, whole_, across, down);
}

void BilinearResizer::run(const ImageView& image, std::int64_t height, std::int64_t width, float* out) {
  if (is_half(image, height, width))
    return halve(image, height, width, out,
                 [](int a, int b, int c, int d) { return static_cast<float>(a + b + c + d) * 0.25f; });
  compute<double>(across_, image.width, width);
  compute<double>(down_, image.height, height);
  const auto between = [](float first, float second, float share) {
    return std::fma(second - first, share, first);
  };
  const auto across = [this, between](const std::uint8_t* row, float* to) {
    for (const Tap& tap : across_) {
      const std::uint8_t *first = row + 3 * tap.first, *second = row + 3 * tap.second;
      for (int channel = 0; channel < 3; ++channel)
        *to++ = between(first[channel], second[channel], static_cast<float>(tap.share));
    }
  };
  const auto down = [this, out, between](std::size_t y, const float* top, const float* bottom,
                                         std::size_t pitch) {
    const float share = static_cast<float>(down_[y].share);
    float* to = out + y * pitch;
    for (std::size_t x = 0; x < pitch; ++x) to[x] = between(top[x], bottom[x], share);
  };
  convolve(image, real_, across, down);
}

}  // namespace runtime
}  // namespace dyndeploy
