// How strips of bytes reach shared memory: what product.h and pipeline.h do for operands whose inputs stand
// one behind the other on both sides.
#pragma once

#include "byte_tiles.h"
#include "pipeline.h"

namespace dyndeploy {
namespace cuda {

// The first `count` bytes of a run, and zeros. kWhole: all of them can be read.
template <bool kWhole>
DYN_DEVICE void load_run(ByteWord& word, const Byte* from, int count) {
  if (kWhole) {
    load_or_clear<kByteRun>(&word, from, count > 0);
  } else {
    Vector<Byte, kByteRun> v;
    DYN_UNROLL
    for (int e = 0; e < kByteRun; ++e) {
      v.v[e] = 0;
      if (e < count) load_global<1>(&v.v[e], from + e);
    }
    copy<kByteRun>(&word, &v);
  }
}

// `Kernel` has what product.h says, but of its right operand:
//   weights(a, p, segment)   where the inputs of the first column begin
//   column_pitch(a, p)       bytes from there to those of the next
//   kVector                  16 where runs of both operands are aligned and can be read whole
template <class Kernel>
struct ByteOperands {
  using Arguments = typename Kernel::Arguments;
  using Place = typename Kernel::Place;
  using Row = typename Kernel::Row;
  using Tile = typename Kernel::Tile;
  using Stage = typename Tile::Stage;
  using Runs = ByteRuns<Tile>;
  static constexpr int kLoadsA = Runs::kLoadsA, kLoadsB = Runs::kLoadsB;
  static constexpr bool kWhole = Kernel::kVector > 1;

  // Addresses are numbers, because those of nothing move like the others. `inputs`: none of a row that has no
  // operand in the segment.
  struct Sources {
    std::uintptr_t a[kLoadsA];
    int inputs[kLoadsA];
    std::uintptr_t b;
  };
  struct Buffers {
    ByteWord a[kLoadsA];
    ByteWord b[kLoadsB];
  };

  static DYN_DEVICE void aim(const Arguments& a, const Place& p, const Row* rows, int t, int segment, int end,
                             Sources& sources) {
    DYN_UNROLL
    for (int i = 0; i < kLoadsA; ++i) {
      const Byte* from = Kernel::source(a, p, rows[Runs::row(t, i)], segment);
      sources.a[i] = reinterpret_cast<std::uintptr_t>(from);
      sources.inputs[i] = from == nullptr ? 0 : end;
    }
    sources.b = reinterpret_cast<std::uintptr_t>(Kernel::weights(a, p, segment));
    if (!Kernel::kGathers) {
      sources.b += static_cast<std::size_t>(p.column0 + Runs::row(t, 0)) * Kernel::column_pitch(a, p);
    }
  }

  // Bytes of a run that are summed.
  static DYN_DEVICE int count(int rest) {
    if (kWhole && !Kernel::kOpenRows) return rest > 0 ? kByteRun : 0;
    return rest < 0 ? 0 : smaller(rest, kByteRun);
  }

  // Calls left(i, from, count) and right(i, from, count) for the runs of a thread.
  template <class Left, class Right>
  static DYN_DEVICE void each(const Arguments& a, const Place& p, const int* columns, int t, int k0, int end,
                              const Sources& sources, const Left& left, const Right& right) {
    const int k = k0 + Runs::run(t) * kByteRun;
    DYN_UNROLL
    for (int i = 0; i < kLoadsA; ++i) left(i, further<Byte>(sources.a[i], k), count(sources.inputs[i] - k));
    const std::size_t pitch = Kernel::column_pitch(a, p);
    const int first = p.column0 + Runs::row(t, 0);
    // What stands behind the last input of a column meets zeros.
    const int taken = kWhole ? (k < end ? kByteRun : 0) : count(end - k);
    std::uintptr_t from = sources.b;
    DYN_UNROLL
    for (int i = 0; i < kLoadsB; ++i) {
      const bool inside = first + i * Runs::kStep < p.columns;
      if (Kernel::kGathers) {
        from = sources.b + static_cast<std::size_t>(columns[Runs::row(t, i)]) * pitch;
      }
      right(i, further<Byte>(from, k), inside ? taken : 0);
      from += Runs::kStep * pitch;
    }
  }

  // For Pipeline.
  static DYN_DEVICE void fetch(const Arguments& a, const Place& p, const int* columns, int t, int, int k0,
                               int end, const Sources& sources, Stage& stage, Copies& copies) {
    each(
        a, p, columns, t, k0, end, sources,
        [&](int i, const Byte* from, int bytes) {
          copies.add(Tile::run_a(stage, Runs::row(t, i), Runs::run(t)), from, bytes);
        },
        [&](int i, const Byte* from, int bytes) {
          copies.add(Tile::run_b(stage, Runs::row(t, i), Runs::run(t)), from, bytes);
        });
  }

  // For Product.
  static DYN_DEVICE void fetch(const Arguments& a, const Place& p, const Row* rows, const int* columns, int t,
                               int segment, int k0, Sources& sources, Buffers& buffers) {
    const int end = Kernel::length(a, p, segment);
    if (k0 == 0) aim(a, p, rows, t, segment, end, sources);
    each(
        a, p, columns, t, k0, end, sources,
        [&](int i, const Byte* from, int bytes) {
          load_run<kWhole>(buffers.a[i], from, bytes);
          if (kWhole && Kernel::kOpenRows) clear_behind<Byte, kByteRun>(buffers.a[i], bytes);
        },
        [&](int i, const Byte* from, int bytes) { load_run<kWhole>(buffers.b[i], from, bytes); });
  }
  static DYN_DEVICE void put(Stage& stage, int t, const Buffers& buffers) {
    DYN_UNROLL
    for (int i = 0; i < kLoadsA; ++i) Tile::put_a(stage, Runs::row(t, i), Runs::run(t), buffers.a[i]);
    DYN_UNROLL
    for (int i = 0; i < kLoadsB; ++i) Tile::put_b(stage, Runs::row(t, i), Runs::run(t), buffers.b[i]);
  }
};

template <class Kernel>
using ByteProductOf = typename std::conditional<Kernel::Tile::kAsync, Pipeline<Kernel, ByteOperands<Kernel>>,
                                                Product<Kernel, ByteOperands<Kernel>>>::type;

}  // namespace cuda
}  // namespace dyndeploy
