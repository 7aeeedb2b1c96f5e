#include "detections.h"

#include <algorithm>
#include <cstdio>

#include "error.h"
#include "json.h"
#include "masks.h"

namespace dyndeploy {
namespace runtime {
namespace {

// Where nobody asks for another: people look at the sure ones.
constexpr float kShownScore = 0.3f;
constexpr std::size_t kNameWidth = 24;

std::vector<std::string> listed(const std::string& text) {
  std::vector<std::string> found;
  for (std::size_t start = 0; start <= text.size();) {
    const std::size_t end = std::min(text.find(',', start), text.size());
    const std::size_t first = text.find_first_not_of(' ', start);
    if (first < end) {
      const std::size_t last = text.find_last_not_of(' ', end - 1);
      found.push_back(text.substr(first, last + 1 - first));
    }
    start = end + 1;
  }
  return found;
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

std::vector<const dyndeploy_detection*> selected(const dyndeploy_detections& result, float score,
                                                 const std::vector<char>& labels) {
  std::vector<const dyndeploy_detection*> found;
  for (std::size_t i = 0; i < result.count; ++i) {
    const dyndeploy_detection& one = result.found[i];
    const std::size_t label = static_cast<std::size_t>(one.label);
    if (one.score >= score && (labels.empty() || (label < labels.size() && labels[label])))
      found.push_back(&one);
  }
  return found;
}

std::string called(const dyndeploy_detection& one) {
  return one.class_name ? one.class_name : std::to_string(one.label);
}

std::string detection_json(const dyndeploy_detection& one, const std::string& size) {
  const double x = static_cast<double>(one.x1), y = static_cast<double>(one.y1);
  std::string text = "{\"category_id\": " + std::to_string(one.category_id) + ", \"bbox\": [" + number(x) +
                     ", " + number(y) + ", " + number(static_cast<double>(one.x2) - x) + ", " +
                     number(static_cast<double>(one.y2) - y) +
                     "], \"score\": " + number(static_cast<double>(one.score));
  if (one.run_count)
    text += ", \"segmentation\": {\"size\": " + size +
            ", \"counts\": " + quoted(runs_text(one.runs, one.run_count)) + "}";
  return text + "}";
}

}  // namespace

Wanted wanted_of(const Arguments& arguments, const Manifest& manifest) {
  const bool asked = arguments.score >= 0;
  if (!manifest.has_detection && (asked || arguments.has_classes))
    fail(DYNDEPLOY_USAGE, std::string(asked ? "--score" : "--classes") + ": for detectors; " +
                              manifest.network + " is none. Leave it out.");
  const float score = static_cast<float>(arguments.score);
  Wanted found{asked ? score : 0, asked ? score : kShownScore, {}};
  if (!arguments.has_classes) return found;
  const std::vector<std::string>& names = manifest.class_names;
  if (names.empty())
    fail(DYNDEPLOY_USAGE,
         "The bundle holds no names of classes: leave --classes out, or export it with --class-names.");
  found.labels.assign(names.size(), 0);
  const std::vector<std::string> given = listed(arguments.classes);
  if (given.empty())
    fail(DYNDEPLOY_USAGE, "--classes takes names separated by commas, e.g. " + names[0] + ".");
  for (const std::string& name : given) {
    const auto known = std::find(names.begin(), names.end(), name);
    if (known == names.end())
      fail(DYNDEPLOY_USAGE, "Unknown class '" + name + "'. Known: " + joined(names) + ".");
    found.labels[static_cast<std::size_t>(known - names.begin())] = 1;
  }
  return found;
}

std::string detections_json(const dyndeploy_detections& result, const Wanted& wanted) {
  std::string text = "\"width\": " + std::to_string(result.width) +
                     ", \"height\": " + std::to_string(result.height) + ", \"detections\": [";
  const std::string size = "[" + std::to_string(result.height) + ", " + std::to_string(result.width) + "]";
  bool first = true;
  for (const dyndeploy_detection* one : selected(result, wanted.told, wanted.labels)) {
    text += (first ? "" : ", ") + detection_json(*one, size);
    first = false;
  }
  return text + "]";
}

std::string detections_text(const std::string& name, const dyndeploy_detections& result, const Wanted& wanted,
                            double mean_rate) {
  const std::vector<const dyndeploy_detection*> shown = selected(result, wanted.shown, wanted.labels);
  char line[256];
  std::string rate;
  if (mean_rate >= 0) {
    std::snprintf(line, sizeof line, ", mean rate %.3f", mean_rate);
    rate = line;
  }
  std::snprintf(line, sizeof line, ": %d x %d, %zu detection%s%s, %.2f ms\n", result.width, result.height,
                shown.size(), shown.size() == 1 ? "" : "s", rate.c_str(), result.ms);
  std::string text = name + line;
  std::size_t width = 0;
  for (const dyndeploy_detection* one : shown) width = std::max(width, called(*one).size());
  width = std::min(width, kNameWidth);
  for (const dyndeploy_detection* one : shown) {
    std::string label = called(*one);
    label.resize(std::max(label.size(), width), ' ');
    std::snprintf(line, sizeof line, "  %.3f  %7.1f  %7.1f  %7.1f  %7.1f\n", static_cast<double>(one->score),
                  static_cast<double>(one->x1), static_cast<double>(one->y1), static_cast<double>(one->x2),
                  static_cast<double>(one->y2));
    text += "  " + label + line;
  }
  return text;
}

}  // namespace runtime
}  // namespace dyndeploy
