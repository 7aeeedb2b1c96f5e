// Tiles on tensor cores from sm_80 on. Strips come by copies that need no registers (cp.async) into a ring of
// stages, and a warp's products are those of mma.m16n8k16, whose fragments the PTX manual lays out lane by
// lane: so sums leave straight from registers.
#pragma once

#include "tiles.h"

namespace dyndeploy {
namespace cuda {

// Architectures that a tile is for: those whose tensor cores are as fast as sm_90's, or as slow as sm_80's.
enum class Pace { kAny, kSlow, kFast };

// How the warps of a block share its sums, which stand in fragments c[kWM / 16][kWN / 8] of 16 x 8. A warp
// owns kWM x kWN elements.
template <int kBM, int kBN, int kWM, int kWN>
struct WarpTile {
  static constexpr int kRows = kBM;
  static constexpr int kColumns = kBN;
  static constexpr int kWarps = kBM / kWM * (kBN / kWN);
  static constexpr int kThreads = 32 * kWarps;
  static constexpr bool kTensorCores = true;
  static_assert(kWM % 16 == 0, "whole fragments");
  static_assert((kWN & (kWN - 1)) == 0 && kWN >= 16, "the number of a run is found by bits");

  static DYN_DEVICE int warp_row(int warp) { return warp / (kBN / kWN) * kWM; }
  static DYN_DEVICE int warp_column(int warp) { return warp % (kBN / kWN) * kWN; }

  template <class State>
  static DYN_DEVICE void clear(State& state) {
    for_warps<kWarps>([&](int w) {
      DYN_UNROLL
      for (int i = 0; i < kWM / 16; ++i) {
        DYN_UNROLL
        for (int j = 0; j < kWN / 8; ++j) fill(state[w].c[i][j], 0);
      }
    });
  }

  // Calls f(row, column, sums, pitch) for each run of columns of kRowsAtOnce rows, kRowStride from each
  // other. Neighbouring lanes exchange pairs, so that each has four columns of a row instead of two.
  static constexpr int kRun = 4;
  static constexpr int kRowsAtOnce = kWM / 8;
  static constexpr int kRowStride = 8;
  template <class State, class F>
  static DYN_DEVICE void each_run(State& state, const F& f) {
    for_warps<kWarps>([&](int w) {
      using Sum = typename std::remove_reference<decltype(*state[w].c[0][0].at(0))>::type;
      DYN_UNROLL
      for (int j = 0; j < kWN / 8; j += 2) {
        DYN_UNROLL
        for (int i = 0; i < kWM / 16; ++i) exchange(state[w].c[i][j], state[w].c[i][j + 1]);
        for_lanes([&](int lane) {
          Sum sums[kRowsAtOnce][kRun];
          DYN_UNROLL
          for (int i = 0; i < kRowsAtOnce; ++i) {
            DYN_UNROLL
            for (int e = 0; e < kRun; ++e) sums[i][e] = state[w].c[i / 2][j + i % 2].at(lane)[e];
          }
          f(warp_row(w) + lane / 4, warp_column(w) + 8 * j + lane % 2 * 8 + lane % 4 / 2 * 4, &sums[0][0],
            kRun);
        });
      }
    });
  }
  template <class Shared, class State, class F>
  static DYN_DEVICE void finish(Shared&, State& state, const F& f) {
    each_run(state, f);
  }
};

// What the row does to the number of a run of 16 bytes, in rows of so many runs: the eight rows that one step
// of ldmatrix reads stand on different banks.
template <int kRuns>
DYN_DEVICE int turned(int row) {
  return kRuns >= 8 ? row & 7 : kRuns == 4 ? row >> 1 & 3 : row >> 2 & 1;
}

// Strips on their way hide most of the latency of one block, and two hide all of it.
inline double busy_ring(long long blocks) { return blocks > 1 ? 1.0 : 0.7; }

// Products of halves. kStrip: inputs of a strip. kRing: stages, of which all but one are on their way while
// one is multiplied.
template <int kBM, int kBN, int kWM, int kWN, int kStrip, int kRing, int kBlocksPerProcessor,
          Pace kPace = Pace::kAny>
struct MmaTile : WarpTile<kBM, kBN, kWM, kWN> {
  using Warps = WarpTile<kBM, kBN, kWM, kWN>;
  using Element = Half;
  using Warps::kWarps;
  using Warps::warp_column;
  using Warps::warp_row;
  static constexpr int kDepth = kStrip;
  static constexpr int kPitchB = kBN;  // between rows of the right operand
  static constexpr int kStages = kRing;
  static constexpr int kBlocks = kBlocksPerProcessor;
  static constexpr bool kAsync = true;
  static constexpr bool kServed =
      DYN_ASYNC_TENSOR_CORES && (kPace == Pace::kAny || (kPace == Pace::kFast ? DYN_FAST_MMA : DYN_SLOW_MMA));
  static double busy(long long blocks) { return busy_ring(blocks); }
  static_assert(kDepth % 16 == 0, "whole fragments");

