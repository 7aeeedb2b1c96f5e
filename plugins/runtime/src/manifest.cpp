#include "manifest.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "error.h"
#include "fields.h"
#include "json.h"
#include "sha256.h"

namespace dyndeploy {
namespace runtime {
namespace {

constexpr std::int64_t kSchemaVersion = 1;
constexpr const char* kSeal = "manifest_sha256";
constexpr std::size_t kMaxRank = 8;  // dyndeploy_tensor.shape
// Beyond any image or batch, and small enough that sizes computed from it fit.
constexpr std::int64_t kLargestSide = 1 << 20;

Shape shape_of(const Field& item, std::size_t least_rank = 1) {
  Shape shape;
  for (const Field& size : item.list(least_rank)) shape.push_back(size.count());
  item.require(shape.size() <= kMaxRank, "a shape of at most 8 axes");
  try {
    elements(shape);
  } catch (const std::overflow_error&) {
    item.require(false, "the shape of a tensor that fits into memory");
  }
  return shape;
}

TensorInfo tensor_of(const Field& item, std::size_t least_rank = 1) {
  const Field dtype = item["dtype"];
  const int type = type_of(dtype.text());
  dtype.require(type != 0, "one of float32, float16, float64, uint8, int8, int32, int64, bool");
  return {item["name"].text(), shape_of(item["shape"], least_rank), type};
}

std::vector<TensorInfo> tensors_of(const Field& item, std::size_t at_least, std::size_t least_rank = 1) {
  std::vector<TensorInfo> found;
  for (const Field& tensor : item.list(at_least)) found.push_back(tensor_of(tensor, least_rank));
  item.require(found.size() >= at_least, "a list of at least " + std::to_string(at_least));
  return found;
}

std::int64_t side_of(const Field& item) {
  const std::int64_t side = item.count();
  item.require(side <= kLargestSide, "at most " + std::to_string(kLargestSide));
  return side;
}

void normalisation_of(const Field& item, double (&mean)[3], double (&deviation)[3]) {
  for (int i = 0; i < 3; ++i) {
    mean[i] = item["mean"].list_of(3)[i].finite();
    deviation[i] = item["std"].list_of(3)[i].finite();
    item["std"].require(deviation[i] > 0, "positive");
  }
}

PreprocessingInfo preprocessing_of(const Field& item) {
  static const char* const kNames[] = {"nearest", "bilinear", "bicubic", "lanczos"};
  PreprocessingInfo found;
  found.resize = side_of(item["resize"]);
  normalisation_of(item, found.mean, found.std);
  const Field name = item["interpolation"];
  const auto known = std::find(std::begin(kNames), std::end(kNames), name.text());
  name.require(known != std::end(kNames), "one of nearest, bilinear, bicubic, lanczos");
  found.interpolation = static_cast<Interpolation>(known - std::begin(kNames));
  return found;
}

std::vector<double> thresholds_of(const Field& item, std::size_t stages) {
  std::vector<double> values;
  const std::vector<Field> list = item["values"].list_of(stages);
  for (std::size_t i = 0; i + 1 < stages; ++i) values.push_back(list[i].finite());
  list.back().require(list.back().is_null(), "null for the last stage");
  values.push_back(-std::numeric_limits<double>::infinity());
  return values;
}

bool same(const TensorInfo& a, const TensorInfo& b) { return a.shape == b.shape && a.type == b.type; }

void check_stage(const Field& place, const StageInfo& stage, std::map<std::string, TensorInfo>& carried,
                 bool first) {
  for (const TensorInfo& input : stage.inputs) {
    const auto found = carried.find(input.name);
    const bool known = first || (found != carried.end() && same(found->second, input));
    place.require(known, "a stage whose inputs earlier stages carry (" + input.name + " differs)");
  }
  place.require(stage.outputs.front().name == kLogits && stage.outputs.back().name == kConfidence,
                "a stage that gives logits ... confidence");
  const TensorInfo &logits = stage.outputs.front(), &confidence = stage.outputs.back();
  place.require(logits.type == DYNDEPLOY_FLOAT32 && logits.shape.size() == 2,
                "a stage with float32 logits (N, classes)");
  place.require(confidence.type == DYNDEPLOY_FLOAT32 && confidence.shape.size() == 1,
                "a stage with a float32 confidence (N)");
  for (std::size_t i = 1; i + 1 < stage.outputs.size(); ++i)
    carried[stage.outputs[i].name] = stage.outputs[i];
}

ExitsInfo exits_of(const Field& item, std::int64_t batch) {
  ExitsInfo exits;
  std::map<std::string, TensorInfo> carried;
  std::set<std::string> files;
  int last = 0;
  for (const Field& entry : item["stages"].list(1)) {
    const std::int64_t number = entry["exit"].count();
    entry["exit"].require(number > last && number < 1 << 20, "in order of the exits");
    last = static_cast<int>(number);
    StageInfo stage{entry["file"].text(), last, tensors_of(entry["inputs"], 1),
                    tensors_of(entry["outputs"], 2), static_cast<double>(entry["macs"].count())};
    entry["file"].require(files.insert(stage.file).second, "a file of its own");
    check_stage(entry, stage, carried, exits.stages.empty());
    for (const auto* list : {&stage.inputs, &stage.outputs})
      for (const TensorInfo& tensor : *list)
        entry.require(tensor.shape[0] == batch, "a stage whose tensors have the bundle's batch first");
    if (!exits.stages.empty())
      entry["outputs"].require(same(stage.outputs[0], exits.stages[0].outputs[0]),
                               "logits of one shape at all exits");
    exits.stages.push_back(std::move(stage));
  }
  const Field thresholds = item["thresholds"];
  const std::vector<Field> entries = thresholds.object();
  for (std::size_t i = 0; i < entries.size(); ++i)
    exits.thresholds[thresholds.value().keys[i]] = thresholds_of(entries[i], exits.stages.size());
  exits.dynamic_batch = item["dynamic_batch"].boolean();
  return exits;
}

DetectionInfo detection_of(const Field& item) {
  DetectionInfo found;
  for (const Field& category : item["category_ids"].list()) found.category_ids.push_back(category.count(0));
  const std::vector<Field> size = item["size"].list_of(2);
  found.longest = side_of(size[0]);
  found.shortest = side_of(size[1]);
  found.divisor = side_of(item["divisor"]);
  normalisation_of(item, found.mean, found.std);
  found.detections = side_of(item["detections"]);
  found.score_threshold = item["score_threshold"].finite();
  found.masks = item["masks"].boolean();
  found.rounding = item["rounding"].boolean();
  const std::string decoding = item["decoding"].text();
  item["decoding"].require(decoding == "boxes" || decoding == "queries", "one of boxes, queries");
  found.decoding = decoding == "boxes" ? Decoding::kBoxes : Decoding::kQueries;
  found.mask_stride = side_of(item["mask_stride"]);
  for (const Field& bucket : item["buckets"].list(1)) {
    const std::vector<Field> sides = bucket["size"].list_of(2);
    found.buckets.push_back({side_of(sides[0]), side_of(sides[1]), bucket["folder"].label()});
  }
  const Field parts = item.find("parts");
  if (parts.is_null()) return found;
  // A tensor between parts may be a single number, without axes.
  for (const Field& part : parts.list())
    found.parts.push_back({part["file"].text(), part["host"].boolean(), tensors_of(part["inputs"], 1, 0),
                           tensors_of(part["outputs"], 1, 0)});
  return found;
}

// What a detector that decodes so gives, each with its type and shape; kAnySize where the graph decides.
std::vector<TensorInfo> outputs_of(const Manifest& manifest, const DetectionInfo& info) {
  const std::int64_t batch = manifest.batch;
  if (info.decoding == Decoding::kQueries)
    return {{kClassLogits, {batch, kAnySize, kAnySize}, DYNDEPLOY_FLOAT32},
            {kMaskLogits, {batch, kAnySize, kAnySize, kAnySize}, DYNDEPLOY_FLOAT32}};
  std::vector<TensorInfo> outputs{{kBoxes, {batch, kAnySize, 4}, DYNDEPLOY_FLOAT32},
                                  {kScores, {batch, kAnySize}, DYNDEPLOY_FLOAT32},
                                  {kLabels, {batch, kAnySize}, DYNDEPLOY_INT64},
                                  {kCount, {batch}, DYNDEPLOY_INT64}};
  if (info.masks) outputs.push_back({kMasks, {batch, kAnySize, kAnySize, kAnySize}, DYNDEPLOY_FLOAT32});
  return outputs;
}

// Every part reads what is there before it, and the network's results are all made.
void check_chain(const Manifest& manifest, const Field& item) {
  std::map<std::string, TensorInfo> there;
  std::set<std::string> files;
  for (const TensorInfo& input : manifest.inputs) there[input.name] = input;
  for (const PartInfo& part : manifest.detection.parts) {
    item.require(files.insert(part.file).second, "parts of a file each");
    for (const TensorInfo& input : part.inputs) {
      const auto found = there.find(input.name);
      item.require(found != there.end() && same(found->second, input),
                   "parts whose inputs are there before them (" + input.name + " differs)");
    }
    for (const TensorInfo& output : part.outputs)
      item.require(there.emplace(output.name, output).second, "parts that give each tensor once");
  }
  std::vector<TensorInfo> results = manifest.outputs;
  for (const MaskInfo& mask : manifest.masks) results.push_back({mask.name, mask.shape, DYNDEPLOY_FLOAT32});
  for (const TensorInfo& result : results) {
    const auto found = there.find(result.name);
    item.require(found != there.end() && same(found->second, result),
                 "parts that give " + result.name + " as well");
  }
}

bool is_like(const TensorInfo& tensor, const TensorInfo& wanted) {
  bool same =
      tensor.name == wanted.name && tensor.type == wanted.type && tensor.shape.size() == wanted.shape.size();
  for (std::size_t i = 0; same && i < wanted.shape.size(); ++i)
    same = wanted.shape[i] == kAnySize || wanted.shape[i] == tensor.shape[i];
  return same;
}

void check_outputs(const Manifest& manifest, const Field& root) {
  const std::vector<TensorInfo> wanted = outputs_of(manifest, manifest.detection);
  const std::vector<TensorInfo>& outputs = manifest.outputs;
  root["outputs"].require(outputs.size() == wanted.size(), "those of a detector");
  std::int64_t most = manifest.detection.detections;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    root["outputs"].require(
        is_like(outputs[i], wanted[i]),
        wanted[i].name + " " + described(wanted[i].type, wanted[i].shape) + " in place " + std::to_string(i));
    if (wanted[i].shape.size() > 1)
      root["outputs"].require(outputs[i].shape[1] == outputs[0].shape[1], "of one number of detections");
  }
  if (manifest.detection.decoding == Decoding::kBoxes)
    root["outputs"].require(outputs[0].shape[1] <= most, "of at most detection.detections boxes");
  if (manifest.detection.decoding == Decoding::kQueries && manifest.classes)
    root["outputs"].require(outputs[0].shape[2] == manifest.classes + 1,
                            "logits of the classes, and of no object");
}

// What a detector's parts say of each other.
void check_detector(const Manifest& manifest, const Field& root) {
  const Field item = root["detection"];
  const DetectionInfo& info = manifest.detection;
  item["category_ids"].require(
      info.category_ids.empty() || static_cast<std::int64_t>(info.category_ids.size()) == manifest.classes,
      std::to_string(manifest.classes) + " numbers, or none");
  const std::int64_t batch = manifest.batch;
  const std::vector<TensorInfo> inputs{
      {kInput, {batch, 3, manifest.height, manifest.width}, DYNDEPLOY_FLOAT32},
      {kImageSize, {batch, 2}, DYNDEPLOY_FLOAT32}};
  root["inputs"].require(manifest.inputs.size() == 2 && is_like(manifest.inputs[0], inputs[0]) &&
                             is_like(manifest.inputs[1], inputs[1]),
                         "input " + described(inputs[0].type, inputs[0].shape) + " and image_size " +
                             described(inputs[1].type, inputs[1].shape) + " of a detector");
  check_outputs(manifest, root);
  if (!info.parts.empty()) check_chain(manifest, item["parts"]);
  std::set<std::pair<std::int64_t, std::int64_t>> sizes;
  for (std::size_t i = 0; i < info.buckets.size(); ++i) {
    const BucketInfo& bucket = info.buckets[i];
    const bool own = bucket.height == manifest.height && bucket.width == manifest.width;
    item["buckets"].require(i != 0 || (own && bucket.folder.empty()), "the bundle's own size first");
    item["buckets"].require(
        i == 0 || bucket.folder == std::to_string(bucket.height) + "x" + std::to_string(bucket.width),
        "folders that are named after their sizes");
    item["buckets"].require(sizes.emplace(bucket.height, bucket.width).second, "sizes that differ");
  }
}

std::map<std::string, std::string> files_of(const Field& item) {
  std::map<std::string, std::string> found;
  const std::vector<Field> entries = item.object();
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const std::string& name = item.value().keys[i];
    // A checksum of a file elsewhere would make checking a foreign bundle read that file.
    const bool inside = !name.empty() && name[0] != '/' && name.find('\0') == std::string::npos &&
                        ("/" + name + "/").find("/../") == std::string::npos;
    if (!inside) item.complain(entries[i].place() + " must be a path inside the bundle");
    found[name] = entries[i].sha256();
  }
  return found;
}

void require_unique(const Manifest& manifest, const Field& root) {
  std::set<std::string> seen;
  const auto add = [&](const std::string& name) {
    if (!seen.insert(name).second) root.complain("inputs, outputs and masks name " + quoted(name) + " twice");
  };
  for (const TensorInfo& tensor : manifest.inputs) add(tensor.name);
  for (const TensorInfo& tensor : manifest.outputs) add(tensor.name);
  for (const MaskInfo& mask : manifest.masks) add(mask.name);
}

void check_seal(const Json& value) {
  const Json* seal = value.find(kSeal);
  const bool whole =
      seal && seal->kind == Json::Kind::kText && seal->text == sha256(canonical_json(value, kSeal));
  if (!whole)
    fail(DYNDEPLOY_BUNDLE, std::string("bundle.json is damaged: ") +
                               (seal ? "its content does not match its checksum" : "it carries no checksum") +
                               ". Export or copy the bundle again.");
}

void check_images(const Manifest& manifest, const Field& root) {
  if (!manifest.takes_images()) return;
  const TensorInfo& input = manifest.inputs[0];
  const Shape wanted{manifest.batch, 3, manifest.height, manifest.width};
  root["inputs"].require(input.type == DYNDEPLOY_FLOAT32 && input.shape == wanted,
                         "one of " + described(DYNDEPLOY_FLOAT32, wanted) + ", as batch and input_size say");
}

}  // namespace

