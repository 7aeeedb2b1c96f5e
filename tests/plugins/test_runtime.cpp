// Unit tests of the runtime without ONNX Runtime: a backend of the tests' own computes. Usage: test_runtime
// [PART]

#include <dirent.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "batching.h"
#include "decode.h"
#include "error.h"
#include "json.h"
#include "lane.h"
#include "manifest.h"
#include "npz.h"
#include "preprocessing.h"
#include "scheduler.h"
#include "session.h"
#include "sha256.h"

namespace {

std::atomic<long> allocations{0};

}  // namespace

// Counts what the runtime allocates; the backend below allocates nothing while it runs. Inlined, new and
// delete would look mismatched to GCC.
__attribute__((noinline)) void* operator new(std::size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size ? size : 1)) return memory;
  throw std::bad_alloc();
}
__attribute__((noinline)) void operator delete(void* memory) noexcept { std::free(memory); }
__attribute__((noinline)) void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace {

using namespace dyndeploy::runtime;

int failures = 0;

#define CHECK(condition)                                          \
  do {                                                            \
    if (!(condition)) {                                           \
      ++failures;                                                 \
      std::printf("%s:%d: %s\n", __FILE__, __LINE__, #condition); \
    }                                                             \
  } while (false)

template <class Work>
int code_of(Work work) {
  try {
    work();
  } catch (const Error& error) {
    return error.code();
  }
  return DYNDEPLOY_OK;
}

// ---------------------------------------------------------------- a backend

constexpr int kClasses = 3;
constexpr int kSide = 4;
constexpr std::size_t kPixels = 3 * kSide * kSide;

// Holds runs back until it is opened.
class Gate {
 public:
  void close() {
    const std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
  }
  void open() {
    const std::lock_guard<std::mutex> lock(mutex_);
    closed_ = false;
    changed_.notify_all();
  }
  void pass() {
    std::unique_lock<std::mutex> lock(mutex_);
    ++waiting_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return !closed_; });
    --waiting_;
    if (broken) fail(DYNDEPLOY_RUN, "The device is gone.");
  }
  std::atomic<bool> broken{false};
  void await_a_run() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return waiting_ > 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool closed_ = false;
  int waiting_ = 0;
};

// Stage k of three: gives logits (first pixel, k, 0), a confidence, and carries the image on.
class FakeBinding : public Binding {
 public:
  FakeBinding(int stage, const std::vector<Slot>& inputs, const std::vector<Slot>& outputs,
              std::atomic<long>& rows, Gate& gate)
      : stage_(stage), inputs_(inputs), outputs_(outputs), rows_(rows), gate_(gate) {}
  void run() override {
    gate_.pass();
    const std::int64_t count = inputs_[0].shape[0];
    rows_ += count;
    const float* in = static_cast<const float*>(inputs_[0].data);
    for (std::int64_t i = 0; i < count; ++i) {
      const float first = in[static_cast<std::size_t>(i) * kPixels];
      for (const Slot& output : outputs_) {
        float* to = static_cast<float*>(output.data);
        if (output.name == "logits") {
          to[3 * i] = first;
          to[3 * i + 1] = static_cast<float>(stage_);
          to[3 * i + 2] = 0;
        } else if (output.name == "confidence") {
          // The first pixel says at which stage the image is sure.
          to[i] = first < 0                             ? std::numeric_limits<float>::quiet_NaN()
                  : first <= static_cast<float>(stage_) ? 0.9f
                                                        : 0.1f;
        } else {
          std::memcpy(to + static_cast<std::size_t>(i) * kPixels, in + static_cast<std::size_t>(i) * kPixels,
                      kPixels * sizeof(float));
        }
      }
    }
  }

 private:
  int stage_;
  std::vector<Slot> inputs_, outputs_;
  std::atomic<long>& rows_;
  Gate& gate_;
};

class FakeGraph : public Graph {
 public:
  FakeGraph(int stage, std::vector<TensorInfo> inputs, std::vector<TensorInfo> outputs,
            std::atomic<long>& rows, Gate& gate)
      : stage_(stage), inputs_(std::move(inputs)), outputs_(std::move(outputs)), rows_(rows), gate_(gate) {}
  const std::vector<TensorInfo>& inputs() const override { return inputs_; }
  const std::vector<TensorInfo>& outputs() const override { return outputs_; }
  std::unique_ptr<Binding> bind(const std::vector<Slot>& inputs, const std::vector<Slot>& outputs) override {
    return std::make_unique<FakeBinding>(stage_, inputs, outputs, rows_, gate_);
  }

 private:
  int stage_;
  std::vector<TensorInfo> inputs_, outputs_;
  std::atomic<long>& rows_;
  Gate& gate_;
};

class FakeBackend : public Backend {
 public:
  explicit FakeBackend(const Manifest& manifest) : manifest_(manifest) {}
  const BackendInfo& info() const override { return info_; }
  std::unique_ptr<Graph> open(const std::string& path) override {
    const int stage = path[path.size() - 6] - '0';
    const StageInfo& described = manifest_.exits.stages[static_cast<std::size_t>(stage)];
    return std::make_unique<FakeGraph>(stage, described.inputs, described.outputs, rows[stage], gate);
  }
  std::shared_ptr<void> allocate(std::size_t bytes) override {
    return std::shared_ptr<void>(std::malloc(bytes), std::free);
  }

