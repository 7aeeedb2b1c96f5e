// Pairs of BF16 numbers in the matrix tiles of AMX: 16 x 16 sums of 16 x 32 by 32 x 16 numbers an
// instruction. Packed rows and panels are what its tiles are loaded from; everything else is done by AVX-512.
// Included only by translation units built with those flags.
#pragma once

#include <cstdint>

#include "avx512_bf16.h"

namespace dyndeploy::cpu {
namespace {

struct AmxBf16 : Avx512Bf16 {
  static constexpr int kTileRows = 32;
  static constexpr bool kHasMatrix = true;
  static constexpr int kMatrixRows = 16;

  // Matrix tiles of full size for the present thread, as long as it lives.
  class Matrix {
   public:
    Matrix() {
      struct alignas(64) {
        std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
        std::uint16_t column_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
      } const config;
      written();
      _tile_loadconfig(&config);
    }
    ~Matrix() { _tile_release(); }
    Matrix(const Matrix&) = delete;
    Matrix& operator=(const Matrix&) = delete;

    // GCC's tile loads do not say that they read memory: what they load has to be there.
    static void written() { __asm__ volatile("" ::: "memory"); }
    // Tall and wide: 32 rows, 32 columns, not 16. sums: rows of `width` floats; nullptr: zeros.
    template <bool Tall, bool Wide>
    static void load(const float* sums, int width) {
      if (!sums) {
        _tile_zero(0);
        if (Wide) _tile_zero(1);
        if (Tall) _tile_zero(2);
        if (Tall && Wide) _tile_zero(3);
        return;
      }
      written();
      _tile_loadd(0, sums, 4 * width);
      if (Wide) _tile_loadd(1, sums + 16, 4 * width);
      if (Tall) _tile_loadd(2, sums + kMatrixRows * width, 4 * width);
      if (Tall && Wide) _tile_loadd(3, sums + kMatrixRows * width + 16, 4 * width);
    }
    template <bool Tall, bool Wide>
    static void store(float* sums, int width) {
      _tile_stored(0, sums, 4 * width);
      if (Wide) _tile_stored(1, sums + 16, 4 * width);
      if (Tall) _tile_stored(2, sums + kMatrixRows * width, 4 * width);
      if (Tall && Wide) _tile_stored(3, sums + kMatrixRows * width + 16, 4 * width);
    }
    // a: rows of 16 pairs; b: 16 rows, b_stride floats apart.
    template <bool Tall, bool Wide>
    static void multiply(const float* a, const float* b, std::ptrdiff_t b_stride) {
      written();
      _tile_loadd(4, a, 64);
      _tile_loadd(6, b, 4 * b_stride);
      _tile_dpbf16ps(0, 4, 6);
      if (Wide) {
        _tile_loadd(7, b + 16, 4 * b_stride);
        _tile_dpbf16ps(1, 4, 7);
      }
      if (Tall) {
        _tile_loadd(5, a + kMatrixRows * 16, 64);
        _tile_dpbf16ps(2, 5, 6);
        if (Wide) _tile_dpbf16ps(3, 5, 7);
      }
    }
  };
};

}  // namespace
}  // namespace dyndeploy::cpu
