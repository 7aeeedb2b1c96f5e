// Pools of threads for tests of the CPU kernels.

#pragma once

#include <cstddef>
#include <thread>
#include <vector>

#include "parallel.h"

namespace dyndeploy {
namespace cpu {

// A pool with real threads, so that the sanitizers see races.
inline void parallel_for_threads(void*, ThreadPool::Function function, void* state, std::size_t count) {
  std::vector<std::thread> threads;
  for (std::size_t i = 1; i < count; ++i) threads.emplace_back([=] { function(state, i); });
  function(state, 0);
  for (std::thread& t : threads) t.join();
}

// A pool that runs one worker after the other, the last one first: what a runtime with one thread may do.
inline void parallel_for_backwards(void*, ThreadPool::Function function, void* state, std::size_t count) {
  for (std::size_t i = count; i-- > 0;) function(state, i);
}

inline ThreadPool threads(int count) { return {count, nullptr, &parallel_for_threads}; }
inline ThreadPool one_by_one(int count) { return {count, nullptr, &parallel_for_backwards}; }

}  // namespace cpu
}  // namespace dyndeploy