  std::atomic<long> rows[3] = {{0}, {0}, {0}};  // that each stage computed
  Gate gate;

 private:
  Manifest manifest_;
  BackendInfo info_{"fake", "1", "", "", "", 1};
};

Bundle staged_bundle(std::int64_t batch, bool dynamic) {
  const Shape image{batch, 3, kSide, kSide};
  Bundle bundle{"nowhere", Manifest{}};
  Manifest& manifest = bundle.manifest;
  manifest.network = "fake";
  manifest.target = "cpu";
  manifest.precision = "fp32";
  manifest.class_names = {"a", "b", "c"};
  manifest.batch = batch;
  manifest.height = manifest.width = kSide;
  manifest.inputs = {{"images", image, DYNDEPLOY_FLOAT32}};
  manifest.outputs = {{"logits", {batch, kClasses}, DYNDEPLOY_FLOAT32}};
  manifest.has_preprocessing = true;
  manifest.preprocessing = {kSide, {0, 0, 0}, {1, 1, 1}, Interpolation::kBilinear};
  manifest.has_exits = true;
  manifest.exits.dynamic_batch = dynamic;
  for (int stage = 0; stage < 3; ++stage) {
    StageInfo info{"stage" + std::to_string(stage) + ".onnx", 2 * stage + 1, {}, {}};
    const std::string in = stage ? "x" + std::to_string(stage) : "images",
                      out = "x" + std::to_string(stage + 1);
    info.inputs = {{in, image, DYNDEPLOY_FLOAT32}};
    info.outputs = {manifest.outputs[0]};
    if (stage < 2) info.outputs.push_back({out, image, DYNDEPLOY_FLOAT32});
    info.outputs.push_back({"confidence", {batch}, DYNDEPLOY_FLOAT32});
    manifest.exits.stages.push_back(info);
  }
  return bundle;
}

const std::vector<double> kThresholds{0.5, 0.5, -std::numeric_limits<double>::infinity()};

// Images whose first pixel says after which stage each leaves.
std::vector<float> images_of(const std::vector<int>& stages) {
  std::vector<float> images(stages.size() * kPixels, 0.25f);
  for (std::size_t i = 0; i < stages.size(); ++i) images[i * kPixels] = static_cast<float>(stages[i]);
  return images;
}

dyndeploy_tensor tensor(const char* name, float* data, const Shape& shape) {
  dyndeploy_tensor made{};
  made.size = sizeof made;
  made.name = name;
  made.data = data;
  made.bytes = elements(shape) * sizeof(float);
  made.type = DYNDEPLOY_FLOAT32;
  made.rank = static_cast<std::int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), made.shape);
  return made;
}

struct Run {
  std::vector<float> logits;
  std::vector<dyndeploy_result> results;
};

Run run(Session& session, const std::vector<int>& stages) {
  const auto count = static_cast<std::int64_t>(stages.size());
  std::vector<float> images = images_of(stages);
  Run found{std::vector<float>(stages.size() * kClasses), std::vector<dyndeploy_result>(stages.size())};
  for (dyndeploy_result& result : found.results) result.size = sizeof result;
  const dyndeploy_tensor input = tensor("images", images.data(), {count, 3, kSide, kSide});
  dyndeploy_tensor output = tensor("logits", found.logits.data(), {count, kClasses});
  session.run_tensors(&input, 1, &output, 1, found.results.data(), found.results.size());
  return found;
}

// ---------------------------------------------------------------- tests

void test_every_image_leaves_at_its_exit_and_later_stages_compute_on_the_rest(bool dynamic) {
  const Bundle bundle = staged_bundle(dynamic ? 1 : 7, dynamic);
  const auto backend = std::make_shared<FakeBackend>(bundle.manifest);
  Session session(bundle, backend, kThresholds);
  const std::vector<int> stages{2, 0, 1, 0, 2, 1, 0};
  const Run found = run(session, stages);
  for (std::size_t i = 0; i < stages.size(); ++i) {
    CHECK(found.results[i].exit == 2 * stages[i] + 1);
    CHECK(found.logits[3 * i] == static_cast<float>(stages[i]));      // of this image
    CHECK(found.logits[3 * i + 1] == static_cast<float>(stages[i]));  // of this stage
    CHECK(found.results[i].values_count == kClasses);
  }
  // A fixed batch computes on all its rows; a stage that nobody reaches does not run.
  CHECK(backend->rows[0] == 7);
  CHECK(backend->rows[1] == (dynamic ? 4 : 7));
  CHECK(backend->rows[2] == (dynamic ? 2 : 7));
  run(session, {0, 0});
  CHECK(backend->rows[1] == (dynamic ? 4 : 7));
  CHECK(session.statistics().json().find("\"exits\": {\"1\": 5, \"3\": 2, \"5\": 2}") != std::string::npos);
}

