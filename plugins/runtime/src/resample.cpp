#include "resample.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace dyndeploy {
namespace runtime {
namespace {

constexpr int kFraction = 22;
constexpr double kPi = 3.14159265358979323846;

double bilinear(double x) { return std::fabs(x) < 1.0 ? 1.0 - std::fabs(x) : 0.0; }

double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::fabs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

double sinc(double x) {
  if (x == 0.0) return 1.0;
  x *= kPi;
  return std::sin(x) / x;
}

double lanczos(double x) { return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0; }

struct Filter {
  double (*value)(double);
  double support;
};

Filter filter_of(Interpolation interpolation) {
  switch (interpolation) {
    case Interpolation::kBicubic:
      return {bicubic, 2.0};
    case Interpolation::kLanczos:
      return {lanczos, 3.0};
    default:
      return {bilinear, 1.0};
  }
}

// Weights of outputs `first` to `first + count` of an axis of `in` pixels that becomes `out`.
void compute_taps(Taps& taps, std::vector<double>& scratch, const Filter& filter, std::int64_t in,
                  std::int64_t out, std::int64_t first, std::int64_t count) {
  const double scale = static_cast<double>(in) / static_cast<double>(out);
  const double stretch = std::max(scale, 1.0);
  const double support = filter.support * stretch;
  taps.room = static_cast<std::int64_t>(std::ceil(support)) * 2 + 1;
  taps.firsts.resize(static_cast<std::size_t>(count));
  taps.sizes.resize(static_cast<std::size_t>(count));
  taps.weights.resize(static_cast<std::size_t>(count * taps.room));
  scratch.resize(static_cast<std::size_t>(taps.room));
  for (std::int64_t i = 0; i < count; ++i) {
    const double centre = (static_cast<double>(first + i) + 0.5) * scale;
    const double inverse = 1.0 / stretch;
    const std::int64_t begin = std::max<std::int64_t>(static_cast<std::int64_t>(centre - support + 0.5), 0);
    const std::int64_t end = std::min(static_cast<std::int64_t>(centre + support + 0.5), in);
    double sum = 0.0;
    for (std::int64_t k = 0; k < end - begin; ++k) {
      scratch[k] = filter.value((static_cast<double>(k + begin) - centre + 0.5) * inverse);
      sum += scratch[k];
    }
    std::int32_t* weights = &taps.weights[static_cast<std::size_t>(i * taps.room)];
    for (std::int64_t k = 0; k < end - begin; ++k) {
      const double weight = (sum != 0.0 ? scratch[k] / sum : scratch[k]) * (1 << kFraction);
      weights[k] = static_cast<std::int32_t>(weight < 0 ? weight - 0.5 : weight + 0.5);
    }
    taps.firsts[i] = begin;
    taps.sizes[i] = end - begin;
  }
}

inline std::uint8_t rounded(std::int32_t sum) {
  return static_cast<std::uint8_t>(std::min(std::max(sum >> kFraction, 0), 255));
}

}  // namespace

void Resampler::run(const ImageView& image, const Window& window, Interpolation interpolation,
                    std::uint8_t* out) {
  const bool same = window.height == image.height && window.width == image.width;
  if (!same && interpolation != Interpolation::kNearest) return convolve(image, window, interpolation, out);
  // Coordinates are summed up, as Pillow does, since a product would round in another way.
  const auto places = [&](std::int64_t in, std::int64_t size, std::int64_t first, std::int64_t count) {
    const double step = static_cast<double>(in) / static_cast<double>(size);
    double place = step * 0.5;
    for (std::int64_t i = 0; i < first + count; ++i, place += step)
      if (i >= first) places_.push_back(same ? i : std::min(static_cast<std::int64_t>(place), in - 1));
  };
  places_.clear();
  places(image.width, window.width, window.left, window.columns);
  places(image.height, window.height, window.top, window.rows);
  for (std::int64_t y = 0; y < window.rows; ++y) {
    const std::uint8_t* row = image.pixels + places_[window.columns + y] * image.stride;
    for (std::int64_t x = 0; x < window.columns; ++x, out += 3) std::memcpy(out, row + 3 * places_[x], 3);
  }
}

void Resampler::convolve(const ImageView& image, const Window& window, Interpolation interpolation,
                         std::uint8_t* out) {
  constexpr std::int32_t kHalf = 1 << (kFraction - 1);
  const Filter filter = filter_of(interpolation);
  compute_taps(down_, scratch_, filter, image.height, window.height, window.top, window.rows);
  // The second pass reads these rows only. A pass along an axis that keeps its size is left out.
  const bool keeps_width = window.width == image.width, keeps_height = window.height == image.height;
  const std::int64_t first_row = keeps_height ? window.top : down_.firsts.front();
  const std::int64_t end_row =
      keeps_height ? window.top + window.rows : down_.firsts.back() + down_.sizes.back();
  const std::int64_t pitch = 3 * window.columns;
  between_.resize(static_cast<std::size_t>((end_row - first_row) * pitch));
  if (!keeps_width)
    compute_taps(across_, scratch_, filter, image.width, window.width, window.left, window.columns);
  for (std::int64_t y = first_row; y < end_row; ++y) {
    const std::uint8_t* row = image.pixels + y * image.stride;
    std::uint8_t* to = &between_[static_cast<std::size_t>((y - first_row) * pitch)];
    if (keeps_width) {
      std::memcpy(to, row + 3 * window.left, static_cast<std::size_t>(pitch));
      continue;
    }
    for (std::int64_t x = 0; x < window.columns; ++x, to += 3) {
      const std::uint8_t* from = row + 3 * across_.firsts[x];
      const std::int32_t* weights = &across_.weights[static_cast<std::size_t>(x * across_.room)];
      std::int32_t red = kHalf, green = kHalf, blue = kHalf;
      for (std::int64_t k = 0; k < across_.sizes[x]; ++k, from += 3) {
        red += from[0] * weights[k];
        green += from[1] * weights[k];
        blue += from[2] * weights[k];
      }
      to[0] = rounded(red);
      to[1] = rounded(green);
      to[2] = rounded(blue);
    }
  }
  if (keeps_height) {
    std::memcpy(out, between_.data(), between_.size());
    return;
  }
  for (std::int64_t y = 0; y < window.rows; ++y) {
    const std::int32_t* weights = &down_.weights[static_cast<std::size_t>(y * down_.room)];
    const std::uint8_t* top = &between_[static_cast<std::size_t>((down_.firsts[y] - first_row) * pitch)];
    for (std::int64_t x = 0; x < pitch; ++x, ++out) {
      std::int32_t sum = kHalf;
      const std::uint8_t* from = top + x;
      for (std::int64_t k = 0; k < down_.sizes[y]; ++k, from += pitch) sum += *from * weights[k];
      *out = rounded(sum);
    }
  }
}

}  // namespace runtime
}  // namespace dyndeploy