  struct alignas(128) Stage {
    Half a[kBM * kDepth];
    Half b[kDepth * kBN];
  };
  struct alignas(128) Shared {
    Stage stages[kStages];
  };
  // In rows of kWidth elements.
  template <int kWidth>
  static DYN_DEVICE int turn(int row) {
    return turned<kWidth / 8>(row);
  }
  template <int kWidth>
  static DYN_DEVICE int place(int row, int run) {
    return row * kWidth + (run ^ turn<kWidth>(row)) * 8;
  }
  static DYN_DEVICE Half* run_a(Stage& stage, int row, int run) { return stage.a + place<kDepth>(row, run); }
  static DYN_DEVICE Half* run_b(Stage& stage, int k, int run) { return stage.b + place<kBN>(k, run); }
  template <int kVector>
  static DYN_DEVICE void put_a(Stage& stage, int row, int k, const Word<Half, kVector>& word) {
    copy<2 * kVector>(run_a(stage, row, k / 8) + k % 8, &word);
  }
  template <int kVector>
  static DYN_DEVICE void put_b(Stage& stage, int k, int column, const Word<Half, kVector>& word) {
    copy<2 * kVector>(run_b(stage, k, column / 8) + column % 8, &word);
  }
  // A right operand may stand with its columns as rows: see accumulate_columns().
  template <int kVector>
  static DYN_DEVICE void put_column(Stage& stage, int k, int column, const Word<Half, kVector>& word) {
    copy<2 * kVector>(stage.b + place<kDepth>(column, k / 8) + k % 8, &word);
  }

  // Operands of two steps of 16 inputs: one is multiplied while the next one is on its way.
  static constexpr int kSteps = kDepth / 16;
  static_assert(kSteps % 2 == 0, "a strip ends where it began, with the first of both");
  struct Fragments {
    MmaC c[kWM / 16][kWN / 8];
    MmaA a[2][kWM / 16];
    MmaB b[2][kWN / 16];
  };
  using State = PerThread<Fragments, kWarps>;

  // A lane gives the address of row lane % 16 and of run lane / 16 of both: four matrices of 8 x 8, of the
  // left operand as it stands, of the right one transposed.
  static DYN_DEVICE void load_step(const Stage& stage, State& state, int step) {
    load_left(stage, state, step);
    for_warps<kWarps>([&](int w) {
      DYN_UNROLL
      for (int j = 0; j < kWN / 16; ++j) {
        load_transposed(state[w].b[step % 2][j], [&](int lane) {
          const int row = lane % 16;
          const int run = (warp_column(w) / 8 + lane / 16) ^ turn<kBN>(row);
          return stage.b + (16 * step + row) * kBN + (run ^ 2 * j) * 8;
        });
      }
    });
  }
  static DYN_DEVICE void load_left(const Stage& stage, State& state, int step) {
    for_warps<kWarps>([&](int w) {
      DYN_UNROLL
      for (int i = 0; i < kWM / 16; ++i) {
        load(state[w].a[step % 2][i], [&](int lane) {
          const int row = warp_row(w) + lane % 16;
          const int run = lane / 16 ^ turn<kDepth>(row);
          return stage.a + (row + 16 * i) * kDepth + (run ^ 2 * step) * 8;
        });
      }
    });
  }

