// Reading boxes from the levels of a feature pyramid (RoI align): average pooling of bilinear samples.
//
// A sample's weights are those of its row times those of its column, so the mean over a bin is a sum over the
// cells under it: every cell is read once, not once for each of four corners of each sample.
#include "kernels.h"
#include "platform.h"

namespace dyndeploy {
namespace cuda {
namespace {

constexpr int kRegionThreads = 256;
constexpr int kRegionChannels = 32;  // that a block reads of a box
constexpr int kBins = 16;            // along an axis, whose weights fit in shared memory
constexpr int kBinCells = 8;         // of a bin along an axis, likewise
// Of one bin along one axis. A box that asks for more, or whose sides are no numbers, gives 0.
constexpr float kMostSamples = 1 << 15;

struct RegionsArguments {
  RegionsShape shape;
  const void* maps[kPyramidLevels];
  const float* boxes;
  const std::int32_t* levels;
  void* y;
};

// The samples of a box along an axis.
struct RegionAxis {
  float begin;   // in cells
  float length;  // of a bin
  int samples;   // of a bin; 0: the box is empty
  int cells;     // of the map
};

DYN_DEVICE RegionAxis axis_of(float from, float to, int stride, int cells, int size) {
  const float scale = 1.0f / static_cast<float>(stride);
  RegionAxis axis = {from * scale - 0.5f, 0.0f, 0, cells};
  axis.length = (to * scale - 0.5f - axis.begin) / static_cast<float>(size);
  if (axis.length > 0.0f && axis.length <= kMostSamples) {
    axis.samples = static_cast<int>(axis.length);
    if (static_cast<float>(axis.samples) < axis.length) ++axis.samples;
  }
  return axis;
}

// Where a sample of a bin lies: its lower cell and the share of the one behind it; false outside the map.
DYN_DEVICE bool sample_at(const RegionAxis& axis, int bin, int sample, int* cell, float* share) {
  float at = axis.begin + static_cast<float>(bin) * axis.length +
             (static_cast<float>(sample) + 0.5f) * axis.length / static_cast<float>(axis.samples);
  if (!(at >= -1.0f && at <= static_cast<float>(axis.cells))) return false;
  const int last = axis.cells - 1;
  at = at > 0.0f ? at : 0.0f;
  at = at < static_cast<float>(last) ? at : static_cast<float>(last);
  *cell = static_cast<int>(at);
  *share = at - static_cast<float>(*cell);
  return true;
}

// The cells of a bin along one axis.
struct RegionBin {
  int first, count;
  float weights[kBinCells];
};

// Not more than fit: samples are at most a cell apart.
DYN_DEVICE bool fits(const RegionAxis& axis, int size) {
  return size <= kBins && axis.samples + 2 <= kBinCells;
}

DYN_DEVICE void fill_bin(const RegionAxis& axis, int bin, RegionBin& found) {
  const float each = 1.0f / static_cast<float>(axis.samples);
  int first = 0, count = 0;
  DYN_UNROLL
  for (int k = 0; k < kBinCells; ++k) found.weights[k] = 0.0f;
  for (int i = 0; i < axis.samples; ++i) {
    int cell;
    float share;
    if (!sample_at(axis, bin, i, &cell, &share)) continue;
    if (count == 0) first = cell;
    found.weights[cell - first] += (1.0f - share) * each;
    count = cell - first + 1 > count ? cell - first + 1 : count;
    if (share > 0.0f) {
      found.weights[cell - first + 1] += share * each;
      count = cell - first + 2;
    }
  }
  found.first = first;
  found.count = count;
}

// One block for a box and some of its channels.
template <class T>
struct RegionsKernel {
  using Arguments = RegionsArguments;
  static constexpr int kThreads = kRegionThreads;
  static constexpr int kBlocks = 2;