void test_what_is_not_finite_ends_the_run() {
  const Bundle bundle = staged_bundle(1, true);
  Session session(bundle, std::make_shared<FakeBackend>(bundle.manifest), kThresholds);
  CHECK(code_of([&] { run(session, {0, -1}); }) == DYNDEPLOY_NOT_FINITE);
  CHECK(run(session, {1}).results[0].exit == 3);  // and the session goes on
  std::vector<float> image = images_of({0});
  image[5] = std::numeric_limits<float>::infinity();
  const dyndeploy_tensor input = tensor("images", image.data(), {1, 3, kSide, kSide});
  CHECK(code_of([&] { session.run_tensors(&input, 1, nullptr, 0, nullptr, 0); }) == DYNDEPLOY_INPUT);
}

void test_nothing_is_allocated_once_a_size_was_run() {
  const Bundle bundle = staged_bundle(1, true);
  Session session(bundle, std::make_shared<FakeBackend>(bundle.manifest), kThresholds);
  std::vector<std::uint8_t> pixels(3 * 50 * 70, 200);
  const dyndeploy_image images[2] = {{pixels.data(), 50, 70, 210}, {pixels.data(), 70, 50, 150}};
  dyndeploy_result results[2] = {};
  for (dyndeploy_result& result : results) result.size = sizeof result;
  std::vector<float> floats = images_of({0, 1}), logits(2 * kClasses);
  const dyndeploy_tensor input = tensor("images", floats.data(), {2, 3, kSide, kSide});
  dyndeploy_tensor output = tensor("logits", logits.data(), {2, kClasses});
  const auto call = [&] {
    session.run_images(images, 2, results);
    output.bytes = logits.size() * sizeof(float);
    session.run_tensors(&input, 1, &output, 1, results, 2);
  };
  call();
  const long before = allocations;
  for (int i = 0; i < 100; ++i) call();
  CHECK(allocations == before);
  CHECK(before > 0);
}

void test_threads_share_a_session() {
  const Bundle bundle = staged_bundle(1, true);
  Session session(bundle, std::make_shared<FakeBackend>(bundle.manifest), kThresholds);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&session, &wrong, t] {
      for (int i = 0; i < 200; ++i) {
        const std::vector<int> stages{(t + i) % 3, i % 3, t % 3};
        const Run found = run(session, stages);
        for (std::size_t k = 0; k < 3; ++k)
          wrong += found.results[k].exit != 2 * stages[k] + 1 ||
                   found.logits[3 * k] != static_cast<float>(stages[k]);
      }
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
  CHECK(session.statistics().json().find("\"images\": 2400") != std::string::npos);
}

void test_wrong_calls_are_refused() {
  const Bundle bundle = staged_bundle(1, true);
  Session session(bundle, std::make_shared<FakeBackend>(bundle.manifest), kThresholds);
  std::vector<float> image = images_of({0});
  const auto refused = [&](const dyndeploy_tensor& input) {
    return code_of([&] { session.run_tensors(&input, 1, nullptr, 0, nullptr, 0); });
  };
  CHECK(refused(tensor("other", image.data(), {1, 3, kSide, kSide})) == DYNDEPLOY_INPUT);
  CHECK(refused(tensor("images", image.data(), {1, 3, kSide, 2})) == DYNDEPLOY_INPUT);
  CHECK(refused(tensor("images", image.data(), {0, 3, kSide, kSide})) == DYNDEPLOY_INPUT);
  CHECK(refused(tensor("images", nullptr, {1, 3, kSide, kSide})) == DYNDEPLOY_INPUT);
  const dyndeploy_tensor input = tensor("images", image.data(), {1, 3, kSide, kSide});
  dyndeploy_tensor output = tensor("nothing", image.data(), {1, kClasses});
  CHECK(code_of([&] { session.run_tensors(&input, 1, &output, 1, nullptr, 0); }) == DYNDEPLOY_USAGE);
  output = tensor("logits", image.data(), {1, 2});
  CHECK(code_of([&] { session.run_tensors(&input, 1, &output, 1, nullptr, 0); }) == DYNDEPLOY_USAGE);
  dyndeploy_result result{};
  CHECK(code_of([&] { session.run_tensors(&input, 1, nullptr, 0, &result, 1); }) == DYNDEPLOY_USAGE);
  const dyndeploy_image empty{nullptr, 4, 4, 12};
  CHECK(code_of([&] { session.run_images(&empty, 1, nullptr); }) == DYNDEPLOY_INPUT);
  CHECK(code_of([&] { checked_thresholds(bundle.manifest.exits, {0.5}); }) == DYNDEPLOY_USAGE);
  CHECK(code_of([&] { checked_thresholds(bundle.manifest.exits, {0.5, std::nan("")}); }) == DYNDEPLOY_USAGE);
  CHECK(checked_thresholds(bundle.manifest.exits, {0.5, 0.25}) ==
        (std::vector<double>{0.5, 0.25, kThresholds[2]}));
}

// ---------------------------------------------------------------- serving

struct Completed {
  dyndeploy_completion completion;
  dyndeploy_result result;
  std::vector<float> logits;
};

