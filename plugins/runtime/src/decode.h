// Image files to RGB bytes, to the bit as dyndeploy/data.py reads them with Pillow: turned upright, grey
// repeated, transparency laid over white.
#pragma once

#include <string>
#include <vector>

#include "image.h"

namespace dyndeploy {
namespace runtime {

// Endings (lower case) of the files that can be decoded; which, was decided when this library was built.
std::vector<std::string> image_endings();

// Throws Error(DYNDEPLOY_INPUT), which names the file.
Image read_image(const std::string& path);
// The same of a file's bytes; the error names `name`.
Image decode_image(const std::string& name, const std::string& bytes);

// What decoders give before colours are made of it.
struct Raster {
  enum class Kind { kGrey, kGreyAlpha, kRgb, kRgba, kInvertedCmyk };

  Kind kind = Kind::kRgb;
  std::int64_t height = 0, width = 0;
  std::vector<std::uint8_t> samples;
  int orientation = 1;  // EXIF's
};
int channels(Raster::Kind kind);

// Throw std::runtime_error. Declared always, defined where the library of the format was found.
Raster decode_jpeg(const std::string& bytes);
Raster decode_png(const std::string& bytes);

// The orientation in a block of EXIF (TIFF) data; 1 where it is not said or the block is broken.
int exif_orientation(const unsigned char* data, std::size_t size);
// The image of a raster, upright.
Image to_image(const Raster& raster);

}  // namespace runtime
}  // namespace dyndeploy
