// Resizing to the bit as OpenCV does with INTER_LINEAR: bilinear, without antialiasing, the pixels' centres
// at halves. Of bytes, weights have 11 bits behind the point, and what is halved is averaged. Of float32,
// which is not rounded, differences are weighted in one rounding.
#pragma once

#include <cstdint>
#include <vector>

#include "image.h"

namespace dyndeploy {
namespace runtime {

// Memory stays between calls, so that images of sizes that were seen before need none.
class BilinearResizer {
 public:
  // Write RGB rows without gaps, `height` x `width`, of which neither is 0.
  void run(const ImageView& image, std::int64_t height, std::int64_t width, std::uint8_t* out);
  void run(const ImageView& image, std::int64_t height, std::int64_t width, float* out);

 private:
  // Where an axis of the image is read for an output: between a pixel and the next one.
  struct Tap {
    std::int64_t first, second;
    double share;  // of the second
  };

  template <class Place>
  static void compute(std::vector<Tap>& taps, std::int64_t in, std::int64_t out);
  template <class Value, class Across, class Down>
  void convolve(const ImageView& image, std::vector<Value> (&rows)[2], Across across, Down down);

  std::vector<Tap> across_, down_;
  std::vector<std::int32_t> weights_;  // of across_, in fixed point: of the first and of the second
  std::vector<std::int32_t> whole_[2];
  std::vector<float> real_[2];
};

}  // namespace runtime
}  // namespace dyndeploy