std::uint64_t submit(Scheduler& scheduler, int stage, void* user = nullptr) {
  const std::vector<float> image = images_of({stage});
  dyndeploy_request request{};
  request.size = sizeof request;
  request.values = image.data();
  request.user = user;
  return scheduler.submit(request);
}

std::vector<Completed> poll(Scheduler& scheduler, std::size_t room, double timeout_ms) {
  std::vector<Completed> found(room);
  std::vector<dyndeploy_completion> completions(room);
  for (std::size_t i = 0; i < room; ++i) {
    found[i].logits.resize(kClasses);
    found[i].result.size = sizeof(dyndeploy_result);
    found[i].result.values = found[i].logits.data();
    found[i].result.values_room = kClasses;
    completions[i].size = sizeof completions[i];
    completions[i].result = &found[i].result;
  }
  found.resize(scheduler.poll(completions.data(), room, timeout_ms));
  for (std::size_t i = 0; i < found.size(); ++i) found[i].completion = completions[i];
  return found;
}

std::vector<Completed> poll_all(Scheduler& scheduler, std::size_t count) {
  std::vector<Completed> all;
  while (all.size() < count)
    for (Completed& one : poll(scheduler, count - all.size(), -1)) all.push_back(std::move(one));
  return all;
}

bool is_of_stage(const Completed& one, int stage) {
  return one.completion.code == DYNDEPLOY_OK && one.result.exit == 2 * stage + 1 &&
         one.logits[0] == static_cast<float>(stage) && one.logits[1] == static_cast<float>(stage);
}

void test_submitted_images_leave_at_their_exits(bool dynamic) {
  const Bundle bundle = staged_bundle(dynamic ? 1 : 4, dynamic);
  const auto backend = std::make_shared<FakeBackend>(bundle.manifest);
  Session session(bundle, backend, kThresholds);
  Policy policy;
  policy.largest_batch = 4;
  session.serve(policy);
  Scheduler& scheduler = session.scheduler();
  int stages[30];
  for (int i = 0; i < 30; ++i) {
    stages[i] = (i * 7) % 3;
    submit(scheduler, stages[i], &stages[i]);
  }
  for (const Completed& one : poll_all(scheduler, 30)) {
    CHECK(is_of_stage(one, *static_cast<int*>(one.completion.user)));
    CHECK(one.completion.rows >= 1 && one.completion.rows <= 4);
    CHECK(one.completion.latency_ms >= one.completion.queue_ms);
  }
  CHECK(poll(scheduler, 4, 0).empty());
  if (dynamic) {
    // Each stage computed exactly on those that reached it.
    CHECK(backend->rows[0] == 30);
    CHECK(backend->rows[1] == 20);
    CHECK(backend->rows[2] == 10);
  }
  CHECK(session.statistics().json().find("\"exits\": {\"1\": 10, \"3\": 10, \"5\": 10}") !=
        std::string::npos);
  CHECK(session.statistics_json().find("\"under_way\": 0, \"unpolled\": 0") != std::string::npos);
}

void test_waiting_images_join_between_stages() {
  // A fixed batch costs the same whatever is in it: who waits for a fuller one gains.
  const Bundle bundle = staged_bundle(7, false);
  const auto backend = std::make_shared<FakeBackend>(bundle.manifest);
  Session session(bundle, backend, kThresholds);
  long ticks = 0;  // every run takes a millisecond
  Scheduler scheduler(session, Policy(),
                      [&ticks] { return Scheduler::Clock::time_point(std::chrono::milliseconds(++ticks)); });
  for (int i = 0; i < 3; ++i) {  // what the stages cost is learned
    submit(scheduler, 2);
    while (scheduler.run_next()) continue;
    poll_all(scheduler, 1);
  }
  const std::uint64_t first = submit(scheduler, 1);
  CHECK(scheduler.run_next());
  for (int i = 0; i < 6; ++i) submit(scheduler, i < 3 ? 1 : 2);
  for (std::atomic<long>& rows : backend->rows) rows = 0;
  int runs = 0;
  while (scheduler.run_next()) ++runs;
  CHECK(runs == 3);
  const std::vector<Completed> found = poll_all(scheduler, 7);
  // The six others run before the first one goes on, and it goes on with them.
  CHECK(found[0].completion.ticket == first);
  for (std::size_t i = 0; i < 7; ++i) {
    CHECK(is_of_stage(found[i], i < 4 ? 1 : 2));
    CHECK(found[i].completion.rows == (i < 4 ? 7 : 3));
  }
  CHECK(backend->rows[0] == 7 && backend->rows[1] == 7 && backend->rows[2] == 7);
}

