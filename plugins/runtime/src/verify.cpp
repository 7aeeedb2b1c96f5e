#include "verify.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <stdexcept>

#include "error.h"
#include "files.h"
#include "matching.h"
#include "npz.h"

namespace dyndeploy {
namespace runtime {
namespace {

using Arrays = std::map<std::string, Array>;

constexpr std::uint64_t kMostReference = std::uint64_t{1} << 31;

// How far results may be off, and margins of masks that differ; dyndeploy/precisions.py explains the numbers.
struct Tolerance {
  double output, margin, ties;  // the last: share of the mask bits that may be ties
};

Tolerance tolerance_of(const std::string& precision) {
  if (precision == "int8") return {1.5e-1, 5e-2, 6e-2};
  if (precision == "bf16") return {2e-2, 2e-2, 2e-2};
  if (precision == "fp16") return {2e-2, 1e-2, 2e-3};
  return {1e-3, 1e-4, 1e-4};
}

DetectionLimits detection_limits_of(const std::string& precision) {
  if (precision == "fp16") return {0.5, 2e-2, 0.9, 0.1};
  return {0.02, 1e-3, 0.95, 0.03};
}

Arrays reference_of(const Bundle& bundle) {
  const std::string path = bundle.path(kReference);
  try {
    return parse_npz(read_file(path, kMostReference));
  } catch (const std::runtime_error& error) {
    fail(DYNDEPLOY_BUNDLE, "Cannot read " + path + ": " + error.what() + ". Export the bundle again.");
  }
}

// An array of so many samples; the rest of its shape is that of the tensor.
const Array& samples(const Arrays& arrays, const std::string& name, const TensorInfo& info,
                     std::int64_t count) {
  const auto found = arrays.find(name);
  if (found == arrays.end())
    fail(DYNDEPLOY_BUNDLE, std::string(kReference) + " lacks '" + name + "'. Export the bundle again.");
  Shape wanted = info.shape;
  wanted[0] = count;
  if (found->second.type != info.type || found->second.shape != wanted)
    fail(DYNDEPLOY_BUNDLE, std::string(kReference) + ": '" + name + "' is " +
                               described(found->second.type, found->second.shape) + ", expected " +
                               described(info.type, wanted) + ". Export the bundle again.");
  return found->second;
}

std::string input_name(const Arrays& arrays, const std::string& name) {
  return arrays.count(name) ? name : kInput;
}

struct Compared {
  double error = 0;                // largest, of the largest magnitude of the reference
  DetectionDifference detections;  // of all samples
  std::size_t samples = 0, bits = 0, ties = 0;
};

double largest(const float* values, std::size_t count) {
  double most = 0;
  for (std::size_t i = 0; i < count; ++i) most = std::max(most, std::fabs(static_cast<double>(values[i])));
  return most;
}

// Compare one sample of an output. `scale` is the largest magnitude over all samples.
void compare_output(const std::string& name, const float* got, const float* expected, std::size_t count,
                    double scale, double tolerance, Compared& compared) {
  double error = 0;
  for (std::size_t i = 0; i < count; ++i)
    error = std::max(error, std::fabs(static_cast<double>(got[i]) - static_cast<double>(expected[i])));
  error /= std::max(scale, 1e-12);
  compared.error = std::max(compared.error, error);
  if (error <= tolerance) return;
  char text[64];
  std::snprintf(text, sizeof text, "%.3g, at most %.3g is allowed", error, tolerance);
  fail(DYNDEPLOY_BUNDLE, "'" + name + "' differs from PyTorch's on a reference input: relative error " +
                             text + ". Run 'dyndeploy verify' on the bundle.");
}

// One tensor for every sample of the reference, and the network's for a batch of them.
struct Column {
  std::string name;
  TensorInfo info;
  const Array* expected;
  const Array* margin;  // of a mask
  double scale;         // largest magnitude of an output, largest margin of a mask
  std::vector<char> got;

