// conv2 as Winograd's F(2x2, 3x3): 16 products for a patch of 2 x 2 outputs instead of 36. Three launches:
// patches of 4 x 4 inputs are transformed, their 16 places become rows of 16 matrix products, and what these
// give is transformed into outputs. Skipping stays what it is, since only active patches are gathered.
//
// Lavin, Gray: Fast Algorithms for Convolutional Neural Networks (2015).
#pragma once

#include "arguments.h"
#include "choose.h"
#include "product.h"

namespace dyndeploy {
namespace cuda {

constexpr int kPlaces = 16;  // of a patch

// Whether conv2 can: patches are active as a whole. Of the shape alone, because the bits of a result depend
// on it.
inline bool fits_winograd(const BottleneckShape& s) {
  const bool whole =
      s.mask_height == 0 || (s.height % (2 * s.mask_height) == 0 && s.width % (2 * s.mask_width) == 0);
  return s.winograd && s.groups == 1 && s.stride == 1 && s.dilation == 1 && s.channel_groups == 0 &&
         s.squeeze == 0 && s.middle % 8 == 0 && s.height % 2 == 0 && s.width % 2 == 0 && whole;
}
// Boards, whose products on lanes cost more than the transforms; tensor cores multiply faster than these are
// read.
inline bool has_winograd(const DeviceTraits& device) {
  return device.capability > 0 && device.capability < 70;
}
inline int most_patches(const BottleneckArguments& a) { return a.shape.batch * a.out_pixels / 4; }

DYN_DEVICE int active_patches(const BottleneckArguments& a) {
  return (a.spatial ? a.samples[a.shape.batch].out_start : a.shape.batch * a.out_pixels) / 4;
}
// The first pixel of the i-th patch.
DYN_DEVICE int patch_pixel(const BottleneckArguments& a, int i) {
  if (a.spatial) return a.patch_list[i];
  const int half = a.out_width / 2, row = i / half;
  return 2 * row * a.out_width + 2 * (i - row * half);
}

// Where a place's row of patches begins in `patches` and `products`.
DYN_DEVICE std::size_t place_row(const BottleneckArguments& a, int place, int row) {
  return row_start(place * (a.shape.batch * quotient(a.out_pixels, 4)) + row, a.shape.middle);
}

// B^T d of one row or column.
DYN_DEVICE void transform_inputs(const float (&d)[4], float (&to)[4]) {
  to[0] = d[0] - d[2];
  to[1] = d[1] + d[2];
  to[2] = d[2] - d[1];
  to[3] = d[1] - d[3];
}
// A^T m likewise.
DYN_DEVICE void transform_outputs(const float (&m)[4], float (&to)[2]) {
  to[0] = m[0] + m[1] + m[2];
  to[1] = m[1] - m[2] - m[3];
}

// A thread takes kWidth channels of one patch, an access of 4 bytes where these are aligned: a warp's are
// neighbours.
template <class T, int kWidth>
struct PatchThreads {
  using Arguments = BottleneckArguments;
  static constexpr int kThreads = 128;
  static constexpr int kBlocks = 4;

  static int blocks(const Arguments& a) {
    const long long threads = static_cast<long long>(most_patches(a)) * (a.shape.middle / kWidth);
    return static_cast<int>((threads + kThreads - 1) / kThreads);
  }
  // f(patch, channel) for all of a block.
  template <class F>
  static DYN_DEVICE void each(const Arguments& a, Index block, const F& f) {
    const int runs = a.shape.middle / kWidth;
    for_threads<kThreads>([&](int t) {
      const int at = block.x * kThreads + t, patch = at / runs;
      if (patch < active_patches(a)) f(patch, (at - patch * runs) * kWidth);
    });
  }
};

template <class T, int kWidth>
struct PatchInputKernel : PatchThreads<T, kWidth> {
  using Arguments = BottleneckArguments;

  static DYN_DEVICE void run(const Arguments& a, Index block) {
    PatchThreads<T, kWidth>::each(a, block, [&](int patch, int channel) { transform(a, patch, channel); });
  }

