// Tiles of a matrix product: how a block's threads share a (rows x columns) piece of the result, per kind of
// arithmetic. A tile knows nothing of convolutions: it takes strips of both operands from shared memory.
//
// Rules for all: at most 32768 registers a block of lanes (all that sm_53 and sm_62 have for one), at most 48
// KB of static shared memory, and each row of the result is summed in the same order wherever it stands.
#pragma once

#include <type_traits>

#include "platform.h"

namespace dyndeploy {
namespace cuda {

// Share of what a tile reaches with a number of blocks on a multiprocessor, of which it holds `resident`:
// with few warps it waits for memory most of the time.
inline double busy_warps(long long blocks, int resident, int threads) {
  constexpr double kBusyWarps = 12.0;
  const double warps = static_cast<double>(blocks < resident ? blocks : resident) * threads / 32;
  return warps < kBusyWarps ? warps / kBusyWarps : 1.0;
}

// Plain lanes. A thread owns kTM consecutive rows and kTN columns, in runs of 16 bytes where it has so many.
// kBlocksPerProcessor blocks must fit on a multiprocessor of 65536 registers.
template <class T, int kBM, int kBN, int kTM, int kTN, int kBlocksPerProcessor>
struct LaneTile {
  using Element = T;
  static constexpr int kRows = kBM;
  static constexpr int kColumns = kBN;
  static constexpr int kDepth =
      32 / static_cast<int>(sizeof(T));  // of a strip: 8 floats or quads, or 16 halves
  static constexpr int kThreads = kBM / kTM * (kBN / kTN);
  static constexpr int kBlocks = kBlocksPerProcessor;
  static constexpr bool kHalves = sizeof(T) == 2;
  // Places of a thread's rows in a stage, which are read in one access; of seven rows the last stays empty.
  static constexpr int kEach = kTM == 7 ? 8 : kTM;
  static constexpr int kStaged = kBM / kTM * kEach;
  static constexpr int kRun = kHalves && kTN % 8 == 0 ? 8 : 4;  // columns that are read, and written, at once
  static constexpr bool kTensorCores = false;
  static constexpr int kSettles = kHalves ? 64 : kDepth;  // products that are summed in halves
  static constexpr bool kAsync = false;
  static constexpr bool kServed = DYN_HALF_LANES;  // vectors of halves
  static double busy(long long blocks) { return busy_warps(blocks, kBlocks, kThreads); }

  // The left operand stands transposed, so that a thread reads its rows in one access. Lanes of a warp put
  // the two runs of 16 bytes of a row at the same time: in floats the pad keeps these on different banks, in
  // halves the second run of all rows stands kSkew further on.
  static constexpr int kSkew = !kHalves ? 0 : kStaged < 32 ? kStaged : 32;
  static constexpr int kPad = kHalves ? 0 : 4;
  static constexpr int kPitch = kStaged + kPad;  // between inputs of one run
  struct alignas(16) Stage {
    T a[kDepth * kPitch + kSkew];
    T b[kDepth][kBN + kPad];
  };
  static DYN_DEVICE int place(int k, int row) { return k * kPitch + k / (kDepth / 2) * kSkew + row; }
  struct Shared {
    Stage stages[2];
  };
  // Quads of bytes have sums of integers.
  using Sum = typename std::conditional<std::is_same<T, Quad>::value, int, float>::type;
  struct PlainSums {
    Sum v[kTM][kTN];
  };
  struct HalfSums {
    float v[kTM][kTN];
    HalfPair part[kTM][kTN / 2];
  };
  using Sums = typename std::conditional<sizeof(T) == 2, HalfSums, PlainSums>::type;
  using State = PerThread<Sums, kThreads>;

  template <int kVector>
  static DYN_DEVICE void put_a(Stage& stage, int row, int k, const Word<T, kVector>& word) {
    Vector<T, kVector> v;
    copy<static_cast<int>(sizeof(T)) * kVector>(&v, &word);
    T* const to = &stage.a[place(k, row)];
    DYN_UNROLL
    for (int i = 0; i < kVector; ++i) to[i * kPitch] = v.v[i];
  }
  // Of two neighbouring rows of halves, the first of them even.
  template <int kVector>
  static DYN_DEVICE void put_rows(Stage& stage, int row, int k, const Word<T, kVector>& upper,
                                  const Word<T, kVector>& lower) {
    alignas(16) HalfPair a[kVector / 2];
    alignas(16) HalfPair b[kVector / 2];
    copy<2 * kVector>(a, &upper);
    copy<2 * kVector>(b, &lower);
    T* const to = &stage.a[place(k, row)];
    DYN_UNROLL
    for (int i = 0; i < kVector / 2; ++i) {
      const HalfPair even = both_first(a[i], b[i]), odd = both_second(a[i], b[i]);
      copy<4>(to + 2 * i * kPitch, &even);
      copy<4>(to + (2 * i + 1) * kPitch, &odd);
    }
  }
  template <int kVector>
  static DYN_DEVICE void put_b(Stage& stage, int k, int column, const Word<T, kVector>& word) {
    copy<static_cast<int>(sizeof(T)) * kVector>(&stage.b[k][column], &word);
  }

