// Maskers of tokens, heads and sublayers: a few dot products with rows of x, bound by reading them.
#include "kernels.h"
#include "layout.h"
#include "normalise.h"

namespace dyndeploy {
namespace cuda {
namespace {

// Row i / outputs, or token 0 of sample i / outputs, with row i % outputs of the weight.
struct RowMaskerArguments {
  const void* x;
  const float *weight, *bias;
  float* mask;
  int count, outputs, width;
  int tokens, kept;  // rows of a sample, of which so many always stay
  bool first_only, normalise;
  float epsilon;
};

template <class T, int kVector>
struct RowMaskerKernel {
  using Arguments = RowMaskerArguments;
  static constexpr int kThreads = kNormThreads;
  static constexpr int kBlocks = 2;

  static DYN_DEVICE void run(const Arguments& a, Index block) {
    DYN_SHARED_ARRAY(float, sums, kNormThreads);
    const int first = block.x * kNormRows;
    const auto row = [&](int i) -> const T* {
      if (first + i >= a.count) return nullptr;
      const std::size_t at = static_cast<std::size_t>((first + i) / a.outputs);
      return static_cast<const T*>(a.x) + at * (a.first_only ? a.tokens : 1) * a.width;
    };
    PerThread<float, kThreads> sum;
    for_threads<kThreads>([&](int t) { sum[t] = 0.0f; });
    const auto add = [&](int t, int c, const float* values) {
      const float* weight = a.weight + static_cast<std::size_t>((first + t / 32) % a.outputs) * a.width + c;
      DYN_UNROLL
      for (int e = 0; e < kVector; ++e) sum[t] = multiply_add(values[e], weight[e], sum[t]);
    };
    if (a.normalise) {
      normalise_rows<T, kVector>(sums, a.width, a.epsilon, row, add);
    } else {
      for_threads<kThreads>([&](int t) { each_vector<T, kVector>(row(t / 32), t, a.width, add); });
    }
    PerThread<float, kThreads> total;
    sum_warps(sums, total, [&](int t) { return sum[t]; });
    for_threads<kThreads>([&](int t) {
      const int i = first + t / 32;
      if (t % 32 != 0 || i >= a.count) return;
      const bool stays = !a.first_only && i % a.tokens < a.kept;
      a.mask[i] = stays || total[t] + a.bias[i % a.outputs] >= 0.0f ? 1.0f : 0.0f;
    });
  }
};

int run_rows(const RowMaskerArguments& a, Type type, void* stream) {
  const int blocks = divide_up(a.count, kNormRows);
  const bool vectors = masker_vector(a.width, type) > 1 && aligned(a.x);
  if (type == Type::kHalf) {
    return vectors ? launch<RowMaskerKernel<Half, 8>>(blocks, 1, a, stream)
                   : launch<RowMaskerKernel<Half, 1>>(blocks, 1, a, stream);
  }
  return vectors ? launch<RowMaskerKernel<float, 4>>(blocks, 1, a, stream)
                 : launch<RowMaskerKernel<float, 1>>(blocks, 1, a, stream);
}

}  // namespace

int run_token_masker(const TokenMaskerShape& s, Type type, const void* x, const float* weight,
                     const float* bias, float* mask, void* stream) {
  return run_rows({x, weight, bias, mask, s.batch * s.tokens, 1, s.width, s.tokens, s.kept, false,
                   s.normalise, s.epsilon},
                  type, stream);
}

int run_class_token_masker(const ClassTokenMaskerShape& s, Type type, const void* x, const float* weight,
                           const float* bias, float* mask, void* stream) {
  return run_rows({x, weight, bias, mask, s.batch * s.outputs, s.outputs, s.width, s.tokens, 0, true,
                   s.normalise, s.epsilon},
                  type, stream);
}

}  // namespace cuda
}  // namespace dyndeploy
