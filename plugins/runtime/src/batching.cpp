#include "batching.h"

#include <algorithm>
#include <limits>

namespace dyndeploy {
namespace runtime {
namespace {

// Of a run's weight what is left after the next one: about the latest fifty count.
constexpr double kKept = 0.98;

std::size_t rows_of(const Candidate& candidate) { return std::min(candidate.waiting, candidate.capacity); }

// What a row costs more than in the largest batch, as a share.
double excess(const Candidate& candidate) {
  const double rows = static_cast<double>(rows_of(candidate)), most = static_cast<double>(candidate.capacity);
  const double least = candidate.cost.ms(candidate.capacity) / most;
  return least > 0 ? candidate.cost.ms(rows_of(candidate)) / rows / least - 1 : 0;
}

bool goes_before(const Candidate& a, const Candidate& b) {
  return a.depth != b.depth ? a.depth > b.depth : a.oldest < b.oldest;
}

std::size_t cheapest(const std::vector<Candidate>& candidates, double tolerance) {
  const auto score = [&](const Candidate& candidate) {
    return excess(candidate) - tolerance * static_cast<double>(candidate.passed);
  };
  double least = std::numeric_limits<double>::infinity();
  for (const Candidate& candidate : candidates)
    if (candidate.waiting) least = std::min(least, score(candidate));
  std::size_t best = candidates.size();
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    if (!candidates[i].waiting || score(candidates[i]) > least + tolerance) continue;
    if (best == candidates.size() || goes_before(candidates[i], candidates[best])) best = i;
  }
  return best;
}

// The step whose oldest row has the least time left of those that can be in time; none: the count.
std::size_t most_urgent(const std::vector<Candidate>& candidates) {
  std::size_t best = candidates.size();
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    if (!candidates[i].waiting || candidates[i].slack_ms < 0) continue;
    if (best == candidates.size() || candidates[i].slack_ms < candidates[best].slack_ms) best = i;
  }
  return best;
}

}  // namespace

void StepCost::add(std::size_t count, double ms) {
  const double rows = static_cast<double>(count);
  weight_ = kKept * weight_ + 1;
  rows_ = kKept * rows_ + rows;
  squares_ = kKept * squares_ + rows * rows;
  ms_ = kKept * ms_ + ms;
  products_ = kKept * products_ + rows * ms;
  if (fixed_) {
    fixed_ms_ = ms_ / weight_;
    return;
  }
  // Runs of one size say nothing of the others: then rows have an equal part each.
  const double variance = weight_ * squares_ - rows_ * rows_;
  const double slope =
      variance > 1e-6 * squares_ * weight_ ? (weight_ * products_ - rows_ * ms_) / variance : ms_ / rows_;
  row_ms_ = std::max(slope, 0.0);
  fixed_ms_ = (ms_ - row_ms_ * rows_) / weight_;
  if (fixed_ms_ > 0) return;
  fixed_ms_ = 0;
  row_ms_ = products_ / squares_;
}

Decision choose(const std::vector<Candidate>& candidates, const Policy& policy) {
  std::size_t best = cheapest(candidates, policy.tolerance);
  std::size_t rows = rows_of(candidates[best]);
  if (policy.latency_ms <= 0) return {best, rows};
  const std::size_t urgent = most_urgent(candidates);
  if (urgent == candidates.size()) return {best, rows};
  if (urgent != best && candidates[urgent].slack_ms < candidates[best].cost.ms(rows)) {
    best = urgent;
    rows = rows_of(candidates[best]);
  }
  const Candidate& chosen = candidates[best];
  if (chosen.slack_ms < 0) return {best, rows};
  // The slack is counted with a run of one row.
  const double bearable = chosen.slack_ms + chosen.cost.ms(1);
  while (rows > 1 && chosen.cost.ms(rows) > bearable) --rows;
  return {best, rows};
}

}  // namespace runtime
}  // namespace dyndeploy