  static DYN_DEVICE void transform(const Arguments& a, int patch, int channel) {
    constexpr int kBytes = static_cast<int>(sizeof(T)) * kWidth;
    const int middle = a.shape.middle, width = a.shape.width, height = a.shape.height;
    const int pixel = patch_pixel(a, patch), at = pixel % a.in_pixels;
    const int y = at / width, x = at - y * width;
    const T* from = static_cast<const T*>(a.h1) + static_cast<std::size_t>(pixel) * middle + channel;
    Word<T, kWidth> words[4][4];
    DYN_UNROLL
    for (int i = 0; i < 4; ++i) {
      DYN_UNROLL
      for (int j = 0; j < 4; ++j) {
        const bool inside = y + i >= 1 && y + i <= height && x + j >= 1 && x + j <= width;
        const int offset = ((i - 1) * width + j - 1) * middle;
        load_or_clear<kBytes>(&words[i][j], from + (inside ? offset : 0), inside);
      }
    }
    Vector<T, kWidth> results[4][4];
    DYN_UNROLL
    for (int e = 0; e < kWidth; ++e) {
      float rows[4][4];  // of columns that are done
      DYN_UNROLL
      for (int j = 0; j < 4; ++j) {
        float d[4], to[4];
        DYN_UNROLL
        for (int i = 0; i < 4; ++i) {
          Vector<T, kWidth> v;
          copy<kBytes>(&v, &words[i][j]);
          d[i] = to_float(v.v[e]);
        }
        transform_inputs(d, to);
        DYN_UNROLL
        for (int i = 0; i < 4; ++i) rows[i][j] = to[i];
      }
      DYN_UNROLL
      for (int i = 0; i < 4; ++i) {
        float to[4];
        transform_inputs(rows[i], to);
        DYN_UNROLL
        for (int j = 0; j < 4; ++j) from_float(to[j], results[i][j].v[e]);
      }
    }
    T* out = static_cast<T*>(a.patches) + channel;
    DYN_UNROLL
    for (int i = 0; i < 4; ++i) {
      DYN_UNROLL
      for (int j = 0; j < 4; ++j) store_vector(out + place_row(a, 4 * i + j, patch), results[i][j]);
    }
  }
};

template <class T, int kWidth>
struct PatchOutputKernel : PatchThreads<T, kWidth> {
  using Arguments = BottleneckArguments;

  static DYN_DEVICE void run(const Arguments& a, Index block) {
    PatchThreads<T, kWidth>::each(a, block, [&](int patch, int channel) { transform(a, patch, channel); });
  }

  static DYN_DEVICE void transform(const Arguments& a, int patch, int channel) {
    constexpr int kBytes = static_cast<int>(sizeof(T)) * kWidth;
    const T* from = static_cast<const T*>(a.products) + channel;
    Word<T, kWidth> words[4][4];
    DYN_UNROLL
    for (int i = 0; i < 4; ++i) {
      DYN_UNROLL
      for (int j = 0; j < 4; ++j) load_global<kBytes>(&words[i][j], from + place_row(a, 4 * i + j, patch));
    }
    const int pixel = patch_pixel(a, patch);
    int rows[2];
    DYN_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int first = pixel + i * a.out_width;
      rows[i] = a.spatial ? a.pair_rows[first / 2] : first;
    }
    Vector<T, kWidth> results[2][2];
    DYN_UNROLL
    for (int e = 0; e < kWidth; ++e) {
      const float bias = a.tensors.b2[channel + e];
      float sums[2][4];
      DYN_UNROLL
      for (int j = 0; j < 4; ++j) {
        float m[4], to[2];
        DYN_UNROLL
        for (int i = 0; i < 4; ++i) {
          Vector<T, kWidth> v;
          copy<kBytes>(&v, &words[i][j]);
          m[i] = to_float(v.v[e]);
        }
        transform_outputs(m, to);
        sums[0][j] = to[0];
        sums[1][j] = to[1];
      }
      DYN_UNROLL
      for (int i = 0; i < 2; ++i) {
        float to[2];
        transform_outputs(sums[i], to);
        DYN_UNROLL
        for (int j = 0; j < 2; ++j) from_float(relu(to[j] + bias), results[i][j].v[e]);
      }
    }
    T* h2 = static_cast<T*>(a.h2) + channel;
    DYN_UNROLL
    for (int i = 0; i < 2; ++i) {
      DYN_UNROLL
      for (int j = 0; j < 2; ++j) {
        store_vector(h2 + static_cast<std::size_t>(rows[i] + j) * a.shape.middle, results[i][j]);
      }
    }
  }
};

// The 16 products, one for each layer of the grid.
template <class Chosen, int kWidth>
struct PatchProductKernel {
  using Arguments = BottleneckArguments;
  using Tile = Chosen;
  using T = typename Tile::Element;
  static constexpr int kVector = kWidth;
  static constexpr int kThreads = Tile::kThreads;
  static constexpr int kBlocks = Strips<Tile, kVector>::kBlocks;
  static constexpr bool kGathers = false;
  static constexpr bool kOpenRows = false;
  static constexpr bool kListed = false;

  struct Row {
    int patch;  // -1 behind the last one
  };
  struct Place {
    int place;
    int row0, rows;
    int column0, columns;
  };

