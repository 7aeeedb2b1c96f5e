#include "masks.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace dyndeploy {
namespace runtime {
namespace {

// The pixels of an axis that a box may touch.
void window(float low, float high, std::int64_t side, std::int64_t& first, std::int64_t& end) {
  first = std::max<std::int64_t>(static_cast<std::int64_t>(std::floor(low)) - 1, 0);
  end =
      std::max<std::int64_t>(0, std::min<std::int64_t>(static_cast<std::int64_t>(std::ceil(high)) + 1, side));
  end = std::max(first, end);
}

// Cells whose weight, 1 less their distance from a place, is positive.
Cells around(float place, std::int64_t cells) {
  Cells found{0, 0, {0, 0, 0, 0}};
  // Not a number is nowhere.
  if (!(place > -1.0f && place < static_cast<float>(cells))) return found;
  const std::int64_t below = static_cast<std::int64_t>(std::floor(place));
  for (std::int64_t cell = std::max<std::int64_t>(below, 0); cell <= below + 1 && cell < cells; ++cell) {
    const float weight = 1.0f - std::fabs(place - static_cast<float>(cell));
    if (weight <= 0) continue;
    if (!found.count) found.first = cell;
    found.weights[found.count++] = weight;
  }
  return found;
}

void sample_box(std::vector<Cells>& taps, std::int64_t first, std::int64_t end, float low, float high,
                std::int64_t cells) {
  taps.clear();
  for (std::int64_t pixel = first; pixel < end; ++pixel) {
    const float centre = static_cast<float>(pixel) + 0.5f;
    float grid = (centre - low) / (high - low) * 2.0f - 1.0f;
    // mmdetection takes the middle of the mask over boxes without extent.
    if (std::isinf(grid)) grid = 0;
    taps.push_back(around(((grid + 1.0f) * static_cast<float>(cells) - 1.0f) / 2.0f, cells));
  }
}

// Bilinear resizing without antialiasing, the outermost cells repeated.
Cells resized(std::int64_t pixel, std::int64_t pixels, std::int64_t cells) {
  const float scale = static_cast<float>(static_cast<double>(cells) / static_cast<double>(pixels));
  const float place = (static_cast<float>(pixel) + 0.5f) * scale - 0.5f;
  return around(std::min(std::max(place, 0.0f), static_cast<float>(cells - 1)), cells);
}

// Resizing to the input, and from there, without the padding, to the image.
void sample_queries(std::vector<Cells>& taps, std::int64_t cells, std::int64_t stride, std::int64_t inside,
                    std::int64_t pixels) {
  taps.clear();
  for (std::int64_t pixel = 0; pixel < pixels; ++pixel) {
    const Cells outer = resized(pixel, pixels, inside);
    Cells whole{std::numeric_limits<std::int64_t>::max(), 0, {0, 0, 0, 0}};
    for (std::int32_t i = 0; i < outer.count; ++i) {
      const Cells inner = resized(outer.first + i, cells * stride, cells);
      whole.first = std::min(whole.first, inner.first);
      for (std::int32_t k = 0; k < inner.count; ++k) {
        const std::int64_t place = inner.first + k - whole.first;
        whole.count = std::max(whole.count, static_cast<std::int32_t>(place) + 1);
        whole.weights[place] = std::fma(outer.weights[i], inner.weights[k], whole.weights[place]);
      }
    }
    taps.push_back(whole);
  }
}

// From the first to the last pixel that reads one of some cells; false where none does.
bool reached(const std::vector<Cells>& taps, const std::vector<char>& cells, std::int64_t& first,
             std::int64_t& end) {
  first = end = 0;
  for (std::size_t pixel = 0; pixel < taps.size(); ++pixel) {
    const Cells& tap = taps[pixel];
    bool reads = false;
    for (std::int32_t k = 0; k < tap.count; ++k)
      reads = reads || (tap.weights[k] > 0 && cells[static_cast<std::size_t>(tap.first + k)]);
    if (!reads) continue;
    if (!end) first = static_cast<std::int64_t>(pixel);
    end = static_cast<std::int64_t>(pixel) + 1;
  }
  return end > 0;
}

void append_run(Runs& runs, std::int64_t length) { runs.push_back(static_cast<std::uint32_t>(length)); }

}  // namespace

std::string runs_text(const std::uint32_t* runs, std::size_t count) {
  constexpr std::int64_t kBits = 5, kLow = 0x1f, kSign = 0x10, kMore = 0x20, kFirst = 48;
  std::string text;
  for (std::size_t i = 0; i < count; ++i) {
    std::int64_t value = runs[i];
    // Of the run before of the same kind, to which most are near.
    if (i > 2) value -= runs[i - 2];
    for (bool more = true; more;) {
      std::int64_t digit = value & kLow;
      value >>= kBits;
      more = digit & kSign ? value != -1 : value != 0;
      if (more) digit |= kMore;
      text += static_cast<char>(digit + kFirst);
    }
  }
  return text;
}

bool runs_pixels(const std::uint32_t* runs, std::size_t count, std::int64_t height, std::int64_t width,
                 std::uint8_t* pixels) {
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < count; ++i) total += runs[i];
  if (height < 1 || width < 1 ||
      total != static_cast<std::uint64_t>(height) * static_cast<std::uint64_t>(width))
    return false;
  std::int64_t row = 0, column = 0;
  for (std::size_t i = 0; i < count; ++i)
    for (std::uint32_t k = 0; k < runs[i]; ++k) {
      pixels[row * width + column] = i % 2;
      if (++row == height) {
        row = 0;
        ++column;
      }
    }
  return true;
}

