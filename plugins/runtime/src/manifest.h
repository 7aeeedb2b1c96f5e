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
};

struct ExitsInfo {
  std::vector<StageInfo> stages;
  std::map<std::string, std::vector<double>> thresholds;  // by precision; the last is -inf
  bool dynamic_batch;
};

struct Manifest {
  std::string network;
  std::string target;
  std::string precision;
  std::vector<std::string> class_names;
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

  // Whether one image is all that it takes.
  bool takes_images() const { return has_preprocessing && height > 0 && inputs.size() == 1; }
  // Whether it tells classes.
  bool classifies() const;
};

constexpr const char* kLogits = "logits";
constexpr const char* kConfidence = "confidence";

// Parse bundle.json and check its own checksum. Throws Error(DYNDEPLOY_BUNDLE), which names the field.
Manifest parse_manifest(const std::string& text);

// One threshold per stage from those given: for every stage, or for all but the last. Throws
// Error(DYNDEPLOY_USAGE).
std::vector<double> checked_thresholds(const ExitsInfo& exits, std::vector<double> values);

}  // namespace runtime
}  // namespace dyndeploy
