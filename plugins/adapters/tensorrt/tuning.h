// Tactics that plugins time themselves, for interfaces whose builder knows none (IPluginV2DynamicExt).
#pragma once

#include <string>

#include "operators.h"

namespace dyndeploy {
namespace tensorrt {

// The tactic of the least time on the current device, 0 where list_tactics() has none or nothing can be
// timed, which the log says once. Timed at the attributes' rates on stand-in masks and memory that holds
// anything, once in a process for each operator, attributes, sizes, type, rates and kind of device.
std::int32_t timed_tactic(const Operator& op, const Attributes& attributes, const Sizes& sizes,
                          cuda::Type type);

// What was timed so, at whatever rates; 0 for nothing. capability 0: on the current device.
std::int32_t timed_tactic(const Operator& op, const Attributes& attributes, const Sizes& sizes,
                          cuda::Type type, int capability, int processors);

// All that was timed or read in this process, empty for nothing.
std::string timed_tactics();
// Takes what timed_tactics() gave in another process; lines that cannot be read, or name unknown tactics, are
// left out. Returns how many were taken, -1 for another format.
int read_timed_tactics(const std::string& text);

}  // namespace tensorrt
}  // namespace dyndeploy
