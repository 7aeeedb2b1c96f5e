#include "tensorrt.h"

#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <map>
#include <mutex>
#include <thread>

#include "../tensorrt/module.h"
#include "engine_files.h"
#include "error.h"
#include "files.h"
#include "onnxruntime_library.h"

namespace dyndeploy {
namespace runtime {
namespace {

using Functions = const dyndeploy_trt_functions;
using Progress = std::function<void(const std::string&)>;

constexpr const char* kModule = "libdyndeploy_runtime_tensorrt.so";
constexpr const char* kModuleVariable = "DYNDEPLOY_TENSORRT_MODULE";
constexpr const char* kPlugins = "libdyndeploy_tensorrt.so";
constexpr const char* kPluginVariable = "DYNDEPLOY_TENSORRT_LIBRARY";
constexpr const char* kLibraryVariable = "DYNDEPLOY_TENSORRT";
constexpr std::uint64_t kMostGraph = std::uint64_t{4} << 30;
constexpr std::chrono::seconds kTold(10);
constexpr int kFirstTyped = 10, kFirstWithoutFlags = 11;

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

std::string beside(const char* name) {
  const std::string path = joined(own_folder(), name);
  return is_file(path) ? path : "";
}

std::string found_file(const char* variable, const char* name, const char* what) {
  const std::string named = environment(variable);
  if (named.empty()) return beside(name);
  if (!is_file(named))
    fail(DYNDEPLOY_USAGE, std::string(variable) + " names no " + what + ": there is no file " + named + ".");
  return named.find('/') == std::string::npos ? "./" + named : named;
}

Functions* module_functions(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    const char* said = dlerror();
    fail(DYNDEPLOY_BACKEND, std::string("Cannot open the TensorRT module: ") + (said ? said : path.c_str()) +
                                ". Build plugins/runtime on this machine.");
  }
  using Entry = Functions* (*)();
  const auto entry = reinterpret_cast<Entry>(dlsym(library, DYNDEPLOY_TENSORRT_MODULE_ENTRY));
  Functions* functions = entry ? entry() : nullptr;
  if (!functions || functions->abi != DYNDEPLOY_TENSORRT_MODULE_ABI)
    fail(DYNDEPLOY_BACKEND, path +
                                (functions ? " belongs to another release of dyndeploy"
                                           : " is no TensorRT module of dyndeploy") +
                                ". Build plugins/runtime again.");
  return functions;
}

void check(std::int32_t code, const dyndeploy_trt_error& error) {
  if (code) fail(code, error.text);
}

// Whether libcuda and TensorRT are open; everything else holds on to it.
struct Device {
  Functions* functions;
  dyndeploy_trt* trt = nullptr;
  dyndeploy_trt_info info{};
  Progress progress;

  explicit Device(Functions* found) : functions(found) {}
  ~Device() { functions->close(trt); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
};

// Says every few seconds that something still goes on, for builders that say nothing.
class Ticker {
 public:
  Ticker(const Progress& progress, const std::string& what)
      : thread_([this, progress, what] {
          const auto start = std::chrono::steady_clock::now();
          std::unique_lock<std::mutex> lock(mutex_);
          while (!ended_.wait_for(lock, kTold, [this] { return done_; })) {
            const auto taken = std::chrono::steady_clock::now() - start;
            const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(taken).count();
            if (progress) progress(what + ": " + std::to_string(seconds) + " s");
          }
        }) {}
  ~Ticker() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      done_ = true;
    }
    ended_.notify_one();
    thread_.join();
  }
  Ticker(const Ticker&) = delete;
  Ticker& operator=(const Ticker&) = delete;

 private:
  std::mutex mutex_;
  std::condition_variable ended_;
  bool done_ = false;
  std::thread thread_;
};

// What the module allocated, freed by it.
class Bytes {
 public:
  explicit Bytes(Functions* functions) : functions_(functions) {}
  ~Bytes() { functions_->release_bytes(&bytes); }
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;
  std::string content() const { return std::string(static_cast<const char*>(bytes.data), bytes.size); }

  dyndeploy_trt_bytes bytes{};

