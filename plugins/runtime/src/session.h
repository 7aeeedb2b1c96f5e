// A bundle that runs. Several threads may call it at once.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "batching.h"
#include "bundle.h"
#include "lane.h"
#include "plan.h"
#include "statistics.h"

namespace dyndeploy {
namespace runtime {

struct Options {
  std::string runtime =
      "auto";            // "onnxruntime", "tensorrt", or "auto": TensorRT where bundle and device have it
  std::string tensorrt;  // see TensorRtSettings, as the next two
  std::string plugins;
  std::function<void(const std::string&)> progress;
  std::string onnxruntime;      // see open_onnxruntime
  std::string native = "auto";  // see find_operator_library
  int threads = 1;
  std::vector<double> thresholds;  // empty: the bundle's
};

class Detector;
class Scheduler;

class Session {
 public:
  // A lane for one call, given back when it ends, also by an exception.
  class Lease {
   public:
    explicit Lease(Session& session);
    ~Lease();
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    Lane& operator*() const { return *lane_; }

   private:
    Session& session_;
    std::unique_ptr<Lane> lane_;
  };

  // Throws Error.
  static std::unique_ptr<Session> open(const std::string& folder, const Options& options);
  // With a backend that is there already, which computes in `precision`.
  Session(Bundle bundle, std::shared_ptr<Backend> backend, const std::vector<double>& thresholds,
          const std::string& precision = "fp32");

  ~Session();

  const Bundle& bundle() const { return bundle_; }
  const Plan& plan() const { return plan_; }
  const std::string& info() const { return info_; }
  const std::string& precision() const { return precision_; }
  // Which code runs the dynamic operators, as `dyndeploy run --json` says it: a JSON text, or null without
  // any.
  std::string operators_json() const;
  // What runs, and why, as `dyndeploy run --json` says it. asked: the runtime that the caller named.
  std::string runtime_json(const std::string& asked) const;
  Statistics& statistics() { return statistics_; }

  // See dyndeploy.h for what these do; they throw Error.
  void run_images(const dyndeploy_image* images, std::size_t count, dyndeploy_result* results);
  void run_files(const char* const* paths, std::size_t count, dyndeploy_result* results);
  void run_tensors(const dyndeploy_tensor* inputs, std::size_t input_count, dyndeploy_tensor* outputs,
                   std::size_t output_count, dyndeploy_result* results, std::size_t result_count);
  void preprocess(const ImageView& image, float* values, std::size_t room);
  // Throws Error(DYNDEPLOY_USAGE) where the network is no detector.
  Detector& detector();

  // Batches of images that callers submit. `serve` says how, once, before the first use. Throw Error.
  void serve(const Policy& policy);
  Scheduler& scheduler();
  bool detects() const { return bundle_.manifest.has_detection; }
  // Throws Error(DYNDEPLOY_USAGE) where the network takes no images, or is a detector.
  void require_images() const;
  // Write what came of a row of a run, which left as `outcome` says, and count it. result may be null.
  void report(Lane& lane, const Outcome& outcome, std::size_t row, double ms, double preprocessing_ms,
              dyndeploy_result* result);
  // Throws Error(DYNDEPLOY_USAGE) for structures of another size; null is allowed.
  static void check_results(const dyndeploy_result* results, std::size_t count);
  // As JSON text.
  std::string statistics_json();

  // For tasks: run rows that are filled in, and return the milliseconds; a row of a detector's outputs; and
  // the rates of a row in Lane::rates.
  double timed_run(Lane& lane, std::size_t rows);
  DetectorRow detector_row(Lane& lane, std::size_t row) const;
  void mask_rates(Lane& lane, std::size_t row);

  // How many images a run takes at a time; results do not depend on how they are divided.
  std::size_t batch() const { return plan_.any_batch ? 1 : plan_.batch; }

 private:
  void open_buckets_with(const Options& options);
  template <class Get>
  void run_each(Get get, std::size_t count, dyndeploy_result* results);
  void take_inputs(Lane& lane, const dyndeploy_tensor* inputs, std::size_t count, std::size_t rows);
  void give_output(Lane& lane, dyndeploy_tensor& output, std::size_t rows);
  std::string describe() const;

  Bundle bundle_;
  std::shared_ptr<Backend> backend_;
  Plan plan_;
  std::vector<double> thresholds_;
  std::string precision_;
  Statistics statistics_;
  std::string info_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Lane>> idle_;
  std::unique_ptr<Detector> detector_;
  std::mutex serving_;
  std::unique_ptr<Scheduler> scheduler_;  // ends first: its thread uses all above
};

// Index of the largest, the first of equals, and its softmax probability.
struct Answer {
  std::size_t label;
  float confidence;
};
Answer answer(const float* logits, std::size_t classes);

// What the dynamic bottlenecks compute in on a CPU for a bundle's precision. Throws Error(DYNDEPLOY_USAGE).
std::string cpu_precision(const std::string& precision);
// Whether a bundle's graphs themselves are written in it, so that function bodies compute in it as well; else
// they are in FP32, and the precision is the choice of what runs them.
bool in_graph(const std::string& precision);

}  // namespace runtime
}  // namespace dyndeploy
