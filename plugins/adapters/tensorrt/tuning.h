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

// describe_choice() of the operator of that name, empty where attributes or shapes do not fit it. `shapes`
// holds the rank and the sizes of every input. A negative tactic is one that the builder has not told: then
// it is the one that this process has timed, or, with `has_tactics` (IPluginV3), perhaps another than the
// formula's.
std::string describe_kernels(const std::string& name, const std::int32_t* attributes, int attribute_count,
                             const std::int64_t* shapes, int shape_count, bool half, int capability,
                             int processors, std::int32_t tactic, bool has_tactics);

}  // namespace tensorrt
}  // namespace dyndeploy