 private:
  Functions* functions_;
};

// Which of the module's memory lies at an address of the host.
class Memories {
 public:
  void add(void* host, dyndeploy_trt_memory* memory) {
    const std::lock_guard<std::mutex> lock(mutex_);
    by_host_[host] = memory;
  }
  void remove(void* host) {
    const std::lock_guard<std::mutex> lock(mutex_);
    by_host_.erase(host);
  }
  dyndeploy_trt_memory* at(void* host) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return by_host_.at(host);
  }

 private:
  mutable std::mutex mutex_;
  std::map<void*, dyndeploy_trt_memory*> by_host_;
};

struct Engine {
  Engine(std::shared_ptr<Device> opened, const std::string& content) : device(std::move(opened)) {
    dyndeploy_trt_error error{};
    check(device->functions->load(device->trt, content.data(), content.size(), &engine, &error), error);
  }
  ~Engine() { device->functions->unload(engine); }
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  std::shared_ptr<Device> device;
  dyndeploy_trt_engine* engine = nullptr;
};

class TrtBinding : public Binding {
 public:
  TrtBinding(std::shared_ptr<Engine> engine, const std::vector<dyndeploy_trt_memory*>& tensors,
             bool cuda_graph)
      : engine_(std::move(engine)) {
    dyndeploy_trt_error error{};
    check(functions().bind(engine_->engine, tensors.data(), cuda_graph, &run_, &error), error);
  }
  ~TrtBinding() override { functions().unbind(run_); }
  TrtBinding(const TrtBinding&) = delete;
  TrtBinding& operator=(const TrtBinding&) = delete;

  void run() override {
    error_.text[0] = '\0';
    const std::int32_t code = functions().run(run_, &error_);
    check(code, error_);
  }

 private:
  Functions& functions() const { return *engine_->device->functions; }

  std::shared_ptr<Engine> engine_;
  dyndeploy_trt_run* run_ = nullptr;
  dyndeploy_trt_error error_{};
};

class TrtGraph : public Graph {
 public:
  TrtGraph(std::shared_ptr<Engine> engine, std::shared_ptr<const Memories> memories, bool cuda_graph)
      : engine_(std::move(engine)), memories_(std::move(memories)), cuda_graph_(cuda_graph) {
    Functions& functions = *engine_->device->functions;
    for (std::size_t i = 0; i < functions.tensor_count(engine_->engine); ++i) {
      dyndeploy_trt_tensor tensor{};
      functions.tensor(engine_->engine, i, &tensor);
      names_.push_back(tensor.name);
      (tensor.is_input ? inputs_ : outputs_)
          .push_back(
              {tensor.name, Shape(tensor.shape, tensor.shape + std::max(tensor.rank, 0)), tensor.type});
    }
  }

  const std::vector<TensorInfo>& inputs() const override { return inputs_; }
  const std::vector<TensorInfo>& outputs() const override { return outputs_; }
  std::unique_ptr<Binding> bind(const std::vector<Slot>& inputs, const std::vector<Slot>& outputs) override {
    std::vector<dyndeploy_trt_memory*> tensors(names_.size());
    for (const auto* slots : {&inputs, &outputs})
      for (const Slot& slot : *slots) {
        const auto at = std::find(names_.begin(), names_.end(), slot.name);
        if (at == names_.end()) fail(DYNDEPLOY_RUN, "The engine has no tensor '" + slot.name + "'.");
        tensors[static_cast<std::size_t>(at - names_.begin())] = memories_->at(slot.data);
      }
    return std::make_unique<TrtBinding>(engine_, tensors, cuda_graph_);
  }

 private:
  std::shared_ptr<Engine> engine_;
  std::shared_ptr<const Memories> memories_;
  bool cuda_graph_;
  std::vector<std::string> names_;
  std::vector<TensorInfo> inputs_, outputs_;
};

std::vector<const char*> pointers(const std::vector<std::string>& texts) {
  std::vector<const char*> found;
  for (const std::string& text : texts) found.push_back(text.c_str());
  return found;
}

void forward(void* device, const char* text) {
  const Progress& progress = static_cast<Device*>(device)->progress;
  if (progress) progress(std::string("TensorRT: ") + text);
}

