// An indirect matrix product: rows of the left operand, columns of the right one and what is summed are found
// through lists. How a block moves strips of both through shared memory is the same for all; what the rows,
// columns and sums are, and what becomes of a result, says the kernel.
#pragma once

#include "tiles.h"

namespace dyndeploy {
namespace cuda {

// An address that may lie outside of its array, or of null: it is not read then.
template <class T>
DYN_DEVICE const T* address(const T* from, int elements) {
  return reinterpret_cast<const T*>(reinterpret_cast<std::intptr_t>(from) +
                                    static_cast<std::intptr_t>(elements) * static_cast<int>(sizeof(T)));
}

// How a tile's threads share the accesses of a strip, each of kVector elements.
template <class Tile, int kVector>
struct Strips {
  using T = typename Tile::Element;
  // Single elements take many pointers: half as many blocks, twice the registers.
  static constexpr int kBlocks = kVector == 1 ? Tile::kBlocks / 2 : Tile::kBlocks;
  static constexpr int kRunsA = Tile::kDepth / kVector;    // accesses for one row of a strip
  static constexpr int kRunsB = Tile::kColumns / kVector;  // and for one of its inputs
  static constexpr int kLoadsA = Tile::kRows * kRunsA / Tile::kThreads;
  static constexpr int kLoadsB = Tile::kDepth * kRunsB / Tile::kThreads;
  static_assert(Tile::kRows * kRunsA % Tile::kThreads == 0 && Tile::kDepth * kRunsB % Tile::kThreads == 0,
                "every thread moves the same number of vectors");
  // Two neighbouring rows of halves on lanes go to shared memory as pairs.
  static constexpr bool kPairs = !Tile::kTensorCores && sizeof(T) == 2 && kVector > 1 && kLoadsA % 2 == 0;

  // Which row and run of a strip a thread's i-th access is of.
  static DYN_DEVICE int row(int t, int i) {
    return kPairs ? (t + i / 2 * Tile::kThreads) / kRunsA * 2 + i % 2 : (t + i * Tile::kThreads) / kRunsA;
  }
  static DYN_DEVICE int run(int t, int i) { return (t + (kPairs ? i / 2 : i) * Tile::kThreads) % kRunsA; }
  // FP16 of whole vectors has a tile of its own on each architecture; the other is never launched there.
  static constexpr bool kServes = kVector == 1 || sizeof(T) == sizeof(float) || Tile::kServed;
};

// What a block finds before its strips: the rows of its tile and, where weights are gathered, the places of
// its columns. Of a kernel as Product takes it.
template <class Kernel>
DYN_DEVICE void find_places(const typename Kernel::Arguments& a, const typename Kernel::Place& p,
                            typename Kernel::Row* rows, int* columns) {
  using Tile = typename Kernel::Tile;
  constexpr int kThreads = Tile::kThreads;
  for_threads<kThreads>([&](int t) {
    // Loops whose length the compiler knows: it plays out others for lengths that never come.
    DYN_UNROLL
    for (int n = 0; n < divide_up(Tile::kRows, kThreads); ++n) {
      const int i = t + n * kThreads;
      if (Tile::kRows % kThreads == 0 || i < Tile::kRows) rows[i] = Kernel::row(a, p, p.row0 + i);
    }
    if (Kernel::kGathers) {
      DYN_UNROLL
      for (int n = 0; n < divide_up(Tile::kColumns, kThreads); ++n) {
        const int i = t + n * kThreads, column = p.column0 + i;
        if (Tile::kColumns % kThreads == 0 || i < Tile::kColumns) {
          columns[i] = column < p.columns ? Kernel::weight_column(a, p, column) : 0;
        }
      }
    }
  });
}

// `Kernel` has, besides its Tile, Arguments, Place (row0, column0, columns) and Row:
//   row(a, p, i)                   the i-th row
//   segments(a)                    of a sum, first_segment(a, p) the first that has anything to add
//   length(a, p, segment)          inputs that it sums
//   source(a, p, row, segment)     where a row of the left operand begins; null: zeros
//   input(a, p, segment, k)        where the k-th input stands in it
//   weights(a, p, segment, k)      where the k-th row of the right operand begins; without kListed the rows
//   of
//                                  a segment stand pitch(a) elements from each other
//   weight_column(a, p, column)    with kGathers: where a column stands in it; runs of kVector columns stand
//                                  together where aligned_columns(a)
//   write(a, p, rows, column, sums, pitch) takes Tile::kRun sums of each of Tile::kRowsAtOnce rows
template <class Kernel>
struct Operands {
  using Arguments = typename Kernel::Arguments;
  using Place = typename Kernel::Place;
  using Row = typename Kernel::Row;
  using Tile = typename Kernel::Tile;
  using T = typename Tile::Element;
  static constexpr int kVector = Kernel::kVector;
  static constexpr int kThreads = Tile::kThreads;
  static constexpr int kBytes = static_cast<int>(sizeof(T)) * kVector;
  static constexpr bool kGathers = Kernel::kGathers;
  using Split = Strips<Tile, kVector>;
  static constexpr int kRunsA = Split::kRunsA, kRunsB = Split::kRunsB;
  static constexpr int kLoadsA = Split::kLoadsA, kLoadsB = Split::kLoadsB;