  static DYN_DEVICE void run(const Arguments& a, Index block) {
    if (!Strips<Tile, kVector>::kServes) return;
    const TileGrid::Tile tile = a.grid.of(block.x);
    Place p;
    p.place = block.y;
    p.row0 = tile.row * Tile::kRows;
    p.rows = active_patches(a);
    p.column0 = tile.column * Tile::kColumns;
    p.columns = a.shape.middle;
    const bool mine = a.tile < 0 || a.tiles.of(p.rows) == a.tile;
    if (mine && p.row0 < p.rows) Product<PatchProductKernel>::multiply(a, p);
  }

  static DYN_DEVICE Row row(const Arguments&, const Place& p, int i) { return {i < p.rows ? i : -1}; }
  static DYN_DEVICE int segments(const Arguments&) { return 1; }
  static DYN_DEVICE int first_segment(const Arguments&, const Place&) { return 0; }
  static DYN_DEVICE int length(const Arguments& a, const Place&, int) { return a.shape.middle; }
  static DYN_DEVICE int input(const Arguments&, const Place&, int, int k) { return k; }
  static DYN_DEVICE const T* source(const Arguments& a, const Place& p, const Row& row, int) {
    return row.patch < 0 ? nullptr : static_cast<const T*>(a.patches) + place_row(a, p.place, row.patch);
  }
  static DYN_DEVICE const T* weights(const Arguments& a, const Place& p, int, int k) {
    return static_cast<const T*>(a.tensors.w2) +
           row_start((9 + p.place) * a.shape.middle + k, a.shape.middle);
  }
  static DYN_DEVICE std::size_t pitch(const Arguments& a) { return static_cast<std::size_t>(a.shape.middle); }
  static DYN_DEVICE int weight_column(const Arguments&, const Place&, int column) { return column; }
  static DYN_DEVICE bool aligned_columns(const Arguments&) { return true; }

  static DYN_DEVICE void write(const Arguments& a, const Place& p, const Row* rows, int column,
                               const float* sums, int pitch) {
    constexpr int kRun = Tile::kRun;
    if (column >= p.columns) return;
    DYN_UNROLL
    for (int i = 0; i < Tile::kRowsAtOnce; ++i) {
      if (rows[i].patch < 0) continue;
      T* to = static_cast<T*>(a.products) + place_row(a, p.place, rows[i].patch) + column;
      Vector<T, kRun> v;
      DYN_UNROLL
      for (int e = 0; e < kRun; ++e) from_float(sums[i * pitch + e], v.v[e]);
      if (kVector % kRun == 0) {
        store_vector(to, v);
      } else {
        for (int e = 0; e < kRun && column + e < p.columns; ++e) to[e] = v.v[e];
      }
    }
  }
};

// Calls `use` with the tile of the products. Lanes alone: what multiplies on tensor cores costs less than
// transforms.
template <class T, class Use>
int choose_patch_tile(bool vectors, const Rows& rows, int columns, const DeviceTraits& device,
                      const Use& use) {
  constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  if (!vectors) return use(Chosen<typename Lanes<T>::Single, 1>());
  return best_tile<false, Lanes<T>, kVector>(rows, columns, kPlaces, device, use);
}

template <class T>
int run_winograd(BottleneckArguments a, bool vectors, const Rows& rows, const DeviceTraits& device,
                 void* stream) {
  constexpr int kWidth = 4 / static_cast<int>(sizeof(T));
  int error = vectors
                  ? launch<PatchInputKernel<T, kWidth>>(PatchInputKernel<T, kWidth>::blocks(a), 1, a, stream)
                  : launch<PatchInputKernel<T, 1>>(PatchInputKernel<T, 1>::blocks(a), 1, a, stream);
  if (error != 0) return error;
  const auto multiply = [&](auto chosen, int tile, const TilesByRows& tiles, int most) {
    using Choice = decltype(chosen);
    using Tile = typename Choice::Tile;
    a.tile = tile;
    a.tiles = tiles;
    a.grid = tile_grid(divide_up(smaller(most, most_patches(a)), Tile::kRows),
                       divide_up(a.shape.middle, Tile::kColumns), a.shape.middle <= most_patches(a));
    return launch<PatchProductKernel<Tile, Choice::kVector>>(a.grid.blocks, kPlaces, a, stream);
  };
  error = adapts_tiles<T>(vectors, rows, device)
              ? each_tile<T>(rows, a.shape.middle, kPlaces, device, multiply)
              : choose_patch_tile<T>(vectors, rows, a.shape.middle, device, [&](auto chosen) {
                  return multiply(chosen, -1, TilesByRows(), most_patches(a));
                });
  if (error != 0) return error;
  return vectors ? launch<PatchOutputKernel<T, kWidth>>(PatchOutputKernel<T, kWidth>::blocks(a), 1, a, stream)
                 : launch<PatchOutputKernel<T, 1>>(PatchOutputKernel<T, 1>::blocks(a), 1, a, stream);
}

}  // namespace cuda
}  // namespace dyndeploy
