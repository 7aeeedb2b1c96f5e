// The other way to play a block on the host: one thread of the machine for each of its threads, and real
// barriers. Slow, but ThreadSanitizer then sees a barrier that is missing, which the loops of platform.h
// cannot.
#pragma once

#include <pthread.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace dyndeploy {
namespace cuda {
namespace host {

class Barrier {
 public:
  explicit Barrier(unsigned count) { pthread_barrier_init(&barrier_, nullptr, count); }
  ~Barrier() { pthread_barrier_destroy(&barrier_); }
  Barrier(const Barrier&) = delete;
  Barrier& operator=(const Barrier&) = delete;
  void wait() { pthread_barrier_wait(&barrier_); }

 private:
  pthread_barrier_t barrier_;
};

// What the threads of one block share.
class Block {
 public:
  explicit Block(int threads) : barrier(static_cast<unsigned>(threads)) {
    for (int first = 0; first < threads; first += 32) {
      const int width = threads - first < 32 ? threads - first : 32;
      warps.emplace_back(new Barrier(static_cast<unsigned>(width)));
    }
  }

  // The memory of the n-th declaration of shared memory; the first thread to come makes it, filled with NaN.
  void* shared(std::size_t n, std::size_t bytes, std::size_t alignment) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (n == parts_.size()) {
      void* part = nullptr;
      if (posix_memalign(&part, alignment, bytes) != 0) std::abort();
      std::memset(part, 0xff, bytes);
      parts_.emplace_back(part, &std::free);
    }
    return parts_[n].get();
  }

  Barrier barrier;
  std::vector<std::unique_ptr<Barrier>> warps;

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<void, void (*)(void*)>> parts_;
};

// What a thread of a block knows of itself.
struct Self {
  Block* block;
  int index;
  std::size_t declarations;  // of shared memory that it has passed
};
inline Self& self() {
  thread_local Self self = {nullptr, 0, 0};
  return self;
}

template <class T>
T& shared() {
  Self& me = self();
  return *static_cast<T*>(me.block->shared(me.declarations++, sizeof(T), alignof(T) > 64 ? alignof(T) : 64));
}

template <class F>
void run_block(int threads, const F& body) {
  Block block(threads);
  std::vector<std::thread> running;
  for (int i = 0; i < threads; ++i) {
    running.emplace_back([&block, &body, i] {
      self() = {&block, i, 0};
      body();
    });
  }
  for (std::thread& thread : running) thread.join();
}

}  // namespace host
}  // namespace cuda
}  // namespace dyndeploy