  std::size_t row() const { return elements(info.shape, 1); }
  const float* floats(std::size_t sample) const { return expected->floats() + sample * row(); }
};

// Whether a row's mask is the reference's. Throws where a bit differs that was no tie.
bool same_mask(const Column& mask, std::size_t row, std::size_t sample, double tolerance,
               Compared& compared) {
  const float* got = reinterpret_cast<const float*>(mask.got.data()) + row * mask.row();
  const float* expected = mask.floats(sample);
  const float* margin = mask.margin->floats() + sample * mask.row();
  bool same = true;
  for (std::size_t i = 0; i < mask.row(); ++i) {
    if (got[i] == expected[i]) continue;
    if (std::fabs(margin[i]) > tolerance * std::max(mask.scale, 1e-6))
      fail(DYNDEPLOY_BUNDLE, "A bit of '" + mask.name +
                                 "' differs from PyTorch's on a reference input, and was no tie. " +
                                 "Run 'dyndeploy verify' on the bundle.");
    same = false;
    ++compared.ties;
  }
  compared.bits += mask.row();
  return same;
}

dyndeploy_tensor tensor_of(const TensorInfo& info, const void* data, std::size_t rows) {
  dyndeploy_tensor tensor{};
  tensor.size = sizeof tensor;
  tensor.name = info.name.c_str();
  tensor.data = const_cast<void*>(data);
  tensor.type = info.type;
  tensor.rank = static_cast<std::int32_t>(info.shape.size());
  std::copy(info.shape.begin(), info.shape.end(), tensor.shape);
  tensor.shape[0] = static_cast<std::int64_t>(rows);
  tensor.bytes = rows * elements(info.shape, 1) * element_bytes(info.type);
  return tensor;
}

std::int64_t sample_count(const Bundle& bundle, const Arrays& arrays) {
  const auto found = arrays.find(input_name(arrays, bundle.manifest.inputs[0].name));
  const std::int64_t count =
      found == arrays.end() || found->second.shape.empty() ? 0 : found->second.shape[0];
  if (count < 1 || (!bundle.manifest.has_exits && count % bundle.manifest.batch))
    fail(DYNDEPLOY_BUNDLE, std::string(kReference) +
                               " holds no whole batches of the network's inputs. Export the bundle again.");
  return count;
}

Column column_of(const Arrays& arrays, const TensorInfo& info, std::int64_t count) {
  const Array& expected = samples(arrays, info.name, info, count);
  const double scale = info.type == DYNDEPLOY_FLOAT32 ? largest(expected.floats(), expected.count()) : 0;
  return {info.name, info, &expected, nullptr, scale, {}};
}

// The masks, then the outputs of one row per sample.
std::vector<Column> columns_of(const Manifest& manifest, const Arrays& arrays, std::int64_t count) {
  std::vector<Column> columns;
  for (const MaskInfo& mask : manifest.masks) {
    columns.push_back(column_of(arrays, {mask.name, mask.shape, DYNDEPLOY_FLOAT32}, count));
    Column& column = columns.back();
    column.margin = &samples(arrays, "margin/" + mask.name, column.info, count);
    column.scale = largest(column.margin->floats(), column.margin->count());
  }
  for (const TensorInfo& output : manifest.outputs)
    if (manifest.has_detection || (output.type == DYNDEPLOY_FLOAT32 && output.shape[0] == manifest.batch))
      columns.push_back(column_of(arrays, output, count));
  return columns;
}

// The detections of a sample in pixels of the network's input. `bytes` gives the row of an output.
template <class Bytes>
void decode(const Manifest& manifest, DetectionTask& task, const float* image_size, Bytes bytes,
            Found& found) {
  const auto floats = [&](std::size_t place) { return reinterpret_cast<const float*>(bytes(place)); };
  const auto whole = [&](std::size_t place) { return reinterpret_cast<const std::int64_t*>(bytes(place)); };
  const DetectorRow row = row_of_outputs(manifest.detection, floats, whole);
  const auto side = [](float value, std::int64_t most) {
    return std::min(std::max<std::int64_t>(static_cast<std::int64_t>(value), 1), most);
  };
  const Size size{side(image_size[0], manifest.height), side(image_size[1], manifest.width)};
  task.decode(row, {size, size}, found);
}

// Compare what was found in a sample with what PyTorch found.
void compare_detections(const Manifest& manifest, const Column* columns, std::size_t row, std::size_t sample,
                        const float* image_size, DetectionTask& task, const DetectionLimits& limits,
                        DetectionDifference& all) {
  Found got, expected;
  const auto place = [columns](std::size_t index, const char* bytes, std::size_t at) {
    const Column& column = columns[index];
    return bytes + at * column.row() * element_bytes(column.info.type);
  };
  decode(
      manifest, task, image_size,
      [&](std::size_t index) { return place(index, columns[index].got.data(), row); }, got);
  decode(
      manifest, task, image_size,
      [&](std::size_t index) { return place(index, columns[index].expected->bytes.data(), sample); },
      expected);
  const DetectionInfo& info = manifest.detection;
  const DetectionDifference one =
      compare(got, expected, limits, info.score_threshold, static_cast<std::size_t>(info.detections));
  all.matched += one.matched;
  all.missed += one.missed;
  all.extra += one.extra;
  all.excused += one.excused;
  all.box = std::max(all.box, one.box);
  all.score = std::max(all.score, one.score);
  all.mask_iou = std::min(all.mask_iou, one.mask_iou);
}

void check_detections(const DetectionDifference& found, const DetectionLimits& limits) {
  const double expected = static_cast<double>(found.matched + found.missed);
  const double most = std::max(1.0, std::floor(limits.unpaired * expected));
  if (static_cast<double>(std::max(found.missed, found.extra)) <= most) return;
  char text[256];
  std::snprintf(
      text, sizeof text,
      "Detections on the reference inputs differ from PyTorch's: %zu of %.0f have a partner within %g px "
      "and %g of its score, with an IoU of masks of at least %g; %zu are missed and %zu more.",
      found.matched, expected, limits.box, limits.score, limits.mask_iou, found.missed, found.extra);
  fail(DYNDEPLOY_BUNDLE, std::string(text) + " Run 'dyndeploy verify' on the bundle.");
}

void verify_whole(Session& session, const Arrays& arrays, Compared& compared) {
  const Manifest& manifest = session.bundle().manifest;
  const Tolerance tolerance = tolerance_of(session.precision());
  const DetectionLimits limits = detection_limits_of(session.precision());
  const std::int64_t count = sample_count(session.bundle(), arrays);
  std::vector<Column> columns = columns_of(manifest, arrays, count);
  const std::size_t masks = manifest.masks.size(), batch = static_cast<std::size_t>(manifest.batch);
  DetectionTask task(manifest);
  for (std::size_t start = 0; start < static_cast<std::size_t>(count); start += batch) {
    std::vector<dyndeploy_tensor> inputs, outputs;
    for (const TensorInfo& input : manifest.inputs) {
      const Array& all = samples(arrays, input_name(arrays, input.name), input, count);
      const std::size_t row = elements(input.shape, 1) * element_bytes(input.type);
      inputs.push_back(tensor_of(input, all.bytes.data() + start * row, batch));
    }
    for (Column& column : columns) {
      column.got.resize(elements(column.info.shape) * element_bytes(column.info.type));
      outputs.push_back(tensor_of(column.info, column.got.data(), batch));
    }
    session.run_tensors(inputs.data(), inputs.size(), outputs.data(), outputs.size(), nullptr, 0);
    for (std::size_t row = 0; row < batch; ++row) {
      // A tie that fell the other way changes what comes after it.
      bool same = true;
      for (std::size_t i = 0; i < masks && same; ++i)
        same = same_mask(columns[i], row, start + row, tolerance.margin, compared);
      if (manifest.has_detection && same)
        compare_detections(manifest, columns.data() + masks, row, start + row,
                           static_cast<const float*>(inputs[1].data) + 2 * row, task, limits,
                           compared.detections);
      for (std::size_t i = masks; i < columns.size() && same && !manifest.has_detection; ++i) {
        const Column& column = columns[i];
        compare_output(column.name, reinterpret_cast<const float*>(column.got.data()) + row * column.row(),
                       column.floats(start + row), column.row(), column.scale, tolerance.output, compared);
      }
      compared.samples += same;
    }
  }
  if (manifest.has_detection) check_detections(compared.detections, limits);
}

void verify_stages(Session& session, const Arrays& arrays, Compared& compared) {
  const Manifest& manifest = session.bundle().manifest;
  const std::int64_t count = sample_count(session.bundle(), arrays);
  const TensorInfo &input = manifest.inputs[0], &logits = manifest.exits.stages[0].outputs[0];
  const Array& images = samples(arrays, input_name(arrays, input.name), input, count);
  const std::size_t pixels = elements(input.shape, 1), classes = session.plan().classes();
  std::vector<float> got(classes);
  for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
    dyndeploy_tensor given = tensor_of(input, images.floats() + i * pixels, 1);
    dyndeploy_tensor taken = tensor_of(logits, got.data(), 1);
    dyndeploy_result result{};
    result.size = sizeof result;
    session.run_tensors(&given, 1, &taken, 1, &result, 1);
    const std::string name = "logits/exit" + std::to_string(result.exit);
    const Array& expected = samples(arrays, name, logits, count);
    compare_output(name, got.data(), expected.floats() + i * classes, classes,
                   largest(expected.floats(), expected.count()), tolerance_of(session.precision()).output,
                   compared);
    ++compared.samples;
  }
}

}  // namespace

std::string verify(Session& session) {
  const Bundle& bundle = session.bundle();
  std::vector<std::string> names;
  for (const auto& file : bundle.manifest.files) names.push_back(file.first);
  bundle.require_intact(names);
  const Arrays arrays = reference_of(bundle);
  Compared compared;
  if (bundle.manifest.has_exits) {
    verify_stages(session, arrays, compared);
  } else {
    verify_whole(session, arrays, compared);
  }
  const double most =
      std::max(1.0, tolerance_of(session.precision()).ties * static_cast<double>(compared.bits));
  if (static_cast<double>(compared.ties) > most)
    fail(DYNDEPLOY_BUNDLE,
         std::to_string(compared.ties) + " of " + std::to_string(compared.bits) +
             " mask bits differ from PyTorch's, though each was nearly a tie: too many. Run "
             "'dyndeploy verify' on the bundle.");
  const DetectionDifference& found = compared.detections;
  char results[160], text[384];
  if (bundle.manifest.has_detection) {
    std::snprintf(results, sizeof results, "%zu of %zu detections, boxes within %.2g px, scores within %.2g",
                  found.matched, found.matched + found.missed, found.box, found.score);
  } else {
    std::snprintf(results, sizeof results, "largest relative error %.2g", compared.error);
  }
  std::snprintf(
      text, sizeof text,
      "%zu files match their checksums; %zu reference inputs: %s, %zu mask bits, %zu of them ties that fell "
      "the other way",
      names.size(), compared.samples, results, compared.bits, compared.ties);
  return text;
}

}  // namespace runtime
}  // namespace dyndeploy
