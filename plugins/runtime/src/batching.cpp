#include "batching.h"

#include <algorithm>

namespace dyndeploy {
namespace runtime {
namespace {

// Of a run's weight what is left after the next one: about the latest fifty count.
constexpr double kKept = 0.98;

std::size_t rows_of(const Candidate& candidate) { return std::min(candidate.waiting, candidate.capacity); }

bool goes_before(const Candidate& a, const Candidate& b) {
  return a.depth != b.depth ? a.depth > b.depth : a.oldest < b.oldest;
}

// The first of those that go after `last`, where nobody keeps the deepest waiting; the count where there is
// none.
std::size_t next_after(const std::vector<Candidate>& candidates, std::size_t last) {
  std::size_t best = candidates.size();
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    if (!candidates[i].waiting) continue;
    if (last < candidates.size() && !goes_before(candidates[last], candidates[i])) continue;
    if (best == candidates.size() || goes_before(candidates[i], candidates[best])) best = i;
  }
  return best;
}

bool gains_by_waiting(const Candidate& candidate, const Candidate& before, std::size_t others,
                      double patience) {
  if (candidate.waiting >= candidate.capacity) return false;
  const double saved = patience * candidate.cost.fixed_ms() * static_cast<double>(others);
  const double lost = before.cost.ms(rows_of(before)) * static_cast<double>(candidate.waiting);
  return saved > lost + candidate.delayed_ms;
}

std::size_t least_waiting(const std::vector<Candidate>& candidates, double patience) {
  std::size_t all = 0;
  for (const Candidate& candidate : candidates) all += candidate.waiting;
  std::size_t best = next_after(candidates, candidates.size());
  while (true) {
    const std::size_t next = next_after(candidates, best);
    if (next == candidates.size()) return best;
    const std::size_t others = all - candidates[best].waiting;
    if (!gains_by_waiting(candidates[best], candidates[next], others, patience)) return best;
    best = next;
  }
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
  std::size_t best = least_waiting(candidates, policy.patience);
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
