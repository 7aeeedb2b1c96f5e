// The folder of a bundle.
#pragma once

#include <string>
#include <vector>

#include "manifest.h"

namespace dyndeploy {
namespace runtime {

constexpr const char* kManifest = "bundle.json";
constexpr const char* kModel = "model.onnx";
constexpr const char* kReference = "reference.npz";

struct Bundle {
  std::string folder;
  Manifest manifest;

  // Read and check the manifest. Throws Error(DYNDEPLOY_BUNDLE).
  static Bundle open(const std::string& folder);

  std::string path(const std::string& name) const;
  // The graphs that a CPU runs, in order: of the stages, or the one there is.
  std::vector<std::string> graphs() const;
  // Those that engines run: the same, or those of the parts.
  std::vector<std::string> engine_graphs() const;
  // Compare a file with its checksum; says what is wrong, "" where all is well.
  std::string damage(const std::string& name) const;
  // Throws Error(DYNDEPLOY_BUNDLE), which names all of these files that are damaged.
  void require_intact(const std::vector<std::string>& names) const;
};

}  // namespace runtime
}  // namespace dyndeploy
