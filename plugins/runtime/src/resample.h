// Resizing to the bit as Pillow does: a convolution with antialiasing, first along the rows, then along the
// columns. Weights have 22 bits behind the point, and what lies between the passes is rounded to 8 bits. Only
// the pixels of a crop are computed.
#pragma once

#include <cstdint>
#include <vector>

#include "image.h"
#include "manifest.h"

namespace dyndeploy {
namespace runtime {

// A crop of a resized image.
struct Window {
  std::int64_t height, width;  // of the whole image when resized
  std::int64_t top, left;      // of the crop
  std::int64_t rows, columns;
};

// Weights of one axis: output i reads `sizes[i]` pixels from `firsts[i]` on.
struct Taps {
  std::vector<std::int64_t> firsts, sizes;
  std::vector<std::int32_t> weights;  // `room` for each output
  std::int64_t room = 0;
};

// Memory stays between calls, so that images of sizes that were seen before need none.
class Resampler {
 public:
  // Write the crop's RGB bytes, `rows` x `columns` without gaps.
  void run(const ImageView& image, const Window& window, Interpolation interpolation, std::uint8_t* out);

 private:
  void convolve(const ImageView& image, const Window& window, Interpolation interpolation, std::uint8_t* out);

  Taps across_, down_;
  std::vector<double> scratch_;
  std::vector<std::uint8_t> between_;
  std::vector<std::int64_t> places_;
};

}  // namespace runtime
}  // namespace dyndeploy
