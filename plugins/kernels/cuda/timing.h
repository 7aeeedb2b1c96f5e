// Times on the current device, for who chooses tiles by them. Unlike what kernels.h declares, these functions
// allocate and wait.
#pragma once

#include <cstddef>
#include <functional>

namespace dyndeploy {
namespace cuda {

// Capability (10 * major + minor) and processors of the current device; 0 where there is none.
int current_device(int* processors);

// A piece of device memory that holds anything; null where there is no device, or not so much of it.
class Scratch {
 public:
  explicit Scratch(std::size_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* get() const { return memory_; }

 private:
  void* memory_ = nullptr;
};

// Median time of each of `count` runs, in milliseconds. They take turns, so that a clock that changes changes
// the times of all. run(index, stream) launches one and returns 0 or a cudaError_t, which ends the timing and
// is returned.
int time_in_turn(int count, const std::function<int(int, void*)>& run, double* milliseconds);

}  // namespace cuda
}  // namespace dyndeploy
