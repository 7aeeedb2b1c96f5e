#include "onnxruntime.h"

#include <cstdlib>
#include <new>

#include "error.h"
#include "onnxruntime_library.h"
#include "session.h"

namespace dyndeploy {
namespace runtime {
namespace {

namespace abi = ort::abi;

// As ONNX Runtime aligns tensors itself.
constexpr std::size_t kAlignment = 64;

// Ends in one line what ONNX Runtime says, which may have several.
std::string one_line(std::string text) {
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20) c = ' ';
  while (!text.empty() && (text.back() == ' ' || text.back() == '.')) text.pop_back();
  return text;
}

void check(const abi::HostApi& api, OrtStatus* status, int code, const std::string& doing) {
  if (!status) return;
  const std::string said = one_line(api.GetErrorMessage(status));
  api.ReleaseStatus(status);
  fail(code, doing + ": " + said + ".");
}

// Objects of ONNX Runtime, freed by the function that belongs to their type.
template <class T>
using Owned = std::unique_ptr<T, void (*)(T*)>;

struct Environment {
  Environment(std::shared_ptr<const OrtLibrary> opened, bool shared_memory)
      : library(std::move(opened)),
        env(nullptr, library->api.ReleaseEnv),
        memory(nullptr, library->api.ReleaseMemoryInfo) {
    const abi::HostApi& api = library->api;
    OrtEnv* created = nullptr;
    // Every error reaches us as a status; logged as well, it would be a second line on stderr.
    check(api, api.CreateEnv(abi::LoggingLevel::kFatal, "dyndeploy", &created), DYNDEPLOY_BACKEND,
          "ONNX Runtime cannot start");
    env.reset(created);
    OrtMemoryInfo* info = nullptr;
    check(api, api.CreateCpuMemoryInfo(abi::AllocatorType::kArena, abi::MemoryType::kDefault, &info),
          DYNDEPLOY_BACKEND, "ONNX Runtime cannot start");
    memory.reset(info);
    // One place for all graphs of the process. It stays registered, and says so the next time.
    if (shared_memory)
      if (OrtStatus* status = api.CreateAndRegisterAllocator(created, info, nullptr))
        api.ReleaseStatus(status);
  }

  std::shared_ptr<const OrtLibrary> library;
  Owned<OrtEnv> env;
  Owned<OrtMemoryInfo> memory;
};

class OrtBinding : public Binding {
 public:
  OrtBinding(std::shared_ptr<const Environment> environment, std::shared_ptr<OrtSession> session,
             const std::vector<Slot>& inputs, const std::vector<Slot>& outputs)
      : environment_(std::move(environment)),
        session_(std::move(session)),
        binding_(nullptr, environment_->library->api.ReleaseIoBinding) {
    const abi::HostApi& api = environment_->library->api;
    OrtIoBinding* binding = nullptr;
    check(api, api.CreateIoBinding(session_.get(), &binding), DYNDEPLOY_RUN,
          "ONNX Runtime cannot bind tensors");
    binding_.reset(binding);
    for (const Slot& slot : inputs)
      check(api, api.BindInput(binding, slot.name.c_str(), value(slot)), DYNDEPLOY_RUN,
            "ONNX Runtime cannot bind the input '" + slot.name + "'");
    for (const Slot& slot : outputs)
      check(api, api.BindOutput(binding, slot.name.c_str(), value(slot)), DYNDEPLOY_RUN,
            "ONNX Runtime cannot bind the output '" + slot.name + "'");
  }

  void run() override {
    const abi::HostApi& api = environment_->library->api;
    check(api, api.RunWithBinding(session_.get(), nullptr, binding_.get()), DYNDEPLOY_RUN,
          "ONNX Runtime failed");
  }

 private:
  OrtValue* value(const Slot& slot) {
    const abi::HostApi& api = environment_->library->api;
    OrtValue* made = nullptr;
    check(api,
          api.CreateTensorWithDataAsOrtValue(
              environment_->memory.get(), slot.data, elements(slot.shape) * element_bytes(slot.type),
              slot.shape.data(), slot.shape.size(), static_cast<abi::ElementType>(slot.type), &made),
          DYNDEPLOY_RUN, "ONNX Runtime cannot take the tensor '" + slot.name + "'");
    values_.emplace_back(made, api.ReleaseValue);
    return made;
  }

  std::shared_ptr<const Environment> environment_;
  std::shared_ptr<OrtSession> session_;
  std::vector<Owned<OrtValue>> values_;
  Owned<OrtIoBinding> binding_;
};

class OrtGraph : public Graph {
 public:
  OrtGraph(std::shared_ptr<const Environment> environment, const OrtSessionOptions* options,
           const std::string& path)
      : environment_(std::move(environment)) {
    const abi::HostApi& api = environment_->library->api;
    OrtSession* session = nullptr;
    check(api, api.CreateSession(environment_->env.get(), path.c_str(), options, &session), DYNDEPLOY_BUNDLE,
          "ONNX Runtime " + environment_->library->version + " cannot load " + path);
    session_ = std::shared_ptr<OrtSession>(session, api.ReleaseSession);
    describe(api.SessionGetInputCount, api.SessionGetInputName, api.SessionGetInputTypeInfo, inputs_);
    describe(api.SessionGetOutputCount, api.SessionGetOutputName, api.SessionGetOutputTypeInfo, outputs_);
  }

  const std::vector<TensorInfo>& inputs() const override { return inputs_; }
  const std::vector<TensorInfo>& outputs() const override { return outputs_; }
  std::unique_ptr<Binding> bind(const std::vector<Slot>& inputs, const std::vector<Slot>& outputs) override {
    return std::make_unique<OrtBinding>(environment_, session_, inputs, outputs);
  }

