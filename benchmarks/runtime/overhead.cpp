// What the runtime costs beside the bare ONNX Runtime session: the same graphs, bound once and run by one
// call of its API. Both take turns, so that what else the machine does falls on both; times are CPU times of
// the calling thread, which computes alone. Usage: overhead BUNDLE RUNS. Prints JSON.

#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "error.h"
#include "lane.h"
#include "onnxruntime.h"
#include "onnxruntime_library.h"
#include "plan.h"
#include "session.h"

namespace {

using namespace dyndeploy::runtime;

double cpu_ms(clockid_t clock) {
  timespec now;
  clock_gettime(clock, &now);
  return 1e3 * static_cast<double>(now.tv_sec) + 1e-6 * static_cast<double>(now.tv_nsec);
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2),
                   values.end());
  return values[values.size() / 2];
}

// No early exit is taken: every stage runs.
std::vector<double> thresholds_of(const Bundle& bundle) {
  std::vector<double> values(bundle.manifest.exits.stages.size(), 2.0);
  if (!values.empty()) values.back() = -std::numeric_limits<double>::infinity();
  return values;
}

OrtSettings settings_of(const Bundle& bundle) {
  OrtSettings settings;
  settings.precision = "fp32";
  settings.shared_memory = bundle.manifest.has_exits;
  if (bundle.manifest.has_operators) settings.operators = find_operator_library("auto", "");
  return settings;
}

// The graphs on tensors of their own, one row.
class Bare {
 public:
  explicit Bare(const Bundle& bundle)
      : backend_(open_onnxruntime_backend(settings_of(bundle))),
        plan_(make_plan(bundle, *backend_, thresholds_of(bundle))) {
    for (const TensorInfo& info : plan_.tensors)
      memory_.push_back(backend_->allocate(elements(info.shape) * element_bytes(info.type)));
    for (const Step& step : plan_.steps)
      bindings_.push_back(step.graph->bind(slots(step.inputs), slots(step.outputs)));
  }
  void run(const std::vector<float>& image) {
    std::memcpy(memory_[plan_.inputs[0]].get(), image.data(), image.size() * sizeof(float));
    for (const auto& binding : bindings_) binding->run();
  }

 private:
  std::vector<Slot> slots(const std::vector<std::size_t>& places) {
    std::vector<Slot> made;
    for (const std::size_t place : places)
      made.push_back({plan_.tensors[place].name, plan_.tensors[place].type, plan_.tensors[place].shape,
                      memory_[place].get()});
    return made;
  }

  std::shared_ptr<Backend> backend_;
  Plan plan_;
  std::vector<std::shared_ptr<void>> memory_;
  std::vector<std::unique_ptr<Binding>> bindings_;
};

std::unique_ptr<Session> opened(const std::string& folder, const Bundle& bundle) {
  Options options;
  options.thresholds = thresholds_of(bundle);
  return Session::open(folder, options);
}

struct Start {
  std::vector<double> wall, cpu;
};

template <class Work>
void timed_start(Start& start, Work work) {
  const auto wall = std::chrono::steady_clock::now();
  const double cpu = cpu_ms(CLOCK_PROCESS_CPUTIME_ID);
  work();
  start.cpu.push_back(cpu_ms(CLOCK_PROCESS_CPUTIME_ID) - cpu);
  start.wall.push_back(
      std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - wall).count());
}

void run(const std::string& folder, int runs) {
  const Bundle bundle = Bundle::open(folder);
  Start bare_start, own_start;
  std::unique_ptr<Bare> bare;
  std::unique_ptr<Session> session;
  for (int i = 0; i < 7; ++i) {
    bare.reset();
    session.reset();
    timed_start(bare_start, [&] { bare.reset(new Bare(bundle)); });
    timed_start(own_start, [&] { session = opened(folder, bundle); });
  }
  const TensorInfo& input = bundle.manifest.inputs[0];
  std::vector<float> image(elements(input.shape));
  std::mt19937 rng(1);
  for (float& value : image) value = std::normal_distribution<float>()(rng);
  std::vector<float> logits(session->plan().classes());
  dyndeploy_tensor given{sizeof(dyndeploy_tensor),
                         input.name.c_str(),
                         image.data(),
                         image.size() * sizeof(float),
                         input.type,
                         static_cast<std::int32_t>(input.shape.size()),
                         {}};
  std::copy(input.shape.begin(), input.shape.end(), given.shape);
  dyndeploy_tensor taken{
      sizeof(dyndeploy_tensor), "logits", logits.data(), logits.size() * sizeof(float), 0, 0, {}};
  dyndeploy_result result{};
  result.size = sizeof result;
  std::vector<double> of_bare, of_own, ratios;
  for (int i = 0; i < runs + 20; ++i) {
    double times[2];
    for (int turn = 0; turn < 2; ++turn) {
      const bool own = (turn + i) % 2 != 0;
      taken.bytes = logits.size() * sizeof(float);
      const double start = cpu_ms(CLOCK_THREAD_CPUTIME_ID);
      if (own) {
        session->run_tensors(&given, 1, &taken, 1, &result, 1);
      } else {
        bare->run(image);
      }
      times[own] = cpu_ms(CLOCK_THREAD_CPUTIME_ID) - start;
    }
    if (i < 20) continue;
    of_bare.push_back(times[0]);
    of_own.push_back(times[1]);
    ratios.push_back(times[1] / times[0]);
  }
  std::printf(
      "{\"network\": \"%s\", \"stages\": %zu, \"runs\": %d, \"bare_ms\": %.5f, \"runtime_ms\": %.5f, "
      "\"ratio\": %.5f, "
      "\"fastest_ratio\": %.5f, \"bare_start_ms\": %.2f, \"runtime_start_ms\": %.2f, \"bare_start_cpu_ms\": "
      "%.2f, "
      "\"runtime_start_cpu_ms\": %.2f}\n",
      bundle.manifest.network.c_str(), bundle.manifest.exits.stages.size(), runs, median(of_bare),
      median(of_own), median(ratios),
      *std::min_element(of_own.begin(), of_own.end()) / *std::min_element(of_bare.begin(), of_bare.end()),
      median(bare_start.wall), median(own_start.wall), median(bare_start.cpu), median(own_start.cpu));
}

}  // namespace

int main(int count, char** values) {
  if (count != 3) return 2;
  try {
    run(values[1], std::atoi(values[2]));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
