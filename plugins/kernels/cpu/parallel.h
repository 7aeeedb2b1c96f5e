// Running a chain of phases on somebody else's threads.
#pragma once

#include <cstddef>

namespace dyndeploy::cpu {

// The caller's thread pool. parallel_for must call function(state, i) once for each i < count, on as many
// threads as it likes, and return when all calls have returned.
struct ThreadPool {
  using Function = void (*)(void* state, std::size_t index);
  int threads = 1;  // how many workers are worth starting; a hint, results do not depend on it
  void* context = nullptr;
  void (*parallel_for)(void* context, Function function, void* state, std::size_t count) = nullptr;
};

// A phase is a number of independent tasks. Its tasks start when all tasks of the phases before it are done.
struct Phase {
  int tasks = 0;
  const void* state = nullptr;
  void (*run)(const void* state, int task, int worker) = nullptr;

  Phase() = default;
  // body(task, worker) must outlive the phase and must not throw; workers are 0 ... threads - 1.
  template <class Body>
  Phase(int count, const Body& body)
      : tasks(count),
        state(&body),
        run([](const void* s, int task, int worker) { (*static_cast<const Body*>(s))(task, worker); }) {}
};

void run_phases(const ThreadPool& pool, const Phase* phases, int count);

}  // namespace dyndeploy::cpu
