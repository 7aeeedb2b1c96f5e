// The products of product.h with tiles whose strips are copied into shared memory while others are
// multiplied.
#pragma once

#include "mma_tile.h"
#include "product.h"

namespace dyndeploy {
namespace cuda {

// What a kernel says of its rows, columns and sums: see product.h.
template <class Kernel>
struct CopiedOperands {
  using Arguments = typename Kernel::Arguments;
  using Place = typename Kernel::Place;
  using Row = typename Kernel::Row;
  using Tile = typename Kernel::Tile;
  using Stage = typename Tile::Stage;
  using T = typename Tile::Element;
  static constexpr int kVector = Kernel::kVector;
  static constexpr int kThreads = Tile::kThreads;
  static constexpr int kElement = static_cast<int>(sizeof(T));
  static constexpr bool kGathers = Kernel::kGathers;
  using Split = Strips<Tile, kVector>;
  static constexpr int kRunsA = Split::kRunsA, kRunsB = Split::kRunsB;
  static constexpr int kLoadsA = Split::kLoadsA, kLoadsB = Split::kLoadsB;
  static_assert(kVector == 8 && sizeof(T) == 2, "copies of 16 bytes");
  static_assert(kThreads % kRunsA == 0 && kThreads % kRunsB == 0, "a thread copies one run of several rows");
  static constexpr bool kRegular = !Kernel::kListed && !kGathers;

  // Where a thread's copies of a segment come from, and how many inputs there are: none of a row that has no
  // operand in it, and none behind the last segment. Addresses are numbers, because those of nothing move
  // like the others, and are never followed.
  struct Sources {
    std::uintptr_t a[kLoadsA];
    int inputs[kLoadsA];
    std::uintptr_t b;
  };

  static DYN_DEVICE void aim(const Arguments& a, const Place& p, const Row* rows, int t, int segment, int end,
                             Sources& sources) {
    Row row[kLoadsA];
    DYN_UNROLL
    for (int i = 0; i < kLoadsA; ++i) row[i] = rows[Split::row(t, i)];
    DYN_UNROLL
    for (int i = 0; i < kLoadsA; ++i) {
      const T* from = Kernel::source(a, p, row[i], segment);
      sources.a[i] = reinterpret_cast<std::uintptr_t>(from);
      sources.inputs[i] = from == nullptr ? 0 : end;
    }
    if (kRegular) {
      const T* from = Kernel::weights(a, p, segment, t / kRunsB) + p.column0 + t % kRunsB * kVector;
      sources.b = reinterpret_cast<std::uintptr_t>(from);
    }
  }

  // Of a strip's rows, whose places repeat every eight, every how many belong to one thread.
  static constexpr int kStepA = kThreads / kRunsA, kStepB = kThreads / kRunsB;
  static DYN_DEVICE T* place_a(Stage& stage, int t, int i) {
    if (kStepA % 8 == 0) return Tile::run_a(stage, t / kRunsA, t % kRunsA) + i * kStepA * Tile::kDepth;
    return Tile::run_a(stage, t / kRunsA + i * kStepA, t % kRunsA);
  }
  static DYN_DEVICE T* place_b(Stage& stage, int t, int i) {
    if (kStepB % 8 == 0) return Tile::run_b(stage, t / kRunsB, t % kRunsB) + i * kStepB * Tile::kColumns;
    return Tile::run_b(stage, t / kRunsB + i * kStepB, t % kRunsB);
  }

