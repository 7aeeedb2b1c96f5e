#include "statistics.h"

#include <algorithm>

#include "json.h"

namespace dyndeploy {
namespace runtime {
namespace {

// The smallest of the sorted values that a share of them does not exceed.
double percentile(const std::vector<double>& sorted, double share) {
  return sorted[std::min(sorted.size() - 1,
                         static_cast<std::size_t>(share * static_cast<double>(sorted.size())))];
}

}  // namespace

const std::array<double, Statistics::kBounds>& Statistics::bounds() {
  static const std::array<double, kBounds> values{{1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000}};
  return values;
}

Statistics::Statistics(std::vector<std::string> masks, std::vector<int> exits)
    : masks_(std::move(masks)), exits_(std::move(exits)) {
  latest_.reserve(kKept);
  clear();
}

void Statistics::clear() {
  images_ = 0;
  ms_ = preprocessing_ms_ = least_ = most_ = 0;
  latest_.clear();
  rates_.assign(masks_.size(), 0);
  counts_.assign(exits_.size(), 0);
  histogram_.fill(0);
}

void Statistics::reset() {
  const std::lock_guard<std::mutex> lock(mutex_);
  clear();
}

void Statistics::add(double ms, double preprocessing_ms, int exit, const float* rates) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (latest_.size() < kKept) {
    latest_.push_back(ms);
  } else {
    latest_[images_ % kKept] = ms;
  }
  least_ = images_ ? std::min(least_, ms) : ms;
  most_ = std::max(most_, ms);
  ++histogram_[static_cast<std::size_t>(std::lower_bound(bounds().begin(), bounds().end(), ms) -
                                        bounds().begin())];
  ++images_;
  ms_ += ms;
  preprocessing_ms_ += preprocessing_ms;
  for (std::size_t i = 0; i < rates_.size(); ++i) rates_[i] += rates[i];
  for (std::size_t i = 0; i < exits_.size(); ++i) counts_[i] += exits_[i] == exit;
}

std::string Statistics::json() const {
  std::unique_lock<std::mutex> lock(mutex_);
  const std::uint64_t count = images_;
  const double ms = ms_, preprocessing_ms = preprocessing_ms_, least = least_, most = most_;
  const std::vector<double> rates = rates_;
  const std::vector<std::uint64_t> exits = counts_;
  const auto histogram = histogram_;
  std::vector<double> sorted = latest_;
  // Images do not wait until it is sorted and written.
  lock.unlock();
  const double images = static_cast<double>(count);
  std::string text = "{\"images\": " + std::to_string(count);
  if (count) {
    std::sort(sorted.begin(), sorted.end());
    text += ", \"ms\": {\"mean\": " + number(ms / images) + ", \"min\": " + number(least);
    for (const int percent : {50, 90, 95, 99})
      text += ", \"p" + std::to_string(percent) + "\": " + number(percentile(sorted, percent / 100.0));
    text += ", \"max\": " + number(most) + "}, \"percentiles_of\": " + std::to_string(sorted.size()) +
            ", \"preprocessing_ms\": " + number(preprocessing_ms / images);
  }
  text += ", \"histogram_ms\": {\"bounds\": [";
  for (std::size_t i = 0; i < kBounds; ++i)
    text += (i ? ", " : "") + std::to_string(static_cast<int>(bounds()[i]));
  text += "], \"counts\": [";
  for (std::size_t i = 0; i < histogram.size(); ++i) text += (i ? ", " : "") + std::to_string(histogram[i]);
  text += "]}, \"rates\": {";
  for (std::size_t i = 0; i < masks_.size() && count; ++i)
    text += (i ? ", " : "") + quoted(masks_[i]) + ": " + number(rates[i] / images);
  text += "}, \"exits\": {";
  for (std::size_t i = 0; i < exits_.size(); ++i)
    text += (i ? ", \"" : "\"") + std::to_string(exits_[i]) + "\": " + std::to_string(exits[i]);
  return text + "}}";
}

}  // namespace runtime
}  // namespace dyndeploy
