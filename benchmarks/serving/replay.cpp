// Images that arrive at given times, run one by one, in plain batches, in staged batches and with compaction.
//
// Time is the CPU time of the thread that computes: who else uses the machine does not count, and arrivals
// are put into that time. Every image really runs, through the interface that an application has. The
// contestants take turns. Usage: replay BUNDLE IMAGES COUNT BATCH RATE TURNS THRESHOLD... ; RATE: arrivals
// per second of that time, 0: all images are there from the start. IMAGES: float32, one input behind the
// other. Prints JSON.

#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <memory>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "error.h"
#include "scheduler.h"
#include "session.h"

namespace {

using namespace dyndeploy::runtime;

double cpu_ms() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return 1e3 * static_cast<double>(now.tv_sec) + 1e-6 * static_cast<double>(now.tv_nsec);
}

double wall_ms() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

struct Images {
  std::vector<float> values;
  std::size_t size;  // floats of one
  const float* of(std::size_t index) const { return values.data() + index % count() * size; }
  std::size_t count() const { return values.size() / size; }
};

struct Arrival {
  std::size_t image;
  double ms;
};

struct Tally {
  double cpu = 0, wall = 0, span = 0;  // of computing; from the first arrival to the last result
  std::vector<double> latencies;
  std::vector<std::size_t> exits = std::vector<std::size_t>(16);
};

// Time that stands still but while something computes.
class Time {
 public:
  double now() const { return past_ + (running_ ? cpu_ms() - start_ : 0); }
  void wait_until(double ms) { past_ = std::max(past_, ms); }
  template <class Work>
  void compute(Tally& tally, Work work) {
    const double wall = wall_ms();
    start_ = cpu_ms();
    running_ = true;
    work();
    running_ = false;
    const double took = cpu_ms() - start_;
    past_ += took;
    tally.cpu += took;
    tally.wall += wall_ms() - wall;
  }

 private:
  double past_ = 0, start_ = 0;
  bool running_ = false;
};

class Contestant {
 public:
  virtual ~Contestant() = default;
  virtual void run(const Images& images, const std::vector<Arrival>& arrivals, Tally& tally) = 0;
};

// Whoever waits runs, up to a batch, in one call.
class Batches : public Contestant {
 public:
  Batches(std::unique_ptr<Session> session, std::size_t most) : session_(std::move(session)), most_(most) {}

  void run(const Images& images, const std::vector<Arrival>& arrivals, Tally& tally) override {
    Time time;
    const TensorInfo& input = session_->bundle().manifest.inputs[0];
    std::vector<float> rows(most_ * images.size);
    std::vector<dyndeploy_result> results(most_);
    for (dyndeploy_result& result : results) result.size = sizeof result;
    for (std::size_t next = 0; next < arrivals.size();) {
      time.wait_until(arrivals[next].ms);
      std::size_t count = 0;
      while (count < most_ && next + count < arrivals.size() && arrivals[next + count].ms <= time.now()) {
        std::memcpy(rows.data() + count * images.size, images.of(arrivals[next + count].image),
                    images.size * sizeof(float));
        ++count;
      }
      dyndeploy_tensor given{sizeof given,
                             input.name.c_str(),
                             rows.data(),
                             count * images.size * sizeof(float),
                             input.type,
                             static_cast<std::int32_t>(input.shape.size()),
                             {}};
      std::copy(input.shape.begin(), input.shape.end(), given.shape);
      given.shape[0] = static_cast<std::int64_t>(count);
      time.compute(tally, [&] { session_->run_tensors(&given, 1, nullptr, 0, results.data(), count); });
      for (std::size_t i = 0; i < count; ++i) {
        tally.latencies.push_back(time.now() - arrivals[next + i].ms);
        ++tally.exits.at(static_cast<std::size_t>(results[i].exit));
      }
      next += count;
    }
    tally.span += time.now() - arrivals[0].ms;
  }

 private:
  std::unique_ptr<Session> session_;
  std::size_t most_;
};

class Compaction : public Contestant {
 public:
  Compaction(std::unique_ptr<Session> session, std::size_t most) : session_(std::move(session)) {
    Policy policy;
    policy.largest_batch = most;
    policy.queue_limit = 4096;
    scheduler_ = std::make_unique<Scheduler>(*session_, policy, [this] {
      return Scheduler::Clock::time_point(std::chrono::duration_cast<Scheduler::Clock::duration>(
          std::chrono::duration<double, std::milli>(time_.now())));
    });
  }

  void run(const Images& images, const std::vector<Arrival>& arrivals, Tally& tally) override {
    time_ = Time();
    dyndeploy_result result{};
    result.size = sizeof result;
    dyndeploy_completion completion{};
    completion.size = sizeof completion;
    completion.result = &result;
    for (std::size_t next = 0, done = 0; done < arrivals.size();) {
      for (; next < arrivals.size() && arrivals[next].ms <= time_.now(); ++next) {
        dyndeploy_request request{};
        request.size = sizeof request;
        request.values = images.of(arrivals[next].image);
        request.user = const_cast<Arrival*>(&arrivals[next]);
        scheduler_->submit(request);
      }
      bool ran = false;
      time_.compute(tally, [&] { ran = scheduler_->run_next(); });
      if (!ran) time_.wait_until(arrivals[next].ms);
      while (scheduler_->poll(&completion, 1, 0)) {
        if (completion.code) throw std::runtime_error(completion.message);
        // An arrival that was submitted while a step ran came before.
        tally.latencies.push_back(time_.now() - static_cast<const Arrival*>(completion.user)->ms);
        ++tally.exits.at(static_cast<std::size_t>(result.exit));
        ++done;
      }
    }
    tally.span += time_.now() - arrivals[0].ms;
  }
  std::string learned() const { return scheduler_->json(); }