  // A strip from input k0 of a segment on, of `end` inputs. Without branches where all is regular.
  static DYN_DEVICE void fetch(const Arguments& a, const Place& p, const int* columns, int t, int segment,
                               int k0, int end, const Sources& sources, Stage& stage, Copies& copies) {
    const int k = k0 + t % kRunsA * kVector;
    const int input = !Kernel::kFindsInputs ? k : k < end ? Kernel::input(a, p, segment, k) : 0;
    DYN_UNROLL
    for (int i = 0; i < kLoadsA; ++i) {
      const int rest = sources.inputs[i] - k;
      // Of rows that go on behind the last input only what is summed.
      const int bytes = Kernel::kOpenRows && rest > 0 && rest < kVector ? kElement * rest : rest > 0 ? 16 : 0;
      copies.add(place_a(stage, t, i), further<T>(sources.a[i], input), bytes);
    }
    const int at = t % kRunsB * kVector, column = p.column0 + at;
    const int last = column < p.columns ? end - k0 : 0;
    const std::size_t pitch = Kernel::pitch(a);
    std::uintptr_t regular = sources.b + static_cast<std::size_t>(k0) * pitch * kElement;
    DYN_UNROLL
    for (int i = 0; i < kLoadsB; ++i) {
      const int row = t / kRunsB + i * kStepB;
      const bool inside = row < last;
      T* to = place_b(stage, t, i);
      if (kRegular) {
        copies.add(to, further<T>(regular, 0), inside ? 16 : 0);
        regular += kStepB * pitch * kElement;
        continue;
      }
      const T* from = inside ? Kernel::weights(a, p, segment, k0 + row) : nullptr;
      if (!kGathers) {
        copies.add(to, inside ? from + column : nullptr, inside ? 16 : 0);
      } else if (Kernel::aligned_columns(a)) {
        copies.add(to, inside ? from + columns[at] : nullptr, inside ? 16 : 0);
      } else {
        // No copy of 16 bytes fits; barriers order these stores as they do the copies.
        Vector<T, kVector> v;
        DYN_UNROLL
        for (int e = 0; e < kVector; ++e) {
          from_float(0.0f, v.v[e]);
          if (inside && column + e < p.columns) load_global<kElement>(&v.v[e], from + columns[at + e]);
        }
        store_vector(to, v);
      }
    }
  }
};

// As Product.
template <class Kernel, class Strip = CopiedOperands<Kernel>>
struct Pipeline {
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
    PerThread<Copies, kThreads> copies;
    typename Tile::State state;

    find_places<Kernel>(a, p, rows, columns);
    Tile::clear(state);
    sync();

    const int segments = Kernel::segments(a), first = Kernel::first_segment(a, p);
    int left = 0;  // strips
    DYN_NO_UNROLL
    for (int i = first; i < segments; ++i) left += divide_up(Kernel::length(a, p, i), Tile::kDepth);
    int segment = first - 1, k = 0, end = 0;  // of the strip that is fetched next
    const auto next_segment = [&] {
      ++segment;
      k = 0;
      end = segment < segments ? Kernel::length(a, p, segment) : 0;
      for_threads<kThreads>([&](int t) {
        if (segment < segments) return Strip::aim(a, p, rows, t, segment, end, sources[t]);
        DYN_UNROLL
        for (int i = 0; i < Strip::kLoadsA; ++i) sources[t].inputs[i] = 0;
      });
    };
    next_segment();
    // A group for each strip, and empty ones behind the last, so that the same number may be under way.
    const auto fetch_next = [&](int slot) {
      for_threads<kThreads>([&](int t) {
        Strip::fetch(a, p, columns, t, segment, k, end, sources[t], shared.stages[slot], copies[t]);
        copies[t].close_group();
      });
    };
    const auto go_on = [&] {
      k += Tile::kDepth;
      if (k >= end && segment < segments) next_segment();
    };
    // When this returns the next strip is there, and nobody reads the one before the last any more.
    const auto wait = [&] {
      for_threads<kThreads>([&](int t) { copies[t].template wait<Tile::kStages - 2>(); });
      sync();
    };
    DYN_NO_UNROLL
    for (int i = 0; i < Tile::kStages - 1; ++i) {
      fetch_next(i);
      go_on();
    }
    int now = 0, free = Tile::kStages - 1;
    wait();
    Tile::load_step(shared.stages[0], state, 0);
    for (; left > 0; --left) {
      const int next = now + 1 == Tile::kStages ? 0 : now + 1;
      DYN_UNROLL
      for (int step = 0; step < Tile::kSteps; ++step) {
        if (step + 1 < Tile::kSteps) {
          Tile::load_step(shared.stages[now], state, step + 1);
        } else {
          wait();
          Tile::load_step(shared.stages[next], state, 0);
        }
        if (step == 0) fetch_next(free);
        Tile::multiply_step(state, step);
      }
      free = now;
      now = next;
      go_on();
    }
    Tile::finish(shared, state, [&](int row, int column, const auto* sums, int pitch) {
      Kernel::write(a, p, rows + row, p.column0 + column, sums, pitch);
    });
  }
};

// The product of a kernel by what its tile can.
template <class Kernel>
using ProductOf = typename std::conditional<Kernel::Tile::kAsync, Pipeline<Kernel>, Product<Kernel>>::type;

}  // namespace cuda
}  // namespace dyndeploy