void test_cancelled_images_are_not_given() {
  const Bundle bundle = staged_bundle(1, true);
  const auto backend = std::make_shared<FakeBackend>(bundle.manifest);
  Session session(bundle, backend, kThresholds);
  Scheduler& scheduler = session.scheduler();
  backend->gate.close();
  const std::uint64_t running = submit(scheduler, 2);
  backend->gate.await_a_run();
  const std::uint64_t waiting = submit(scheduler, 2), kept = submit(scheduler, 2);
  scheduler.cancel(running);
  scheduler.cancel(waiting);
  CHECK(code_of([&] { scheduler.cancel(waiting); }) == DYNDEPLOY_USAGE);
  backend->gate.open();
  const std::vector<Completed> found = poll_all(scheduler, 1);
  CHECK(found[0].completion.ticket == kept && is_of_stage(found[0], 2));
  CHECK(backend->rows[0] == 2 && backend->rows[1] == 1 && backend->rows[2] == 1);
  CHECK(code_of([&] { scheduler.cancel(kept); }) == DYNDEPLOY_USAGE);
  CHECK(code_of([&] { scheduler.cancel(0); }) == DYNDEPLOY_USAGE);
  // A result that nobody took can be cancelled too.
  const std::uint64_t unpolled = submit(scheduler, 0);
  while (session.statistics_json().find("\"unpolled\": 1") == std::string::npos) std::this_thread::yield();
  scheduler.cancel(unpolled);
  CHECK(poll(scheduler, 1, 0).empty());
}

void test_a_full_queue_refuses() {
  const Bundle bundle = staged_bundle(1, true);
  Session session(bundle, std::make_shared<FakeBackend>(bundle.manifest), kThresholds);
  Policy policy;
  policy.queue_limit = 2;
  session.serve(policy);
  CHECK(code_of([&] { session.serve(policy); }) == DYNDEPLOY_USAGE);
  Scheduler& scheduler = session.scheduler();
  for (int round = 0; round < 3; ++round) {
    submit(scheduler, 0);
    submit(scheduler, 2);
    CHECK(code_of([&] { submit(scheduler, 0); }) == DYNDEPLOY_BUSY);
    poll_all(scheduler, 2);
    // What is refused takes no place.
    dyndeploy_request wrong{};
    wrong.size = sizeof wrong;
    CHECK(code_of([&] { scheduler.submit(wrong); }) == DYNDEPLOY_USAGE);
    std::vector<float> image = images_of({0});
    image[3] = std::numeric_limits<float>::quiet_NaN();
    wrong.values = image.data();
    CHECK(code_of([&] { scheduler.submit(wrong); }) == DYNDEPLOY_INPUT);
    const dyndeploy_image empty{nullptr, 4, 4, 12};
    wrong.image = &empty;
    CHECK(code_of([&] { scheduler.submit(wrong); }) == DYNDEPLOY_USAGE);
    wrong.values = nullptr;
    CHECK(code_of([&] { scheduler.submit(wrong); }) == DYNDEPLOY_INPUT);
    wrong.image = nullptr;
    wrong.file = "no image";
    wrong.file_bytes = 8;
    CHECK(code_of([&] { scheduler.submit(wrong); }) == DYNDEPLOY_INPUT);
  }
  dyndeploy_completion completion{};
  CHECK(code_of([&] { scheduler.poll(&completion, 1, 0); }) == DYNDEPLOY_USAGE);
  for (const double wrong : {-1.0, std::nan("")}) {
    Policy of{};
    of.latency_ms = wrong;
    CHECK(code_of([&] { Scheduler(session, of); }) == DYNDEPLOY_USAGE);
  }
}

void test_one_bad_image_leaves_the_others_alone() {
  const Bundle bundle = staged_bundle(1, true);
  const auto backend = std::make_shared<FakeBackend>(bundle.manifest);
  Session session(bundle, backend, kThresholds);
  Scheduler& scheduler = session.scheduler();
  backend->gate.close();
  submit(scheduler, 0);
  backend->gate.await_a_run();
  std::vector<std::uint64_t> tickets;
  for (const int stage : {2, -1, 1}) tickets.push_back(submit(scheduler, stage));
  backend->gate.open();
  for (const Completed& one : poll_all(scheduler, 4)) {
    const bool bad = one.completion.ticket == tickets[1];
    CHECK(one.completion.code == (bad ? DYNDEPLOY_NOT_FINITE : DYNDEPLOY_OK));
    CHECK((std::strstr(one.completion.message, "'exit 1: confidence' holds 1 NaN of 1 values") != nullptr) ==
          bad);
  }
}

void test_a_run_that_fails_ends_its_images_only() {
  const Bundle bundle = staged_bundle(7, false);
  const auto backend = std::make_shared<FakeBackend>(bundle.manifest);
  Session session(bundle, backend, kThresholds);
  Scheduler& scheduler = session.scheduler();
  for (int i = 0; i < 3; ++i) {
    submit(scheduler, 2);
    poll_all(scheduler, 1);
  }
  backend->gate.close();
  const std::uint64_t first = submit(scheduler, 2);
  backend->gate.await_a_run();
  for (int i = 0; i < 6; ++i) submit(scheduler, 0);
  backend->gate.broken = true;
  backend->gate.open();
  for (const Completed& one : poll_all(scheduler, 7)) {
    CHECK(one.completion.code == DYNDEPLOY_RUN);
    CHECK(std::strcmp(one.completion.message, "The device is gone.") == 0);
    CHECK(one.completion.rows == (one.completion.ticket == first ? 1 : 6));
  }
  backend->gate.broken = false;
  submit(scheduler, 2);
  CHECK(is_of_stage(poll_all(scheduler, 1)[0], 2));
}

