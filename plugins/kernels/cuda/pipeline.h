// The products of product.h with tiles whose strips are copied into shared memory while others are
// multiplied.
#pragma once

#include "mma_tile.h"
#include "product.h"
#include "wgmma_tile.h"

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
    if (kStepB % 8 == 0) return Tile::run_b(stage, t / kRunsB, t % kRunsB) + i * kStepB * Tile::kPitchB;
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

// The strips of a block, one after the other, into a ring of stages.
template <class Kernel, class Strip>
class Feed {
 public:
  using Arguments = typename Kernel::Arguments;
  using Place = typename Kernel::Place;
  using Row = typename Kernel::Row;
  using Tile = typename Kernel::Tile;
  static constexpr int kThreads = Tile::kThreads;

  DYN_DEVICE Feed(const Arguments& a, const Place& p, const Row* rows, const int* columns)
      : a_(a), p_(p), rows_(rows), columns_(columns), segments_(Kernel::segments(a)) {
    segment_ = Kernel::first_segment(a, p) - 1;
    DYN_NO_UNROLL
    for (int i = segment_ + 1; i < segments_; ++i)
      strips_ += divide_up(Kernel::length(a, p, i), Tile::kDepth);
    next_segment();
  }

  // There are so many strips in all.
  DYN_DEVICE int strips() const { return strips_; }

  // A group of copies for each strip, and empty ones behind the last, so that the same number may be under
  // way.
  DYN_DEVICE void fetch_next(typename Tile::Stage& stage) {
    for_threads<kThreads>([&](int t) {
      Strip::fetch(a_, p_, columns_, t, segment_, k_, end_, sources_[t], stage, copies_[t]);
      copies_[t].close_group();
    });
  }
  DYN_DEVICE void go_on() {
    k_ += Tile::kDepth;
    if (k_ >= end_ && segment_ < segments_) next_segment();
  }
  // Each thread waits for its own copies, all but the last kLeft groups.
  template <int kLeft>
  DYN_DEVICE void wait() {
    for_threads<kThreads>([&](int t) { copies_[t].template wait<kLeft>(); });
  }

 private:
  DYN_DEVICE void next_segment() {
    ++segment_;
    k_ = 0;
    end_ = segment_ < segments_ ? Kernel::length(a_, p_, segment_) : 0;
    for_threads<kThreads>([&](int t) {
      if (segment_ < segments_) return Strip::aim(a_, p_, rows_, t, segment_, end_, sources_[t]);
      DYN_UNROLL
      for (int i = 0; i < Strip::kLoadsA; ++i) sources_[t].inputs[i] = 0;
    });
  }

  const Arguments& a_;
  const Place& p_;
  const Row* const rows_;
  const int* const columns_;
  const int segments_;
  int segment_, k_ = 0, end_ = 0;  // of the strip that is fetched next
  int strips_ = 0;
  PerThread<typename Strip::Sources, kThreads> sources_;
  PerThread<Copies, kThreads> copies_;
};

// As Product.
template <class Kernel, class Strip = CopiedOperands<Kernel>>
struct Pipeline {
  using Arguments = typename Kernel::Arguments;
  using Place = typename Kernel::Place;
  using Row = typename Kernel::Row;
  using Tile = typename Kernel::Tile;
  static constexpr bool kGathers = Kernel::kGathers;

  static DYN_DEVICE void multiply(const Arguments& a, const Place& p) {
    DYN_SHARED(typename Tile::Shared, shared);
    DYN_SHARED_ARRAY(Row, rows, Tile::kRows);
    DYN_SHARED_ARRAY(int, columns, kGathers ? Tile::kColumns : 1);  // of the weights
    typename Tile::State state;

    find_places<Kernel>(a, p, rows, columns);
    Tile::clear(state);
    sync();

    Feed<Kernel, Strip> feed(a, p, rows, columns);
    // When this returns the next strip is there, and nobody reads the one before the last any more.
    const auto wait = [&] {
      feed.template wait<Tile::kStages - 2>();
      sync();
    };
    DYN_NO_UNROLL
    for (int i = 0; i < Tile::kStages - 1; ++i) {
      feed.fetch_next(shared.stages[i]);
      feed.go_on();
    }
    int now = 0, free = Tile::kStages - 1;
    wait();
    Tile::load_step(shared.stages[0], state, 0);
    for (int left = feed.strips(); left > 0; --left) {
      const int next = now + 1 == Tile::kStages ? 0 : now + 1;
      DYN_UNROLL
      for (int step = 0; step < Tile::kSteps; ++step) {
        if (step + 1 < Tile::kSteps) {
          Tile::load_step(shared.stages[now], state, step + 1);
        } else {
          wait();
          Tile::load_step(shared.stages[next], state, 0);
        }
        if (step == 0) feed.fetch_next(shared.stages[free]);
        Tile::multiply_step(state, step);
      }
      free = now;
      now = next;
      feed.go_on();
    }
    Tile::finish(shared, state, [&](int row, int column, const auto* sums, int pitch) {
      Kernel::write(a, p, rows + row, p.column0 + column, sums, pitch);
    });
  }
};

// The same with products that the tensor cores take from shared memory on their own, after the threads have
// gone on: one strip is multiplied or about to be, kBehind before it may still be, and the others are on
// their way.
template <class Kernel, class Strip = CopiedOperands<Kernel>>
struct WarpgroupPipeline {
  using Arguments = typename Kernel::Arguments;
  using Place = typename Kernel::Place;
  using Row = typename Kernel::Row;
  using Tile = typename Kernel::Tile;
  static constexpr int kAhead = Tile::kStages - 1 - Tile::kBehind;
  static_assert(kAhead > 0, "a stage is filled while others are multiplied");
  static_assert(!Kernel::kGathers, "weights that stand apart fit no copy of 16 bytes");

  static DYN_DEVICE void multiply(const Arguments& a, const Place& p) {
    DYN_DYNAMIC_SHARED(typename Tile::Shared, shared);
    DYN_SHARED_ARRAY(Row, rows, Tile::kRows);
    typename Tile::State state;

    find_places<Kernel>(a, p, rows, nullptr);
    Tile::clear(state);
    sync();

    Feed<Kernel, Strip> feed(a, p, rows, nullptr);
    DYN_NO_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      feed.fetch_next(shared.stages[i]);
      feed.go_on();
    }
    int now = 0, free = kAhead;
    for (int left = feed.strips(); left > 0; --left) {
      // Behind the barrier everybody's copies are there, and nobody multiplies any more what is copied over.
      feed.template wait<kAhead - 1>();
      for_threads<Tile::kThreads>([](int) { show_tensor_cores(); });
      sync();
      Tile::multiply(shared.stages[now], state);
      feed.fetch_next(shared.stages[free]);
      feed.go_on();
      Tile::template wait<Tile::kBehind>(state);
      now = now + 1 == Tile::kStages ? 0 : now + 1;
      free = free + 1 == Tile::kStages ? 0 : free + 1;
    }
    // Behind the last strip they bring zeros, to where finish() puts sums.
    feed.template wait<0>();
    Tile::finish(shared, state, [&](int row, int column, const auto* sums, int pitch) {
      Kernel::write(a, p, rows + row, p.column0 + column, sums, pitch);
    });
  }
};

// The product of a kernel by what its tile can.
template <class Kernel>
using ProductOf = typename std::conditional<
    MultipliesByWarpgroups<typename Kernel::Tile>::value, WarpgroupPipeline<Kernel>,
    typename std::conditional<Kernel::Tile::kAsync, Pipeline<Kernel>, Product<Kernel>>::type>::type;

}  // namespace cuda
}  // namespace dyndeploy