bool Manifest::classifies() const {
  return std::any_of(outputs.begin(), outputs.end(), [&](const TensorInfo& output) {
    return output.name == kLogits && output.type == DYNDEPLOY_FLOAT32 && output.shape.size() == 2 &&
           output.shape[0] == batch;
  });
}

Manifest parse_manifest(const std::string& text) {
  Json value;
  try {
    value = parse_json(text);
  } catch (const std::runtime_error& error) {
    fail(DYNDEPLOY_BUNDLE,
         std::string("bundle.json is no valid JSON: ") + error.what() + ". Export the bundle again.");
  }
  const Field root(&value, "");
  const Json* version = value.kind == Json::Kind::kObject ? value.find("schema_version") : nullptr;
  if (!version || version->kind != Json::Kind::kNumber || version->text != std::to_string(kSchemaVersion))
    fail(DYNDEPLOY_BUNDLE, "The bundle has schema version " +
                               (version ? canonical_json(*version, "").substr(0, 40) : std::string("none")) +
                               "; this release reads version " + std::to_string(kSchemaVersion) +
                               ". Export it again with this release.");
  check_seal(value);
  Manifest manifest{};
  const Field network = root["network"];
  manifest.network = network["name"].text();
  const Field names = network.find("class_names");
  if (!names.is_null())
    for (const Field& name : names.list()) manifest.class_names.push_back(name.text());
  const Field classes = network.find("num_classes");
  manifest.classes = classes.is_null() ? 0 : side_of(classes);
  manifest.target = root["target"].text();
  manifest.precision = root["precision"].text();
  manifest.batch = side_of(root["batch"]);
  const Field size = root["input_size"];
  if (!size.is_null()) {
    manifest.height = side_of(size.list_of(2)[0]);
    manifest.width = side_of(size.list_of(2)[1]);
  }
  manifest.inputs = tensors_of(root["inputs"], 1);
  manifest.outputs = tensors_of(root["outputs"], 1);
  for (const Field& mask : root["masks"].list()) {
    const Field stage = mask.find("stage");
    const std::int64_t index = stage.is_null() ? -1 : stage.count(0);
    stage.require(index < 1 << 20, "the index of a stage");
    manifest.masks.push_back({mask["name"].text(), shape_of(mask["shape"]), static_cast<int>(index)});
  }
  manifest.has_operators = !root["operators"].list().empty();
  const Field preprocessing = root["preprocessing"];
  manifest.has_preprocessing = !preprocessing.is_null();
  if (manifest.has_preprocessing) manifest.preprocessing = preprocessing_of(preprocessing);
  manifest.files = files_of(root["files"]);
  const Field exits = root.find("exits");
  manifest.has_exits = !exits.is_null();
  if (manifest.has_exits) {
    manifest.exits = exits_of(exits, manifest.batch);
    const auto& stages = manifest.exits.stages;
    exits.require(manifest.takes_images() && same(stages[0].inputs[0], manifest.inputs[0]) &&
                      stages[0].inputs.size() == 1,
                  "stages of which the first takes the images");
    exits.require(manifest.classifies(), "exits of a network that gives logits");
  }
  const Field detection = root.find("detection");
  manifest.has_detection = !detection.is_null();
  if (manifest.has_detection) {
    detection.require(!manifest.has_exits, "null where there are exits");
    manifest.detection = detection_of(detection);
    check_detector(manifest, root);
  }
  require_unique(manifest, root);
  check_images(manifest, root);
  return manifest;
}

std::vector<double> checked_thresholds(const ExitsInfo& exits, std::vector<double> values) {
  constexpr double kAlways = -std::numeric_limits<double>::infinity();
  const std::size_t stages = exits.stages.size();
  const std::string given = std::to_string(values.size());
  if (values.size() + 1 == stages) values.push_back(kAlways);
  if (values.size() != stages)
    fail(DYNDEPLOY_USAGE, given + " thresholds are given for " + std::to_string(stages) +
                              " stages: give one per stage, or for all but the last.");
  if (values.back() != kAlways) fail(DYNDEPLOY_USAGE, "The last exit always takes: its threshold is -inf.");
  for (std::size_t i = 0; i + 1 < stages; ++i)
    if (!std::isfinite(values[i]))
      fail(DYNDEPLOY_USAGE, "A threshold must be a finite number (above 1: the exit is never taken).");
  return values;
}

}  // namespace runtime
}  // namespace dyndeploy