void test_closing_ends_what_is_under_way() {
  const Bundle bundle = staged_bundle(1, true);
  const auto backend = std::make_shared<FakeBackend>(bundle.manifest);
  auto session = std::make_unique<Session>(bundle, backend, kThresholds);
  Scheduler& scheduler = session->scheduler();
  backend->gate.close();
  for (int i = 0; i < 20; ++i) submit(scheduler, 2);
  backend->gate.await_a_run();
  std::atomic<int> inside{0}, closed{0};
  std::vector<std::thread> pollers;
  for (int i = 0; i < 3; ++i)
    pollers.emplace_back([&] {
      ++inside;
      closed += code_of([&] { poll(scheduler, 1, -1); }) == DYNDEPLOY_CLOSED;
    });
  while (inside < 3) std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::milliseconds(50));  // until they wait
  std::thread closing([&] { session.reset(); });
  for (std::thread& poller : pollers) poller.join();
  backend->gate.open();
  closing.join();
  CHECK(closed == 3);
  CHECK(backend->rows[1] == 0);  // what waited was dropped
}

void test_serving_allocates_nothing_once_it_is_warm() {
  const Bundle bundle = staged_bundle(1, true);
  Session session(bundle, std::make_shared<FakeBackend>(bundle.manifest), kThresholds);
  Scheduler& scheduler = session.scheduler();
  std::vector<std::uint8_t> pixels(3 * 50 * 70, 200);
  const dyndeploy_image image{pixels.data(), 50, 70, 210};
  std::vector<float> values = images_of({2}), logits(kClasses);
  dyndeploy_request request{};
  request.size = sizeof request;
  dyndeploy_result result{};
  result.size = sizeof result;
  result.values = logits.data();
  result.values_room = kClasses;
  dyndeploy_completion completion{};
  completion.size = sizeof completion;
  completion.result = &result;
  const auto round = [&] {
    for (int i = 0; i < 6; ++i) {
      request.image = i % 2 ? &image : nullptr;
      request.values = i % 2 ? nullptr : values.data();
      scheduler.submit(request);
    }
    for (int i = 0; i < 6; ++i) scheduler.poll(&completion, 1, -1);
  };
  for (int i = 0; i < 5; ++i) round();
  const long before = allocations;
  for (int i = 0; i < 100; ++i) round();
  CHECK(allocations == before);
}

void test_many_threads_submit_and_poll() {
  const Bundle bundle = staged_bundle(1, true);
  Session session(bundle, std::make_shared<FakeBackend>(bundle.manifest), kThresholds);
  Policy policy;
  policy.queue_limit = 16;
  session.serve(policy);
  Scheduler& scheduler = session.scheduler();
  constexpr int kThreads = 4, kEach = 200;
  static int stages[3] = {0, 1, 2};
  std::atomic<int> wrong{0}, given{0}, taken_back{0}, busy{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < kEach;) {
        const int stage = (t + i) % 3;
        try {
          const std::uint64_t ticket = submit(scheduler, stage, &stages[stage]);
          ++i;
          if (i % 10 == 0 && code_of([&] { scheduler.cancel(ticket); }) == DYNDEPLOY_OK) ++taken_back;
        } catch (const Error& error) {
          if (error.code() == DYNDEPLOY_BUSY) ++busy;
          wrong += error.code() != DYNDEPLOY_BUSY;
          std::this_thread::yield();
        }
      }
    });
  std::atomic<bool> ended{false};
  for (int t = 0; t < 2; ++t)
    threads.emplace_back([&] {
      while (!ended)
        for (const Completed& one : poll(scheduler, 3, 5)) {
          wrong += !is_of_stage(one, *static_cast<int*>(one.completion.user));
          ++given;
        }
    });
  for (int t = 0; t < kThreads; ++t) threads[static_cast<std::size_t>(t)].join();
  while (given + taken_back < kThreads * kEach) std::this_thread::yield();
  ended = true;
  for (std::size_t t = kThreads; t < threads.size(); ++t) threads[t].join();
  CHECK(wrong == 0);
  CHECK(given + taken_back == kThreads * kEach);
  CHECK(session.statistics_json().find("\"under_way\": 0, \"unpolled\": 0") != std::string::npos);
}

StepCost cost_of(double fixed_ms, double row_ms) {
  StepCost cost;
  for (const std::size_t rows : {1, 4, 8}) cost.add(rows, fixed_ms + row_ms * static_cast<double>(rows));
  return cost;
}

Candidate candidate(std::size_t depth, std::size_t waiting, double fixed_ms, double row_ms,
                    double slack_ms = 0) {
  Candidate made;
  made.waiting = waiting;
  made.capacity = 8;
  made.depth = depth;
  made.oldest = depth + 1;
  made.slack_ms = slack_ms;
  made.cost = cost_of(fixed_ms, row_ms);
  return made;
}

