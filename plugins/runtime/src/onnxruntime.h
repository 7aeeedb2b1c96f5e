// ONNX Runtime on the CPU.
#pragma once

#include <memory>
#include <string>

#include "backend.h"

namespace dyndeploy {
namespace runtime {

struct OrtSettings {
  std::string library;    // see open_onnxruntime
  std::string operators;  // path of the operator library; "" for function bodies
  std::string precision;  // what the dynamic bottlenecks compute in: fp32, bf16 or int8
  int threads = 1;
  bool shared_memory = false;  // graphs that run in turn take scratch memory from one place
};

std::shared_ptr<Backend> open_onnxruntime_backend(const OrtSettings& settings);

}  // namespace runtime
}  // namespace dyndeploy