class TrtBackend : public Backend {
 public:
  TrtBackend(const TensorRtSettings& settings, const Bundle& bundle)
      : bundle_(bundle),
        plans_(read_engine_plans(bundle)),
        device_(std::make_shared<Device>(module_functions(settings.module))),
        memories_(std::make_shared<Memories>()) {
    device_->progress = settings.progress;
    if (needs_plugins()) {
      plugins_ = settings.plugins.empty() ? found_file(kPluginVariable, kPlugins, "plugin library")
                                          : settings.plugins;
      if (!is_file(plugins_))
        fail(DYNDEPLOY_USAGE,
             plugins_.empty()
                 ? std::string(
                       "The dynamic operators need TensorRT plugins, and no plugin library was found. Build "
                       "plugins/ on this machine and name the library with --plugins or "
                       "DYNDEPLOY_TENSORRT_LIBRARY; --runtime onnxruntime runs without.")
                 : "There is no plugin library at " + plugins_ + ".");
      plugins_sha256_ = file_sha256(plugins_);
    }
    const std::string library = settings.library.empty() ? environment(kLibraryVariable) : settings.library;
    const dyndeploy_trt_settings given{library.c_str(), "", plugins_.c_str(), 0, forward, device_.get()};
    dyndeploy_trt_error error{};
    check(device_->functions->open(&given, &device_->trt, &device_->info, &error), error);
    require_plans();
    require_plugins();
    const dyndeploy_trt_info& info = device_->info;
    about_ = {"tensorrt", info.version, info.library, plugins_, "", 1};
    facts_ = {info.version, info.gpu, info.capability, info.cuda, info.driver};
  }

  const BackendInfo& info() const override { return about_; }
  bool runs_parts() const override { return true; }

  std::unique_ptr<Graph> open(const std::string& path) override {
    const EnginePlan& plan = plans_.graphs.at(name_of(path));
    const std::string engine = found_or_built(name_of(path), plan);
    return std::make_unique<TrtGraph>(std::make_shared<Engine>(device_, engine), memories_, plan.cuda_graph);
  }

  std::shared_ptr<void> allocate(std::size_t bytes) override {
    dyndeploy_trt_error error{};
    dyndeploy_trt_memory* memory = nullptr;
    void* host = nullptr;
    check(device_->functions->allocate(device_->trt, bytes, &memory, &host, &error), error);
    const std::shared_ptr<Device> device = device_;
    const std::shared_ptr<Memories> memories = memories_;
    std::shared_ptr<void> owned(host, [device, memories, memory](void* freed) {
      memories->remove(freed);
      device->functions->free(memory);
    });
    memories_->add(host, memory);
    return owned;
  }

  void to_host(void* host) override {
    dyndeploy_trt_error error;
    error.text[0] = '\0';
    check(device_->functions->to_host(memories_->at(host), &error), error);
  }
  void written(void* host) override { device_->functions->written(memories_->at(host)); }

 private:
  bool needs_plugins() const {
    return std::any_of(plans_.graphs.begin(), plans_.graphs.end(),
                       [](const auto& entry) { return !entry.second.plugins.empty(); });
  }

  // The graph carries types, or flags do: a TensorRT takes one or the other.
  void require_plans() const {
    for (const auto& entry : plans_.graphs) {
      const bool typed = entry.second.typed;
      if (typed ? device_->info.interface >= kFirstTyped : device_->info.interface < kFirstWithoutFlags)
        continue;
      fail(DYNDEPLOY_BACKEND, std::string("The bundle's graphs for TensorRT ") +
                                  (typed ? "carry types, which need TensorRT 10 or newer"
                                         : "need precision flags, which end with 10") +
                                  ", and this is TensorRT " + device_->info.version +
                                  ". Export the network again for this device.");
    }
  }

  void require_plugins() const {
    for (const auto& entry : plans_.graphs)
      for (const auto& plugin : entry.second.plugins)
        if (!device_->functions->has_plugin(device_->trt, plugin.first.c_str(), plugin.second.c_str()))
          fail(DYNDEPLOY_BACKEND, "No plugin creator for " + plugin.first + ": " + plugins_ +
                                      " was loaded into TensorRT " + device_->info.version +
                                      " and registers none. Build the library of this release of dyndeploy.");
  }

