// Prefix sums over a block: from them come sorted lists, with no atomics.
#pragma once

#include "platform.h"

namespace dyndeploy {
namespace cuda {

struct Counts {
  int out, in;
  int patches;
};
DYN_DEVICE Counts operator+(Counts a, Counts b) {
  return {a.out + b.out, a.in + b.in, a.patches + b.patches};
}

constexpr int kListThreads = 512;

// A run of consecutive entries for every thread of the block.
struct Chunk {
  int begin, end;
  DYN_DEVICE Chunk(int t, int total) {
    const int size = divide_up(total, kListThreads);
    begin = smaller(t * size, total);
    end = smaller(begin + size, total);
  }
};

// Inclusive prefix sums over the block, left in `sums`.
DYN_DEVICE void scan(Counts (&sums)[kListThreads]) {
  for (int step = 1; step < kListThreads; step *= 2) {
    PerThread<Counts, kListThreads> next;
    for_threads<kListThreads>([&](int t) { next[t] = t >= step ? sums[t] + sums[t - step] : sums[t]; });
    sync();
    for_threads<kListThreads>([&](int t) { sums[t] = next[t]; });
    sync();
  }
}

}  // namespace cuda
}  // namespace dyndeploy
