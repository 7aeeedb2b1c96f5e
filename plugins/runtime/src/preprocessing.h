// How an image becomes the network's input, to the bit as dyndeploy/data.py does it.
#pragma once

#include "image.h"
#include "manifest.h"
#include "resample.h"

namespace dyndeploy {
namespace runtime {

// Throws Error(DYNDEPLOY_INPUT) for an image without pixels or of too many.
void require_pixels(const ImageView& image);

// Where the centre crop lies in the resized image.
Window centre_crop(std::int64_t image_height, std::int64_t image_width, std::int64_t resize,
                   std::int64_t height, std::int64_t width);

class Preprocessor {
 public:
  Preprocessor(const PreprocessingInfo& info, std::int64_t height, std::int64_t width);

  // Write (3, height, width). Throws as require_pixels.
  void run(const ImageView& image, float* out);

 private:
  Interpolation interpolation_;
  std::int64_t resize_, height_, width_;
  float table_[3][256];  // the normalised value of every byte
  Resampler resampler_;
  std::vector<std::uint8_t> pixels_;
};

}  // namespace runtime
}  // namespace dyndeploy
