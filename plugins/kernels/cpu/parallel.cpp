#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace dyndeploy::cpu {
namespace {

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// One fork for the whole chain: workers claim tasks in order and wait for a phase only while every task of
// the phases before it has been claimed by a thread that is running it. So the wait always ends, even when
// the pool runs all workers one after the other.
struct Chain {
  const Phase* phases;
  int count;
  int total;
  std::atomic<int> next{0};
  std::atomic<int> done{0};

  void work(int worker) {
    int phase = 0;
    int begin = 0;
    for (int task = next.fetch_add(1, std::memory_order_relaxed); task < total;
         task = next.fetch_add(1, std::memory_order_relaxed)) {
      while (task >= begin + phases[phase].tasks) begin += phases[phase++].tasks;
      for (int spins = 0; done.load(std::memory_order_acquire) < begin; ++spins) {
        spins < kSpins ? relax() : std::this_thread::yield();
      }
      phases[phase].run(phases[phase].state, task - begin, worker);
      done.fetch_add(1, std::memory_order_release);
    }
  }

  static constexpr int kSpins = 4000;
};

}  // namespace

void run_phases(const ThreadPool& pool, const Phase* phases, int count) {
  int total = 0;
  int widest = 0;
  for (int i = 0; i < count; ++i) {
    total += phases[i].tasks;
    widest = std::max(widest, phases[i].tasks);
  }
  const int workers = std::min(pool.threads, widest);
  if (workers <= 1) {
    for (int i = 0; i < count; ++i) {
      for (int task = 0; task < phases[i].tasks; ++task) phases[i].run(phases[i].state, task, 0);
    }
    return;
  }
  Chain chain{phases, count, total};
  pool.parallel_for(
      pool.context,
      [](void* state, std::size_t worker) { static_cast<Chain*>(state)->work(static_cast<int>(worker)); },
      &chain, static_cast<std::size_t>(workers));
}

}  // namespace dyndeploy::cpu
