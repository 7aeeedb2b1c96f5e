#include "sampling.h"

#include <algorithm>

#include "shape.h"

namespace dyndeploy::cpu {

namespace {

constexpr int kQueriesOfTask = 64;  // neighbours read the same cells

}  // namespace

void run_sampling(const Isa& isa, const Sampling& call, const ThreadPool& pool) {
  const int total = call.batch * call.queries;
  const auto body = [&](int task, int) {
    const int begin = task * kQueriesOfTask;
    isa.sample_rows(call, begin, std::min(begin + kQueriesOfTask, total));
  };
  const Phase phase(ceil_to_int(total, kQueriesOfTask), body);
  run_phases(pool, &phase, 1);
}

}  // namespace dyndeploy::cpu
