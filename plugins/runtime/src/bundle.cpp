#include "bundle.h"

#include <stdexcept>

#include "error.h"
#include "files.h"

namespace dyndeploy {
namespace runtime {
namespace {

constexpr std::uint64_t kMostManifest = std::uint64_t{64} << 20;

}  // namespace

std::string Bundle::path(const std::string& name) const { return joined(folder, name); }

std::vector<std::string> Bundle::graphs() const {
  std::vector<std::string> names;
  for (const StageInfo& stage : manifest.exits.stages) names.push_back(stage.file);
  return manifest.has_exits ? names : std::vector<std::string>{kModel};
}

std::vector<std::string> Bundle::engine_graphs() const {
  if (manifest.detection.parts.empty()) return graphs();
  std::vector<std::string> names;
  for (const PartInfo& part : manifest.detection.parts)
    if (!part.host) names.push_back(part.file);
  return names;
}

Bundle Bundle::open(const std::string& folder) {
  const std::string path = joined(folder, kManifest);
  if (!is_file(path)) {
    const char* what = is_folder(folder) ? "has no bundle.json"
                       : is_file(folder) ? "is a file"
                                         : "does not exist";
    fail(DYNDEPLOY_BUNDLE,
         folder + " " + what + ": it is no bundle. Copy the whole folder that 'dyndeploy export' wrote.");
  }
  std::string text;
  try {
    text = read_file(path, kMostManifest);
  } catch (const std::runtime_error& error) {
    fail(DYNDEPLOY_BUNDLE, "Cannot read " + path + ": " + error.what() + ".");
  }
  Bundle bundle{folder, parse_manifest(text)};
  // A file without a checksum would pass every check unseen. The names of graphs are checked with their
  // checksums.
  std::vector<std::string> required = bundle.graphs();
  for (const PartInfo& part : bundle.manifest.detection.parts) required.push_back(part.file);
  required.push_back(kReference);
  for (const std::string& name : required)
    if (!bundle.manifest.files.count(name))
      fail(DYNDEPLOY_BUNDLE,
           "bundle.json is malformed: files lists no checksum of " + name + ". Export the bundle again.");
  return bundle;
}

std::string Bundle::damage(const std::string& name) const {
  const std::string file = path(name);
  if (!is_file(file)) return "missing";
  try {
    return file_sha256(file) == manifest.files.at(name) ? "" : "content does not match its checksum";
  } catch (const std::runtime_error& error) {
    return std::string("cannot be read: ") + error.what();
  }
}

void Bundle::require_intact(const std::vector<std::string>& names) const {
  std::string damaged;
  for (const std::string& name : names) {
    const std::string what = damage(name);
    if (!what.empty()) damaged += (damaged.empty() ? "" : ", ") + name + " (" + what + ")";
  }
  if (!damaged.empty())
    fail(DYNDEPLOY_BUNDLE, "The bundle " + folder + " is damaged: " + damaged + ". Export or copy it again.");
}

}  // namespace runtime
}  // namespace dyndeploy