  void tell(const std::string& text) const {
    if (device_->progress) device_->progress(text);
  }

  std::string found_or_built(const std::string& name, const EnginePlan& plan) {
    std::string engine, why;
    if (device_->info.rtx && !plans_.capability.empty()) {
      // Built with this plugin library, or with what stands for it, which gives the same engine.
      for (const std::string& sum : {plugins_sha256_, std::string()}) {
        const EnginePlace ahead = ahead_place(bundle_, plans_, plan, facts_.tensorrt, sum);
        if (read_engine(ahead, engine, why)) return engine;
        if (!why.empty()) tell("The engine is not taken: " + why + ".");
      }
    }
    if (!*device_->info.gpu)
      fail(DYNDEPLOY_BACKEND, std::string("TensorRT ") + device_->info.version + " is here, a GPU is not: " +
                                  device_->info.no_gpu + ". On a CPU, run with --runtime onnxruntime.");
    try {
      const std::string folder = engine_folder();
      const EnginePlace place = engine_place(folder, bundle_, plans_, plan, facts_, plugins_sha256_);
      if (read_engine(place, engine, why)) return engine;
      make_folders(folder);
      // Another process may be building the same.
      const FileLock lock(place.engine);
      if (read_engine(place, engine, why)) return engine;
      if (!why.empty()) tell("The engine is built again: " + why + ".");
      return built(folder, place, name, plan);
    } catch (const Error&) {
      throw;
    } catch (const std::runtime_error& error) {
      fail(DYNDEPLOY_BACKEND, std::string("The engine cannot be kept: ") + error.what() +
                                  ". Name a folder that can be written with DYNDEPLOY_CACHE.");
    }
  }

  std::string built(const std::string& folder, const EnginePlace& place, const std::string& name,
                    const EnginePlan& plan) {
    bundle_.require_intact({plan.copy});
    const std::string copy = read_file(bundle_.path(plan.copy), kMostGraph);
    const std::string what = "building the engine of " + name;
    tell(what + " for " + facts_.gpu + " (" + plan.described + "): minutes on a board");
    const std::vector<const char*> layers = pointers(plan.float_layers);
    const dyndeploy_trt_plan given{plan.half,     plan.typed, plan.tf32, plan.workspace_mib, layers.data(),
                                   layers.size(), nullptr,    0,         plan.integers};
    const std::string timings = read_timings(folder, facts_);
    Bytes engine(device_->functions), later(device_->functions);
    dyndeploy_trt_error error{};
    const auto start = std::chrono::steady_clock::now();
    {
      const Ticker ticker(device_->progress, what);
      check(device_->functions->build(device_->trt, copy.data(), copy.size(), &given, timings.data(),
                                      timings.size(), forward, device_.get(), &engine.bytes, &later.bytes,
                                      &error),
            error);
    }
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    const std::string content = engine.content();
    write_file(place.engine, content);
    // Last: an engine without its metadata is not taken for a whole one.
    const Json metadata =
        engine_metadata(place, plan, content, plan.plugins.empty() ? "" : plugins_, taken.count());
    write_file(place.beside, spaced_json(metadata));
    if (later.bytes.size) write_timings(folder, facts_, later.content());
    tell("built " + place.engine);
    return content;
  }

  const Bundle bundle_;
  const EnginePlans plans_;
  std::shared_ptr<Device> device_;
  std::shared_ptr<Memories> memories_;
  std::string plugins_, plugins_sha256_;
  BackendInfo about_;
  EngineDevice facts_;
};

}  // namespace

std::string find_tensorrt_module() { return found_file(kModuleVariable, kModule, "TensorRT module"); }

std::shared_ptr<Backend> open_tensorrt_backend(const TensorRtSettings& settings, const Bundle& bundle) {
  return std::make_shared<TrtBackend>(settings, bundle);
}

}  // namespace runtime
}  // namespace dyndeploy
