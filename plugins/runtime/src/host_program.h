// What the host computes between engines: operators in order, from a file that
// dyndeploy/runtimes/host_program.py explains. A program is a graph like those of a backend.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend.h"

namespace dyndeploy {
namespace runtime {

// Open a program that reads and gives tensors of these names, in this order, as bundle.json says. Throws
// Error(DYNDEPLOY_BUNDLE).
std::unique_ptr<Graph> open_host_program(const std::string& path, const std::vector<TensorInfo>& inputs,
                                         const std::vector<TensorInfo>& outputs);

}  // namespace runtime
}  // namespace dyndeploy
