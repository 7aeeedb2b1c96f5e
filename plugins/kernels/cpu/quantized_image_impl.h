// What surrounds the product of an image convolution: float images to bytes, and the max pooling of bytes.
// Compiled once per instruction set; the compiler makes vectors of these loops.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "quantized_gemm.h"
#include "simd/unroll.h"

namespace dyndeploy::cpu {
namespace {

#if defined(__AVX512BW__)
constexpr int kByteVector = 64;
#elif defined(__AVX2__)
constexpr int kByteVector = 32;
#else
constexpr int kByteVector = 16;
#endif
typedef std::uint8_t ByteVector __attribute__((vector_size(kByteVector)));

// ------------------------------------------------------------------------------------------------ the image

constexpr int kBlockPixels = 64;

// round_half_even(x / scale) + zero_point within a byte; NaN is 0. low and high: the ends of a byte before
// the zero point is added.
DYNDEPLOY_INLINE std::uint8_t quantized(float x, float scale, float low, float high,
                                        std::int32_t zero_point) {
  // Floats of this size have no digits behind the point, and their last ones are those of the integer.
  constexpr float kWhole = 12582912.0f;
  constexpr std::int32_t kWholeBits = 0x4b400000;
  float v = x / scale;
  v = v > low ? v : low;
  v = v < high ? v : high;
  v += kWhole;
  std::int32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  return static_cast<std::uint8_t>(bits - kWholeBits + zero_point);
}

template <int C>
void quantize_pixels(const QuantizedImageRow& call) {
  const float scale = call.scale;
  const float low = static_cast<float>(-call.zero_point), high = static_cast<float>(255 - call.zero_point);
  const std::int32_t zero_point = call.zero_point;
  std::uint8_t* out = call.out;
  std::uint8_t bytes[C][kBlockPixels];
  int at = 0;
  for (; at + kBlockPixels <= call.width; at += kBlockPixels, out += C * kBlockPixels) {
    for (int c = 0; c < C; ++c) {
      const float* const x = call.x + c * call.plane + at;
      std::uint8_t* const to = C == 1 ? out : bytes[c];
      for (int i = 0; i < kBlockPixels; ++i) to[i] = quantized(x[i], scale, low, high, zero_point);
    }
    for (int i = 0; C > 1 && i < kBlockPixels; ++i) {
      for (int c = 0; c < C; ++c) out[i * C + c] = bytes[c][i];
    }
  }
  for (; at < call.width; ++at) {
    for (int c = 0; c < C; ++c) *out++ = quantized(call.x[c * call.plane + at], scale, low, high, zero_point);
  }
}

void quantize_image_row(const QuantizedImageRow& call) {
  switch (call.channels) {
    case 1:
      return quantize_pixels<1>(call);
    case 2:
      return quantize_pixels<2>(call);
    case 3:
      return quantize_pixels<3>(call);
    default:
      return quantize_pixels<4>(call);
  }
}

// -------------------------------------------------------------------------------------------------- pooling

void pool_quantized_row(const QuantizedPool& call) {
  const std::ptrdiff_t channels = call.channels;
  for (int ox = 0; ox < call.out_columns; ++ox) {
    int begin = ox * call.stride - call.left, end = begin + call.window;
    begin = begin > 0 ? begin : 0;
    end = end < call.columns ? end : call.columns;
    std::uint8_t* const out = call.out + ox * channels;
    std::ptrdiff_t c = 0;
    for (; c + kByteVector <= channels; c += kByteVector) {
      ByteVector most{};
      for (int r = 0; r < call.row_count; ++r) {
        const std::uint8_t* p = call.rows[r] + begin * channels + c;
        for (int x = begin; x < end; ++x, p += channels) {
          ByteVector v;
          std::memcpy(&v, p, sizeof v);
          most = v > most ? v : most;
        }
      }
      std::memcpy(out + c, &most, sizeof most);
    }
    for (; c < channels; ++c) {
      std::uint8_t most = 0;
      for (int r = 0; r < call.row_count; ++r) {
        for (int x = begin; x < end; ++x) {
          const std::uint8_t v = call.rows[r][x * channels + c];
          most = v > most ? v : most;
        }
      }
      out[c] = most;
    }
  }
}

}  // namespace
}  // namespace dyndeploy::cpu