  static DYN_DEVICE void run(const Arguments& a, Index block) {
    DYN_SHARED_ARRAY(RegionBin, bins, 2 * kBins);
    const RegionsShape& s = a.shape;
    const float* box = a.boxes + 4 * static_cast<std::size_t>(block.x);
    const int asked = a.levels[block.x];
    const int level = asked < 0 ? 0 : smaller(asked, kPyramidLevels - 1);
    // Chosen one by one: arguments that an index picks would be copied to local memory.
    int stride = s.strides[0], height = s.heights[0], width = s.widths[0];
    const void* maps = a.maps[0];
    DYN_UNROLL
    for (int l = 1; l < kPyramidLevels; ++l) {
      if (l != level) continue;
      stride = s.strides[l];
      height = s.heights[l];
      width = s.widths[l];
      maps = a.maps[l];
    }
    const RegionAxis across = axis_of(box[0], box[2], stride, width, s.size);
    const RegionAxis down = axis_of(box[1], box[3], stride, height, s.size);
    const int channel0 = block.y * kRegionChannels;
    const int channels = smaller(kRegionChannels, s.channels - channel0);
    const int square = s.size * s.size, total = channels * square;
    const std::size_t plane = static_cast<std::size_t>(height) * width;
    const T* map = static_cast<const T*>(maps) + channel0 * plane;
    T* y = static_cast<T*>(a.y) + (static_cast<std::size_t>(block.x) * s.channels + channel0) * square;
    const bool empty = across.samples == 0 || down.samples == 0;
    const bool tabled = !empty && fits(across, s.size) && fits(down, s.size);
    if (tabled) {
      for_threads<kThreads>([&](int t) {
        if (t < s.size) fill_bin(down, t, bins[t]);
        if (t >= s.size && t < 2 * s.size) fill_bin(across, t - s.size, bins[t]);
      });
      sync();
    }
    for_threads<kThreads>([&](int t) {
      for (int i = t; i < total; i += kThreads) {
        const int row = i % square / s.size, column = i % s.size;
        const T* cells = map + static_cast<std::size_t>(i / square) * plane;
        const float sum = empty    ? 0.0f
                          : tabled ? sum_of_cells(bins[row], bins[s.size + column], cells, width)
                                   : sum_of_samples(down, across, row, column, cells, width);
        from_float(sum, y[i]);
      }
    });
  }

  static DYN_DEVICE float sum_of_cells(const RegionBin& down, const RegionBin& across, const T* cells,
                                       int width) {
    float sum = 0.0f;
    const T* from = cells + static_cast<std::size_t>(down.first) * width + across.first;
    for (int r = 0; r < down.count; ++r, from += width) {
      float line = 0.0f;
      for (int c = 0; c < across.count; ++c) line = multiply_add(to_float(from[c]), across.weights[c], line);
      sum = multiply_add(line, down.weights[r], sum);
    }
    return sum;
  }

  static DYN_DEVICE float sum_of_samples(const RegionAxis& down, const RegionAxis& across, int row,
                                         int column, const T* cells, int width) {
    float sum = 0.0f;
    for (int i = 0; i < down.samples; ++i) {
      int top, left;
      float low, right;
      if (!sample_at(down, row, i, &top, &low)) continue;
      const T* upper = cells + static_cast<std::size_t>(top) * width;
      const T* lower = top + 1 < down.cells ? upper + width : upper;
      for (int j = 0; j < across.samples; ++j) {
        if (!sample_at(across, column, j, &left, &right)) continue;
        const int next = smaller(left + 1, across.cells - 1);
        sum += (1.0f - low) * ((1.0f - right) * to_float(upper[left]) + right * to_float(upper[next])) +
               low * ((1.0f - right) * to_float(lower[left]) + right * to_float(lower[next]));
      }
    }
    return sum / (static_cast<float>(down.samples) * static_cast<float>(across.samples));
  }
};

}  // namespace

const char* check_regions(const RegionsShape& s) {
  const std::int64_t square = static_cast<std::int64_t>(s.size) * s.size;
  if (s.size < 1 || s.size >= 1 << 15) return "size must be from 1 to 32767";
  if (square * s.channels > INT32_MAX) return "there are too many channels or cells";
  for (int level = 0; level < kPyramidLevels; ++level) {
    if (static_cast<std::int64_t>(s.heights[level]) * s.widths[level] * s.channels > INT32_MAX)
      return "the maps are too large";
  }
  return nullptr;
}

int run_regions(const RegionsShape& shape, Type type, const void* const* maps, const float* boxes,
                const std::int32_t* levels, void* y, void* stream) {
  RegionsArguments a = {shape, {}, boxes, levels, y};
  for (int level = 0; level < kPyramidLevels; ++level) a.maps[level] = maps[level];
  const int parts = divide_up(shape.channels, kRegionChannels);
  return type == Type::kHalf ? launch<RegionsKernel<Half>>(shape.count, parts, a, stream)
                             : launch<RegionsKernel<float>>(shape.count, parts, a, stream);
}

}  // namespace cuda
}  // namespace dyndeploy