  struct Buffers {
    Word<T, kVector> a[kLoadsA];
    Word<T, kVector> b[kLoadsB];
  };
  // Rows of the right operand whose addresses grow by a constant from strip to strip.
  static constexpr bool kRegular = !Kernel::kListed && !kGathers;
  // Where registers are few, addresses of a thread's other rows are found from the first.
  static constexpr bool kFewPointers = kRegular && !Tile::kTensorCores && kThreads % kRunsB == 0;
  static constexpr int kPointers = kFewPointers ? 1 : kLoadsB;

  struct Sources {
    const T* a[kLoadsA];
    const T* b[kPointers];
  };

  // Where the operands of a segment begin.
  static DYN_DEVICE void aim(const Arguments& a, const Place& p, const Row* rows, int t, int segment,
                             Sources& sources) {
    DYN_UNROLL
    for (int i = 0; i < kLoadsA; ++i) {
      const T* from = Kernel::source(a, p, rows[Split::row(t, i)], segment);
      sources.a[i] = from;
    }
    DYN_UNROLL
    for (int i = 0; i < (kRegular ? kPointers : 0); ++i) {
      const int index = t + i * kThreads;
      sources.b[i] = Kernel::weights(a, p, segment, index / kRunsB) + p.column0 + index % kRunsB * kVector;
    }
  }

  static DYN_DEVICE void fetch(const Arguments& a, const Place& p, const Row* rows, const int* columns, int t,
                               int segment, int k0, Sources& sources, Buffers& buffers) {
    const int end = Kernel::length(a, p, segment);
    if (k0 == 0) {
      aim(a, p, rows, t, segment, sources);
    } else {
      DYN_UNROLL
      for (int i = 0; i < (kRegular ? kPointers : 0); ++i) sources.b[i] += Tile::kDepth * Kernel::pitch(a);
    }
    DYN_UNROLL
    for (int i = 0; i < kLoadsA; ++i) {
      const int k = k0 + Split::run(t, i) * kVector;
      const bool inside = sources.a[i] != nullptr && k < end;
      // A list of inputs ends where they do; any other address behind the end is just not read.
      const int at = !Kernel::kListed || inside ? Kernel::input(a, p, segment, k) : 0;
      const T* from = address(sources.a[i], at);
      load_or_clear<kBytes>(&buffers.a[i], from, inside);
      if (Kernel::kOpenRows && kVector > 1 && k + kVector > end) {
        clear_behind<T, kVector>(buffers.a[i], end - k);
      }
    }
    DYN_UNROLL
    for (int i = 0; i < kLoadsB; ++i) {
      const int index = t + i * kThreads;
      const int k = k0 + index / kRunsB;
      const int at = index % kRunsB * kVector, column = p.column0 + at;
      const bool inside = k < end && column < p.columns;
      if (kRegular) {
        const int first = kFewPointers ? 0 : i, rows_on = kFewPointers ? i * (kThreads / kRunsB) : 0;
        load_or_clear<kBytes>(
            &buffers.b[i], address(sources.b[first], rows_on * static_cast<int>(Kernel::pitch(a))), inside);
        continue;
      }
      buffers.b[i] = Word<T, kVector>();
      if (!inside) continue;
      const T* from = Kernel::weights(a, p, segment, k);
      if (!kGathers) {
        load_global<kBytes>(&buffers.b[i], from + column);
      } else if (Kernel::aligned_columns(a)) {
        load_global<kBytes>(&buffers.b[i], from + columns[at]);
      } else {
        Vector<T, kVector> v;
        copy<kBytes>(&v, &buffers.b[i]);
        DYN_UNROLL
        for (int e = 0; e < kVector; ++e) {
          if (column + e < p.columns) {
            load_global<static_cast<int>(sizeof(T))>(&v.v[e], from + columns[at + e]);
          }
        }
        copy<kBytes>(&buffers.b[i], &v);
      }
    }
  }

