// What a session did: images, times, rates and exits. Nothing is allocated while it counts.
#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

namespace dyndeploy {
namespace runtime {

class Statistics {
 public:
  // Upper ends of the latency histogram's buckets, in milliseconds; one more bucket holds what is above.
  static constexpr std::size_t kBounds = 12;
  static const std::array<double, kBounds>& bounds();

  Statistics(std::vector<std::string> masks, std::vector<int> exits);

  // An image: times in milliseconds, the exit taken (0: none), a rate for every mask.
  void add(double ms, double preprocessing_ms, int exit, const float* rates);
  void reset();
  std::string json() const;

 private:
  void clear();

  static constexpr std::size_t kKept = 4096;  // the latest times, for percentiles

  const std::vector<std::string> masks_;
  const std::vector<int> exits_;
  mutable std::mutex mutex_;
  std::uint64_t images_ = 0;
  double ms_ = 0, preprocessing_ms_ = 0, least_ = 0, most_ = 0;
  std::vector<double> latest_;
  std::vector<double> rates_;
  std::vector<std::uint64_t> counts_;
  std::array<std::uint64_t, kBounds + 1> histogram_;
};

}  // namespace runtime
}  // namespace dyndeploy
