// Tiles of products of bytes: activations without a sign times weights with one, summed in integers, so that
// every tile gives the same sums. Both operands stand with the inputs of a row, or of a column, one behind
// the other, and move in runs of 16 bytes: instructions for bytes want four inputs in a register.
#pragma once

#include "bytes.h"
#include "mma_tile.h"

namespace dyndeploy {
namespace cuda {

constexpr int kByteRun = 16;  // bytes of one access
using ByteWord = Word<Byte, kByteRun>;

// How a byte tile's threads share the runs of a strip: each moves one run of several rows, and of several
// columns.
template <class Tile>
struct ByteRuns {
  static constexpr int kRuns = Tile::kDepth / kByteRun;  // of a row
  static constexpr int kStep = Tile::kThreads / kRuns;   // rows from one to the next
  static constexpr int kLoadsA = Tile::kRows / kStep;
  static constexpr int kLoadsB = Tile::kColumns / kStep;
  static_assert(Tile::kThreads % kRuns == 0 && Tile::kRows % kStep == 0 && Tile::kColumns % kStep == 0,
                "every thread moves as many runs");
  static DYN_DEVICE int run(int t) { return t % kRuns; }
  static DYN_DEVICE int row(int t, int i) { return t / kRuns + i * kStep; }
};

// Tensor cores. With kCopied strips come as in MmaTile, else through registers and with two stages. kStrip:
// inputs of a strip.
template <int kBM, int kBN, int kWM, int kWN, int kStrip, int kRing, int kBlocksPerProcessor, bool kCopied,
          Pace kPace = Pace::kAny>
struct ByteMmaTile : WarpTile<kBM, kBN, kWM, kWN> {
  using Warps = WarpTile<kBM, kBN, kWM, kWN>;
  using Element = Byte;
  using Warps::kThreads;
  using Warps::kWarps;
  using Warps::warp_column;
  using Warps::warp_row;
  static constexpr int kDepth = kStrip;
  static constexpr int kStages = kRing;
  static constexpr int kBlocks = kBlocksPerProcessor;
  static constexpr int kSettles = kDepth;
  static constexpr bool kAsync = kCopied;
  static constexpr bool kServed =
      kCopied ? DYN_ASYNC_TENSOR_CORES &&
                    (kPace == Pace::kAny || (kPace == Pace::kFast ? DYN_FAST_MMA : DYN_SLOW_MMA))
              : DYN_MATRIX_LOADS && DYN_TENSOR_CORES;
  static double busy(long long blocks) {
    return kCopied ? busy_ring(blocks) : busy_warps(blocks, kBlocks, kThreads);
  }
  static_assert(kDepth % 64 == 0, "a strip ends where it began, with the first of both operands");
  static_assert(kCopied || kStages == 2, "strips through registers have two stages");

  struct alignas(128) Stage {
    Byte a[kBM * kDepth];
    Byte b[kBN * kDepth];
  };
  struct alignas(128) Shared {
    Stage stages[kStages];
  };
  static DYN_DEVICE int place(int row, int run) {
    return row * kDepth + (run ^ turned<kDepth / kByteRun>(row)) * kByteRun;
  }
  static DYN_DEVICE Byte* run_a(Stage& stage, int row, int run) { return stage.a + place(row, run); }
  static DYN_DEVICE Byte* run_b(Stage& stage, int column, int run) { return stage.b + place(column, run); }
  static DYN_DEVICE void put_a(Stage& stage, int row, int run, const ByteWord& word) {
    copy<kByteRun>(run_a(stage, row, run), &word);
  }
  static DYN_DEVICE void put_b(Stage& stage, int column, int run, const ByteWord& word) {
    copy<kByteRun>(run_b(stage, column, run), &word);
  }

  // Operands of two steps of 32 inputs, as in MmaTile.
  static constexpr int kSteps = kDepth / 32;
  struct Fragments {
    ByteC c[kWM / 16][kWN / 8];
    ByteA a[2][kWM / 16];
    ByteB b[2][kWN / 16];
  };
  using State = PerThread<Fragments, kWarps>;