void test_costs_of_steps_are_learned() {
  const StepCost cost = cost_of(3, 2);
  CHECK(std::fabs(cost.fixed_ms() - 3) < 1e-9 && std::fabs(cost.row_ms() - 2) < 1e-9);
  StepCost one;
  CHECK(!one.known());
  one.add(4, 8);
  CHECK(one.known() && one.fixed_ms() == 0 && one.row_ms() == 2);  // of one size the rows share it
  StepCost falling;                                                // what no step can be
  falling.add(1, 4);
  falling.add(8, 8 * 5);
  CHECK(falling.fixed_ms() == 0 && falling.row_ms() > 4 && falling.row_ms() < 5.5);
  StepCost fixed(true);
  fixed.add(3, 7);
  fixed.add(1, 9);
  CHECK(fixed.row_ms() == 0 && std::fabs(fixed.ms(8) - 8) < 0.1);
  StepCost changed = cost_of(3, 2);  // a device that became slower
  for (int i = 0; i < 400; ++i) changed.add(i % 8 + 1, 6 + 4.0 * (i % 8 + 1));
  CHECK(std::fabs(changed.fixed_ms() - 6) < 0.1 && std::fabs(changed.row_ms() - 4) < 0.1);
}

void test_the_policy_decides_by_costs() {
  Policy policy;
  const auto chosen = [&](const std::vector<Candidate>& from, std::size_t step, std::size_t rows) {
    const Decision decision = choose(from, policy);
    return decision.candidate == step && decision.rows == rows;
  };
  // Rows that cost the same in every batch: the deepest step ends images.
  CHECK(chosen({candidate(0, 20, 0, 2), candidate(1, 1, 0, 2)}, 1, 1));
  CHECK(chosen({candidate(0, 20, 0, 2), candidate(1, 0, 0, 2)}, 0, 8));
  // A fixed part of 1 ms: 3 images lose 22.5 ms each, and the others win 1 ms each.
  CHECK(chosen({candidate(0, 60, 2.5, 2.5), candidate(1, 3, 1, 2.5)}, 1, 3));
  CHECK(chosen({candidate(0, 70, 2.5, 2.5), candidate(1, 3, 1, 2.5)}, 0, 8));
  CHECK(chosen({candidate(0, 70, 2.5, 2.5), candidate(1, 8, 1, 2.5)}, 1, 8));  // is full
  // A device that takes one time for any batch: full ones go first, until those that wait lost what they can
  // win.
  std::vector<Candidate> flat{candidate(0, 20, 4, 0), candidate(1, 4, 4, 0)};
  CHECK(chosen(flat, 0, 8));
  flat[1].delayed_ms = 63;
  CHECK(chosen(flat, 0, 8));
  flat[1].delayed_ms = 65;
  CHECK(chosen(flat, 1, 4));
  policy.patience = 0.1;
  CHECK(chosen({candidate(0, 20, 4, 0), candidate(1, 4, 4, 0)}, 1, 4));
  policy.patience = 1;
  // Three steps: the last lets the second go first, and that one the first.
  CHECK(chosen({candidate(0, 20, 4, 0), candidate(1, 2, 4, 0), candidate(2, 1, 4, 0)}, 0, 8));
  CHECK(chosen({candidate(0, 1, 4, 0), candidate(1, 7, 4, 0), candidate(2, 1, 4, 0)}, 1, 7));
  // Of two inputs of a detector the one whose image came first.
  std::vector<Candidate> inputs{candidate(0, 1, 0, 2), candidate(0, 1, 0, 2)};
  inputs[0].oldest = 5;
  CHECK(chosen(inputs, 1, 1));
  // With a bound of latency the step that would come too late goes first ...
  policy.latency_ms = 50;
  CHECK(chosen({candidate(0, 20, 4, 1, 40), candidate(1, 2, 4, 1, 11)}, 1, 2));
  CHECK(chosen({candidate(0, 20, 4, 1, 40), candidate(1, 2, 4, 1, 13)}, 0, 8));
  // ... batches are as large as the oldest row can bear, and who is late anyhow is not hurried.
  CHECK(chosen({candidate(0, 20, 4, 1, 3.5), candidate(1, 0, 4, 1)}, 0, 4));
  CHECK(chosen({candidate(0, 20, 4, 1, 40), candidate(1, 2, 4, 1, -1)}, 0, 8));
}

