// --stats: what a session does while it does it, as lines of JSON for `dyndeploy watch` and others.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "sensors.h"
#include "session.h"

namespace dyndeploy {
namespace runtime {

// Where lines go.
class StatsTarget {
 public:
  virtual ~StatsTarget() = default;
  virtual void write(const std::string& line) = 0;
  // A descriptor that becomes readable when somebody asks for the latest line, or -1.
  virtual int asked() const { return -1; }
  // Answer with that line.
  virtual void answer(const std::string& line) { (void)line; }
};

class Stats {
 public:
  // A line every `seconds`, and one at the end. where: a file, which lines are added to, or unix:PATH, a
  // socket whose clients get the line of the moment at once and then every line. Throws
  // Error(DYNDEPLOY_USAGE) where neither can be.
  Stats(const Session& session, const std::string& where, double seconds);
  // Writes the last line.
  ~Stats();
  Stats(const Stats&) = delete;
  Stats& operator=(const Stats&) = delete;

  void image_failed() { ++failed_; }

 private:
  void work();
  std::string line(bool ended) const;

  const Session& session_;
  const double seconds_;
  const Sensors sensors_;
  std::string head_;  // of every line
  std::atomic<unsigned long> failed_{0};
  std::unique_ptr<StatsTarget> target_;
  int wake_[2];
  std::thread thread_;
};

}  // namespace runtime
}  // namespace dyndeploy
