// Deformable attention: every head of every query sums bilinear samples of several maps, at points of its
// own.
#include "kernels.h"
#include "platform.h"

namespace dyndeploy {
namespace cuda {
namespace {

constexpr int kSamplingThreads = 128;
constexpr int kStaged = 512;  // samples whose cells and weights a block holds at a time

struct SamplingArguments {
  DeformableAttentionShape shape;
  const void* value;
  const float *locations, *weights;
  void* y;
  int lanes;  // runs of channels of a head
  int pairs;  // of a query and a head, that a block computes
  int total;  // pairs in all
};

// The four cells of a sample: their places in the maps of an image, -1 outside, and their shares. Whole, so
// that threads read it in two accesses.
struct alignas(16) Sample {
  int cells[4];
  float shares[4];
};

DYN_DEVICE int round_down(float value) {
  const int whole = static_cast<int>(value);
  return value < static_cast<float>(whole) ? whole - 1 : whole;
}

DYN_DEVICE Sample sample_of(float x, float y, float weight, int first, int height, int width) {
  Sample sample = {{-1, -1, -1, -1}, {0.0f, 0.0f, 0.0f, 0.0f}};
  const float column = x * static_cast<float>(width) - 0.5f, row = y * static_cast<float>(height) - 0.5f;
  // False where a coordinate is no number, too.
  if (!(column > -1.0f && column < static_cast<float>(width) && row > -1.0f &&
        row < static_cast<float>(height))) {
    return sample;
  }
  const int left = round_down(column), top = round_down(row);
  const float across = column - static_cast<float>(left), down = row - static_cast<float>(top);
  DYN_UNROLL
  for (int i = 0; i < 4; ++i) {
    const int r = top + i / 2, c = left + i % 2;
    if (r < 0 || r >= height || c < 0 || c >= width) continue;
    sample.cells[i] = first + r * width + c;
    sample.shares[i] = weight * (i / 2 ? down : 1.0f - down) * (i % 2 ? across : 1.0f - across);
  }
  return sample;
}

// One thread for a run of channels of a query's head. What the threads of a head share, where samples lie and
// how much they count, is computed once and stands in shared memory.
template <class T, int kVector>
struct SamplingKernel {
  using Arguments = SamplingArguments;
  static constexpr int kThreads = kSamplingThreads;
  static constexpr int kBlocks = 4;

  static DYN_DEVICE void run(const Arguments& a, Index block) {
    struct Sums {
      float v[kVector];
    };
    DYN_SHARED_ARRAY(Sample, samples, kStaged);
    PerThread<Sums, kThreads> sums;
    const DeformableAttentionShape& s = a.shape;
    const int first = block.x * a.pairs, here = smaller(a.pairs, a.total - first);
    const int each = s.levels * s.points;
    const int chunk = kStaged / a.pairs;
    const int lane0 = block.y * kThreads;
    for_threads<kThreads>([&](int t) { sums[t] = Sums(); });
    for (int begin = 0; begin < each; begin += chunk) {
      const int count = smaller(chunk, each - begin);
      for_threads<kThreads>([&](int t) {
        for (int i = t; i < here * count; i += kThreads) {
          const int at = begin + i % count, level = at / s.points;
          const std::size_t place = static_cast<std::size_t>(first + i / count) * each + at;
          int start = 0;
          for (int l = 0; l < level; ++l) start += s.sizes[2 * l] * s.sizes[2 * l + 1];
          samples[i] = sample_of(a.locations[2 * place], a.locations[2 * place + 1], a.weights[place], start,
                                 s.sizes[2 * level], s.sizes[2 * level + 1]);
        }
      });
      sync();
      for_threads<kThreads>([&](int t) {
        const int pair = t / a.lanes, lane = lane0 + t % a.lanes;
        if (pair >= here || lane * kVector >= s.channels) return;
        const int at = first + pair, head = at % s.heads, sample = at / s.heads / s.queries;
        const std::size_t row = static_cast<std::size_t>(s.heads) * s.channels;
        const T* value = static_cast<const T*>(a.value) + static_cast<std::size_t>(sample) * s.cells * row +
                         static_cast<std::size_t>(head) * s.channels + lane * kVector;
        Sums sum = sums[t];
        for (int i = 0; i < count; ++i) {
          const Sample& one = samples[pair * count + i];
          DYN_UNROLL
          for (int k = 0; k < 4; ++k) {
            Vector<T, kVector> v;
            load_or_clear<static_cast<int>(sizeof(T)) * kVector>(
                &v, value + static_cast<std::size_t>(one.cells[k] < 0 ? 0 : one.cells[k]) * row,
                one.cells[k] >= 0);
            DYN_UNROLL
            for (int e = 0; e < kVector; ++e)
              sum.v[e] = multiply_add(to_float(v.v[e]), one.shares[k], sum.v[e]);
          }
        }
        sums[t] = sum;
      });
      sync();
    }
    for_threads<kThreads>([&](int t) {
      const int pair = t / a.lanes, lane = lane0 + t % a.lanes;
      if (pair >= here || lane * kVector >= s.channels) return;
      Vector<T, kVector> out;
      DYN_UNROLL
      for (int e = 0; e < kVector; ++e) from_float(sums[t].v[e], out.v[e]);
      store_vector(
          static_cast<T*>(a.y) + static_cast<std::size_t>(first + pair) * s.channels + lane * kVector, out);
    });
  }
};

template <class T, int kVector>
int launch_sampling(SamplingArguments a, void* stream) {
  const int lanes = divide_up(a.shape.channels, kVector);
  a.lanes = smaller(lanes, kSamplingThreads);
  a.pairs = kSamplingThreads / a.lanes;
  return launch<SamplingKernel<T, kVector>>(divide_up(a.total, a.pairs), divide_up(lanes, a.lanes), a,
                                            stream);
}

}  // namespace

const char* check_deformable_attention(const DeformableAttentionShape& s) {
  if (s.levels < 1 || s.levels > kMostSampledMaps) return "there are too many maps";
  const std::int64_t pairs = static_cast<std::int64_t>(s.batch) * s.queries * s.heads;
  const std::int64_t row = static_cast<std::int64_t>(s.heads) * s.channels;
  if (pairs > INT32_MAX / 2 || row * s.cells > INT32_MAX || s.channels > INT32_MAX / 2 / s.heads ||
      static_cast<std::int64_t>(s.levels) * s.points > INT32_MAX / kSamplingThreads) {
    return "the maps or the queries are too large";
  }
  return nullptr;
}

int deformable_attention_vector(const DeformableAttentionShape& shape, Type type) {
  return masker_vector(shape.channels, type);
}

int run_deformable_attention(const DeformableAttentionShape& shape, Type type, const void* value,
                             const float* locations, const float* weights, void* y, void* stream) {
  const SamplingArguments a = {shape, value, locations, weights,
                               y,     0,     0,         shape.batch * shape.queries * shape.heads};
  const bool vectors =
      deformable_attention_vector(shape, type) > 1 &&
      (reinterpret_cast<std::uintptr_t>(value) | reinterpret_cast<std::uintptr_t>(y)) % 16 == 0;
  if (type == Type::kHalf)
    return vectors ? launch_sampling<Half, 8>(a, stream) : launch_sampling<Half, 1>(a, stream);
  return vectors ? launch_sampling<float, 4>(a, stream) : launch_sampling<float, 1>(a, stream);
}

}  // namespace cuda
}  // namespace dyndeploy
