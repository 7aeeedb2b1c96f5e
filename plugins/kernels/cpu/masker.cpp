#include "masker.h"

#include <algorithm>
#include <cstdint>

#include "shape.h"

namespace dyndeploy::cpu {
namespace {

// Below this a fork costs more than the second thread brings.
constexpr std::int64_t kWorthForking = 1 << 17;
// Pixels of a bin from which on adding up all its bytes apart pays.
constexpr int kWorthSumming = 8;

int bin_begin(int i, int size, int bins) {
  return static_cast<int>(static_cast<std::int64_t>(i) * size / bins);
}
int bin_end(int i, int size, int bins) {
  return static_cast<int>((static_cast<std::int64_t>(i + 1) * size + bins - 1) / bins);
}

ThreadPool limited(const ThreadPool& pool, std::int64_t work) {
  ThreadPool limited = pool;
  if (work < kWorthForking) limited.threads = 1;
  return limited;
}

// One bin of an adaptive pooling.
struct Bin {
  std::ptrdiff_t offset;  // of its first pixel
  int rows;
  int columns;

  float pixels() const { return static_cast<float>(rows * columns); }
};

// prepare(bin, worker) is called before its dot(bin, weights of a group, worker): the sum, over the bin's
// pixels and all channels, of x times weight.
template <class T, class Prepare, class Dot>
void spatial_masker(const MaskerInputOf<T>& input, const float* weight, const float* bias, int groups,
                    int mask_height, int mask_width, float* mask, const ThreadPool& pool,
                    const Prepare& prepare, const Dot& dot) {
  const std::ptrdiff_t pixel = input.channels;
  const std::ptrdiff_t row = input.width * pixel;
  const auto body = [&](int backwards, int worker) {
    const int task = input.batch * mask_height - 1 - backwards;
    const int n = task / mask_height, i = task % mask_height;
    const int top = bin_begin(i, input.height, mask_height), bottom = bin_end(i, input.height, mask_height);
    for (int j = mask_width - 1; j >= 0; --j) {
      const int left = bin_begin(j, input.width, mask_width), right = bin_end(j, input.width, mask_width);
      const Bin bin{(static_cast<std::ptrdiff_t>(n) * input.height + top) * row + left * pixel, bottom - top,
                    right - left};
      prepare(bin, worker);
      for (int g = 0; g < groups; ++g) {
        const float* row_weight = weight + static_cast<std::ptrdiff_t>(g) * input.channels;
        const float mean = dot(bin, row_weight, worker) / bin.pixels();
        float* to = mask + ((static_cast<std::ptrdiff_t>(n) * groups + g) * mask_height + i) * mask_width;
        to[j] = mean + bias[g] >= 0.0f ? 1.0f : 0.0f;
      }
    }
  };
  const Phase phase(input.batch * mask_height, body);
  const std::int64_t work = static_cast<std::int64_t>(input.batch) * input.height * row;
  run_phases(limited(pool, work), &phase, 1);
}

// sums(image, first channel, end, to) writes the sums of these channels over all pixels.
template <class T, class Sums>
void channel_masker(const Isa& isa, const MaskerInputOf<T>& input, const ChannelMaskerWeights& weights,
                    float* mask, Workspace& workspace, const ThreadPool& pool, int lane_block,
                    const Sums& sums) {
  const int C = input.channels, batch = input.batch;
  const int pixels = input.height * input.width;
  const int features = weights.hidden_weight ? weights.hidden : C;
  auto* mean = workspace.take<float>(static_cast<std::size_t>(batch) * C);
  float* hidden =
      weights.hidden_weight ? workspace.take<float>(static_cast<std::size_t>(batch) * features) : mean;

  const int threads = std::max(1, pool.threads);
  const int slices = std::min(threads, ceil_to_int(C, lane_block));
  const auto pool_body = [&](int task, int) {
    const int n = task / slices, slice = task % slices;
    const int blocks = ceil_to_int(C, lane_block);
    const int begin = blocks * slice / slices * lane_block;
    const int end = std::min(C, blocks * (slice + 1) / slices * lane_block);
    float* to = mean + static_cast<std::ptrdiff_t>(n) * C + begin;
    sums(n, begin, end, to);
    for (int c = 0; c < end - begin; ++c) to[c] /= static_cast<float>(pixels);
  };
  const int hidden_parts = std::min(threads, std::max(1, weights.hidden / 8));
  const auto hidden_body = [&](int task, int) {
    const int begin = weights.hidden * task / hidden_parts, end = weights.hidden * (task + 1) / hidden_parts;
    for (int i = begin; i < end; ++i) {
      const float* row = weights.hidden_weight + static_cast<std::ptrdiff_t>(i) * C;
      for (int n = 0; n < batch; ++n) {
        const float v = isa.dot(mean + static_cast<std::ptrdiff_t>(n) * C, row, C) + weights.hidden_bias[i];
        hidden[static_cast<std::ptrdiff_t>(n) * features + i] = v < 0.0f ? 0.0f : v;
      }
    }
  };
  const int mask_parts = std::min(threads, std::max(1, weights.groups / 8));
  const auto mask_body = [&](int task, int) {
    const int begin = weights.groups * task / mask_parts, end = weights.groups * (task + 1) / mask_parts;
    for (int i = begin; i < end; ++i) {
      const float* row = weights.weight + static_cast<std::ptrdiff_t>(i) * features;
      for (int n = 0; n < batch; ++n) {
        const float v =
            isa.dot(hidden + static_cast<std::ptrdiff_t>(n) * features, row, features) + weights.bias[i];
        mask[static_cast<std::ptrdiff_t>(n) * weights.groups + i] = v >= 0.0f ? 1.0f : 0.0f;
      }
    }
  };
  Phase phases[3];
  int count = 0;
  phases[count++] = Phase(batch * slices, pool_body);
  if (weights.hidden_weight) phases[count++] = Phase(hidden_parts, hidden_body);
  phases[count++] = Phase(mask_parts, mask_body);
  const std::int64_t work = static_cast<std::int64_t>(batch) * pixels * C +
                            static_cast<std::int64_t>(weights.groups) * features +
                            static_cast<std::int64_t>(weights.hidden) * C;
  run_phases(limited(pool, work), phases, count);
}

}  // namespace

void run_spatial_masker(const Isa& isa, const MaskerInput& input, const float* weight, const float* bias,
                        int groups, int mask_height, int mask_width, float* mask, const ThreadPool& pool) {
  const auto dot = [&](const Bin& bin, const float* row_weight, int) {
    PooledDot d;
    d.x = input.x + bin.offset;
    d.pixel_stride = input.channels;
    d.row_stride = static_cast<std::ptrdiff_t>(input.width) * input.channels;
    d.rows = bin.rows;
    d.columns = bin.columns;
    d.weight = row_weight;
    d.channels = input.channels;
    return isa.pooled_dot(d);
  };
  const auto nothing = [](const Bin&, int) {};
  spatial_masker(input, weight, bias, groups, mask_height, mask_width, mask, pool, nothing, dot);
}

void run_spatial_masker(const Isa& isa, const ByteMaskerInput& input, const float* weight, const float* bias,
                        int groups, int mask_height, int mask_width, float* mask, Workspace& workspace,
                        const ThreadPool& pool) {
  const int C = input.channels;
  auto* sums = workspace.take<float>(static_cast<std::size_t>(std::max(1, pool.threads)) * C);
  const auto sum = [&](const Bin& bin, int worker) {
    if (bin.rows * bin.columns < kWorthSumming) return;
    ByteSums s;
    s.x = input.x + bin.offset;
    s.pixel_stride = C;
    s.row_stride = static_cast<std::ptrdiff_t>(input.width) * C;
    s.rows = bin.rows;
    s.columns = bin.columns;
    s.channels = C;
    s.sums = sums + static_cast<std::ptrdiff_t>(worker) * C;
    isa.byte_sums(s);
  };
  const auto dot = [&](const Bin& bin, const float* row_weight, int worker) {
    if (bin.rows * bin.columns < kWorthSumming) {
      BytePooledDot d;
      d.x = input.x + bin.offset;
      d.pixel_stride = C;
      d.row_stride = static_cast<std::ptrdiff_t>(input.width) * C;
      d.rows = bin.rows;
      d.columns = bin.columns;
      d.weight = row_weight;
      d.channels = C;
      return isa.byte_dot(d);
    }
    return isa.dot(sums + static_cast<std::ptrdiff_t>(worker) * C, row_weight, C);
  };
  spatial_masker(input, weight, bias, groups, mask_height, mask_width, mask, pool, sum, dot);
}

void run_channel_masker(const Isa& isa, const MaskerInput& input, const ChannelMaskerWeights& weights,
                        float* mask, Workspace& workspace, const ThreadPool& pool) {
  const int pixels = input.height * input.width;
  const auto sum = [&](int n, int begin, int end, float* to) {
    ColumnSums sums;
    sums.x = input.x + static_cast<std::ptrdiff_t>(n) * pixels * input.channels + begin;
    sums.stride = input.channels;
    sums.pixels = pixels;
    sums.channels = end - begin;
    sums.sums = to;
    isa.column_sums(sums);
  };
  channel_masker(isa, input, weights, mask, workspace, pool, std::max(4 * isa.vector_width, 16), sum);
}

void run_channel_masker(const Isa& isa, const ByteMaskerInput& input, const ChannelMaskerWeights& weights,
                        float* mask, Workspace& workspace, const ThreadPool& pool) {
  const int pixels = input.height * input.width;
  const auto sum = [&](int n, int begin, int end, float* to) {
    ByteSums sums;
    sums.x = input.x + static_cast<std::ptrdiff_t>(n) * pixels * input.channels + begin;
    sums.pixel_stride = input.channels;
    sums.rows = 1;
    sums.columns = pixels;
    sums.channels = end - begin;
    sums.sums = to;
    isa.byte_sums(sums);
  };
  constexpr int kLine = 64;  // bytes: threads share no line of x
  channel_masker(isa, input, weights, mask, workspace, pool, kLine, sum);
}

}  // namespace dyndeploy::cpu
