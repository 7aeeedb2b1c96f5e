// Sums over rows of a map, channel by channel, in a fixed order whatever the device.
#pragma once

#include "bytes.h"

namespace dyndeploy {
namespace cuda {

constexpr int kPoolThreads = 256;

// Parts of a sample that are summed side by side. Of the shape alone, so that a result does not depend on the
// device.
inline int pooling_parts(int pixels) {
  const int parts = divide_up(pixels, 64);
  return parts > 32 ? 32 : parts;
}

// Sums of part `part` of `parts` of `rows` rows of `channels` elements, which stand `stride` elements apart:
// `sums` gets one float for each channel. Threads that share a channel take turns with the rows. Vectors: the
// channels are filled up to whole ones, in rows and sums.
template <class T, int kVector>
DYN_DEVICE void sum_rows(const T* from, int rows, int channels, int stride, int part, int parts,
                         float* result) {
  struct Sums {
    float v[kVector];
  };
  DYN_SHARED_ARRAY(Sums, sums, kPoolThreads);
  const int size = divide_up(rows, parts);
  const int begin = smaller(part * size, rows), end = smaller(begin + size, rows);
  const int runs = divide_up(channels, kVector);
  const int side = smaller(runs, kPoolThreads), turns = side > 0 ? kPoolThreads / side : 0;
  for (int run0 = 0; run0 < runs; run0 += side) {
    for_threads<kPoolThreads>([&](int t) {
      const int run = run0 + t % side, turn = t / side;
      float sum[kVector] = {};
      if (run < runs && turn < turns) {
        DYN_UNROLL4
        for (int p = begin + turn; p < end; p += turns) {
          const Vector<T, kVector> v =
              load_vector<T, kVector>(from + static_cast<std::size_t>(p) * stride + run * kVector);
          DYN_UNROLL
          for (int e = 0; e < kVector; ++e) sum[e] += to_float(v.v[e]);
        }
      }
      DYN_UNROLL
      for (int e = 0; e < kVector; ++e) sums[t].v[e] = sum[e];
    });
    sync();
    for_threads<kPoolThreads>([&](int t) {
      const int run = run0 + t;
      if (t >= side || run >= runs) return;
      for (int e = 0; e < kVector; ++e) {
        float sum = 0.0f;
        for (int turn = 0; turn < turns; ++turn) sum += sums[turn * side + t].v[e];
        result[run * kVector + e] = sum;
      }
    });
    sync();
  }
}

}  // namespace cuda
}  // namespace dyndeploy
