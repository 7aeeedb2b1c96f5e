// Images as bytes in memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace dyndeploy {
namespace runtime {

// RGB rows that somebody else holds; `stride` bytes from one to the next.
struct ImageView {
  const std::uint8_t* pixels;
  std::int64_t height, width, stride;
};

// RGB rows without gaps.
struct Image {
  std::int64_t height = 0, width = 0;
  std::vector<std::uint8_t> pixels;

  ImageView view() const { return {pixels.data(), height, width, 3 * width}; }
};

// Pillow refuses larger images as decompression bombs.
constexpr std::int64_t kMostPixels = 178956970;

}  // namespace runtime
}  // namespace dyndeploy