  static DYN_DEVICE void multiply_step(State& state, int step) {
    for_warps<kWarps>([&](int w) {
      DYN_UNROLL
      for (int i = 0; i < kWM / 16; ++i) {
        DYN_UNROLL
        for (int j = 0; j < kWN / 8; ++j) {
          multiply_add(state[w].c[i][j], state[w].a[step % 2][i], state[w].b[step % 2][j / 2], j % 2);
        }
      }
    });
  }

  // Whole strips, for those who wait for them themselves.
  static DYN_DEVICE void accumulate(const Stage& stage, State& state, bool) {
    DYN_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      load_step(stage, state, step);
      multiply_step(state, step);
    }
  }
  // The same with what put_column() left.
  static DYN_DEVICE void accumulate_columns(const Stage& stage, State& state, bool) {
    DYN_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      load_left(stage, state, step);
      for_warps<kWarps>([&](int w) {
        DYN_UNROLL
        for (int j = 0; j < kWN / 16; ++j) {
          load(state[w].b[step % 2][j], [&](int lane) {
            const int column = warp_column(w) + 16 * j + lane / 16 * 8 + lane % 8;
            return stage.b + place<kDepth>(column, 2 * step + lane / 8 % 2);
          });
        }
      });
      multiply_step(state, step);
    }
  }

  // Multiplies each row with a factor; factors[16][stride]: 16 times those of all rows.
  static DYN_DEVICE void scale_rows(State& state, const float* factors, int) {
    for_warps<kWarps>([&](int w) {
      for_lanes([&](int lane) {
        DYN_UNROLL
        for (int i = 0; i < kWM / 16; ++i) {
          DYN_UNROLL
          for (int e = 0; e < 4; ++e) {
            const float factor = factors[warp_row(w) + 16 * i + e / 2 * 8 + lane / 4];
            DYN_UNROLL
            for (int j = 0; j < kWN / 8; ++j) state[w].c[i][j].at(lane)[e] *= factor;
          }
        }
      });
    });
  }

  // Leaves the sums in to[kRows][stride].
  static DYN_DEVICE void leave(State& state, float* to, int stride) {
    Warps::each_run(state, [&](int row, int column, const float* sums, int pitch) {
      DYN_UNROLL
      for (int i = 0; i < Warps::kRowsAtOnce; ++i) {
        DYN_UNROLL
        for (int e = 0; e < Warps::kRun; ++e)
          to[(row + i * Warps::kRowStride) * stride + column + e] = sums[i * pitch + e];
      }
    });
  }
};

// The tiles of tensor cores from sm_80 on; see Lanes and Tensors. What a product costs besides instructions
// is what shared memory returns: a warp of 64 x 64 takes half of that of four of 32 x 32. Tiny ones are for
// batch 1 on large GPUs, where nothing but the length of a block's sums counts.
struct AsyncTensors {
  using Tiny = MmaTile<16, 32, 16, 16, 64, 4, 6>;
  using Small = MmaTile<32, 64, 32, 16, 64, 3, 4>;
  using Medium = MmaTile<64, 64, 64, 32, 32, 4, 4>;
  using Large = MmaTile<96, 128, 48, 64, 32, 3, 2, Pace::kSlow>;
  using Gathers = Medium;
  using Attention = MmaTile<64, 64, 32, 32, 32, 2, 2>;
  static int share(Size size) {
    return size == Size::kTiny ? 22 : size == Size::kSmall ? 37 : size == Size::kMedium ? 60 : 77;
  }
};
// sm_90 multiplies twice as fast, and shared memory returns what it did. Three stages of the large tile would
// not fit into 48 KB; the second block hides that it waits for its next strip.
struct HopperTensors {
  using Tiny = AsyncTensors::Tiny;
  using Small = AsyncTensors::Small;
  using Medium = AsyncTensors::Medium;
  using Large = MmaTile<128, 128, 64, 64, 32, 2, 2, Pace::kFast>;
  using Gathers = Medium;
  static int share(Size size) {
    return size == Size::kTiny ? 11 : size == Size::kSmall ? 18 : size == Size::kMedium ? 30 : 49;
  }
};

}  // namespace cuda
}  // namespace dyndeploy