  static DYN_DEVICE void put(typename Tile::Stage& stage, int t, const Buffers& buffers) {
    DYN_UNROLL
    for (int i = 0; i < kLoadsA; i += Split::kPairs ? 2 : 1) {
      const int row = Split::row(t, i), k = Split::run(t, i) * kVector;
      put_left(stage, row, k, &buffers.a[i], std::integral_constant<bool, Split::kPairs>());
    }
    DYN_UNROLL
    for (int i = 0; i < kLoadsB; ++i) {
      const int index = t + i * kThreads;
      Tile::template put_b<kVector>(stage, index / kRunsB, index % kRunsB * kVector, buffers.b[i]);
    }
  }

  static DYN_DEVICE void put_left(typename Tile::Stage& stage, int row, int k, const Word<T, kVector>* words,
                                  std::true_type) {
    Tile::template put_rows<kVector>(stage, row, k, words[0], words[1]);
  }
  static DYN_DEVICE void put_left(typename Tile::Stage& stage, int row, int k, const Word<T, kVector>* words,
                                  std::false_type) {
    Tile::template put_a<kVector>(stage, row, k, *words);
  }
};

// How strips of both operands become sums. `Strip` moves them, as Operands does.
template <class Kernel, class Strip = Operands<Kernel>>
struct Product {
  using Arguments = typename Kernel::Arguments;
  using Place = typename Kernel::Place;
  using Row = typename Kernel::Row;
  using Tile = typename Kernel::Tile;
  static constexpr int kThreads = Tile::kThreads;
  static constexpr bool kGathers = Kernel::kGathers;

  static DYN_DEVICE void multiply(const Arguments& a, const Place& p) {
    DYN_SHARED(typename Tile::Shared, shared);
    DYN_SHARED_ARRAY(Row, rows, Tile::kRows);
    DYN_SHARED_ARRAY(int, columns, kGathers ? Tile::kColumns : 1);  // of the weights
    PerThread<typename Strip::Sources, kThreads> sources;
    PerThread<typename Strip::Buffers, kThreads> buffers;
    typename Tile::State state;

    find_places<Kernel>(a, p, rows, columns);
    Tile::clear(state);
    sync();

    // A strip is multiplied while the next one is on its way; one barrier for each.
    const int segments = Kernel::segments(a);
    int segment = Kernel::first_segment(a, p), k = 0;
    if (segment < segments) {
      for_threads<kThreads>([&](int t) {
        Strip::fetch(a, p, rows, columns, t, segment, k, sources[t], buffers[t]);
        Strip::put(shared.stages[0], t, buffers[t]);
      });
    }
    typename Tile::Stage* now = &shared.stages[0];
    typename Tile::Stage* next = &shared.stages[1];
    while (segment < segments) {
      k += Tile::kDepth;
      bool settle = k % Tile::kSettles == 0;
      if (k >= Kernel::length(a, p, segment)) {
        k = 0;
        ++segment;
        settle = true;
      }
      const bool more = segment < segments;
      sync();
      if (more) {
        for_threads<kThreads>(
            [&](int t) { Strip::fetch(a, p, rows, columns, t, segment, k, sources[t], buffers[t]); });
      }
      Tile::accumulate(*now, state, settle);
      if (more) {
        for_threads<kThreads>([&](int t) { Strip::put(*next, t, buffers[t]); });
      }
      typename Tile::Stage* const last = now;
      now = next;
      next = last;
    }
    Tile::finish(shared, state, [&](int row, int column, const auto* sums, int pitch) {
      Kernel::write(a, p, rows + row, p.column0 + column, sums, pitch);
    });
  }
};

}  // namespace cuda
}  // namespace dyndeploy
