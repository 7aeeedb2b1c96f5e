#include "decode.h"

#include <cstring>
#include <stdexcept>

#include "error.h"
#include "files.h"

namespace dyndeploy {
namespace runtime {
namespace {

constexpr std::uint64_t kMostBytes = std::uint64_t{1} << 30;

using Pixel = void (*)(const std::uint8_t* from, std::uint8_t* to);

void grey(const std::uint8_t* from, std::uint8_t* to) { to[0] = to[1] = to[2] = from[0]; }
void rgb(const std::uint8_t* from, std::uint8_t* to) { std::memcpy(to, from, 3); }

// A colour over white. The rounding is that of Pillow's alpha_composite: weights of 7 bits more than a byte.
std::uint8_t over_white(unsigned colour, unsigned alpha) {
  if (alpha == 0) return 255;
  const unsigned weight = alpha << 7;
  const unsigned sum = colour * weight + 255 * (255 * 128 - weight) + (0x80 << 7);
  return static_cast<std::uint8_t>((((sum >> 8) + sum) >> 8) >> 7);
}
void grey_alpha(const std::uint8_t* from, std::uint8_t* to) {
  to[0] = to[1] = to[2] = over_white(from[0], from[1]);
}
void rgba(const std::uint8_t* from, std::uint8_t* to) {
  for (int i = 0; i < 3; ++i) to[i] = over_white(from[i], from[3]);
}

// Adobe writes inks inverted, and so do all others who write such files.
void inverted_cmyk(const std::uint8_t* from, std::uint8_t* to) {
  const unsigned light = from[3];
  for (int i = 0; i < 3; ++i) {
    const unsigned product = (255u - from[i]) * light + 128;
    to[i] = static_cast<std::uint8_t>(light - (((product >> 8) + product) >> 8));
  }
}

Pixel pixel_of(Raster::Kind kind) {
  switch (kind) {
    case Raster::Kind::kGrey:
      return grey;
    case Raster::Kind::kGreyAlpha:
      return grey_alpha;
    case Raster::Kind::kRgb:
      return rgb;
    case Raster::Kind::kRgba:
      return rgba;
    case Raster::Kind::kInvertedCmyk:
      return inverted_cmyk;
  }
  return rgb;
}

// A format that this build reads: how its files begin.
struct Format {
  std::string start;
  Raster (*decode)(const std::string& bytes);
};

std::vector<Format> formats() {
  std::vector<Format> known;
#ifdef DYNDEPLOY_JPEG
  known.push_back({"\xff\xd8\xff", decode_jpeg});
#endif
#ifdef DYNDEPLOY_PNG
  known.push_back({"\x89PNG\r\n\x1a\n", decode_png});
#endif
  return known;
}

Raster decoded(const std::string& path, const std::string& bytes) {
  for (const Format& format : formats())
    if (bytes.compare(0, format.start.size(), format.start) == 0) return format.decode(bytes);
  std::string known;
  for (const std::string& ending : image_endings()) known += (known.empty() ? "" : ", ") + ending;
  fail(DYNDEPLOY_INPUT,
       path + " is not an image that can be read. " +
           (known.empty() ? "This build reads none: give RGB bytes." : "Give one of " + known + "."));
}

}  // namespace

std::vector<std::string> image_endings() {
  std::vector<std::string> endings;
#ifdef DYNDEPLOY_JPEG
  endings.insert(endings.end(), {".jpg", ".jpeg", ".jpe", ".jfif"});
#endif
#ifdef DYNDEPLOY_PNG
  endings.push_back(".png");
#endif
  return endings;
}

int channels(Raster::Kind kind) {
  switch (kind) {
    case Raster::Kind::kGrey:
      return 1;
    case Raster::Kind::kGreyAlpha:
      return 2;
    case Raster::Kind::kRgb:
      return 3;
    default:
      return 4;
  }
}

Image read_image(const std::string& path) {
  std::string bytes;
  try {
    bytes = read_file(path, kMostBytes);
  } catch (const std::runtime_error& error) {
    fail(DYNDEPLOY_INPUT, "Cannot read the image " + path + ": " + error.what() + ".");
  }
  return decode_image(path, bytes);
}

Image decode_image(const std::string& name, const std::string& bytes) {
  try {
    return to_image(decoded(name, bytes));
  } catch (const Error&) {
    throw;
  } catch (const std::runtime_error& error) {
    fail(DYNDEPLOY_INPUT,
         "Cannot read the image " + name + ": " + error.what() + ". The file may be damaged.");
  }
}

int exif_orientation(const unsigned char* data, std::size_t size) {
  if (size < 8 || (std::memcmp(data, "II*\0", 4) != 0 && std::memcmp(data, "MM\0*", 4) != 0)) return 1;
  const bool little = data[0] == 'I';
  const auto number = [&](std::size_t at, int bytes) {
    std::size_t value = 0;
    for (int i = 0; i < bytes; ++i)
      value = value << 8 | data[at + static_cast<std::size_t>(little ? bytes - 1 - i : i)];
    return value;
  };
  const std::size_t folder = number(4, 4);
  if (folder > size || size - folder < 2) return 1;
  const std::size_t entries = number(folder, 2);
  for (std::size_t i = 0; i < entries; ++i) {
    const std::size_t at = folder + 2 + 12 * i;
    if (at + 12 > size) return 1;
    // One unsigned number of 16 bits under the tag 274.
    if (number(at, 2) != 274 || number(at + 2, 2) != 3 || number(at + 4, 4) != 1) continue;
    const std::size_t value = number(at + 8, 2);
    return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
  }
  return 1;
}

Image to_image(const Raster& raster) {
  const Pixel pixel = pixel_of(raster.kind);
  const std::int64_t size = channels(raster.kind), height = raster.height, width = raster.width;
  const int turn = raster.orientation;
  const bool swapped = turn >= 5;
  Image image;
  image.height = swapped ? width : height;
  image.width = swapped ? height : width;
  image.pixels.resize(static_cast<std::size_t>(3 * height * width));
  std::uint8_t* to = image.pixels.data();
  for (std::int64_t y = 0; y < image.height; ++y) {
    for (std::int64_t x = 0; x < image.width; ++x, to += 3) {
      std::int64_t row = swapped ? x : y, column = swapped ? y : x;
      if (turn == 3 || turn == 4 || turn == 7 || turn == 6) row = height - 1 - row;
      if (turn == 2 || turn == 3 || turn == 7 || turn == 8) column = width - 1 - column;
      pixel(&raster.samples[static_cast<std::size_t>((row * width + column) * size)], to);
    }
  }
  return image;
}

}  // namespace runtime
}  // namespace dyndeploy
