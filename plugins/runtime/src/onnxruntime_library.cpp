#include "onnxruntime_library.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

#include "error.h"
#include "files.h"

namespace dyndeploy {
namespace runtime {
namespace {

constexpr const char* kVariable = "DYNDEPLOY_ONNXRUNTIME";
constexpr const char* kOperatorVariable = "DYNDEPLOY_CPU_LIBRARY";
constexpr const char* kOperatorLibrary = "libdyndeploy_ort_cpu.so";
const char kAdvice[] =
    "Name its libonnxruntime.so (1.18 or newer) with --onnxruntime PATH or in the environment variable "
    "DYNDEPLOY_ONNXRUNTIME; 'pip install onnxruntime' brings one from 1.19 on";

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

std::string loader_error() {
  const char* said = dlerror();
  return said ? said : "the loader does not say why";
}

// Major and minor as one number, 1018 for "1.18.0"; 0 for what is no version.
int version_number(const std::string& version) {
  int major = 0, minor = 0;
  return std::sscanf(version.c_str(), "%d.%d", &major, &minor) == 2 ? 1000 * major + minor : 0;
}

OrtLibrary opened(const std::string& path) {
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) fail(DYNDEPLOY_BACKEND, "Cannot open ONNX Runtime: " + loader_error() + ". " + kAdvice + ".");
  using Entry = const ort::abi::Base* (*)();
  const auto entry = reinterpret_cast<Entry>(dlsym(handle, "OrtGetApiBase"));
  if (!entry)
    fail(DYNDEPLOY_BACKEND, path + " is not ONNX Runtime: it has no OrtGetApiBase. " + kAdvice + ".");
  const ort::abi::Base* base = entry();
  const std::string version = base->GetVersionString();
  // Asking one that is too old for the table would have it complain on stderr.
  const bool recent = version_number(version) >= 1000 + static_cast<int>(ort::abi::kVersion);
  const ort::abi::Table* table = recent ? base->GetApi(ort::abi::kVersion) : nullptr;
  if (!table)
    fail(DYNDEPLOY_BACKEND, "ONNX Runtime " + version + " (" + path + ") is too old. " + kAdvice + ".");
  return {path, version, ort::abi::HostApi(*table)};
}

std::vector<std::string> packages() {
  std::vector<std::string> found;
  const auto add = [&](const std::string& root) {
    for (const char* folder : {"/lib/python3*/site-packages", "/lib/python3*/dist-packages",
                               "/lib/python3/dist-packages", "/lib64/python3*/site-packages"})
      for (std::string& path : matching(root + folder + "/onnxruntime/capi/libonnxruntime.so*"))
        found.push_back(std::move(path));
  };
  const std::string environment_root = environment("VIRTUAL_ENV"), home = environment("HOME");
  if (!environment_root.empty()) add(environment_root);
  if (!home.empty()) add(home + "/.local");
  add("/usr/local");
  add("/usr");
  return found;
}

std::string resolved(const std::string& named) {
  if (!is_folder(named)) return named;
  for (const char* below : {"/libonnxruntime.so*", "/lib/libonnxruntime.so*", "/capi/libonnxruntime.so*"}) {
    const std::vector<std::string> found = matching(named + below);
    if (!found.empty()) return found.front();
  }
  fail(DYNDEPLOY_BACKEND, "The folder " + named + " holds no libonnxruntime.so. " + kAdvice + ".");
}

OrtLibrary found_library(const std::string& named) {
  const std::string chosen = named.empty() ? environment(kVariable) : named;
  if (!chosen.empty()) {
    const std::string path = resolved(chosen);
    if (path.find('/') != std::string::npos && !is_file(path))
      fail(DYNDEPLOY_BACKEND, "There is no ONNX Runtime at " + path + ". " + kAdvice + ".");
    return opened(path);
  }
  std::string why;
  for (const std::string& path : packages()) {
    try {
      return opened(path);
    } catch (const Error& error) {
      why = error.what();  // another package may be newer
    }
  }
  for (const char* name : {"libonnxruntime.so.1", "libonnxruntime.so"})
    if (void* handle = dlopen(name, RTLD_NOW | RTLD_LOCAL)) {
      dlclose(handle);
      return opened(name);
    }
  if (!why.empty()) fail(DYNDEPLOY_BACKEND, why);
  fail(
      DYNDEPLOY_BACKEND,
      std::string("No ONNX Runtime was found, in no Python package and not on the system. ") + kAdvice + ".");
}

}  // namespace

std::shared_ptr<const OrtLibrary> open_onnxruntime(const std::string& named) {
  static std::mutex mutex;
  static auto& libraries = *new std::map<std::string, std::shared_ptr<const OrtLibrary>>;
  const std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<const OrtLibrary>& library = libraries[named];
  if (!library) library = std::make_shared<const OrtLibrary>(found_library(named));
  return library;
}

std::string find_operator_library(const std::string& choice, const std::string& bundled) {
  if (choice == "off") return "";
  std::string named = choice.empty() || choice == "auto" ? environment(kOperatorVariable) : choice;
  if (!named.empty()) {
    if (!is_file(named))
      fail(DYNDEPLOY_USAGE,
           "There is no operator library at " + named + ". Build it, or ask for --native off.");
    // The loader looks for a name without a slash elsewhere.
    return named.find('/') == std::string::npos ? "./" + named : named;
  }
  const std::string beside = joined(own_folder(), kOperatorLibrary);
  return is_file(beside) ? beside : bundled;
}

OperatorLibrary ask_operator_library(const std::string& path, const std::string& precision) {
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle)
    fail(DYNDEPLOY_BACKEND, "Cannot load the operator library: " + loader_error() +
                                ". Build it again, or run with --native off.");
  OperatorLibrary library{"fp32", ""};
  if (const auto ask = reinterpret_cast<const char* (*)()>(dlsym(handle, "DyndeployPrecisions")))
    library.precisions = ask();
  if (const auto ask =
          reinterpret_cast<const char* (*)(const char*)>(dlsym(handle, "DyndeployInstructionSet")))
    if (const char* said = ask(precision.c_str())) library.instruction_set = said;
  return library;
}

}  // namespace runtime
}  // namespace dyndeploy
