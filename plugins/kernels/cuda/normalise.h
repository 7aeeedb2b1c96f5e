// Rows of a few hundred elements brought to mean 0 and variance 1, a warp each. Sums are floats in a fixed
// order.
#pragma once

#include "platform.h"

namespace dyndeploy {
namespace cuda {

constexpr int kNormThreads = 256;
constexpr int kNormRows = kNormThreads / 32;  // of a block

// Sum of what the threads of each warp bring, for all of them.
template <class Value>
DYN_DEVICE void sum_warps(float (&sums)[kNormThreads], PerThread<float, kNormThreads>& result,
                          const Value& value) {
  sync();
  for_threads<kNormThreads>([&](int t) { sums[t] = value(t); });
  sync();
  for_threads<kNormThreads>([&](int t) {
    float sum = 0.0f;
    for (int i = 0; i < 32; ++i) sum += sums[t / 32 * 32 + i];
    result[t] = sum;
  });
}

// What thread t of a warp reads of its row: use(t, first, values) for each kVector values. from: null reads
// nothing.
template <class T, int kVector, class Use>
DYN_DEVICE void each_vector(const T* from, int t, int width, const Use& use) {
  if (from == nullptr) return;
  for (int c = t % 32 * kVector; c < width; c += 32 * kVector) {
    Vector<T, kVector> v;
    copy<static_cast<int>(sizeof(T)) * kVector>(&v, from + c);
    float values[kVector];
    DYN_UNROLL
    for (int e = 0; e < kVector; ++e) values[e] = to_float(v.v[e]);
    use(t, c, values);
  }
}

// row(i): where row i of kNormRows begins, or null. Calls use(t, first, values) for each kVector values.
// Every thread of the block must come here.
template <class T, int kVector, class Row, class Use>
DYN_DEVICE void normalise_rows(float (&sums)[kNormThreads], int width, float epsilon, const Row& row,
                               const Use& use) {
  PerThread<float, kNormThreads> mean, variance;
  const float count = static_cast<float>(width);
  sum_warps(sums, mean, [&](int t) {
    float sum = 0.0f;
    each_vector<T, kVector>(row(t / 32), t, width, [&](int, int, const float* values) {
      DYN_UNROLL
      for (int e = 0; e < kVector; ++e) sum += values[e];
    });
    return sum;
  });
  sum_warps(sums, variance, [&](int t) {
    const float middle = mean[t] / count;
    float sum = 0.0f;
    each_vector<T, kVector>(row(t / 32), t, width, [&](int, int, const float* values) {
      DYN_UNROLL
      for (int e = 0; e < kVector; ++e) sum = multiply_add(values[e] - middle, values[e] - middle, sum);
    });
    return sum;
  });
  for_threads<kNormThreads>([&](int t) {
    const float middle = mean[t] / count, factor = 1.0f / square_root(variance[t] / count + epsilon);
    each_vector<T, kVector>(row(t / 32), t, width, [&](int, int c, const float* values) {
      float scaled[kVector];
      DYN_UNROLL
      for (int e = 0; e < kVector; ++e) scaled[e] = (values[e] - middle) * factor;
      use(t, c, scaled);
    });
  });
}

}  // namespace cuda
}  // namespace dyndeploy
