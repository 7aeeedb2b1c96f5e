// Object detection: from an image to a detector's inputs, from its outputs to what was found in the image.
// Every step is that of dyndeploy/tasks/detection.py, to the bit.
#pragma once

#include <cstdint>
#include <vector>

#include "bilinear.h"
#include "image.h"
#include "manifest.h"
#include "masks.h"

namespace dyndeploy {
namespace runtime {

struct Size {
  std::int64_t height, width;
};

// Bounds of the sides of a resized image.
struct Bounds {
  std::int64_t longest, shortest;
};

// Where an image lies in a detector's input: in its top left corner, resized.
struct Placement {
  Size image, resized;
};

// The size that an image is resized to; what holds it, if there is something.
Size resized_size(const Size& image, const Bounds& bounds, const Size* bucket = nullptr);
// The input that holds a resized image: the next multiples of the divisor.
Size padded_size(const Size& resized, std::int64_t divisor);

struct Choice {
  std::size_t bucket;
  bool holds;
};
// The smallest input that holds the resized image; where none does, the one in which most of it is left.
Choice choose_bucket(const Size& image, const std::vector<BucketInfo>& buckets, const Bounds& bounds);

// What was found in one image, the surest first. Memory stays between calls.
struct Found {
  std::vector<dyndeploy_detection> detections;
  Runs runs;                        // of all masks
  std::vector<std::size_t> begins;  // of each mask in `runs`, and the end; empty without masks

  void clear();
  // Let detections point to their runs, which stay in place from now on.
  void point();
};

// A row of the outputs of a network.
struct DetectorRow {
  const float *boxes, *scores, *masks;  // of decoding "boxes"
  const std::int64_t *labels, *count;
  const float *class_logits, *mask_logits;  // of "queries"
};

// `floats` and `whole` give the row of an output by its place in the manifest.
template <class Floats, class Whole>
DetectorRow row_of_outputs(const DetectionInfo& info, Floats floats, Whole whole) {
  if (info.decoding == Decoding::kQueries)
    return {nullptr, nullptr, nullptr, nullptr, nullptr, floats(0), floats(1)};
  return {floats(0), floats(1), info.masks ? floats(4) : nullptr, whole(2), whole(3), nullptr, nullptr};
}

// Images and results of one thread. Memory stays between calls.
class DetectionTask {
 public:
  explicit DetectionTask(const Manifest& manifest);

  // Write (3, height, width) of the bucket and image_size. Throws Error(DYNDEPLOY_INPUT) for an image without
  // pixels or of too many.
  Placement prepare(const ImageView& image, const Bounds& bounds, float* input, float* image_size);
  // Throws Error(DYNDEPLOY_BUNDLE) where the outputs make no sense.
  void decode(const DetectorRow& row, const Placement& placement, Found& found);

 private:
  void decode_boxes(const DetectorRow& row, const Placement& placement, Found& found);
  void decode_queries(const DetectorRow& row, const Placement& placement, Found& found);
  dyndeploy_detection named(std::int64_t label, float score, const float* box) const;

  struct Query {
    QueryMask mask;
    std::size_t begin, end;  // of its runs in pasted_; the end is 0 of those that were not asked for
  };
  struct Candidate {
    std::int64_t place;  // of a query and a class
    float score;
  };

  const Manifest& manifest_;
  float mean_[3], deviation_[3];
  float table_[3][256];  // the normalised value of every byte
  BilinearResizer resizer_;
  std::vector<std::uint8_t> whole_;
  std::vector<float> real_;
  MaskPaster paster_;
  std::vector<std::int64_t> order_;
  std::vector<float> probabilities_;
  std::vector<Query> masks_;
  std::vector<Candidate> candidates_;
  Runs pasted_;
};

}  // namespace runtime
}  // namespace dyndeploy