  // A run of inputs of one column.
  template <int kVector>
  static DYN_DEVICE void put_column(Stage& stage, int k, int column, const Word<T, kVector>& word) {
    Vector<T, kVector> v;
    copy<static_cast<int>(sizeof(T)) * kVector>(&v, &word);
    DYN_UNROLL
    for (int i = 0; i < kVector; ++i) stage.b[k + i][column] = v.v[i];
  }

  static DYN_DEVICE void clear(State& state) {
    for_threads<kThreads>([&](int t) {
      DYN_UNROLL
      for (int i = 0; i < kTM; ++i) {
        DYN_UNROLL
        for (int j = 0; j < kTN; ++j) state[t].v[i][j] = 0;
      }
      clear_parts(state[t]);
    });
  }
  static DYN_DEVICE void clear_parts(PlainSums&) {}
  static DYN_DEVICE void clear_parts(HalfSums& sums) {
    DYN_UNROLL
    for (int i = 0; i < kTM; ++i) {
      DYN_UNROLL
      for (int j = 0; j < kTN / 2; ++j) sums.part[i][j] = zero_pair();
    }
  }

  static DYN_DEVICE int first_row(int t) { return t / (kBN / kTN) * kEach; }
  static DYN_DEVICE int column(int t, int run) { return run * (kBN / (kTN / kRun)) + t % (kBN / kTN) * kRun; }

  // `settle` says that kSettles products, or the segment, end here.
  static DYN_DEVICE void accumulate(const Stage& stage, State& state, bool settle) {
    for_threads<kThreads>([&](int t) { add(stage, t, state[t], settle); });
  }

  static DYN_DEVICE void accumulate_columns(const Stage& stage, State& state, bool settle) {
    accumulate(stage, state, settle);
  }

  static DYN_DEVICE void add(const Stage& stage, int t, PlainSums& sums, bool) {
    DYN_UNROLL
    for (int k = 0; k < kDepth; ++k) {
      alignas(16) T a[kTM];
      alignas(16) T b[kTN];
      DYN_UNROLL
      for (int i = 0; i < kTM; i += 4) copy<16>(a + i, &stage.a[place(k, first_row(t) + i)]);
      DYN_UNROLL
      for (int j = 0; j < kTN; j += kRun) copy<16>(b + j, &stage.b[k][column(t, j / kRun)]);
      DYN_UNROLL
      for (int i = 0; i < kTM; ++i) {
        DYN_UNROLL
        for (int j = 0; j < kTN; ++j) sums.v[i][j] = multiply_add(a[i], b[j], sums.v[i][j]);
      }
    }
  }

  // Pairs of columns. At most kSettles products are summed in halves, at twice the rate of floats, and then
  // added to floats: rounding stays near that of the operands, and long sums have none of it. (Pascal and
  // Maxwell convert at a quarter of the rate: settling after 16 products would cost a quarter of the time.)
  static DYN_DEVICE void add(const Stage& stage, int t, HalfSums& sums, bool settle) {
    DYN_UNROLL
    for (int k = 0; k < kDepth; ++k) {
      alignas(16) HalfPair a[kEach / 2];
      alignas(16) HalfPair b[kTN / 2];
      copy<2 * kEach>(a, &stage.a[place(k, first_row(t))]);
      DYN_UNROLL
      for (int j = 0; j < kTN; j += kRun) copy<2 * kRun>(b + j / 2, &stage.b[k][column(t, j / kRun)]);
      DYN_UNROLL
      for (int i = 0; i < kTM; ++i) {
        const HalfPair row = i % 2 == 0 ? both_low(a[i / 2]) : both_high(a[i / 2]);
        DYN_UNROLL
        for (int j = 0; j < kTN / 2; ++j) sums.part[i][j] = multiply_add(row, b[j], sums.part[i][j]);
      }
    }
    if (!settle) return;
    DYN_UNROLL
    for (int i = 0; i < kTM; ++i) {
      DYN_UNROLL
      for (int j = 0; j < kTN / 2; ++j) {
        sums.v[i][2 * j] += low(sums.part[i][j]);
        sums.v[i][2 * j + 1] += high(sums.part[i][j]);
      }
    }
    clear_parts(sums);
  }

  // Multiplies each row with a factor; factors[16][stride]: 16 times those of all rows.
  static DYN_DEVICE void scale_rows(State& state, const float* factors, int) {
    for_threads<kThreads>([&](int t) {
      DYN_UNROLL
      for (int i = 0; i < kTM; ++i) {
        const float factor = factors[first_row(t) + i];
        DYN_UNROLL
        for (int j = 0; j < kTN; ++j) state[t].v[i][j] *= factor;
      }
    });
  }

