#include "session.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <future>
#include <thread>

#include "decode.h"
#include "detector.h"
#include "engine_files.h"
#include "error.h"
#include "files.h"
#include "json.h"
#include "onnxruntime.h"
#include "onnxruntime_library.h"
#include "scheduler.h"
#include "tensorrt.h"

namespace dyndeploy {
namespace runtime {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kMostThreadsPerProcessor = 4;
constexpr const char* kBundledOperators = "device/libdyndeploy_ort_cpu.so";

double milliseconds(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

int checked_threads(int threads) {
  const int processors = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  const int most = kMostThreadsPerProcessor * processors;
  if (threads < 1 || threads > most)
    fail(DYNDEPLOY_USAGE, "threads=" + std::to_string(threads) + " is not valid: this process may use " +
                              std::to_string(processors) + " processors, give 1 to " + std::to_string(most) +
                              " threads.");
  return threads;
}

std::vector<double> chosen_thresholds(const Bundle& bundle, const std::vector<double>& given,
                                      const std::string& precision) {
  const Manifest& manifest = bundle.manifest;
  if (!manifest.has_exits) {
    if (!given.empty()) fail(DYNDEPLOY_USAGE, manifest.network + " has no exits: leave the thresholds out.");
    return {};
  }
  if (!given.empty()) return checked_thresholds(manifest.exits, given);
  const auto stored = manifest.exits.thresholds.find(precision);
  if (stored == manifest.exits.thresholds.end())
    fail(DYNDEPLOY_USAGE, "The bundle " + bundle.folder + " holds no exit thresholds for " + precision +
                              ". Find them with " + "'dyndeploy calibrate', or give thresholds.");
  return stored->second;
}

std::string bundled_operators(const Bundle& bundle) {
  if (!bundle.manifest.files.count(kBundledOperators)) return "";
  bundle.require_intact({kBundledOperators});
  return bundle.path(kBundledOperators);
}

std::string precision_on_cpu(const Bundle& bundle) {
  const std::string precision = cpu_precision(bundle.manifest.precision);
  return bundle.manifest.has_exits && !in_graph(precision) ? "fp32" : precision;
}

bool takes_tensorrt(const Bundle& bundle, const Options& options) {
  const std::string& runtime = options.runtime;
  if (runtime == "onnxruntime") return false;
  if (runtime == "auto" || runtime.empty())
    return has_engine_plans(bundle) && !find_tensorrt_module().empty();
  if (runtime != "tensorrt")
    fail(DYNDEPLOY_USAGE, "There is no runtime '" + runtime + "': give auto, onnxruntime or tensorrt.");
  if (!has_engine_plans(bundle))
    fail(DYNDEPLOY_USAGE,
         "The bundle " + bundle.folder + " is for " + bundle.manifest.target +
             " and does not say how engines are built. Export it with --target, e.g. --target nano.");
  if (find_tensorrt_module().empty())
    fail(DYNDEPLOY_BACKEND,
         "This build of dyndeploy has no TensorRT: libdyndeploy_runtime_tensorrt.so is not beside it. Build "
         "plugins/runtime where TensorRT's headers are, or name it with DYNDEPLOY_TENSORRT_MODULE.");
  return true;
}

OrtSettings settings_of(const Bundle& bundle, const Options& options) {
  OrtSettings settings;
  settings.library = options.onnxruntime;
  settings.threads = checked_threads(options.threads);
  settings.shared_memory = bundle.manifest.has_exits;
  settings.precision = precision_on_cpu(bundle);
  const bool bodies_can = settings.precision == "fp32" || in_graph(settings.precision);
  if (bundle.manifest.has_operators || !bodies_can)
    settings.operators = find_operator_library(options.native, bundled_operators(bundle));
  if (!bodies_can && settings.operators.empty())
    fail(DYNDEPLOY_USAGE, settings.precision + " needs the operator library, which is " +
                              (options.native == "off" ? "switched off" : "not there") +
                              ": function bodies compute in fp32. Export with --precision fp32.");
  return settings;
}

std::vector<std::string> mask_names(const Bundle& bundle) {
  std::vector<std::string> names;
  if (!bundle.manifest.has_exits)
    for (const MaskInfo& mask : bundle.manifest.masks) names.push_back(mask.name);
  return names;
}

std::vector<int> exit_numbers(const Bundle& bundle) {
  std::vector<int> numbers;
  for (const StageInfo& stage : bundle.manifest.exits.stages) numbers.push_back(stage.exit);
  return numbers;
}

template <class Values, class Show>
std::string list_json(const Values& values, Show show) {
  std::string text = "[";
  for (const auto& value : values) text += (text.size() > 1 ? ", " : "") + show(value);
  return text + "]";
}

std::string shape_json(const Shape& shape) {
  return list_json(shape, [](std::int64_t size) { return std::to_string(size); });
}

std::string tensors_json(const std::vector<TensorInfo>& infos) {
  return list_json(infos, [](const TensorInfo& info) {
    return "{\"name\": " + quoted(info.name) + ", \"shape\": " + shape_json(info.shape) + ", \"dtype\": \"" +
           type_name(info.type) + "\"}";
  });
}

const char* task_name(const Manifest& manifest, bool classifies) {
  return classifies ? "\"classification\"" : manifest.has_detection ? "\"detection\"" : "\"tensors\"";
}

// What an application has to know of a detector before it runs one.
std::string detection_json(const DetectionInfo& info) {
  const auto whole = [](std::int64_t value) { return std::to_string(value); };
  return "{\"category_ids\": " + list_json(info.category_ids, whole) + ", \"size\": [" +
         std::to_string(info.longest) + ", " + std::to_string(info.shortest) + "], \"buckets\": " +
         list_json(info.buckets,
                   [](const BucketInfo& bucket) { return shape_json({bucket.height, bucket.width}); }) +
         ", \"detections\": " + std::to_string(info.detections) +
         ", \"masks\": " + (info.masks ? "true" : "false") + "}";
}

}  // namespace

Answer answer(const float* logits, std::size_t classes) {
  const float* largest = std::max_element(logits, logits + classes);
  double sum = 0;
  for (std::size_t i = 0; i < classes; ++i) sum += std::exp(static_cast<double>(logits[i] - *largest));
  return {static_cast<std::size_t>(largest - logits), static_cast<float>(1 / sum)};
}

bool in_graph(const std::string& precision) { return precision == "int8"; }

std::string cpu_precision(const std::string& precision) {
  // fp16 is the plan of an engine; it changes nothing on a CPU.
  if (precision == "fp32" || precision == "fp16") return "fp32";
  if (precision == "bf16" || in_graph(precision)) return precision;
  fail(DYNDEPLOY_USAGE, "A CPU cannot run " + precision + ". Export the bundle again with --precision fp32.");
}

// Results are written by the layout that the caller was built with.
void Session::check_results(const dyndeploy_result* results, std::size_t count) {
  for (std::size_t i = 0; results && i < count; ++i)
    if (results[i].size != sizeof(dyndeploy_result))
      fail(DYNDEPLOY_USAGE, "A result's size is " + std::to_string(results[i].size) +
                                ", not sizeof(dyndeploy_result) = " +
                                std::to_string(sizeof(dyndeploy_result)) + ": set it before the call.");
}

Session::Lease::Lease(Session& session) : session_(session) {
  {
    const std::lock_guard<std::mutex> lock(session.mutex_);
    if (!session.idle_.empty()) {
      lane_ = std::move(session.idle_.back());
      session.idle_.pop_back();
    }
  }
  if (!lane_) lane_ = std::make_unique<Lane>(session.plan_, session.bundle_.manifest, session.backend_);
}

Session::Lease::~Lease() {
  const std::lock_guard<std::mutex> lock(session_.mutex_);
  session_.idle_.push_back(std::move(lane_));
}

std::unique_ptr<Session> Session::open(const std::string& folder, const Options& options) {
  Bundle bundle = Bundle::open(folder);
  // Wrong wishes are told before anything is opened.
  const bool on_gpu = takes_tensorrt(bundle, options);
  // A CPU computes stages in what the graphs are written in, whatever the bundle's engines compute in.
  const std::string precision = on_gpu ? bundle.manifest.precision : precision_on_cpu(bundle);
  const std::vector<double> thresholds = chosen_thresholds(bundle, options.thresholds, precision);
  if (on_gpu) {
    const TensorRtSettings settings{find_tensorrt_module(), options.tensorrt, options.plugins,
                                    options.progress};
    auto session =
        std::make_unique<Session>(bundle, open_tensorrt_backend(settings, bundle), thresholds, precision);
    session->open_buckets_with(options);
    return session;
  }
  const OrtSettings settings = settings_of(bundle, options);
  // Summed while the graphs are opened; what is wrong with the files is the better reason where both fail.
  std::future<void> intact =
      std::async(std::launch::async, [&bundle] { bundle.require_intact(bundle.graphs()); });
  std::unique_ptr<Session> session;
  try {
    session = std::make_unique<Session>(bundle, open_onnxruntime_backend(settings), thresholds, precision);
  } catch (...) {
    intact.get();
    throw;
  }
  intact.get();
  session->open_buckets_with(options);
  return session;
}

void Session::open_buckets_with(const Options& options) {
  if (!bundle_.manifest.has_detection) return;
  detector_ = std::make_unique<Detector>(
      *this, [options](const std::string& folder) { return open(folder, options); }, options.progress);
}

Session::~Session() = default;

void Session::serve(const Policy& policy) {
  const std::lock_guard<std::mutex> lock(serving_);
  if (scheduler_)
    fail(DYNDEPLOY_USAGE,
         "The session serves already: call dyndeploy_serve before the first dyndeploy_submit.");
  scheduler_ = std::make_unique<Scheduler>(*this, policy);
}

Scheduler& Session::scheduler() {
  const std::lock_guard<std::mutex> lock(serving_);
  if (!scheduler_) scheduler_ = std::make_unique<Scheduler>(*this, Policy());
  return *scheduler_;
}

std::string Session::statistics_json() {
  std::string text = statistics_.json();
  const std::lock_guard<std::mutex> lock(serving_);
  if (scheduler_) text.insert(text.size() - 1, ", \"serving\": " + scheduler_->json());
  return text;
}

Detector& Session::detector() {
  if (!detector_)
    fail(DYNDEPLOY_USAGE, bundle_.manifest.network + " is no detector: it finds no objects in images.");
  return *detector_;
}

Session::Session(Bundle bundle, std::shared_ptr<Backend> backend, const std::vector<double>& thresholds,
                 const std::string& precision)
    : bundle_(std::move(bundle)),
      backend_(std::move(backend)),
      plan_(make_plan(bundle_, *backend_, thresholds)),
      thresholds_(thresholds),
      precision_(precision),
      statistics_(mask_names(bundle_), exit_numbers(bundle_)),
      info_(describe()) {
  idle_.reserve(64);
}

std::string Session::describe() const {
  const Manifest& manifest = bundle_.manifest;
  const BackendInfo& backend = backend_->info();
  const auto text = [](const std::string& value) { return quoted(value); };
  const auto whole = [](int value) { return std::to_string(value); };
  std::string said =
      "{\"network\": " + quoted(manifest.network) + ", \"task\": " + task_name(manifest, plan_.classifies) +
      ", \"target\": " + quoted(manifest.target) + ", \"batch\": " + std::to_string(manifest.batch) +
      ", \"inputs\": " + tensors_json(manifest.inputs) + ", \"outputs\": " + tensors_json(manifest.outputs) +
      ", \"masks\": " + list_json(mask_names(bundle_), text) + ", \"mask_shapes\": " +
      list_json(plan_.masks, [this](std::size_t mask) { return shape_json(plan_.tensors[mask].shape); }) +
      ", \"class_names\": " + list_json(manifest.class_names, text) +
      ", \"exits\": " + list_json(exit_numbers(bundle_), whole) +
      ", \"thresholds\": " + list_json(thresholds_, number);
  if (manifest.takes_images())
    said +=
        ", \"input_size\": [" + std::to_string(manifest.height) + ", " + std::to_string(manifest.width) + "]";
  if (manifest.has_detection) said += ", \"detection\": " + detection_json(manifest.detection);
  said += ", \"image_files\": " + list_json(image_endings(), text);
  said += ", \"runtime\": " + quoted(backend.name) + ", \"version\": " + quoted(backend.version) +
          ", \"library\": " + quoted(backend.path) + ", \"threads\": " + std::to_string(backend.threads) +
          ", \"precision\": " + quoted(precision_);
  return said + ", \"native\": " + (backend.native_path.empty() ? "null" : quoted(backend.native_path)) +
         ", \"instruction_set\": " + quoted(backend.instruction_set) +
         ", \"operators\": " + operators_json() + "}";
}

std::string Session::operators_json() const {
  const BackendInfo& backend = backend_->info();
  if (!bundle_.manifest.has_operators) return "null";
  if (backend.native_path.empty()) return quoted("function bodies");
  const std::string name = backend.native_path.substr(backend.native_path.find_last_of('/') + 1);
  return quoted(backend.instruction_set.empty() ? name : name + " (" + backend.instruction_set + ")");
}

std::string Session::runtime_json(const std::string& asked) const {
  const std::string& target = bundle_.manifest.target;
  std::string why = "the bundle was exported for " + target;
  if (!asked.empty() && asked != "auto")
    why = "it was asked for";
  else if (has_engine_plans(bundle_) && find_tensorrt_module().empty())
    why += "; not tensorrt, because this build has no module for it";
  return "{\"name\": " + quoted(backend_->info().name) + ", \"why\": " + quoted(why) + "}";
}

void Session::require_images() const {
  if (bundle_.manifest.has_detection)
    fail(DYNDEPLOY_USAGE,
         bundle_.manifest.network +
             " is a detector, which gives no classes of images: call dyndeploy_detect_images.");
  if (!bundle_.manifest.takes_images())
    fail(DYNDEPLOY_USAGE, bundle_.manifest.network + " takes no images: give its inputs as tensors.");
}

double Session::timed_run(Lane& lane, std::size_t rows) {
  const Clock::time_point start = Clock::now();
  lane.run(rows);
  return milliseconds(start);
}

DetectorRow Session::detector_row(Lane& lane, std::size_t row) const {
  const std::vector<std::size_t>& outputs = plan_.outputs;
  const auto floats = [&](std::size_t place) {
    return static_cast<const float*>(lane.row(outputs[place], row));
  };
  const auto whole = [&](std::size_t place) {
    return static_cast<const std::int64_t*>(lane.row(outputs[place], row));
  };
  return row_of_outputs(bundle_.manifest.detection, floats, whole);
}

void Session::mask_rates(Lane& lane, std::size_t row) {
  for (std::size_t i = 0; i < plan_.masks.size(); ++i) {
    const Shape& shape = plan_.tensors[plan_.masks[i]].shape;
    const bool rows = shape[0] == static_cast<std::int64_t>(plan_.batch);
    const std::size_t count = elements(shape, rows ? 1 : 0);
    const float* bits = static_cast<const float*>(lane.data(plan_.masks[i])) + (rows ? row * count : 0);
    double sum = 0;
    for (std::size_t k = 0; k < count; ++k) sum += bits[k];
    lane.rates()[i] = static_cast<float>(sum / static_cast<double>(count));
  }
}

void Session::report(Lane& lane, const Outcome& outcome, std::size_t row, double ms, double preprocessing_ms,
                     dyndeploy_result* result) {
  const Step& step = plan_.steps[outcome.step];
  mask_rates(lane, row);
  statistics_.add(ms, preprocessing_ms, step.exit, lane.rates().data());
  if (!result) return;
  result->exit = step.exit;
  result->ms = ms;
  result->preprocessing_ms = preprocessing_ms;
  result->rates_count = plan_.masks.size();
  if (result->rates)
    std::copy_n(lane.rates().begin(), std::min(result->rates_room, plan_.masks.size()), result->rates);
  result->task = plan_.classifies                 ? DYNDEPLOY_TASK_CLASSIFICATION
                 : bundle_.manifest.has_detection ? DYNDEPLOY_TASK_DETECTION
                                                  : DYNDEPLOY_TASK_TENSORS;
  result->values_count = 0;
  if (!plan_.classifies) return;
  const float* logits = static_cast<const float*>(lane.row(step.logits, outcome.row));
  result->values_count = plan_.classes();
  if (result->values) std::copy_n(logits, std::min(result->values_room, plan_.classes()), result->values);
  const Answer found = answer(logits, plan_.classes());
  const std::vector<std::string>& names = bundle_.manifest.class_names;
  result->classification.label = static_cast<std::int32_t>(found.label);
  result->classification.confidence = found.confidence;
  result->classification.class_name = found.label < names.size() ? names[found.label].c_str() : nullptr;
}

template <class Get>
void Session::run_each(Get get, std::size_t count, dyndeploy_result* results) {
  require_images();
  check_results(results, count);
  const Lease lease(*this);
  Lane& lane = *lease;
  // With any batch all images run at once, so that later stages compute on those that are left.
  const std::size_t most = plan_.any_batch ? std::max<std::size_t>(count, 1) : plan_.batch;
  lane.reserve(most);
  for (std::size_t start = 0; start < count; start += most) {
    const std::size_t rows = std::min(most, count - start);
    const Clock::time_point before = Clock::now();
    for (std::size_t i = 0; i < rows; ++i)
      lane.preprocessor()->run(get(start + i), static_cast<float*>(lane.writable_row(plan_.inputs[0], i)));
    const double preparing = milliseconds(before) / static_cast<double>(rows);
    const double ms = timed_run(lane, rows) / static_cast<double>(rows);
    for (std::size_t i = 0; i < rows; ++i)
      report(lane, lane.outcome(i), i, ms, preparing, results ? results + start + i : nullptr);
  }
}

void Session::run_images(const dyndeploy_image* images, std::size_t count, dyndeploy_result* results) {
  run_each(
      [images](std::size_t index) -> ImageView {
        const dyndeploy_image& image = images[index];
        return {image.pixels, image.height, image.width, image.stride};
      },
      count, results);
}

void Session::run_files(const char* const* paths, std::size_t count, dyndeploy_result* results) {
  Image image;
  run_each(
      [&](std::size_t index) {
        image = read_image(paths[index]);
        return image.view();
      },
      count, results);
}

void Session::preprocess(const ImageView& image, float* values, std::size_t room) {
  const Manifest& manifest = bundle_.manifest;
  if (!manifest.has_detection) require_images();
  const std::size_t needed = plan_.row_elements(plan_.inputs[0]);
  if (room < needed)
    fail(DYNDEPLOY_USAGE, "There is room for " + std::to_string(room) + " values where " +
                              std::to_string(needed) + " are written.");
  const Lease lease(*this);
  if (!manifest.has_detection) return (*lease).preprocessor()->run(image, values);
  float image_size[2];
  (*lease).detection()->prepare(image, {manifest.detection.longest, manifest.detection.shortest}, values,
                                image_size);
}

void Session::take_inputs(Lane& lane, const dyndeploy_tensor* inputs, std::size_t count, std::size_t rows) {
  for (const std::size_t place : plan_.inputs) {
    const TensorInfo& info = plan_.tensors[place];
    const dyndeploy_tensor* found = nullptr;
    for (std::size_t i = 0; i < count && !found; ++i)
      if (inputs[i].name && info.name == inputs[i].name) found = inputs + i;
    if (!found) fail(DYNDEPLOY_INPUT, "The input '" + info.name + "' is missing.");
    const std::size_t wanted =
        bundle_.manifest.has_exits ? rows * plan_.row_elements(place) : elements(info.shape);
    bool fits = found->type == info.type && found->rank == static_cast<std::int32_t>(info.shape.size());
    for (std::size_t i = 0; fits && i < info.shape.size(); ++i)
      fits = found->shape[i] ==
             (i == 0 && bundle_.manifest.has_exits ? static_cast<std::int64_t>(rows) : info.shape[i]);
    if (!fits || !found->data || found->bytes != wanted * element_bytes(info.type)) {
      Shape expected = info.shape, given;
      if (bundle_.manifest.has_exits) expected[0] = kAnySize;
      for (std::int32_t i = 0; i < std::min(std::max(found->rank, 0), 8); ++i)
        given.push_back(found->shape[i]);
      fail(DYNDEPLOY_INPUT, "Input '" + info.name + "': expected " + described(info.type, expected) +
                                ", got " + described(found->type, given) + " in " +
                                std::to_string(found->bytes) + " bytes.");
    }
    if (info.type == DYNDEPLOY_FLOAT32) {
      const std::string bad = not_finite(static_cast<const float*>(found->data), wanted);
      if (!bad.empty())
        fail(DYNDEPLOY_INPUT, "Input '" + info.name + "': expected finite numbers, got " + bad +
                                  ". Check the image and its preprocessing.");
    }
    std::memcpy(lane.writable(place), found->data, found->bytes);
  }
  if (count != plan_.inputs.size())
    fail(DYNDEPLOY_INPUT, std::to_string(count) + " inputs are given where the network takes " +
                              std::to_string(plan_.inputs.size()) + ".");
}

void Session::give_output(Lane& lane, dyndeploy_tensor& output, std::size_t rows) {
  const std::string name = output.name ? output.name : "";
  const bool staged = bundle_.manifest.has_exits;
  const auto found = std::find_if(plan_.results.begin(), plan_.results.end(),
                                  [&](std::size_t place) { return plan_.tensors[place].name == name; });
  if (found == plan_.results.end() || (staged && name != kLogits))
    fail(DYNDEPLOY_USAGE, "The network gives no output '" + name + "'.");
  const TensorInfo& info = plan_.tensors[*found];
  const std::size_t row_bytes = staged ? plan_.classes() * sizeof(float) : 0;
  const std::size_t bytes = staged ? rows * row_bytes : elements(info.shape) * element_bytes(info.type);
  if (!output.data || output.bytes < bytes)
    fail(DYNDEPLOY_USAGE, "Output '" + name + "' has " + std::to_string(bytes) +
                              " bytes, and there is room for " +
                              std::to_string(output.data ? output.bytes : 0) + ".");
  output.type = info.type;
  output.rank = static_cast<std::int32_t>(info.shape.size());
  std::copy(info.shape.begin(), info.shape.end(), output.shape);
  output.bytes = bytes;
  if (!staged) {
    std::memcpy(output.data, lane.data(*found), bytes);
    return;
  }
  output.shape[0] = static_cast<std::int64_t>(rows);
  for (std::size_t i = 0; i < rows; ++i) {
    const Outcome& outcome = lane.outcome(i);
    std::memcpy(static_cast<char*>(output.data) + i * row_bytes,
                lane.row(plan_.steps[outcome.step].logits, outcome.row), row_bytes);
  }
}

void Session::run_tensors(const dyndeploy_tensor* inputs, std::size_t input_count, dyndeploy_tensor* outputs,
                          std::size_t output_count, dyndeploy_result* results, std::size_t result_count) {
  const Lease lease(*this);
  Lane& lane = *lease;
  std::size_t rows = plan_.batch;
  if (bundle_.manifest.has_exits && input_count && inputs[0].rank > 0) {
    const std::int64_t given = inputs[0].shape[0];
    // A fixed batch is filled up.
    if (given < 1 || (!plan_.any_batch && given > static_cast<std::int64_t>(plan_.batch)) || given > 1 << 20)
      fail(DYNDEPLOY_INPUT,
           std::to_string(given) + " images are given" +
               (plan_.any_batch ? "." : ": at most " + std::to_string(plan_.batch) + " run at once."));
    rows = static_cast<std::size_t>(given);
  }
  if (results && result_count < rows)
    fail(DYNDEPLOY_USAGE, "There is room for " + std::to_string(result_count) + " results of " +
                              std::to_string(rows) + " rows.");
  check_results(results, rows);
  lane.reserve(rows);
  take_inputs(lane, inputs, input_count, rows);
  const double ms = timed_run(lane, rows) / static_cast<double>(rows);
  for (std::size_t i = 0; i < output_count; ++i) give_output(lane, outputs[i], rows);
  for (std::size_t i = 0; i < rows; ++i)
    report(lane, lane.outcome(i), i, ms, 0, results ? results + i : nullptr);
}

}  // namespace runtime
}  // namespace dyndeploy
