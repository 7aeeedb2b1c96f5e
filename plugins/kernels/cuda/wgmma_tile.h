// Tiles whose warpgroups multiply together (wgmma), on sm_90a. The tensor cores read both operands from
// shared memory, so a strip costs the threads nothing but its copies.
#pragma once

#include "mma_tile.h"
#include "wgmma.h"

namespace dyndeploy {
namespace cuda {

// A warpgroup owns 64 rows and all columns, in one instruction for each 16 inputs. kRing: stages. Of a block
// that is alone on its multiprocessor the products of one strip are still under way when those of the next
// are asked for; where there are two, the other one keeps the tensor cores busy meanwhile, and a stage is
// saved.
template <int kBM, int kBN, int kRing, int kBlocksPerProcessor>
struct WgmmaTile : WarpTile<kBM, kBN, 16, kBN> {
  using Warps = WarpTile<kBM, kBN, 16, kBN>;
  using Element = Half;
  using Warps::kWarps;
  static constexpr int kDepth = 64;   // the 128 bytes of a row of a pattern
  static constexpr int kPitchB = 64;  // between rows of the right operand, of which 64 columns stand together
  static constexpr int kStages = kRing;
  static constexpr int kBlocks = kBlocksPerProcessor;
  static constexpr int kBehind = kBlocks > 1 ? 0 : 1;  // strips whose products are under way
  static constexpr bool kAsync = true;
  static constexpr bool kServed = DYN_WARPGROUPS;
  static constexpr int kPattern = 1024;
  // Products go on by themselves, so a second block has less to hide than busy_ring() says.
  static double busy(long long blocks) { return blocks > 1 || kBlocks == 1 ? 1.0 : 0.85; }
  static_assert(kBM % 64 == 0 && kBN % 64 == 0, "whole patterns");

  struct alignas(kPattern) Stage {
    Half a[kBM * kDepth];
    Half b[kDepth * kBN];
  };
  // The sums leave through the memory of the stages, so that a thread has the same columns of many rows. The
  // pad puts the rows that a warp writes at once on different banks.
  static constexpr int kRun = 4;
  static constexpr int kRowsAtOnce = 8;
  static constexpr int kRowStride = Warps::kThreads / (kBN / kRun);
  static constexpr int kPitch = kBN + 8;
  static_assert(kBM % (kRowsAtOnce * kRowStride) == 0, "whole runs of rows");
  struct alignas(kPattern) Shared {
    union {
      Stage stages[kStages];
      float sums[kBM][kPitch];
    };
  };
  static constexpr int kDynamicBytes = static_cast<int>(sizeof(Shared)) + kPattern;

  static DYN_DEVICE Half* run_a(Stage& stage, int row, int run) {
    return stage.a + row * kDepth + (run ^ (row & 7)) * 8;
  }
  static DYN_DEVICE Half* run_b(Stage& stage, int k, int run) {
    return stage.b + run / 8 * (64 * kDepth) + k * kPitchB + (run % 8 ^ (k & 7)) * 8;
  }

  struct Fragments {
    MmaC c[1][kBN / 8];
    WarpgroupProducts products;
  };
  using State = PerThread<Fragments, kWarps>;

  static DYN_DEVICE std::uint64_t describe_a(const Stage& stage, int warpgroup) {
    return operand_descriptor(shared_address(stage.a + warpgroup * 64 * kDepth), 16, kPattern);
  }
  static DYN_DEVICE std::uint64_t describe_b(const Stage& stage) {
    return operand_descriptor(shared_address(stage.b), 64 * kDepth * static_cast<int>(sizeof(Half)),
                              kPattern);
  }

  // Asks for the products of a strip, as one group.
  static DYN_DEVICE void multiply(const Stage& stage, State& state) {
    for_warps<kWarps>([&](int w) {
      const std::uint64_t a = describe_a(stage, w / 4), b = describe_b(stage);
      state[w].products.begin();
      DYN_UNROLL
      for (int step = 0; step < kDepth / 16; ++step) {
        // Along a row of inputs, and on by 16 rows of columns.
        state[w].products.add(state[w].c[0], &stage, w % 4, moved(a, 32 * step),
                              moved(b, 2 * kPattern * step));
      }
      state[w].products.close_group();
    });
  }
  template <int kLeft>
  static DYN_DEVICE void wait(State& state) {
    for_warps<kWarps>([&](int w) { state[w].products.template wait<kLeft>(); });
  }

  // As WarpTile's.
  template <class F>
  static DYN_DEVICE void finish(Shared& shared, State& state, const F& f) {
    wait<0>(state);
    for_warps<kWarps>([&](int w) { state[w].products.take(state[w].c[0]); });
    sync();  // others may still multiply what stands where the sums go
    for_warps<kWarps>([&](int w) {
      for_lanes([&](int lane) {
        DYN_UNROLL
        for (int j = 0; j < kBN / 8; ++j) {
          DYN_UNROLL
          for (int half = 0; half < 2; ++half) {
            copy<8>(&shared.sums[Warps::warp_row(w) + 8 * half + lane / 4][8 * j + lane % 4 * 2],
                    state[w].c[0][j].at(lane) + 2 * half);
          }
        }
      });
    });
    sync();
    for_threads<Warps::kThreads>([&](int t) {
      const int column = t % (kBN / kRun) * kRun;
      DYN_NO_UNROLL
      for (int row = t / (kBN / kRun); row < kBM; row += kRowsAtOnce * kRowStride) {
        alignas(16) float sums[kRowsAtOnce][kRun];
        DYN_UNROLL
        for (int i = 0; i < kRowsAtOnce; ++i) copy<16>(sums[i], &shared.sums[row + i * kRowStride][column]);
        f(row, column, &sums[0][0], kRun);
      }
    });
  }
};

template <class Tile>
struct MultipliesByWarpgroups : std::false_type {};
template <int kBM, int kBN, int kRing, int kBlocks>
struct MultipliesByWarpgroups<WgmmaTile<kBM, kBN, kRing, kBlocks>> : std::true_type {};

// The tiles of warpgroups, by the columns of an instruction. Nothing that NVIDIA writes says that
// instructions of different widths round alike: so the width is a kind of its own, and follows from an
// engine's plan.
template <int kColumns>
struct Warpgroups;
template <>
struct Warpgroups<64> {
  using Large = WgmmaTile<128, 64, 3, 3>;
  using Medium = Large;
  using Small = Large;
  using Tiny = Large;
  static int share(Size) { return 39; }
};
template <>
struct Warpgroups<128> {
  using Large = WgmmaTile<128, 128, 3, 2>;
  using Medium = WgmmaTile<64, 128, 3, 3>;
  using Small = Medium;
  using Tiny = Medium;
  static int share(Size size) { return size == Size::kLarge ? 57 : 50; }
};
template <>
struct Warpgroups<256> {
  using Large = WgmmaTile<128, 256, 4, 1>;
  using Medium = WgmmaTile<64, 256, 4, 1>;
  using Small = Medium;
  using Tiny = Medium;
  static int share(Size size) { return size == Size::kLarge ? 72 : 55; }
};

}  // namespace cuda
}  // namespace dyndeploy
