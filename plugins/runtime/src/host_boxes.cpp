#include "host_boxes.h"

#include <algorithm>
#include <cmath>
#include <map>

namespace dyndeploy {
namespace runtime {
namespace {

constexpr std::int64_t kMostPlaces = 1 << 24;
constexpr std::int64_t kMostSamples = 1 << 20;  // of a bin along an axis

void require(bool condition, const char* what) {
  if (!condition) throw ProgramError(what);
}

void require_boxes(const Value& boxes, std::size_t count) {
  require(boxes.type == DYNDEPLOY_FLOAT32 && boxes.shape == Shape({static_cast<std::int64_t>(count), 4}),
          "its boxes are no float32 (M, 4)");
}

struct Box {
  float x1, y1, x2, y2, area;
};

// Two boxes without extent have no overlap: not a number is not greater.
bool overlap(const Box& one, const Box& other, float threshold) {
  const float width = std::max(std::min(other.x2, one.x2) - std::max(other.x1, one.x1), 0.0f);
  const float height = std::max(std::min(other.y2, one.y2) - std::max(other.y1, one.y1), 0.0f);
  const float shared = width * height;
  return shared / (one.area + other.area - shared) > threshold;
}

// The pixels of an axis that the bins of a box read, each with its weight.
struct Taps {
  std::vector<std::size_t> ends;  // of the taps of each bin
  std::vector<std::int64_t> pixels;
  std::vector<float> weights;
};

// False where there is no sample, as in a box without extent.
bool sample(float low, float high, std::int64_t size, std::int64_t side, Taps& taps) {
  const float extent = high - low;
  const double wanted = std::ceil(static_cast<double>(extent / static_cast<float>(size)));
  require(wanted <= static_cast<double>(kMostSamples), "a box is too large to be read");
  const std::int64_t count = static_cast<std::int64_t>(wanted);
  if (!(count >= 1)) return false;
  const float step = extent / static_cast<float>(size);
  const float each = static_cast<float>(1.0 / static_cast<double>(count));
  taps.ends.clear();
  taps.pixels.clear();
  taps.weights.clear();
  std::map<std::int64_t, float> sums;
  for (std::int64_t bin = 0; bin < size; ++bin) {
    sums.clear();
    const float start = low + static_cast<float>(bin) * step;
    // All first pixels before all second ones, as NumPy adds them up.
    for (int second = 0; second < 2; ++second)
      for (std::int64_t i = 0; i < count; ++i) {
        float place = start + (static_cast<float>(i) + 0.5f) * step / static_cast<float>(count);
        const bool inside = place >= -1 && place <= static_cast<float>(side);
        if (!inside) continue;
        place = std::max(place, 0.0f);
        const std::int64_t first = std::min(static_cast<std::int64_t>(place), side - 1);
        const float share = first == side - 1 ? 0.0f : place - static_cast<float>(first);
        if (second) {
          sums[std::min(first + 1, side - 1)] += each * share;
        } else {
          sums[first] += each * (1.0f - share);
        }
      }
    for (const auto& sum : sums) {
      taps.pixels.push_back(sum.first);
      taps.weights.push_back(sum.second);
    }
    taps.ends.push_back(taps.pixels.size());
  }
  return true;
}

// use(pixel, weight)
template <class Use>
void each_tap(const Taps& taps, std::int64_t bin, Use use) {
  const std::size_t at = static_cast<std::size_t>(bin);
  for (std::size_t k = at ? taps.ends[at - 1] : 0; k < taps.ends[at]; ++k)
    use(taps.pixels[k], taps.weights[k]);
}

}  // namespace

Value keep_boxes(const Value& boxes, const Value& scores, const Value& groups, double iou_threshold,
                 double score_threshold, std::int64_t limit) {
  require(scores.type == DYNDEPLOY_FLOAT32 && scores.rank() == 1, "its scores are no float32 (M)");
  require(limit >= 0 && limit <= kMostPlaces, "it keeps too many boxes");
  const std::size_t count = scores.count();
  require_boxes(boxes, count);
  const std::vector<std::int64_t> group_of = whole_numbers(groups);
  require(group_of.size() == count, "its groups are not as many as the scores");
  const float* corners = boxes.data<float>();
  const float* score = scores.data<float>();
  std::vector<std::size_t> order;
  float largest = 0;
  for (std::size_t i = 0; i < count; ++i) {
    if (!(score[i] > static_cast<float>(score_threshold))) continue;
    const float most = *std::max_element(corners + 4 * i, corners + 4 * i + 4);
    largest = order.empty() ? most : std::max(largest, most);
    order.push_back(i);
  }
  std::stable_sort(order.begin(), order.end(),
                   [score](std::size_t one, std::size_t other) { return score[one] > score[other]; });
  Value kept = new_value(DYNDEPLOY_INT64, {limit});
  std::int64_t* places = kept.writable<std::int64_t>();
  std::fill(places, places + limit, -1);
  const float threshold = static_cast<float>(iou_threshold);
  std::map<std::int64_t, std::vector<Box>> left;
  std::int64_t found = 0;
  for (std::size_t k = 0; k < order.size() && found < limit; ++k) {
    const std::size_t i = order[k];
    // Groups lie apart anyway; the coordinates are shifted because that is how the reference rounds them.
    const float shift = static_cast<float>(group_of[i]) * (largest + 1.0f);
    const float* own = corners + 4 * i;
    Box box{own[0] + shift, own[1] + shift, own[2] + shift, own[3] + shift, 0};
    box.area = (box.x2 - box.x1) * (box.y2 - box.y1);
    std::vector<Box>& group = left[group_of[i]];
    const bool suppressed = std::any_of(group.begin(), group.end(),
                                        [&](const Box& better) { return overlap(better, box, threshold); });
    if (suppressed) continue;
    group.push_back(box);
    places[found++] = static_cast<std::int64_t>(i);
  }
  return kept;
}

Value pyramid_roi_align(const std::vector<Value>& maps, const Value& boxes, const Value& levels,
                        const std::vector<double>& strides, std::int64_t size) {
  require(!maps.empty() && maps.size() == strides.size(), "its maps are not as many as their strides");
  require(size >= 1 && size <= 1024, "its regions have no size");
  const std::vector<std::int64_t> level_of = whole_numbers(levels);
  require_boxes(boxes, level_of.size());
  for (const Value& map : maps)
    require(map.type == DYNDEPLOY_FLOAT32 && map.rank() == 4 && map.shape[0] == 1 &&
                map.shape[1] == maps[0].shape[1] && map.count(),
            "its maps are no float32 (1, C, h, w)");
  const std::int64_t channels = maps[0].shape[1], cells = size * size;
  Value result =
      new_value(DYNDEPLOY_FLOAT32, {static_cast<std::int64_t>(level_of.size()), channels, size, size});
  float* out = result.writable<float>();
  std::fill(out, out + result.count(), 0.0f);
  Taps down, across;
  std::vector<float> narrow;
  std::vector<std::int64_t> columns;  // that are read
  for (std::size_t i = 0; i < level_of.size(); ++i, out += channels * cells) {
    if (level_of[i] < 0 || level_of[i] >= static_cast<std::int64_t>(maps.size())) continue;
    const std::size_t level = static_cast<std::size_t>(level_of[i]);
    const Value& map = maps[level];
    const std::int64_t height = map.shape[2], width = map.shape[3];
    const float scale = static_cast<float>(1.0 / strides[level]);
    float corners[4];
    for (int k = 0; k < 4; ++k) {
      corners[k] = boxes.data<float>()[4 * i + static_cast<std::size_t>(k)] * scale - 0.5f;
      require(std::isfinite(corners[k]), "a box is not finite");
    }
    if (!sample(corners[1], corners[3], size, height, down) ||
        !sample(corners[0], corners[2], size, width, across))
      continue;
    narrow.resize(static_cast<std::size_t>(width));
    columns = across.pixels;
    std::sort(columns.begin(), columns.end());
    columns.erase(std::unique(columns.begin(), columns.end()), columns.end());
    for (std::int64_t channel = 0; channel < channels; ++channel) {
      const float* features = map.data<float>() + channel * height * width;
      for (std::int64_t y = 0; y < size; ++y) {
        for (const std::int64_t pixel : columns) narrow[static_cast<std::size_t>(pixel)] = 0;
        each_tap(down, y, [&](std::int64_t row, float weight) {
          for (const std::int64_t pixel : columns) {
            float& sum = narrow[static_cast<std::size_t>(pixel)];
            sum = std::fma(weight, features[row * width + pixel], sum);
          }
        });
        for (std::int64_t x = 0; x < size; ++x) {
          float sum = 0;
          each_tap(across, x, [&](std::int64_t pixel, float weight) {
            sum = std::fma(weight, narrow[static_cast<std::size_t>(pixel)], sum);
          });
          out[channel * cells + y * size + x] = sum;
        }
      }
    }
  }
  return result;
}

}  // namespace runtime
}  // namespace dyndeploy
