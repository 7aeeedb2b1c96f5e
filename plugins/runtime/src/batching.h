// Which step runs next, and on how many of the rows that wait for it. The scheduler asks; nothing here waits
// or runs, so that it can be tested with numbers.
//
// Source: Yu et al., Orca: A Distributed Serving System for Transformer-Based Generative Models, OSDI 2022,
// which schedules iterations in the place of requests. Here stages take the iterations' place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace dyndeploy {
namespace runtime {

// See dyndeploy_policy.
struct Policy {
  std::size_t queue_limit = 256;
  std::size_t largest_batch = 8;
  double latency_ms = 0;
  double patience = 1;
};

// Milliseconds of a step by its rows, learned while it runs: a + b * rows by least squares over the latest
// runs.
class StepCost {
 public:
  // fixed: it computes on a batch of one size, whatever there is of rows.
  explicit StepCost(bool fixed = false) : fixed_(fixed) {}

  void add(std::size_t rows, double ms);
  bool known() const { return weight_ > 0; }
  double ms(std::size_t rows) const { return fixed_ms_ + row_ms_ * static_cast<double>(rows); }
  double fixed_ms() const { return fixed_ms_; }
  double row_ms() const { return row_ms_; }

 private:
  bool fixed_;
  double weight_ = 0, rows_ = 0, squares_ = 0, ms_ = 0, products_ = 0;  // sums over runs, older ones less
  double fixed_ms_ = 0, row_ms_ = 0;
};

// A step that rows wait for.
struct Candidate {
  std::size_t waiting = 0;
  std::size_t capacity = 1;  // rows of its largest run
  double delayed_ms = 0;     // that its rows lost since it ran last, all together, while others ran
  std::size_t depth = 0;     // steps before it
  std::uint64_t oldest = 0;  // ticket of its oldest row
  double slack_ms = 0;       // until its oldest row has to run to be in time; read with a bound of latency
  StepCost cost;
};

struct Decision {
  std::size_t candidate, rows;
};

// At least one candidate has rows that wait.
//
// The deepest step goes first, which ends images; of equals the one whose row is oldest. It lets another one
// go before it, whose rows may then join it, where that makes all images wait less: one run fewer saves the
// fixed part of its cost to all the others that wait (times Policy::patience), and its own rows lose the
// other one's time, and what they lost before. So on a device where a batch takes as long as an image, steps
// wait for full batches; where rows cost what they cost, images run through, unless many wait; and nobody
// waits for ever.
//
// With a bound of latency a step whose oldest row would come too late goes first, and batches are no larger
// than that row can bear; rows that are late anyhow are hurried no more, since that would make others late.
Decision choose(const std::vector<Candidate>& candidates, const Policy& policy);

}  // namespace runtime
}  // namespace dyndeploy
