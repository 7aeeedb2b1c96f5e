#include <algorithm>
#include <vector>

#include "platform.h"
#include "timing.h"

namespace dyndeploy {
namespace cuda {

int current_device(int* processors) {
  const DeviceTraits device = device_traits();
  *processors = device.processors;
  return device.capability;
}

#if defined(__CUDACC__)

namespace {

constexpr int kWarmUps = 2;
constexpr int kRounds = 9;
// Between two events: of a single short run the gaps between launches would be more than the kernels.
constexpr int kRuns = 4;

// What a failed call leaves behind would be taken for an error of TensorRT's next one.
int forget(cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();
  return static_cast<int>(error);
}

struct Clock {
  cudaStream_t stream = nullptr;
  cudaEvent_t start = nullptr, stop = nullptr;

  cudaError_t create() {
    cudaError_t error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    if (error == cudaSuccess) error = cudaEventCreate(&start);
    if (error == cudaSuccess) error = cudaEventCreate(&stop);
    return error;
  }
  ~Clock() {
    if (start) cudaEventDestroy(start);
    if (stop) cudaEventDestroy(stop);
    if (stream) cudaStreamDestroy(stream);
  }
};

}  // namespace

Scratch::Scratch(std::size_t bytes) {
  if (forget(cudaMalloc(&memory_, bytes)) != 0) memory_ = nullptr;
}
Scratch::~Scratch() {
  if (memory_) cudaFree(memory_);
}

int time_in_turn(int count, const std::function<int(int, void*)>& run, double* milliseconds) {
  Clock clock;
  cudaError_t error = clock.create();
  std::vector<std::vector<float>> times(static_cast<std::size_t>(count));
  for (int round = -kWarmUps; error == cudaSuccess && round < kRounds; ++round) {
    for (int i = 0; error == cudaSuccess && i < count; ++i) {
      error = cudaEventRecord(clock.start, clock.stream);
      for (int each = 0; error == cudaSuccess && each < kRuns; ++each) {
        error = static_cast<cudaError_t>(run(i, clock.stream));
      }
      if (error == cudaSuccess) error = cudaEventRecord(clock.stop, clock.stream);
      if (error == cudaSuccess) error = cudaEventSynchronize(clock.stop);
      float time = 0.0f;
      if (error == cudaSuccess) error = cudaEventElapsedTime(&time, clock.start, clock.stop);
      if (round >= 0) times[static_cast<std::size_t>(i)].push_back(time / kRuns);
    }
  }
  if (error != cudaSuccess) {
    // The memory of runs that are still on their way must not be freed under them.
    if (clock.stream) cudaStreamSynchronize(clock.stream);
    return forget(error);
  }
  for (int i = 0; i < count; ++i) {
    std::vector<float>& sample = times[static_cast<std::size_t>(i)];
    std::nth_element(sample.begin(), sample.begin() + kRounds / 2, sample.end());
    milliseconds[i] = sample[kRounds / 2];
  }
  return 0;
}

#else

// The host plays a device's arithmetic, not its time.
Scratch::Scratch(std::size_t) {}
Scratch::~Scratch() = default;
int time_in_turn(int, const std::function<int(int, void*)>&, double*) { return 100; }  // cudaErrorNoDevice

#endif

}  // namespace cuda
}  // namespace dyndeploy