  // Leaves the sums in to[kRows][stride].
  static DYN_DEVICE void leave(State& state, float* to, int stride) {
    for_threads<kThreads>([&](int t) {
      DYN_UNROLL
      for (int i = 0; i < kTM; ++i) {
        DYN_UNROLL
        for (int j = 0; j < kTN; ++j)
          to[(first_row(t) + i) * stride + column(t, j / kRun) + j % kRun] = state[t].v[i][j];
      }
    });
  }

  // Calls f(row, column, sums, pitch) for each run of columns of kRowsAtOnce rows.
  static constexpr int kRowsAtOnce = kTM;
  static constexpr int kRowStride = 1;
  template <class F>
  static DYN_DEVICE void finish(Shared&, State& state, const F& f) {
    for_threads<kThreads>([&](int t) {
      DYN_UNROLL
      for (int j = 0; j < kTN; j += kRun) {
        f(first_row(t), column(t, j / kRun), &state[t].v[0][j], kTN);
      }
    });
  }
};

// Tensor cores before sm_80, FP16 products and float sums. A warp owns kWM x kWN elements in fragments of 16
// x 16.
template <int kBM, int kBN, int kWM, int kWN, int kStrip>
struct TensorTile {
  using Element = Half;
  static constexpr int kRows = kBM;
  static constexpr int kColumns = kBN;
  static constexpr int kDepth = kStrip;
  static constexpr int kWarps = kBM / kWM * (kBN / kWN);
  static constexpr int kThreads = 32 * kWarps;
  // Shared memory has no room for a second large block.
  static constexpr int kBlocks = kThreads > 128 ? 1 : 512 / kThreads;
  static constexpr int kPad = 8;
  static constexpr int kScratch = 20;  // keeps the rows of a fragment on different banks
  static constexpr int kRun = 8;
  static constexpr int kRowsAtOnce = 1;
  static constexpr int kRowStride = 1;
  static constexpr bool kTensorCores = true;
  static constexpr int kSettles = kDepth;
  static constexpr bool kAsync = false;
  static constexpr bool kServed = DYN_TENSOR_CORES;
  static double busy(long long blocks) { return busy_warps(blocks, kBlocks, kThreads); }

  struct alignas(32) Stage {
    Half a[kBM][kDepth + kPad];
    Half b[kDepth][kBN + kPad];
  };
  union alignas(32) Shared {
    Stage stages[2];
    float scratch[kWarps][16][kScratch];
  };
  struct Fragments {
    FragmentC c[kWM / 16][kWN / 16];
  };
  using State = PerThread<Fragments, kWarps>;

  template <int kVector>
  static DYN_DEVICE void put_a(Stage& stage, int row, int k, const Word<Half, kVector>& word) {
    copy<2 * kVector>(&stage.a[row][k], &word);
  }
  template <int kVector>
  static DYN_DEVICE void put_rows(Stage& stage, int row, int k, const Word<Half, kVector>& upper,
                                  const Word<Half, kVector>& lower) {
    put_a<kVector>(stage, row, k, upper);
    put_a<kVector>(stage, row + 1, k, lower);
  }
  template <int kVector>
  static DYN_DEVICE void put_b(Stage& stage, int k, int column, const Word<Half, kVector>& word) {
    copy<2 * kVector>(&stage.b[k][column], &word);
  }

  template <int kVector>
  static DYN_DEVICE void put_column(Stage& stage, int k, int column, const Word<Half, kVector>& word) {
    Vector<Half, kVector> v;
    copy<2 * kVector>(&v, &word);
    DYN_UNROLL
    for (int i = 0; i < kVector; ++i) stage.b[k + i][column] = v.v[i];
  }

  static DYN_DEVICE int warp_row(int warp) { return warp / (kBN / kWN) * kWM; }
  static DYN_DEVICE int warp_column(int warp) { return warp % (kBN / kWN) * kWN; }

  static DYN_DEVICE void clear(State& state) {
    for_warps<kWarps>([&](int w) {
      DYN_UNROLL
      for (int i = 0; i < kWM / 16; ++i) {
        DYN_UNROLL
        for (int j = 0; j < kWN / 16; ++j) fill(state[w].c[i][j], 0.0f);
      }
    });
  }

