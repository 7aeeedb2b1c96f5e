// Finding and opening ONNX Runtime's shared library and the operator library at run time.
#pragma once

#include <memory>
#include <string>

#include "abi.h"

namespace dyndeploy {
namespace runtime {

// One that has been opened. Never closed: threads of it may still live.
struct OrtLibrary {
  std::string path, version;
  ort::abi::HostApi api;
};

// Open the library that `named` says (a file, or a folder that holds it), else the one that
// DYNDEPLOY_ONNXRUNTIME names, else that of a Python package, else the system's. Throws
// Error(DYNDEPLOY_BACKEND): none, or one that is too old.
std::shared_ptr<const OrtLibrary> open_onnxruntime(const std::string& named);

// The operator library: `choice` is a path, "off" or "auto", which takes the one that DYNDEPLOY_CPU_LIBRARY
// names, else the one beside this library, else `bundled`. "" where there is none. Throws
// Error(DYNDEPLOY_USAGE) for a file that is not there.
std::string find_operator_library(const std::string& choice, const std::string& bundled);

// What an operator library answers: its precisions ("fp32 bf16") and the instruction set that it would use.
// Throws Error(DYNDEPLOY_BACKEND) where it cannot be loaded.
struct OperatorLibrary {
  std::string precisions, instruction_set;
};
OperatorLibrary ask_operator_library(const std::string& path, const std::string& precision);

}  // namespace runtime
}  // namespace dyndeploy
