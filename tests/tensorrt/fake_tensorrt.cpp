// A registry and a logger that stand in for libnvinfer, so that the contract is tested against the headers of
// every version, with no library of it. Names are unique as in TensorRT: one creator per name, version and
// namespace.

#include "fake_tensorrt.h"

#include <map>
#include <string>

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

namespace {

#if NV_TENSORRT_MAJOR >= 10
using AnyCreator = nvinfer1::IPluginCreatorInterface;
#else
using AnyCreator = nvinfer1::IPluginCreator;
#endif

class Logger final : public nvinfer1::ILogger {
 public:
  void log(Severity, const char* message) noexcept override {
    text += message;
    text += '\n';
  }
  std::string text;
};

Logger& logger() {
  static Logger instance;
  return instance;
}

class Registry final : public nvinfer1::IPluginRegistry {
 public:
  void add(const std::string& name, AnyCreator& creator) {
    fresh_ = creators_.emplace(name, &creator).second;
  }
  AnyCreator* find(const std::string& name) const {
    const auto found = creators_.find(name);
    return found == creators_.end() ? nullptr : found->second;
  }

  void setErrorRecorder(nvinfer1::IErrorRecorder* const) noexcept override {}
  nvinfer1::IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
#if NV_TENSORRT_MAJOR < 11
  bool registerCreator(nvinfer1::IPluginCreator& creator, const char* const space) noexcept override {
    add(key(creator.getPluginName(), creator.getPluginVersion(), space), creator);
    return fresh_;
  }
  nvinfer1::IPluginCreator* const* getPluginCreatorList(int32_t* const) const noexcept override {
    return nullptr;
  }
  nvinfer1::IPluginCreator* getPluginCreator(const char* const, const char* const,
                                             const char* const) noexcept override {
    return nullptr;
  }
  bool deregisterCreator(const nvinfer1::IPluginCreator&) noexcept override { return false; }
#endif
#if NV_TENSORRT_MAJOR > 8 || (NV_TENSORRT_MAJOR == 8 && NV_TENSORRT_MINOR >= 6)
  bool isParentSearchEnabled() const override { return true; }
  void setParentSearchEnabled(bool const) override {}
  PluginLibraryHandle loadLibrary(const char*) noexcept override { return nullptr; }
  void deregisterLibrary(PluginLibraryHandle) noexcept override {}
#endif
#if NV_TENSORRT_MAJOR >= 10
  bool registerCreator(nvinfer1::IPluginCreatorInterface& creator,
                       const char* const space) noexcept override {
    if (auto* v3 = dynamic_cast<nvinfer1::IPluginCreatorV3One*>(&creator)) {
      add(key(v3->getPluginName(), v3->getPluginVersion(), space), creator);
    } else if (auto* v1 = dynamic_cast<nvinfer1::IPluginCreator*>(&creator)) {
      add(key(v1->getPluginName(), v1->getPluginVersion(), space), creator);
    }
    return fresh_;
  }
  nvinfer1::IPluginCreatorInterface* const* getAllCreators(int32_t* const) const noexcept override {
    return nullptr;
  }
  nvinfer1::IPluginCreatorInterface* getCreator(const char* const name, const char* const version,
                                                const char* const space) noexcept override {
    return find(key(name, version, space));
  }
  bool deregisterCreator(const nvinfer1::IPluginCreatorInterface&) noexcept override { return false; }
  nvinfer1::IPluginResource* acquirePluginResource(const char*,
                                                   nvinfer1::IPluginResource*) noexcept override {
    return nullptr;
  }
  int32_t releasePluginResource(const char*) noexcept override { return 0; }
#endif
#if NV_TENSORRT_MAJOR > 10 || (NV_TENSORRT_MAJOR == 10 && NV_TENSORRT_MINOR >= 7)
  nvinfer1::IPluginCreatorInterface* const* getAllCreatorsRecursive(int32_t* const) noexcept override {
    return nullptr;
  }
#endif

  static std::string key(const char* name, const char* version, const char* space) {
    return std::string(space) + "/" + name + "/" + version;
  }

 private:
  std::map<std::string, AnyCreator*> creators_;
  bool fresh_ = false;
};

Registry& registry() {
  static Registry instance;
  return instance;
}

}  // namespace

extern "C" nvinfer1::IPluginRegistry* getPluginRegistry() noexcept { return &registry(); }
extern "C" nvinfer1::ILogger* getLogger() noexcept { return &logger(); }

void* find_fake_creator(const char* name) { return registry().find(Registry::key(name, "1", "")); }

std::string take_log() {
  std::string text;
  text.swap(logger().text);
  return text;
}

#pragma GCC diagnostic pop
