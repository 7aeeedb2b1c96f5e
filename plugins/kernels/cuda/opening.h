// conv1 of one sample, with the lists and copies for which PrepareKernel is a launch of its own: every block
// finds its rows itself. Of a map of at most 64 x 64 pixels a row is a word of 64 bits, and the pixels that
// the 3x3 reads of all rows are found by shifts.
#pragma once

#include "convolution.h"
#include "lists.h"

namespace dyndeploy {
namespace cuda {

constexpr int kMostSide = 64;

// The first `count` bits.
DYN_BOTH std::uint64_t first_ones(int count) {
  return count >= kMostSide ? ~std::uint64_t(0) : (std::uint64_t(1) << count) - 1;
}

// What no block need find out, because it follows from the shape.
struct OpeningArguments : BottleneckArguments {
  // By column of the mask: the outputs of a row that it decides, and the columns of x on which their 3x3 is
  // centred.
  std::uint64_t outputs[kMostSide], centres[kMostSide];
  // A quotient by out_height of at most 64 times that, as a product: a division is a chain of instructions
  // that wait for each other. Exact, because the factor is 2^20 / out_height and less than 1 too large.
  std::uint32_t by_out_height;

  explicit OpeningArguments(const BottleneckArguments& a) : BottleneckArguments(a) {
    by_out_height = (1u << 20) / static_cast<std::uint32_t>(out_height) + 1u;
    for (int m = 0; m < kMostSide; ++m) {
      const int first = divide_up(m * out_width, shape.mask_width);
      const int behind = divide_up((m + 1) * out_width, shape.mask_width);
      outputs[m] = m < shape.mask_width ? first_ones(behind) & ~first_ones(first) : 0;
      centres[m] = outputs[m];
      if (m < shape.mask_width && shape.stride == 2) {
        centres[m] = first_ones(2 * behind) & ~first_ones(2 * first) & 0x5555555555555555u;
      }
    }
  }
};

// A map as one word for each row, and how many ones the rows before have.
struct RowBits {
  static constexpr int kSide = kMostSide;
  static constexpr int kGroup = 8;    // rows that are added at once
  static constexpr int kAtOnce = 16;  // columns of the mask, whose loads are on their way together

  std::uint64_t active[kSide];  // by row of the mask, the outputs of a row that are active
  std::uint64_t rows[kSide];
  int counts[kSide];  // ones of a row; none behind the last
  int groups[kSide / kGroup];
  int before[kSide + 1];

  static bool fits(const BottleneckShape& s) {
    return s.height <= kSide && s.width <= kSide && s.dilation < kSide && s.mask_height <= kSide &&
           s.mask_width <= kSide;
  }

  // The outputs of a row that a row of the mask decides, where their 3x3 is centred (kReads), or themselves.
  template <bool kReads>
  static DYN_DEVICE std::uint64_t outputs(const OpeningArguments& a, const float* mask) {
    const int columns = a.shape.mask_width;
    std::uint64_t found = 0;
    DYN_NO_UNROLL
    for (int from = 0; from < columns; from += kAtOnce) {
      float bit[kAtOnce];
      DYN_UNROLL
      for (int i = 0; i < kAtOnce; ++i) bit[i] = from + i < columns ? mask[from + i] : 0.0f;
      DYN_UNROLL
      for (int i = 0; i < kAtOnce; ++i) {
        found |= bit[i] > 0.5f ? (kReads ? a.centres : a.outputs)[from + i] : 0;
      }
    }
    return found;
  }

