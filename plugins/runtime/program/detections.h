// What is told of a detector's results: the lines of `dyndeploy run`.
#pragma once

#include <string>
#include <vector>

#include "arguments.h"
#include "dyndeploy.h"
#include "manifest.h"

namespace dyndeploy {
namespace runtime {

// Which detections are told.
struct Wanted {
  float told;                // least score in JSON
  float shown;               // where people look
  std::vector<char> labels;  // by label whether it is asked for; empty: all
};

// Read --score and --classes. Throws Error(DYNDEPLOY_USAGE) for a class that the bundle does not have, and
// for either where the network is no detector.
Wanted wanted_of(const Arguments& arguments, const Manifest& manifest);

// Fields of a line of JSON, as `dyndeploy run --json` has them: width, height, detections.
std::string detections_json(const dyndeploy_detections& result, const Wanted& wanted);

// A line for the image, and one for each detection: class, score and box. mean_rate: below 0 without masks.
std::string detections_text(const std::string& name, const dyndeploy_detections& result, const Wanted& wanted,
                            double mean_rate);

}  // namespace runtime
}  // namespace dyndeploy