template <class Look>
void MaskPaster::sample(const float* values, std::int64_t columns, const Region& region, Look look) {
  between_.resize(static_cast<std::size_t>(columns));
  for (std::int64_t y = region.top; y < region.bottom; ++y) {
    const Cells& down = down_[static_cast<std::size_t>(y)];
    std::fill(between_.begin(), between_.end(), 0.0f);
    for (std::int32_t k = 0; k < down.count; ++k) {
      const float* row = values + (down.first + k) * columns;
      for (std::int64_t j = 0; j < columns; ++j)
        between_[static_cast<std::size_t>(j)] =
            std::fma(down.weights[k], row[j], between_[static_cast<std::size_t>(j)]);
    }
    for (std::int64_t x = region.left; x < region.right; ++x) {
      const Cells& across = across_[static_cast<std::size_t>(x)];
      const float* cells = between_.data() + across.first;
      float sum = 0;
      for (std::int32_t k = 0; k < across.count; ++k) sum = std::fma(cells[k], across.weights[k], sum);
      look(y - region.top, x - region.left, sum);
    }
  }
}

void MaskPaster::append_runs(const Region& region, std::int64_t height, std::int64_t width,
                             Runs& runs) const {
  const std::int64_t rows = region.bottom - region.top;
  std::int64_t length = region.left * height;
  std::uint8_t kind = 0;
  const auto grow = [&](std::uint8_t next, std::int64_t by) {
    if (next != kind) {
      append_run(runs, length);
      length = 0;
      kind = next;
    }
    length += by;
  };
  const std::uint8_t* bits = bits_.data();
  for (std::int64_t x = region.left; x < region.right; ++x) {
    if (region.top) grow(0, region.top);
    for (std::int64_t y = 0; y < rows; ++y) grow(*bits++, 1);
    if (height > region.bottom) grow(0, height - region.bottom);
  }
  if (width > region.right) grow(0, (width - region.right) * height);
  append_run(runs, length);
}

void MaskPaster::paste(const float* values, std::int64_t side, const float* box, std::int64_t height,
                       std::int64_t width, Runs& runs) {
  std::int64_t top, bottom, left, right;
  window(box[0], box[2], width, left, right);
  window(box[1], box[3], height, top, bottom);
  sample_box(across_, left, right, box[0], box[2], side);
  sample_box(down_, top, bottom, box[1], box[3], side);
  const std::int64_t rows = bottom - top;
  bits_.assign(static_cast<std::size_t>(rows * (right - left)), 0);
  // The taps are those of the window only.
  sample(values, side, {0, rows, 0, right - left}, [&](std::int64_t y, std::int64_t x, float value) {
    bits_[static_cast<std::size_t>(x * rows + y)] = value >= 0.5f;
  });
  append_runs({top, bottom, left, right}, height, width, runs);
}

void MaskPaster::place(std::int64_t rows, std::int64_t columns, std::int64_t stride,
                       std::int64_t resized_height, std::int64_t resized_width, std::int64_t height,
                       std::int64_t width) {
  rows_ = rows;
  columns_ = columns;
  height_ = height;
  width_ = width;
  sample_queries(down_, rows, stride, resized_height, height);
  sample_queries(across_, columns, stride, resized_width, width);
}

QueryMask MaskPaster::enlarge(const float* logits, Runs& runs) {
  // Only what a positive logit reaches can be positive.
  positive_rows_.assign(static_cast<std::size_t>(rows_), 0);
  positive_columns_.assign(static_cast<std::size_t>(columns_), 0);
  for (std::int64_t y = 0; y < rows_; ++y)
    for (std::int64_t x = 0; x < columns_; ++x)
      if (logits[y * columns_ + x] > 0)
        positive_rows_[static_cast<std::size_t>(y)] = positive_columns_[static_cast<std::size_t>(x)] = 1;
  QueryMask found{0, {0, 0, 0, 0}};
  Region region{0, 0, 0, 0};
  const bool any = reached(down_, positive_rows_, region.top, region.bottom) &&
                   reached(across_, positive_columns_, region.left, region.right);
  if (!any) {
    append_run(runs, height_ * width_);
    return found;
  }
  const std::int64_t rows = region.bottom - region.top, columns = region.right - region.left;
  bits_.assign(static_cast<std::size_t>(rows * columns), 0);
  std::int64_t top = rows, bottom = 0, left = columns, right = 0, count = 0;
  double sum = 0;
  sample(logits, columns_, region, [&](std::int64_t y, std::int64_t x, float value) {
    if (!(value > 0)) return;
    bits_[static_cast<std::size_t>(x * rows + y)] = 1;
    sum += static_cast<double>(1.0f / (1.0f + std::exp(-value)));
    ++count;
    top = std::min(top, y);
    bottom = std::max(bottom, y + 1);
    left = std::min(left, x);
    right = std::max(right, x + 1);
  });
  append_runs(region, height_, width_, runs);
  if (!count) return found;
  found.mean = static_cast<float>(sum / (static_cast<double>(count) + 1e-6));
  const std::int64_t corners[] = {region.left + left, region.top + top, region.left + right,
                                  region.top + bottom};
  for (int i = 0; i < 4; ++i) found.box[i] = static_cast<float>(corners[i]);
  return found;
}

}  // namespace runtime
}  // namespace dyndeploy