  static DYN_DEVICE void accumulate(const Stage& stage, State& state, bool) {
    for_warps<kWarps>([&](int w) {
      DYN_UNROLL
      for (int k = 0; k < kDepth; k += 16) {
        // Only one operand stays whole in registers, the shorter one.
        FragmentB b[kWN / 16];
        DYN_UNROLL
        for (int j = 0; j < kWN / 16; ++j) load(b[j], &stage.b[k][warp_column(w) + 16 * j], kBN + kPad);
        DYN_UNROLL
        for (int i = 0; i < kWM / 16; ++i) {
          FragmentA a;
          load(a, &stage.a[warp_row(w) + 16 * i][k], kDepth + kPad);
          DYN_UNROLL
          for (int j = 0; j < kWN / 16; ++j) multiply_add(state[w].c[i][j], a, b[j]);
        }
      }
    });
  }

  static DYN_DEVICE void accumulate_columns(const Stage& stage, State& state, bool settle) {
    accumulate(stage, state, settle);
  }

  // Which thread holds which element is hidden, but equal fragments hold theirs alike: one of factors, whose
  // columns are all the same, multiplies the sums element by element.
  static DYN_DEVICE void scale_rows(State& state, const float* factors, int stride) {
    for_warps<kWarps>([&](int w) {
      DYN_UNROLL
      for (int i = 0; i < kWM / 16; ++i) {
        FragmentC factor;
        load_columns(factor, factors + warp_row(w) + 16 * i, stride);
        DYN_UNROLL
        for (int j = 0; j < kWN / 16; ++j) multiply(state[w].c[i][j], factor);
      }
    });
  }

  static DYN_DEVICE void leave(State& state, float* to, int stride) {
    for_warps<kWarps>([&](int w) {
      DYN_UNROLL
      for (int i = 0; i < kWM / 16; ++i) {
        DYN_UNROLL
        for (int j = 0; j < kWN / 16; ++j) {
          store(to + (warp_row(w) + 16 * i) * stride + warp_column(w) + 16 * j, state[w].c[i][j], stride);
        }
      }
    });
  }

  // Fragments hide which thread holds which element, so they pass through shared memory, which the strips
  // have left.
  template <class F>
  static DYN_DEVICE void finish(Shared& shared, State& state, const F& f) {
    sync();
    DYN_UNROLL
    for (int i = 0; i < kWM / 16; ++i) {
      DYN_UNROLL
      for (int j = 0; j < kWN / 16; ++j) {
        for_warps<kWarps>([&](int w) { store(&shared.scratch[w][0][0], state[w].c[i][j], kScratch); });
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

// The tiles of every kind, by size. A board of one or two multiprocessors keeps busy with large ones; at
// batch 1 a large GPU needs many small ones, and so does whoever skips most of a 7 x 7 map: small tiles of
// lanes have few rows and the columns of the others. (16 x 128 of 8 x 8 each were one warp a block, of which
// shared memory holds six.)
//
// The shares: what the main loop reaches of the peak when enough warps are resident, in percent, modelled by
// benchmarks/gpu/modelled.py; only their proportions matter.
template <class T>
struct Lanes {
  using Tiny = LaneTile<T, 16, 64, 4, 8, 10>;
  using Small = Tiny;
  using Medium = LaneTile<T, 64, 64, 8, 4, 4>;
  using Large = LaneTile<T, 128, 64, 8, 8, 3>;
  // The largest whose gathered columns leave it the registers.
  using Gathers = Medium;
  // Of addresses of single elements, those of 8 x 8 for each thread would not fit into registers.
  using Single = LaneTile<T, 64, 64, 8, 4, 4>;
  static int share(Size size) { return size == Size::kLarge ? 60 : size == Size::kMedium ? 52 : 40; }
};
// Halves need 8 x 8 for each thread: of fewer, shared memory returns less than HFMA2 takes. Two warps a block
// are enough, because six blocks fit on a multiprocessor.
template <>
struct Lanes<Half> {
  using Tiny = LaneTile<Half, 16, 64, 4, 8, 10>;
  using Small = LaneTile<Half, 32, 64, 4, 8, 8>;
  // Sides of 7, 14 and 28 pixels, and half as many patches, make rows in sevens: 49 of 56, 196 of 224.
  using Medium = LaneTile<Half, 56, 64, 7, 8, 6>;
  using Large = LaneTile<Half, 64, 64, 8, 8, 6>;
  using Gathers = Large;
  using Single = LaneTile<Half, 64, 64, 8, 4, 4>;
  static int share(Size size) {
    return size == Size::kLarge ? 65 : size == Size::kMedium ? 62 : size == Size::kSmall ? 48 : 42;
  }
};
struct Tensors {
  // Few blocks hide little latency, so the small ones take longer strips.
  using Tiny = TensorTile<32, 32, 16, 16, 64>;
  using Small = Tiny;
  using Medium = TensorTile<64, 64, 32, 32, 32>;
  using Large = TensorTile<128, 128, 64, 32, 32>;
  using Gathers = Medium;
  static int share(Size size) { return size == Size::kLarge ? 53 : size == Size::kMedium ? 36 : 19; }
};

}  // namespace cuda
}  // namespace dyndeploy
