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

// Behind the last row of any list.
constexpr int kNoRow = 0x7fffffff;

// Places of a tile's rows in a stage, and which row stands at one; -1: none.
template <class Tile>
struct StagedRows {
  static constexpr int kCount = Tile::kRows;
  static DYN_DEVICE int row(int place) { return place; }
};
template <class T, int kBM, int kBN, int kTM, int kTN, int kBlocks>
struct StagedRows<LaneTile<T, kBM, kBN, kTM, kTN, kBlocks>> {
  using Tile = LaneTile<T, kBM, kBN, kTM, kTN, kBlocks>;
  static constexpr int kCount = Tile::kStaged;
  static DYN_DEVICE int row(int place) {
    const int within = place % Tile::kEach;
    return within < kTM ? place / Tile::kEach * kTM + within : -1;
  }
};

// How a tile's threads share the accesses of a strip, each of kVector elements.
template <class Tile, int kVector>
struct Strips {
  using T = typename Tile::Element;
  // Single elements take many pointers: half as many blocks, twice the registers.
  static constexpr int kBlocks = kVector == 1 ? Tile::kBlocks / 2 : Tile::kBlocks;
  static constexpr int kRunsA = Tile::kDepth / kVector;    // accesses for one row of a strip
  static constexpr int kRunsB = Tile::kColumns / kVector;  // and for one of its inputs
  static constexpr int kRows = StagedRows<Tile>::kCount;
  static constexpr int kLoadsA = kRows * kRunsA / Tile::kThreads;
  static constexpr int kLoadsB = Tile::kDepth * kRunsB / Tile::kThreads;
  static_assert(kRows * kRunsA % Tile::kThreads == 0 && Tile::kDepth * kRunsB % Tile::kThreads == 0,
                "every thread moves the same number of vectors");
  // Two neighbouring rows of halves on lanes go to shared memory as pairs.
  static constexpr bool kPairs = !Tile::kTensorCores && sizeof(T) == 2 && kVector > 1 && kLoadsA % 2 == 0;

  // Which row and run of a strip a thread's i-th access is of: its next ones stand at constant distances.
  static constexpr int kStepA = Tile::kThreads / kRunsA, kStepB = Tile::kThreads / kRunsB;
  static_assert(Tile::kThreads % kRunsA == 0 && Tile::kThreads % kRunsB == 0,
                "all accesses of a thread are of one run");
  static DYN_DEVICE int row(int t, int i) {
    return kPairs ? (t / kRunsA + i / 2 * kStepA) * 2 + i % 2 : t / kRunsA + i * kStepA;
  }
  static DYN_DEVICE int run(int t) { return t % kRunsA; }
  // Of the right operand an input and its first column.
  static DYN_DEVICE int input(int t, int i) { return t / kRunsB + i * kStepB; }
  static DYN_DEVICE int column(int t) { return t % kRunsB * kVector; }
  // FP16 of whole vectors has a tile of its own on each architecture; the other is never launched there.
  static constexpr bool kServes = kVector == 1 || sizeof(T) == sizeof(float) || Tile::kServed;
};

// What a block finds before its strips: the rows of its tile and, where weights are gathered, the places of
// its columns. Of a kernel as Product takes it.
template <class Kernel>
DYN_DEVICE void find_places(const typename Kernel::Arguments& a, const typename Kernel::Place& p,
                            typename Kernel::Row* rows, int* columns) {
  using Tile = typename Kernel::Tile;
  constexpr int kThreads = Tile::kThreads, kRows = StagedRows<Tile>::kCount;
  for_threads<kThreads>([&](int t) {
    // Loops whose length the compiler knows: it plays out others for lengths that never come.
    DYN_UNROLL
    for (int n = 0; n < divide_up(kRows, kThreads); ++n) {
      const int i = t + n * kThreads;
      if (kRows % kThreads != 0 && i >= kRows) continue;
      const int row = StagedRows<Tile>::row(i);
      rows[i] = Kernel::row(a, p, row < 0 ? kNoRow : p.row0 + row);
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
  static constexpr bool kFewPointers = kRegular && !Tile::kTensorCores;
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
      sources.b[i] = Kernel::weights(a, p, segment, Split::input(t, i)) + p.column0 + Split::column(t);
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
      const int k = k0 + Split::run(t) * kVector;
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
      const int k = k0 + Split::input(t, i);
      const int at = Split::column(t), column = p.column0 + at;
      const bool inside = k < end && column < p.columns;
      if (kRegular) {
        const int first = kFewPointers ? 0 : i, rows_on = kFewPointers ? i * Split::kStepB : 0;
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
      const int row = Split::row(t, i), k = Split::run(t) * kVector;
      put_left(stage, row, k, &buffers.a[i], std::integral_constant<bool, Split::kPairs>());
    }
    DYN_UNROLL
    for (int i = 0; i < kLoadsB; ++i) {
      Tile::template put_b<kVector>(stage, Split::input(t, i), Split::column(t), buffers.b[i]);
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
    DYN_SHARED_ARRAY(Row, rows, StagedRows<Tile>::kCount);
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