  // Rows stand as many turns apart as a fragment has rows, so that only the first one's place is computed.
  static DYN_DEVICE void load_step(const Stage& stage, State& state, int step) {
    for_warps<kWarps>([&](int w) {
      DYN_UNROLL
      for (int i = 0; i < kWM / 16; ++i) {
        load(state[w].a[step % 2][i], [&](int lane) {
          const int row = warp_row(w) + lane % 16;
          const int run = lane / 16 ^ turned<kDepth / kByteRun>(row);
          return stage.a + (row + 16 * i) * kDepth + (run ^ 2 * step) * kByteRun;
        });
      }
      DYN_UNROLL
      for (int j = 0; j < kWN / 16; ++j) {
        load(state[w].b[step % 2][j], [&](int lane) {
          const int column = warp_column(w) + lane / 16 * 8 + lane % 8;
          const int run = lane / 8 % 2 ^ turned<kDepth / kByteRun>(column);
          return stage.b + (column + 16 * j) * kDepth + (run ^ 2 * step) * kByteRun;
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

  static DYN_DEVICE void accumulate(const Stage& stage, State& state, bool) {
    load_step(stage, state, 0);
    DYN_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      if (step + 1 < kSteps) load_step(stage, state, step + 1);
      multiply_step(state, step);
    }
  }
};

// Tensor cores of sm_72, whose wmma takes two operands of like signs only: activations are moved by 128, and
// what that takes from the sums is 128 times the sum of a column's weights, which the tensor cores find as a
// product with ones. (Zeros are moved as well, those of rows that are not there too.)
template <int kBM, int kBN, int kWM, int kWN, int kStrip>
struct ByteWmmaTile {
  using Element = Byte;
  static constexpr int kRows = kBM;
  static constexpr int kColumns = kBN;
  static constexpr int kDepth = kStrip;
  static constexpr int kWarps = kBM / kWM * (kBN / kWN);
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kBlocks = kThreads > 128 ? 1 : 512 / kThreads;
  static constexpr int kPad = 16;
  static constexpr int kScratch = 20;
  static constexpr int kRun = 8;
  static constexpr int kRowsAtOnce = 1;
  static constexpr int kRowStride = 1;
  static constexpr bool kTensorCores = true;
  static constexpr int kSettles = kDepth;
  static constexpr bool kAsync = false;
  static constexpr bool kServed = DYN_BYTE_WMMA;
  static constexpr int kShift = 128;
  static double busy(long long blocks) { return busy_warps(blocks, kBlocks, kThreads); }

  struct alignas(32) Stage {
    Byte a[kBM][kDepth + kPad];
    Byte b[kBN][kDepth + kPad];
  };
  union alignas(32) Shared {
    Stage stages[2];
    int scratch[kWarps][16][kScratch];
  };
  struct Fragments {
    SignedC c[kWM / 16][kWN / 16];
    SignedC weights[kWN / 16];
  };
  using State = PerThread<Fragments, kWarps>;

  static DYN_DEVICE void put_a(Stage& stage, int row, int run, const ByteWord& word) {
    alignas(16) std::uint32_t quads[4];
    copy<kByteRun>(quads, &word);
    DYN_UNROLL
    for (int i = 0; i < 4; ++i) quads[i] ^= 0x80808080u;
    copy<kByteRun>(&stage.a[row][run * kByteRun], quads);
  }
  static DYN_DEVICE void put_b(Stage& stage, int column, int run, const ByteWord& word) {
    copy<kByteRun>(&stage.b[column][run * kByteRun], &word);
  }

  static DYN_DEVICE int warp_row(int warp) { return warp / (kBN / kWN) * kWM; }
  static DYN_DEVICE int warp_column(int warp) { return warp % (kBN / kWN) * kWN; }

  static DYN_DEVICE void clear(State& state) {
    for_warps<kWarps>([&](int w) {
      DYN_UNROLL
      for (int j = 0; j < kWN / 16; ++j) {
        fill(state[w].weights[j], 0);
        DYN_UNROLL
        for (int i = 0; i < kWM / 16; ++i) fill(state[w].c[i][j], 0);
      }
    });
  }

  static DYN_DEVICE void accumulate(const Stage& stage, State& state, bool) {
    for_warps<kWarps>([&](int w) {
      SignedA ones;
      fill(ones, 1);
      DYN_UNROLL
      for (int k = 0; k < kDepth; k += 16) {
        SignedB b[kWN / 16];
        DYN_UNROLL
        for (int j = 0; j < kWN / 16; ++j) {
          load(b[j], &stage.b[warp_column(w) + 16 * j][k], kDepth + kPad);
          multiply_add(state[w].weights[j], ones, b[j]);
        }
        DYN_UNROLL
        for (int i = 0; i < kWM / 16; ++i) {
          SignedA a;
          load(a, &stage.a[warp_row(w) + 16 * i][k], kDepth + kPad);
          DYN_UNROLL
          for (int j = 0; j < kWN / 16; ++j) multiply_add(state[w].c[i][j], a, b[j]);
        }
      }
    });
  }

  // As in TensorTile.
  template <class F>
  static DYN_DEVICE void finish(Shared& shared, State& state, const F& f) {
    sync();
    DYN_UNROLL
    for (int i = 0; i < kWM / 16; ++i) {
      DYN_UNROLL
      for (int j = 0; j < kWN / 16; ++j) {
        for_warps<kWarps>([&](int w) {
          add(state[w].c[i][j], state[w].weights[j], kShift);
          store(&shared.scratch[w][0][0], state[w].c[i][j], kScratch);
        });
        sync_warp();
        for_threads<kThreads>([&](int t) {
          const int warp = t / 32, row = t % 32 / 2, column = t % 2 * 8;
          f(warp_row(warp) + 16 * i + row, warp_column(warp) + 16 * j + column,
            &shared.scratch[warp][row][column], kScratch);
        });
        sync_warp();
      }
    }
  }
};

// Lanes, by dp4a: four inputs at a time are an element of a tile of lanes.
template <int kBM, int kBN, int kTM, int kTN, int kBlocksPerProcessor>
struct ByteLaneTile : LaneTile<Quad, kBM, kBN, kTM, kTN, kBlocksPerProcessor> {
  using Quads = LaneTile<Quad, kBM, kBN, kTM, kTN, kBlocksPerProcessor>;
  using Element = Byte;
  using typename Quads::Stage;
  static constexpr int kDepth = 4 * Quads::kDepth;
  static constexpr int kSettles = kDepth;
  static constexpr bool kServed = DYN_BYTE_LANES;
  static DYN_DEVICE void put_a(Stage& stage, int row, int run, const ByteWord& word) {
    Quads::template put_a<4>(stage, row, 4 * run, word);
  }
  static DYN_DEVICE void put_b(Stage& stage, int column, int run, const ByteWord& word) {
    Quads::template put_column<4>(stage, 4 * run, column, word);
  }
};

// The tiles of every kind, by size; see Lanes.
struct ByteLanes {
  using Tiny = ByteLaneTile<16, 64, 4, 8, 10>;
  using Small = Tiny;
  using Medium = ByteLaneTile<64, 64, 8, 4, 4>;
  using Large = ByteLaneTile<128, 64, 8, 8, 3>;
  using Gathers = Large;
  // Addresses and bytes of single elements take many registers.
  using Single = ByteLaneTile<64, 64, 8, 4, 2>;
  static int share(Size size) { return size == Size::kLarge ? 60 : size == Size::kMedium ? 52 : 40; }
};
struct ByteWmmaTensors {
  using Tiny = ByteWmmaTile<32, 32, 16, 16, 64>;
  using Small = Tiny;
  using Medium = ByteWmmaTile<64, 64, 32, 32, 64>;
  using Large = ByteWmmaTile<128, 128, 64, 32, 64>;
  using Gathers = Large;
  static int share(Size size) { return Tensors::share(size); }
};
// sm_75 has no copies past registers.
struct ByteTensors {
  using Tiny = ByteMmaTile<32, 32, 16, 16, 128, 2, 4, false>;
  using Small = Tiny;
  using Medium = ByteMmaTile<64, 64, 32, 32, 64, 2, 3, false>;
  using Large = ByteMmaTile<128, 64, 64, 32, 64, 2, 2, false>;
  using Gathers = Large;
  static int share(Size size) { return Tensors::share(size); }
};
// The tiles of halves with as many bytes: a product of 32 inputs takes as long as one of 16 halves.
struct AsyncByteTensors {
  using Tiny = ByteMmaTile<16, 32, 16, 16, 128, 4, 6, true>;
  using Small = ByteMmaTile<32, 64, 32, 16, 128, 3, 4, true>;
  using Medium = ByteMmaTile<64, 64, 64, 32, 64, 4, 4, true>;
  using Large = ByteMmaTile<96, 128, 48, 64, 64, 3, 2, true, Pace::kSlow>;
  using Gathers = Large;
  static int share(Size size) { return AsyncTensors::share(size); }
};
struct HopperByteTensors {
  using Tiny = AsyncByteTensors::Tiny;
  using Small = AsyncByteTensors::Small;
  using Medium = AsyncByteTensors::Medium;
  using Large = ByteMmaTile<128, 128, 64, 64, 64, 2, 2, true, Pace::kFast>;
  using Gathers = Large;
  static int share(Size size) { return HopperTensors::share(size); }
};

}  // namespace cuda
}  // namespace dyndeploy