void test_sha256_gives_the_standard_s_examples() {
  CHECK(sha256("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(sha256("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  Sha256 sum;
  const std::string part(1000, 'a');
  for (int i = 0; i < 1000; ++i) sum.update(part.data(), part.size());
  CHECK(sum.hex() == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  for (std::size_t size = 0; size < 300; ++size) {
    const std::string text(size, static_cast<char>(size));
    Sha256 portable(portable_sha256);
    portable.update(text.data(), text.size());
    CHECK(portable.hex() == sha256(text));
  }
  // Cut in any way, a text has one sum.
  const std::string text(150, 'x');
  for (std::size_t cut = 0; cut <= text.size(); ++cut) {
    Sha256 cut_sum;
    cut_sum.update(text.data(), cut);
    cut_sum.update(text.data() + cut, text.size() - cut);
    CHECK(cut_sum.hex() == sha256(text));
  }
}

void test_json() {
  const std::string text =
      " {\"b\": [1.50, -0, 1e-05, null, true, \"\\u00e9\\ud83d\\ude00\\n\\\\\\\"\\u007f\"], \"a\": {}, "
      "\"a\": 2} ";
  CHECK(canonical_json(parse_json(text), "") ==
        "{\"a\":2,\"b\":[1.50,-0,1e-05,null,true,\"\\u00e9\\ud83d\\ude00\\n\\\\\\\"\\u007f\"]}");
  CHECK(canonical_json(parse_json("{\"z\": 1, \"seal\": 2}"), "seal") == "{\"z\":1}");
  for (const char* wrong : {"", "{", "[1,]", "nul", "{\"a\"}", "\"\\ud800\"", "NaN", "1 2", "\"\xff\""}) {
    bool refused = false;
    try {
      parse_json(wrong);
    } catch (const std::runtime_error&) {
      refused = true;
    }
    CHECK(refused);
  }
  bool refused = false;
  try {
    parse_json(std::string(1000000, '['));
  } catch (const std::runtime_error&) {
    refused = true;
  }
  CHECK(refused);
  CHECK(number(0.1) == "0.1");
  CHECK(number(1.0) == "1.0");
  CHECK(number(1e-5) == "1e-05");
  CHECK(number(std::nan("")) == "null");
  CHECK(to_double(number(1.0 / 3)) == 1.0 / 3);
  CHECK(std::isinf(to_double("1e999")));
}

void test_the_centre_crop_is_that_of_python() {
  const Window wide = centre_crop(427, 640, 256, 224, 224);
  CHECK(wide.height == 256 && wide.width == 383 && wide.top == 16 && wide.left == 80);
  const Window odd = centre_crop(100, 101, 100, 97, 98);  // halves go to the even number
  CHECK(odd.height == 100 && odd.width == 101 && odd.top == 2 && odd.left == 2);
  const Window small = centre_crop(1, 1, 8, 16, 16);
  CHECK(small.height == 16 && small.width == 16 && small.top == 0 && small.left == 0);
}

void test_the_largest_logit_answers() {
  const float logits[] = {1, 3, 3, 2};
  CHECK(answer(logits, 4).label == 1);
  const double sum = std::exp(-2.0) + 1 + 1 + std::exp(-1.0);
  CHECK(std::fabs(static_cast<double>(answer(logits, 4).confidence) - 1 / sum) < 1e-7);
  const float large[] = {1e30f, -1e30f};
  CHECK(answer(large, 2).confidence == 1);
}

void test_exif_says_which_way_is_up() {
  const unsigned char little[] = {'I', 'I', 42, 0, 8, 0, 0, 0, 1, 0, 0x12, 1, 3, 0, 1, 0, 0, 0, 6, 0, 0, 0};
  const unsigned char big[] = {'M', 'M', 0, 42, 0, 0, 0, 8, 0, 1, 1, 0x12, 0, 3, 0, 0, 0, 1, 0, 8, 0, 0};
  CHECK(exif_orientation(little, sizeof little) == 6);
  CHECK(exif_orientation(big, sizeof big) == 8);
  for (std::size_t size = 0; size < sizeof little; ++size) CHECK(exif_orientation(little, size) == 1);
}

const struct {
  const char* name;
  std::function<void()> run;
} kTests[] = {
    {"exits",
     [] {
       test_every_image_leaves_at_its_exit_and_later_stages_compute_on_the_rest(true);
       test_every_image_leaves_at_its_exit_and_later_stages_compute_on_the_rest(false);
     }},
    {"finite", test_what_is_not_finite_ends_the_run},
    {"allocations", test_nothing_is_allocated_once_a_size_was_run},
    {"threads", test_threads_share_a_session},
    {"refusals", test_wrong_calls_are_refused},
    {"serving",
     [] {
       test_submitted_images_leave_at_their_exits(true);
       test_submitted_images_leave_at_their_exits(false);
       test_waiting_images_join_between_stages();
       test_cancelled_images_are_not_given();
       test_a_full_queue_refuses();
       test_one_bad_image_leaves_the_others_alone();
       test_a_run_that_fails_ends_its_images_only();
       test_closing_ends_what_is_under_way();
       test_serving_allocates_nothing_once_it_is_warm();
       test_many_threads_submit_and_poll();
     }},
    {"policy",
     [] {
       test_costs_of_steps_are_learned();
       test_the_policy_decides_by_costs();
     }},
    {"sha256", test_sha256_gives_the_standard_s_examples},
    {"json", test_json},
    {"crop", test_the_centre_crop_is_that_of_python},
    {"answer", test_the_largest_logit_answers},
    {"exif", test_exif_says_which_way_is_up},
};

}  // namespace

int main(int count, char** values) {
  bool known = count < 2;
  for (const auto& test : kTests)
    if (count < 2 || std::strcmp(values[1], test.name) == 0) {
      known = true;
      test.run();
    }
  if (!known) std::printf("no test '%s'\n", values[1]);
  std::printf("%d failures\n", failures);
  return failures || !known ? 1 : 0;
}
