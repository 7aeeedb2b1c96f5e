// bundle.json: what of it a device needs, as typed data. dyndeploy/bundle/manifest.py writes it and explains
// it.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "tensor.h"

namespace dyndeploy {
namespace runtime {

struct MaskInfo {
  std::string name;
  Shape shape;
  int stage;  // -1: of a network that is one graph
};

enum class Interpolation { kNearest, kBilinear, kBicubic, kLanczos };

struct PreprocessingInfo {
  std::int64_t resize;
  double mean[3];
  double std[3];
  Interpolation interpolation;
};

struct StageInfo {
  std::string file;
  int exit;  // from 1
  std::vector<TensorInfo> inputs;
  std::vector<TensorInfo> outputs;  // "logits" first, "confidence" last
  double macs = 0;                  // of an image up to and with this exit
};

struct ExitsInfo {
  std::vector<StageInfo> stages;
  std::map<std::string, std::vector<double>> thresholds;  // by precision; the last is -inf
  bool dynamic_batch;
};

enum class Decoding { kBoxes, kQueries };

// A size of input of a detector, and the folder of its bundle in this one ("": this one).
struct BucketInfo {
  std::int64_t height, width;
  std::string folder;
};

// One step of a detector that its target runs as several engines, with the host in between.
struct PartInfo {
  std::string file;  // of an engine's graph, or of a host program
  bool host;
  std::vector<TensorInfo> inputs, outputs;
};

struct DetectionInfo {
  std::vector<std::int64_t> category_ids;  // of each class; empty where they are not known
  std::int64_t longest, shortest;          // what the sides of a resized image are bounded by
  std::int64_t divisor;
  double mean[3];  // of values in [0, 255], as the next
  double std[3];
  std::int64_t detections;  // most of an image
  double score_threshold;
  bool masks, rounding;
  Decoding decoding;
  std::int64_t mask_stride;
  std::vector<BucketInfo> buckets;  // this bundle's own first
  std::vector<PartInfo> parts;      // what engines run in the place of the one graph, in order; or none
};

struct Manifest {
  std::string network;
  std::string target;
  std::string precision;
  std::vector<std::string> class_names;
  std::int64_t classes;  // 0: not said
  std::int64_t batch;
  std::int64_t height, width;  // 0: the inputs are no images
  std::vector<TensorInfo> inputs;
  std::vector<TensorInfo> outputs;
  std::vector<MaskInfo> masks;
  bool has_operators;
  bool has_preprocessing;
  PreprocessingInfo preprocessing;
  std::map<std::string, std::string> files;  // SHA-256 by relative path
  bool has_exits;
  ExitsInfo exits;
  bool has_detection;
  DetectionInfo detection;

  // Whether one image is all that it takes.
  bool takes_images() const { return has_preprocessing && height > 0 && inputs.size() == 1; }
  // Whether it tells classes.
  bool classifies() const;
};

constexpr const char* kLogits = "logits";
constexpr const char* kConfidence = "confidence";
constexpr const char* kInput = "input";  // images
constexpr const char* kImageSize = "image_size";
constexpr const char* kBoxes = "boxes";
constexpr const char* kScores = "scores";
constexpr const char* kLabels = "labels";
constexpr const char* kCount = "count";
constexpr const char* kMasks = "masks";
constexpr const char* kClassLogits = "class_logits";
constexpr const char* kMaskLogits = "mask_logits";

// Parse bundle.json and check its own checksum. Throws Error(DYNDEPLOY_BUNDLE), which names the field.
Manifest parse_manifest(const std::string& text);

// One threshold per stage from those given: for every stage, or for all but the last. Throws
// Error(DYNDEPLOY_USAGE).
std::vector<double> checked_thresholds(const ExitsInfo& exits, std::vector<double> values);

}  // namespace runtime
}  // namespace dyndeploy