 private:
  std::unique_ptr<Session> session_;
  Time time_;
  std::unique_ptr<Scheduler> scheduler_;
};

double share(std::vector<double> values, double of) {
  std::sort(values.begin(), values.end());
  return values[std::min(values.size() - 1,
                         static_cast<std::size_t>(of * static_cast<double>(values.size())))];
}

std::unique_ptr<Session> opened(const std::string& folder, const std::vector<double>& thresholds) {
  Options options;
  options.thresholds = thresholds;
  return Session::open(folder, options);
}

std::vector<Arrival> arrivals_of(std::size_t count, double rate, unsigned seed) {
  std::mt19937 rng(seed);
  std::vector<Arrival> arrivals;
  double ms = 0;
  std::vector<std::size_t> order(count);
  for (std::size_t i = 0; i < count; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), rng);
  std::exponential_distribution<double> gap(rate > 0 ? rate / 1e3 : 1);
  for (const std::size_t image : order) {
    if (rate > 0) ms += gap(rng);
    arrivals.push_back({image, ms});
  }
  return arrivals;
}

struct Named {
  const char* name;
  std::unique_ptr<Contestant> contestant;
};

// Images per second that each contestant's images took; prints the rest.
std::vector<double> take_turns(std::vector<Named>& contestants, const Images& images, double rate, int turns,
                               const Manifest& manifest) {
  std::vector<Tally> tallies(contestants.size());
  for (int turn = 0; turn < turns; ++turn) {
    const std::vector<Arrival> arrivals = arrivals_of(images.count(), rate, static_cast<unsigned>(turn));
    for (std::size_t i = 0; i < contestants.size(); ++i) {
      const std::size_t who = (i + static_cast<std::size_t>(turn)) % contestants.size();
      contestants[who].contestant->run(images, arrivals, tallies[who]);
    }
  }
  std::vector<double> speeds;
  std::printf("\"contestants\": [");
  for (std::size_t i = 0; i < contestants.size(); ++i) {
    const Tally& of = tallies[i];
    const double done = static_cast<double>(of.latencies.size());
    speeds.push_back(1e3 * done / of.span);
    std::printf(
        "%s{\"name\": \"%s\", \"images\": %.0f, \"cpu_ms\": %.4f, \"wall_ms\": %.4f, \"per_second\": %.4f",
        i ? ", " : "", contestants[i].name, done, of.cpu / done, of.wall / done, speeds.back());
    for (const int percent : {50, 95, 99})
      std::printf(", \"p%d\": %.4f", percent, share(of.latencies, 0.01 * percent));
    std::printf(", \"exits\": [");
    for (const StageInfo& stage : manifest.exits.stages)
      std::printf("%s%zu", &stage == &manifest.exits.stages[0] ? "" : ", ",
                  of.exits.at(static_cast<std::size_t>(stage.exit)));
    std::printf("]}");
  }
  std::printf("]");
  std::fflush(stdout);
  return speeds;
}

Images read_images(const char* path, std::size_t count, std::size_t size) {
  Images images{std::vector<float>(count * size), size};
  std::ifstream file(path, std::ios::binary);
  if (!file.read(reinterpret_cast<char*>(images.values.data()),
                 static_cast<std::streamsize>(images.values.size() * sizeof(float))))
    throw std::runtime_error("IMAGES is too short");
  return images;
}

void run(char** values, int count) {
  const std::string folder = values[1];
  const std::size_t most = static_cast<std::size_t>(std::atoi(values[4]));
  const int turns = std::atoi(values[5]);
  std::vector<double> thresholds;
  for (int i = 7; i < count; ++i) thresholds.push_back(std::atof(values[i]));
  const std::vector<double> whole(thresholds.size(), 2.0);  // no image is so sure: the last exit answers
  const Manifest manifest = Bundle::open(folder).manifest;
  const Images images = read_images(values[2], static_cast<std::size_t>(std::atoi(values[3])),
                                    elements(manifest.inputs[0].shape, 1));
  const auto compaction = new Compaction(opened(folder, thresholds), most);
  std::vector<Named> contestants;
  contestants.push_back({"one by one", std::make_unique<Batches>(opened(folder, thresholds), 1)});
  contestants.push_back({"plain batches", std::make_unique<Batches>(opened(folder, whole), most)});
  contestants.push_back({"staged batches", std::make_unique<Batches>(opened(folder, thresholds), most)});
  contestants.push_back({"compaction", std::unique_ptr<Contestant>(compaction)});
  for (const Named& one : contestants)  // every size of batch once
    for (std::size_t rows = 1; rows <= most; ++rows) {
      Tally warming;
      one.contestant->run(images, arrivals_of(rows, 0, 0), warming);
    }
  std::printf("{\"saturated\": {");
  const double staged = take_turns(contestants, images, 0, turns, manifest)[2];
  std::printf("}, \"loads\": [");
  std::stringstream loads(values[6]);
  bool first = true;
  for (std::string load; std::getline(loads, load, ','); first = false) {
    const double rate = staged * std::atof(load.c_str()) / 100;
    std::printf("%s{\"percent\": %s, \"rate\": %.4f, ", first ? "" : ", ", load.c_str(), rate);
    take_turns(contestants, images, rate, turns, manifest);
    std::printf("}");
  }
  std::printf("], \"learned\": %s}\n", compaction->learned().c_str());
}

}  // namespace

int main(int count, char** values) {
  if (count < 8) return 2;
  try {
    run(values, count);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
