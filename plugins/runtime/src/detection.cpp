#include "detection.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <string>

#include "error.h"
#include "preprocessing.h"

namespace dyndeploy {
namespace runtime {
namespace {

// Of networks that do not say how many classes they tell apart.
constexpr std::int64_t kMostLabels = 1 << 20;

double real(std::int64_t value) { return static_cast<double>(value); }

std::int64_t scaled(std::int64_t side, double factor) {
  return std::max<std::int64_t>(1, static_cast<std::int64_t>(real(side) * factor + 0.5));
}

// float32 after the division, as NumPy has it.
float scale_of(std::int64_t resized, std::int64_t side) {
  return static_cast<float>(real(resized) / real(side));
}

}  // namespace

Size resized_size(const Size& image, const Bounds& bounds, const Size* bucket) {
  const double longer = real(std::max(image.height, image.width));
  const double shorter = real(std::min(image.height, image.width));
  double factor = std::min(real(std::max(bounds.longest, bounds.shortest)) / longer,
                           real(std::min(bounds.longest, bounds.shortest)) / shorter);
  if (!bucket) return {scaled(image.height, factor), scaled(image.width, factor)};
  factor = std::min(
      factor, std::min(real(bucket->height) / real(image.height), real(bucket->width) / real(image.width)));
  return {std::min(scaled(image.height, factor), bucket->height),
          std::min(scaled(image.width, factor), bucket->width)};
}

Size padded_size(const Size& resized, std::int64_t divisor) {
  const auto up = [divisor](std::int64_t side) { return (side + divisor - 1) / divisor * divisor; };
  return {up(resized.height), up(resized.width)};
}

Choice choose_bucket(const Size& image, const std::vector<BucketInfo>& buckets, const Bounds& bounds) {
  const Size inside = resized_size(image, bounds);
  Choice choice{0, false};
  std::int64_t best = 0, most = 0;
  for (std::size_t i = 0; i < buckets.size(); ++i) {
    const Size size{buckets[i].height, buckets[i].width};
    const std::int64_t area = size.height * size.width;
    const bool holds = inside.height <= size.height && inside.width <= size.width;
    if (holds && (!choice.holds || area < best)) {
      choice = {i, true};
      best = area;
    }
    if (choice.holds) continue;
    const Size left = resized_size(image, bounds, &size);
    const std::int64_t kept = left.height * left.width;
    if (kept > most || (kept == most && area < best)) {
      choice.bucket = i;
      most = kept;
      best = area;
    }
  }
  return choice;
}

void Found::clear() {
  detections.clear();
  runs.clear();
  begins.clear();
}

void Found::point() {
  for (std::size_t i = 0; i + 1 < begins.size(); ++i) {
    detections[i].runs = runs.data() + begins[i];
    detections[i].run_count = begins[i + 1] - begins[i];
  }
}

DetectionTask::DetectionTask(const Manifest& manifest) : manifest_(manifest) {
  for (int channel = 0; channel < 3; ++channel) {
    mean_[channel] = static_cast<float>(manifest.detection.mean[channel]);
    deviation_[channel] = static_cast<float>(manifest.detection.std[channel]);
    for (int value = 0; value < 256; ++value)
      table_[channel][value] = (static_cast<float>(value) - mean_[channel]) / deviation_[channel];
  }
}

Placement DetectionTask::prepare(const ImageView& image, const Bounds& bounds, float* input,
                                 float* image_size) {
  require_pixels(image);
  const Size bucket{manifest_.height, manifest_.width}, own{image.height, image.width};
  const Size inside = resized_size(own, bounds, &bucket);
  const bool same = inside.height == own.height && inside.width == own.width;
  const std::size_t values = static_cast<std::size_t>(3 * inside.height * inside.width);
  const bool rounding = same || manifest_.detection.rounding;
  ImageView bytes = image;
  if (!same && rounding) {
    whole_.resize(values);
    resizer_.run(image, inside.height, inside.width, whole_.data());
    bytes = {whole_.data(), inside.height, inside.width, 3 * inside.width};
  } else if (!same) {
    real_.resize(values);
    resizer_.run(image, inside.height, inside.width, real_.data());
  }
  for (int channel = 0; channel < 3; ++channel) {
    float* to = input + channel * bucket.height * bucket.width;
    for (std::int64_t y = 0; y < inside.height; ++y, to += bucket.width) {
      const std::uint8_t* byte = bytes.pixels + y * bytes.stride + channel;
      const float* value = real_.data() + 3 * y * inside.width + channel;
      for (std::int64_t x = 0; x < inside.width; ++x)
        to[x] =
            rounding ? table_[channel][byte[3 * x]] : (value[3 * x] - mean_[channel]) / deviation_[channel];
      std::fill(to + inside.width, to + bucket.width, 0.0f);
    }
    std::fill(to, to + (bucket.height - inside.height) * bucket.width, 0.0f);
  }
  image_size[0] = static_cast<float>(inside.height);
  image_size[1] = static_cast<float>(inside.width);
  return {own, inside};
}

dyndeploy_detection DetectionTask::named(std::int64_t label, float score, const float* box) const {
  const std::vector<std::string>& names = manifest_.class_names;
  const std::vector<std::int64_t>& categories = manifest_.detection.category_ids;
  const std::int64_t most = manifest_.classes ? manifest_.classes : kMostLabels;
  if (label < 0 || label >= most)
    fail(DYNDEPLOY_BUNDLE, "The detector's output 'labels' says " + std::to_string(label) + " of " +
                               std::to_string(most) + " classes. Export it again.");
  const std::size_t place = static_cast<std::size_t>(label);
  dyndeploy_detection found{};
  found.x1 = box[0];
  found.y1 = box[1];
  found.x2 = box[2];
  found.y2 = box[3];
  found.score = score;
  found.label = static_cast<std::int32_t>(label);
  // Where nobody told COCO's categories, the classes' own numbers stand for them.
  found.category_id = place < categories.size() ? categories[place] : label;
  found.class_name = place < names.size() ? names[place].c_str() : nullptr;
  return found;
}

void DetectionTask::decode(const DetectorRow& row, const Placement& placement, Found& found) {
  found.clear();
  if (manifest_.detection.decoding == Decoding::kQueries) {
    decode_queries(row, placement, found);
  } else {
    decode_boxes(row, placement, found);
  }
  found.point();
}

void DetectionTask::decode_boxes(const DetectorRow& row, const Placement& placement, Found& found) {
  const std::int64_t capacity = manifest_.outputs[0].shape[1], count = *row.count;
  if (count < 0 || count > capacity)
    fail(DYNDEPLOY_BUNDLE, "The detector's output 'count' says " + std::to_string(count) + " of " +
                               std::to_string(capacity) + " detections. Export it again.");
  order_.resize(static_cast<std::size_t>(count));
  std::iota(order_.begin(), order_.end(), 0);
  if (!std::is_sorted(row.scores, row.scores + count, std::greater<float>()))
    std::stable_sort(order_.begin(), order_.end(), [&](std::int64_t one, std::int64_t other) {
      return row.scores[one] > row.scores[other];
    });
  const Size& image = placement.image;
  const float across = scale_of(placement.resized.width, image.width);
  const float down = scale_of(placement.resized.height, image.height);
  const auto inside = [](float value, std::int64_t side) {
    return std::min(std::max(value, 0.0f), static_cast<float>(side));
  };
  const std::int64_t side = manifest_.detection.masks ? manifest_.outputs[4].shape[2] : 0;
  for (const std::int64_t place : order_) {
    const float* corners = row.boxes + 4 * place;
    const float box[] = {inside(corners[0] / across, image.width), inside(corners[1] / down, image.height),
                         inside(corners[2] / across, image.width), inside(corners[3] / down, image.height)};
    found.detections.push_back(named(row.labels[place], row.scores[place], box));
    if (!side) continue;
    found.begins.push_back(found.runs.size());
    paster_.paste(row.masks + place * side * side, side, box, image.height, image.width, found.runs);
  }
  if (side) found.begins.push_back(found.runs.size());
}

void DetectionTask::decode_queries(const DetectorRow& row, const Placement& placement, Found& found) {
  const Shape &of_classes = manifest_.outputs[0].shape, &of_masks = manifest_.outputs[1].shape;
  const std::int64_t queries = of_classes[1], logits = of_classes[2], classes = logits - 1;
  const std::int64_t rows = of_masks[2], columns = of_masks[3], stride = manifest_.detection.mask_stride;
  if (placement.resized.height > stride * rows || placement.resized.width > stride * columns)
    fail(DYNDEPLOY_BUNDLE, "Masks of " + std::to_string(rows) + "x" + std::to_string(columns) + " cells of " +
                               std::to_string(stride) + " pixels do not cover an image of " +
                               std::to_string(placement.resized.height) + "x" +
                               std::to_string(placement.resized.width) + ". Export it again.");
  probabilities_.resize(static_cast<std::size_t>(queries * classes));
  for (std::int64_t query = 0; query < queries; ++query) {
    const float* from = row.class_logits + query * logits;
    float* to = probabilities_.data() + query * classes;
    const float largest = *std::max_element(from, from + logits);
    double sum = 0;
    for (std::int64_t i = 0; i < logits; ++i) {
      const float power = std::exp(from[i] - largest);
      sum += static_cast<double>(power);
      if (i < classes) to[i] = power;
    }
    for (std::int64_t i = 0; i < classes; ++i) to[i] /= static_cast<float>(sum);
  }
  order_.resize(probabilities_.size());
  std::iota(order_.begin(), order_.end(), 0);
  const std::size_t limit = std::min(order_.size(), static_cast<std::size_t>(manifest_.detection.detections));
  const auto surer = [this](std::int64_t one, std::int64_t other) {
    const float first = probabilities_[static_cast<std::size_t>(one)],
                second = probabilities_[static_cast<std::size_t>(other)];
    return first > second || (first == second && one < other);
  };
  std::partial_sort(order_.begin(), order_.begin() + static_cast<std::ptrdiff_t>(limit), order_.end(), surer);
  order_.resize(limit);
  // The masks of the queries that are left, each once.
  const Size& image = placement.image;
  paster_.place(rows, columns, stride, placement.resized.height, placement.resized.width, image.height,
                image.width);
  masks_.assign(static_cast<std::size_t>(queries), Query{});
  pasted_.clear();
  candidates_.clear();
  for (const std::int64_t place : order_) {
    Query& query = masks_[static_cast<std::size_t>(place / classes)];
    if (!query.end) {
      query.begin = pasted_.size();
      query.mask = paster_.enlarge(row.mask_logits + place / classes * rows * columns, pasted_);
      query.end = pasted_.size();
    }
    candidates_.push_back({place, probabilities_[static_cast<std::size_t>(place)] * query.mask.mean});
  }
  std::stable_sort(candidates_.begin(), candidates_.end(),
                   [](const Candidate& one, const Candidate& other) { return one.score > other.score; });
  for (const Candidate& candidate : candidates_) {
    const Query& query = masks_[static_cast<std::size_t>(candidate.place / classes)];
    found.detections.push_back(named(candidate.place % classes, candidate.score, query.mask.box));
    found.begins.push_back(found.runs.size());
    found.runs.insert(found.runs.end(), pasted_.begin() + static_cast<std::ptrdiff_t>(query.begin),
                      pasted_.begin() + static_cast<std::ptrdiff_t>(query.end));
  }
  found.begins.push_back(found.runs.size());
}

}  // namespace runtime
}  // namespace dyndeploy