  // Finds the pixels of x that the 3x3 of an active pixel reads (kReads), or the active pixels themselves.
  // All threads of the block take part.
  template <bool kReads, int kThreads>
  static DYN_DEVICE void find(const OpeningArguments& a, RowBits& bits) {
    static_assert(kThreads >= kSide, "a thread for each row");
    const int stride = kReads ? a.shape.stride : 1, height = kReads ? a.shape.height : a.out_height;
    for_threads<kThreads>([&](int t) {
      if (t >= a.shape.mask_height) return;
      bits.active[t] = outputs<kReads>(a, a.tensors.spatial_mask + t * a.shape.mask_width);
    });
    sync();
    for_threads<kThreads>([&](int t) {
      if (t >= kSide) return;
      std::uint64_t found = 0;
      DYN_UNROLL
      for (int i = 0; i < (kReads ? 3 : 1); ++i) {
        const int y = kReads ? t + (i - 1) * a.shape.dilation : t;
        const int of = stride == 1 ? y : y / 2;
        const bool inside = t < height && y >= 0 && of < a.out_height && of * stride == y;
        const std::uint32_t part = static_cast<std::uint32_t>(inside ? of * a.shape.mask_height : 0);
        const int row = static_cast<int>(part * a.by_out_height >> 20);
        found |= inside ? bits.active[row] : 0;
      }
      if (kReads) {
        found |= found << a.shape.dilation | found >> a.shape.dilation;
        found &= first_ones(a.shape.width);
      }
      bits.rows[t] = found;
      bits.counts[t] = ones_of(found);
    });
    sync();
    // In two steps, of which the first adds eight rows.
    for_threads<kThreads>([&](int t) {
      if (t >= kSide / kGroup) return;
      int sum = 0;
      DYN_UNROLL
      for (int i = 0; i < kGroup; ++i) sum += bits.counts[t * kGroup + i];
      bits.groups[t] = sum;
    });
    sync();
    for_threads<kThreads>([&](int t) {
      if (t >= kSide) return;
      int sum = 0;
      DYN_UNROLL
      for (int i = 0; i < kSide / kGroup; ++i) sum += i < t / kGroup ? bits.groups[i] : 0;
      DYN_UNROLL
      for (int i = 0; i < kGroup; ++i) sum += i < t % kGroup ? bits.counts[t / kGroup * kGroup + i] : 0;
      bits.before[t] = sum;
      if (t == kSide - 1) bits.before[kSide] = sum + bits.counts[t];
    });
    sync();
  }

  // The pixel of the i-th bit of a map of so many columns.
  DYN_DEVICE int pixel(int i, int width) const {
    int y = 0;
    DYN_UNROLL
    for (int step = kSide / 2; step > 0; step /= 2) {
      if (before[y + step] <= i) y += step;
    }
    return y * width + nth_one(rows[y], i - before[y]);
  }
};

template <class Chosen, int kWidth>
struct OpeningKernel : ConvolutionKernel<kConv1, false, Chosen, kWidth> {
  using Convolution = ConvolutionKernel<kConv1, false, Chosen, kWidth>;
  using Arguments = OpeningArguments;
  using Row = typename Convolution::Row;
  using Tile = Chosen;
  using T = typename Tile::Element;
  static constexpr int kThreads = Tile::kThreads;
  using Copies = CopyInactive<T, kWidth, kThreads>;

  struct Place : Convolution::Place {
    const RowBits* bits;
  };

  static int blocks(const BottleneckArguments& a) { return 1 + a.grid.blocks + Copies::blocks(a); }

  static DYN_DEVICE void run(const Arguments& a, Index block) {
    if (!Strips<Tile, kWidth>::kServes) return;
    const int tiles = a.grid.blocks;
    if (block.x > tiles) return Copies::run(a, block.x - 1 - tiles);
    DYN_SHARED(RowBits, bits);
    // First, because conv2 needs them whatever becomes of the tiles.
    if (block.x == 0) return list_outputs(a, bits);
    Place place = {};
    Convolution::find_tile(a, {block.x - 1, 0}, place);
    RowBits::find<true, kThreads>(a, bits);
    place.bits = &bits;
    place.rows = place.active = bits.before[a.shape.height];
    if (place.row0 < place.rows && Convolution::find_sums(a, place))
      ProductOf<OpeningKernel>::multiply(a, place);
  }

  static DYN_DEVICE Row row(const Arguments& a, const Place& p, int i) {
    if (i >= p.rows) return {-1, -1, 0, 0};
    const int pixel = p.bits->pixel(i, a.shape.width);
    return {pixel, pixel, 0, 0};
  }

  // Nobody but conv1 reads the list of inputs, and how many they are.
  static DYN_DEVICE void list_outputs(const Arguments& a, RowBits& bits) {
    RowBits::find<false, kThreads>(a, bits);
    for_threads<kThreads>([&](int t) {
      const int total = bits.before[a.out_height];
      for (int p = t; p < a.out_pixels; p += kThreads) {
        const int y = p / a.out_width, x = p - y * a.out_width;
        const int rank = bits.before[y] + ones_of(bits.rows[y] & first_ones(x));
        const bool active = (bits.rows[y] >> x & 1u) != 0;
        a.out_list[active ? rank : total + p - rank] = p;
      }
      if (t == 0) {
        a.samples[0] = {0, total, 0, 0};
        a.samples[1] = {total, 0, 0, 0};
      }
    });
  }
};

}  // namespace cuda
}  // namespace dyndeploy