 private:
  template <class Count, class Name, class Type>
  void describe(Count count, Name name, Type type, std::vector<TensorInfo>& infos) {
    const abi::HostApi& api = environment_->library->api;
    const auto asked = [&](OrtStatus* status) {
      check(api, status, DYNDEPLOY_BUNDLE, "ONNX Runtime failed");
    };
    std::size_t size = 0;
    asked(count(session_.get(), &size));
    OrtAllocator* allocator = nullptr;
    asked(api.GetAllocatorWithDefaultOptions(&allocator));
    for (std::size_t i = 0; i < size; ++i) {
      char* text = nullptr;
      asked(name(session_.get(), i, allocator, &text));
      TensorInfo info{text, {}, 0};
      api.ReleaseStatus(api.AllocatorFree(allocator, text));
      OrtTypeInfo* described = nullptr;
      asked(type(session_.get(), i, &described));
      const Owned<OrtTypeInfo> owned(described, api.ReleaseTypeInfo);
      const OrtTensorTypeAndShapeInfo* tensor = nullptr;
      asked(api.CastTypeInfoToTensorInfo(described, &tensor));
      if (tensor) {
        abi::ElementType element;
        asked(api.GetTensorElementType(tensor, &element));
        std::size_t rank = 0;
        asked(api.GetDimensionsCount(tensor, &rank));
        info.type = static_cast<int>(element);
        info.shape.resize(rank);
        asked(api.GetDimensions(tensor, info.shape.data(), rank));
      }
      infos.push_back(std::move(info));
    }
  }

  std::shared_ptr<const Environment> environment_;
  std::shared_ptr<OrtSession> session_;
  std::vector<TensorInfo> inputs_, outputs_;
};

class OrtBackend : public Backend {
 public:
  explicit OrtBackend(const OrtSettings& settings)
      : environment_(
            std::make_shared<const Environment>(open_onnxruntime(settings.library), settings.shared_memory)),
        options_(nullptr, environment_->library->api.ReleaseSessionOptions) {
    const OrtLibrary& library = *environment_->library;
    info_ = {"onnxruntime", library.version, library.path, settings.operators, "", settings.threads};
    const abi::HostApi& api = library.api;
    OrtSessionOptions* options = nullptr;
    const auto set = [&](OrtStatus* status) {
      check(api, status, DYNDEPLOY_BACKEND, "ONNX Runtime cannot start");
    };
    set(api.CreateSessionOptions(&options));
    options_.reset(options);
    set(api.SetSessionLogSeverityLevel(options, static_cast<int>(abi::LoggingLevel::kFatal)));
    set(api.SetIntraOpNumThreads(options, settings.threads));
    set(api.SetInterOpNumThreads(options, 1));
    // Workers that keep spinning after a run would take the cores from the stage that runs next.
    set(api.AddSessionConfigEntry(options, "session.force_spinning_stop", "1"));
    if (settings.shared_memory) set(api.AddSessionConfigEntry(options, "session.use_env_allocators", "1"));
    // No API tells an operator library these; it reads them when it is registered.
    set(api.AddSessionConfigEntry(options, "dyndeploy.threads", std::to_string(settings.threads).c_str()));
    set(api.AddSessionConfigEntry(options, "dyndeploy.precision", chosen(settings)));
    if (!settings.operators.empty()) use_operators(settings);
  }

  const BackendInfo& info() const override { return info_; }
  std::unique_ptr<Graph> open(const std::string& path) override {
    return std::make_unique<OrtGraph>(environment_, options_.get(), path);
  }
  std::shared_ptr<void> allocate(std::size_t bytes) override {
    void* memory = nullptr;
    if (::posix_memalign(&memory, kAlignment, bytes ? bytes : kAlignment) != 0) throw std::bad_alloc();
    return std::shared_ptr<void>(memory, std::free);
  }

 private:
  // What the library computes those operators in that leave the choice to it.
  static const char* chosen(const OrtSettings& settings) {
    return in_graph(settings.precision) ? "fp32" : settings.precision.c_str();
  }

  void use_operators(const OrtSettings& settings) {
    const abi::HostApi& api = environment_->library->api;
    const OperatorLibrary library = ask_operator_library(settings.operators, settings.precision);
    const auto computes = [&](const std::string& precision) {
      return (" " + library.precisions + " ").find(" " + precision + " ") != std::string::npos;
    };
    if (!computes(chosen(settings)))
      fail(DYNDEPLOY_USAGE, "The operator library " + settings.operators + " computes in " +
                                library.precisions + " only and would ignore " + settings.precision +
                                ". Build it again, or export with --precision fp32.");
    check(api, api.RegisterCustomOpsLibrary_V2(options_.get(), settings.operators.c_str()), DYNDEPLOY_BACKEND,
          "ONNX Runtime " + environment_->library->version + " cannot load the operator library " +
              settings.operators + " (--native off runs without it)");
    // A library that is older than operators in integers leaves them to the function bodies.
    if (computes(settings.precision))
      info_.instruction_set = library.instruction_set;
    else
      info_.native_path.clear();
  }

  std::shared_ptr<const Environment> environment_;
  Owned<OrtSessionOptions> options_;
  BackendInfo info_;
};

}  // namespace

std::shared_ptr<Backend> open_onnxruntime_backend(const OrtSettings& settings) {
  return std::make_shared<OrtBackend>(settings);
}

}  // namespace runtime
}  // namespace dyndeploy
