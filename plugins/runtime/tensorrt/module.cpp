// The functions of module.h: opening TensorRT, memory, engines and runs.

#include "module.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "device.h"

#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

namespace dyndeploy {
namespace runtime {

std::string one_line(std::string text) {
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20) c = ' ';
  while (!text.empty() && (text.back() == ' ' || text.back() == '.')) text.pop_back();
  return text;
}

void Logger::log(Severity severity, const char* text) noexcept {
  constexpr std::size_t kKept = 3, kLongest = 400;
  if (severity > Severity::kWARNING || !text) return;
  try {
    const std::string line = one_line(text).substr(0, kLongest);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (say_) say_(user_, line.c_str());
    if (severity > Severity::kERROR) return;
    if (std::find(errors_.begin(), errors_.end(), line) == errors_.end()) errors_.push_back(line);
    if (errors_.size() > kKept) errors_.pop_front();
  } catch (...) {
    // No memory for a message: the work goes on.
  }
}

void Logger::forget() {
  const std::lock_guard<std::mutex> lock(mutex_);
  errors_.clear();
}

std::string Logger::errors() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::string text;
  for (const std::string& line : errors_) text += (text.empty() ? "" : "; ") + line;
  return text.empty() ? "it gives no reason" : text;
}

}  // namespace runtime
}  // namespace dyndeploy

namespace runtime = dyndeploy::runtime;

dyndeploy_trt::~dyndeploy_trt() {
  if (context) driver.set_current(context);
  runtime.reset();
  if (copies) driver.stream_destroy(copies);
  if (context) driver.release(device);
}

void dyndeploy_trt::use() const {
  if (!context)
    runtime::fail(DYNDEPLOY_BACKEND, std::string("TensorRT ") + info.version + " is here, a GPU is not: " +
                                         info.no_gpu + ". On a CPU, run with --runtime onnxruntime.");
  check(driver.set_current(context), "use the GPU");
}

void dyndeploy_trt::check(CUresult result, const char* doing) const {
  if (result != CUDA_SUCCESS)
    runtime::fail(
        result == CUDA_ERROR_OUT_OF_MEMORY ? DYNDEPLOY_MEMORY : DYNDEPLOY_RUN,
        std::string("CUDA cannot ") + doing + ": error " + std::to_string(static_cast<int>(result)) + ".");
}

struct dyndeploy_trt_memory {
  enum class Newer { kNeither, kHost, kDevice };
  dyndeploy_trt* trt;
  std::size_t bytes;
  void* host = nullptr;
  CUdeviceptr device = 0;
  Newer newer = Newer::kNeither;

  ~dyndeploy_trt_memory() {
    if (trt->driver.set_current(trt->context) != CUDA_SUCCESS) return;
    if (host) trt->driver.free_host(host);
    if (device) trt->driver.free(device);
  }
};

struct dyndeploy_trt_engine {
  dyndeploy_trt* trt;
  std::unique_ptr<nvinfer1::ICudaEngine> engine;
  std::vector<dyndeploy_trt_tensor> tensors;
};

namespace {

constexpr int kHeaderMajor = DYNDEPLOY_TRT / 100;
// An output that is this small is brought to the host with the run, instead of by a call of its own.
constexpr std::size_t kSmall = 64 << 10;

std::string major_name(const char* stem) { return std::string(stem) + ".so." + std::to_string(kHeaderMajor); }

std::string loader_error() {
  const char* said = dlerror();
  return said ? said : "the loader does not say why";
}

std::string folder_of(const std::string& path) {
  const std::size_t slash = path.find_last_of('/');
  return slash == std::string::npos ? "" : path.substr(0, slash + 1);
}

bool is_rtx(const std::string& path) {
  return path.find("libtensorrt_rtx", folder_of(path).size()) != std::string::npos;
}

// Where a library lies that has this function.
std::string place_of(const void* function, const std::string& otherwise) {
  Dl_info found;
  return dladdr(function, &found) && found.dli_fname ? found.dli_fname : otherwise;
}

std::vector<std::string> library_names() {
#ifdef TRT_MAJOR_RTX
  return {"libtensorrt_rtx.so." + std::to_string(TRT_MAJOR_RTX), "libtensorrt_rtx.so"};
#else
  std::vector<std::string> names{major_name("libnvinfer")};
  // TensorRT-RTX has the interface of TensorRT 11.
  if (kHeaderMajor == 11) names.insert(names.end(), {"libtensorrt_rtx.so.1", "libtensorrt_rtx.so"});
  return names;
#endif
}

void* opened(const std::vector<std::string>& names, int mode) {
  for (const std::string& name : names)
    if (void* library = dlopen(name.c_str(), RTLD_NOW | mode)) return library;
  return nullptr;
}

template <class Function>
bool find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

std::string joined(const std::vector<int>& numbers) {
  std::string text;
  for (const int number : numbers) text += (text.empty() ? "" : ".") + std::to_string(number);
  return text;
}

// Major, minor, patch and, where it is known, build.
std::vector<int> version_of(void* library) {
  std::vector<int> numbers;
  for (const char* part : {"Major", "Minor", "Patch", "Build"}) {
    int (*ask)() = nullptr;
    if (find(library, (std::string("getInferLib") + part + "Version").c_str(), ask)) numbers.push_back(ask());
  }
  if (numbers.size() == 4) return numbers;
  int (*ask)() = nullptr;
  const int number = find(library, "getInferLibVersion", ask) ? ask() : 0;
  numbers = number >= 10000 ? std::vector<int>{number / 10000, number / 100 % 100, number % 100}
                            : std::vector<int>{number / 1000, number / 100 % 10, number % 100};
  // Before 10 no function tells the build; the headers do where they are of the same release.
  const std::vector<int> headers{NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR, NV_TENSORRT_PATCH};
  if (numbers == headers) numbers.push_back(NV_TENSORRT_BUILD);
  return numbers;
}

template <std::size_t size>
void put(char (&room)[size], const std::string& text) {
  std::strncpy(room, text.c_str(), size - 1);
  room[size - 1] = '\0';
}

const std::string& headers_version() {
#ifdef TRT_MAJOR_RTX
  static const std::string text =
      "RTX " + joined({TRT_MAJOR_RTX, TRT_MINOR_RTX, TRT_PATCH_RTX, TRT_BUILD_RTX});
#else
  static const std::string text =
      joined({NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR, NV_TENSORRT_PATCH, NV_TENSORRT_BUILD});
#endif
  return text;
}

void require_version(const dyndeploy_trt& trt, const std::vector<int>& version) {
  const bool fits =
      trt.info.rtx ? kHeaderMajor == 11 : version[0] == NV_TENSORRT_MAJOR && version[1] >= NV_TENSORRT_MINOR;
  if (!fits)
    runtime::fail(DYNDEPLOY_BACKEND, std::string(trt.info.library) + " is TensorRT " + trt.info.version +
                                         ", and libdyndeploy_runtime_tensorrt.so was built for " +
                                         headers_version() + ". Build plugins/runtime on this machine.");
}

void open_tensorrt(dyndeploy_trt& trt, const dyndeploy_trt_settings& settings) {
  const std::string named = settings.library;
  void* library = opened(named.empty() ? library_names() : std::vector<std::string>{named}, RTLD_LOCAL);
  if (!library)
    runtime::fail(
        DYNDEPLOY_BACKEND,
        "Cannot open TensorRT: " + loader_error() +
            ". Name its library with --tensorrt PATH or in the environment variable DYNDEPLOY_TENSORRT.");
  runtime::Entries& entries = trt.entries;
  if (!find(library, "createInferRuntime_INTERNAL", entries.runtime) ||
      !find(library, "createInferBuilder_INTERNAL", entries.builder) ||
      !find(library, "getPluginRegistry", entries.registry))
    runtime::fail(DYNDEPLOY_BACKEND, named + " is not TensorRT: it has no createInferRuntime_INTERNAL.");
  const std::string path = place_of(reinterpret_cast<const void*>(entries.runtime), named);
  trt.info.rtx = is_rtx(path);
  trt.info.interface = kHeaderMajor;
#ifdef TRT_MAJOR_RTX
  trt.info.capabilities = 1;
#endif
  const std::vector<int> version = version_of(library);
  put(trt.info.library, path);
  put(trt.info.version, (trt.info.rtx ? "RTX " : "") + joined(version));
  require_version(trt, version);
  // TensorRT compares this with its own; TensorRT-RTX counts differently, and its own number is taken.
  int (*number)() = nullptr;
  entries.version =
      trt.info.rtx && find(library, "getInferLibVersion", number) ? number() : NV_TENSORRT_VERSION;

  std::vector<std::string> parsers;
  if (*settings.parser) {
    parsers = {settings.parser};
  } else if (trt.info.rtx) {
    for (const char* name : {"libtensorrt_onnxparser_rtx.so.1", "libtensorrt_onnxparser_rtx.so"})
      parsers.insert(parsers.end(), {folder_of(path) + name, name});
  } else {
    parsers = {folder_of(path) + major_name("libnvonnxparser"), major_name("libnvonnxparser")};
  }
  void* parser = opened(parsers, RTLD_LOCAL);
  if (!parser || !find(parser, "createNvOnnxParser_INTERNAL", entries.parser))
    trt.parser_missing =
        "Engines cannot be built here: " + (parser ? parsers[0] + " is no parser" : loader_error()) +
        ". Install TensorRT's ONNX parser (" + parsers.back() + ").";
  // NVIDIA's own plugins, which the parser uses for some operators; TensorRT-RTX has none.
  bool (*initialise)(void*, const char*) = nullptr;
  if (!trt.info.rtx)
    if (void* own = opened({major_name("libnvinfer_plugin")}, RTLD_LOCAL))
      if (find(own, "initLibNvInferPlugins", initialise)) initialise(&trt.logger, "");
}

std::string dotted(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// Says why there is no GPU, "" where there is one.
std::string open_gpu(dyndeploy_trt& trt, int index) {
  runtime::Driver& driver = trt.driver;
  const std::string lacking = driver.open();
  if (!lacking.empty()) return lacking;
  const auto failed = [](const char* what, CUresult result) {
    return std::string(what) + " failed with CUDA error " + std::to_string(static_cast<int>(result));
  };
  if (const CUresult result = driver.init(0)) return failed("cuInit", result);
  if (const CUresult result = driver.device(&trt.device, index)) return failed("cuDeviceGet", result);
  if (const CUresult result = driver.retain(&trt.context, trt.device)) {
    trt.context = nullptr;
    return failed("cuDevicePrimaryCtxRetain", result);
  }
  driver.set_current(trt.context);
  driver.device_name(trt.info.gpu, sizeof trt.info.gpu, trt.device);
  int major = 0, minor = 0, version = 0;
  driver.device_attribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, trt.device);
  driver.device_attribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, trt.device);
  driver.driver_version(&version);
  put(trt.info.capability, std::to_string(major) + "." + std::to_string(minor));
  put(trt.info.driver, dotted(version));
  trt.check(driver.stream_create(&trt.copies, CU_STREAM_NON_BLOCKING), "make a stream");
  return "";
}

std::vector<std::pair<std::string, std::string>> creators(dyndeploy_trt& trt) {
  std::vector<std::pair<std::string, std::string>> found;
  std::int32_t count = 0;
#if DYNDEPLOY_TRT >= 1000
  nvinfer1::IPluginCreatorInterface* const* list = trt.entries.registry()->getAllCreators(&count);
  for (std::int32_t i = 0; i < count; ++i) {
    const std::string kind = list[i]->getInterfaceInfo().kind;
    if (kind == "PLUGIN CREATOR_V3ONE") {
      const auto* creator = static_cast<const nvinfer1::IPluginCreatorV3One*>(list[i]);
      found.emplace_back(creator->getPluginName(), creator->getPluginVersion());
    } else if (kind == "PLUGIN CREATOR_V1") {
      const auto* creator = static_cast<const nvinfer1::IPluginCreator*>(list[i]);
      found.emplace_back(creator->getPluginName(), creator->getPluginVersion());
    }
  }
#else
  nvinfer1::IPluginCreator* const* list = trt.entries.registry()->getPluginCreatorList(&count);
  for (std::int32_t i = 0; i < count; ++i)
    found.emplace_back(list[i]->getPluginName(), list[i]->getPluginVersion());
#endif
  return found;
}

template <class Work>
std::int32_t guarded(dyndeploy_trt_error* error, Work work) {
  const auto remember = [&](const std::string& text) {
    if (error) put(error->text, runtime::one_line(text) + ".");
  };
  try {
    work();
    return DYNDEPLOY_OK;
  } catch (const runtime::Error& found) {
    remember(found.what());
    return found.code();
  } catch (const std::bad_alloc&) {
    remember("There is no memory for it");
    return DYNDEPLOY_MEMORY;
  } catch (const std::exception& found) {
    remember(std::string("dyndeploy failed: ") + found.what());
    return DYNDEPLOY_INTERNAL;
  } catch (...) {
    remember("dyndeploy failed, and does not know why");
    return DYNDEPLOY_INTERNAL;
  }
}

std::int32_t open(const dyndeploy_trt_settings* settings, dyndeploy_trt** result, dyndeploy_trt_info* info,
                  dyndeploy_trt_error* error) {
  return guarded(error, [&] {
    std::unique_ptr<dyndeploy_trt> trt(new dyndeploy_trt);
    trt->logger.tell(settings->say, settings->user);
    open_tensorrt(*trt, *settings);
    put(trt->info.cuda, joined({CUDA_VERSION / 1000, CUDA_VERSION % 1000 / 10, CUDA_VERSION % 10}));
    put(trt->info.no_gpu, open_gpu(*trt, settings->device));
    // Loading registers the creators. It stays loaded: the registry keeps pointers into it.
    if (*settings->plugins && !dlopen(settings->plugins, RTLD_NOW | RTLD_GLOBAL))
      runtime::fail(DYNDEPLOY_BACKEND,
                    std::string("TensorRT ") + trt->info.version +
                        " cannot use the plugin library: " + loader_error() +
                        ". Build it on this machine, against the TensorRT that is installed here.");
    trt->runtime.reset(
        static_cast<nvinfer1::IRuntime*>(trt->entries.runtime(&trt->logger, trt->entries.version)));
    if (!trt->runtime && !*trt->info.no_gpu)
      runtime::fail(DYNDEPLOY_BACKEND, std::string("TensorRT ") + trt->info.version +
                                           " cannot start: " + trt->logger.errors() + ".");
    *info = trt->info;
    *result = trt.release();
  });
}

void close(dyndeploy_trt* trt) { delete trt; }

std::int32_t has_plugin(dyndeploy_trt* trt, const char* name, const char* version) {
  try {
    const auto found = creators(*trt);
    return std::find(found.begin(), found.end(), std::make_pair(std::string(name), std::string(version))) !=
           found.end();
  } catch (...) {
    return 0;
  }
}

void give(const std::string& content, dyndeploy_trt_bytes* bytes) {
  bytes->data = std::malloc(content.size() + 1);
  if (!bytes->data) throw std::bad_alloc();
  std::memcpy(bytes->data, content.data(), content.size());
  bytes->size = content.size();
}

void release_bytes(dyndeploy_trt_bytes* bytes) {
  std::free(bytes->data);
  *bytes = {nullptr, 0};
}

std::int32_t build(dyndeploy_trt* trt, const void* onnx, std::size_t size, const dyndeploy_trt_plan* plan,
                   const void* timings, std::size_t timings_size, void (*progress)(void*, const char*),
                   void* user, dyndeploy_trt_bytes* engine, dyndeploy_trt_bytes* new_timings,
                   dyndeploy_trt_error* error) {
  return guarded(error, [&] {
    *engine = *new_timings = {nullptr, 0};
    // TensorRT-RTX builds without a GPU; every other needs the one that the engine is for.
    if (!trt->info.rtx) trt->use();
    const runtime::Built built =
        runtime::build_engine(*trt, onnx, size, *plan, timings, timings_size, progress, user);
    give(built.engine, engine);
    give(built.timings, new_timings);
  });
}

int type_of(nvinfer1::DataType type) {
  using nvinfer1::DataType;
  switch (type) {
    case DataType::kFLOAT:
      return DYNDEPLOY_FLOAT32;
    case DataType::kHALF:
      return DYNDEPLOY_FLOAT16;
    case DataType::kINT8:
      return DYNDEPLOY_INT8;
    case DataType::kINT32:
      return DYNDEPLOY_INT32;
    case DataType::kBOOL:
      return DYNDEPLOY_BOOL;
#if DYNDEPLOY_TRT >= 805
    case DataType::kUINT8:
      return DYNDEPLOY_UINT8;
#endif
#if DYNDEPLOY_TRT >= 1000
    case DataType::kINT64:
      return DYNDEPLOY_INT64;
#endif
    default:
      return 0;
  }
}

std::vector<dyndeploy_trt_tensor> tensors_of(const nvinfer1::ICudaEngine& engine) {
  std::vector<dyndeploy_trt_tensor> tensors;
#if DYNDEPLOY_TRT_BY_NAME
  for (std::int32_t i = 0; i < engine.getNbIOTensors(); ++i) {
    const char* name = engine.getIOTensorName(i);
    const bool is_input = engine.getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
    const nvinfer1::Dims shape = engine.getTensorShape(name);
    const int type = type_of(engine.getTensorDataType(name));
#else
  for (std::int32_t i = 0; i < engine.getNbBindings(); ++i) {
    const char* name = engine.getBindingName(i);
    const bool is_input = engine.bindingIsInput(i);
    const nvinfer1::Dims shape = engine.getBindingDimensions(i);
    const int type = type_of(engine.getBindingDataType(i));
#endif
    tensors.push_back({name, is_input, type, std::min(shape.nbDims, 8), {}});
    std::copy_n(shape.d, std::max(tensors.back().rank, 0), tensors.back().shape);
  }
  return tensors;
}

std::int32_t load(dyndeploy_trt* trt, const void* data, std::size_t size, dyndeploy_trt_engine** result,
                  dyndeploy_trt_error* error) {
  return guarded(error, [&] {
    trt->use();
    trt->logger.forget();
    std::unique_ptr<dyndeploy_trt_engine> loaded(new dyndeploy_trt_engine{trt, nullptr, {}});
    if (trt->runtime) loaded->engine.reset(trt->runtime->deserializeCudaEngine(data, size));
    if (!loaded->engine)
      runtime::fail(DYNDEPLOY_BACKEND, std::string("TensorRT ") + trt->info.version +
                                           " refuses the engine: " + trt->logger.errors() + ".");
    loaded->tensors = tensors_of(*loaded->engine);
    *result = loaded.release();
  });
}

void unload(dyndeploy_trt_engine* engine) {
  if (engine) engine->trt->driver.set_current(engine->trt->context);
  delete engine;
}

std::size_t tensor_count(const dyndeploy_trt_engine* engine) { return engine->tensors.size(); }
void tensor(const dyndeploy_trt_engine* engine, std::size_t index, dyndeploy_trt_tensor* result) {
  *result = engine->tensors[index];
}

std::int32_t allocate(dyndeploy_trt* trt, std::size_t bytes, dyndeploy_trt_memory** result, void** host,
                      dyndeploy_trt_error* error) {
  return guarded(error, [&] {
    trt->use();
    std::unique_ptr<dyndeploy_trt_memory> memory(new dyndeploy_trt_memory);
    memory->trt = trt;
    memory->bytes = std::max<std::size_t>(bytes, 1);
    trt->check(trt->driver.allocate_host(&memory->host, memory->bytes, 0), "allocate memory of the host");
    trt->check(trt->driver.allocate(&memory->device, memory->bytes), "allocate memory of the GPU");
    *host = memory->host;
    *result = memory.release();
  });
}

void release(dyndeploy_trt_memory* memory) { delete memory; }

using Newer = dyndeploy_trt_memory::Newer;

std::int32_t to_host(dyndeploy_trt_memory* memory, dyndeploy_trt_error* error) {
  if (memory->newer != Newer::kDevice) return DYNDEPLOY_OK;
  return guarded(error, [&] {
    dyndeploy_trt& trt = *memory->trt;
    trt.use();
    trt.check(trt.driver.download(memory->host, memory->device, memory->bytes, trt.copies),
              "read from the GPU");
    trt.check(trt.driver.synchronize(trt.copies), "read from the GPU");
    memory->newer = Newer::kNeither;
  });
}

void written(dyndeploy_trt_memory* memory) { memory->newer = Newer::kHost; }

}  // namespace

// An execution context with its tensors in place, and the run as a CUDA graph where that works.
struct dyndeploy_trt_run {
  dyndeploy_trt_engine* engine;
  std::unique_ptr<nvinfer1::IExecutionContext> context;
  CUstream stream = nullptr;
  std::vector<std::unique_ptr<dyndeploy_trt_memory>> unread;  // of outputs that nobody reads
  std::vector<dyndeploy_trt_memory*> memory;                  // by tensor
  std::vector<void*> addresses;
  bool capture_next = false;
  CUgraph graph = nullptr;
  CUgraphExec executable = nullptr;

  dyndeploy_trt& trt() const { return *engine->trt; }

  ~dyndeploy_trt_run() {
    const runtime::Driver& driver = trt().driver;
    driver.set_current(trt().context);
    if (executable) driver.executable_destroy(executable);
    if (graph) driver.graph_destroy(graph);
    context.reset();
    if (stream) driver.stream_destroy(stream);
  }

  void enqueue() {
#if DYNDEPLOY_TRT_BY_NAME
    const bool put = context->enqueueV3(reinterpret_cast<cudaStream_t>(stream));
#else
    const bool put = context->enqueueV2(addresses.data(), reinterpret_cast<cudaStream_t>(stream), nullptr);
#endif
    if (!put)
      runtime::fail(DYNDEPLOY_RUN, "TensorRT could not run the engine: " + trt().logger.errors() + ".");
  }

  // Leaves the run as it was where it cannot be captured.
  void capture() {
    const runtime::Driver& driver = trt().driver;
    capture_next = false;
    if (driver.begin_capture(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) != CUDA_SUCCESS) return;
    bool enqueued = true;
    try {
      enqueue();
    } catch (const runtime::Error&) {
      enqueued = false;
    }
    // Always ended: a stream that still captures refuses everything else.
    if (driver.end_capture(stream, &graph) != CUDA_SUCCESS || !enqueued) return;
    const CUresult made = driver.instantiate_with_flags
                              ? driver.instantiate_with_flags(&executable, graph, 0)
                              : driver.instantiate(&executable, graph, nullptr, nullptr, 0);
    if (made != CUDA_SUCCESS) executable = nullptr;
  }

  void run() {
    dyndeploy_trt& device = trt();
    const runtime::Driver& driver = device.driver;
    device.use();
    for (std::size_t i = 0; i < memory.size(); ++i) {
      if (!engine->tensors[i].is_input || memory[i]->newer != Newer::kHost) continue;
      device.check(driver.upload(memory[i]->device, memory[i]->host, memory[i]->bytes, stream),
                   "write to the GPU");
      memory[i]->newer = Newer::kNeither;
    }
    if (executable) {
      device.check(driver.graph_launch(executable, stream), "launch the run");
    } else {
      enqueue();
    }
    for (std::size_t i = 0; i < memory.size(); ++i) {
      if (engine->tensors[i].is_input) continue;
      const bool brought = memory[i]->host && memory[i]->bytes <= kSmall;
      if (brought)
        device.check(driver.download(memory[i]->host, memory[i]->device, memory[i]->bytes, stream),
                     "read from the GPU");
      memory[i]->newer = brought ? Newer::kNeither : Newer::kDevice;
    }
    device.check(driver.synchronize(stream), "run the engine");
    // The first run may allocate, which cannot be captured.
    if (capture_next) capture();
  }
};

namespace {

std::int32_t bind(dyndeploy_trt_engine* engine, dyndeploy_trt_memory* const* tensors, std::int32_t cuda_graph,
                  dyndeploy_trt_run** result, dyndeploy_trt_error* error) {
  return guarded(error, [&] {
    dyndeploy_trt& trt = *engine->trt;
    trt.use();
    trt.logger.forget();
    std::unique_ptr<dyndeploy_trt_run> run(new dyndeploy_trt_run);
    run->engine = engine;
    run->capture_next = cuda_graph != 0;
    run->context.reset(engine->engine->createExecutionContext());
    if (!run->context)
      runtime::fail(DYNDEPLOY_MEMORY,
                    "TensorRT has no memory to run the engine: " + trt.logger.errors() + ".");
    trt.check(trt.driver.stream_create(&run->stream, CU_STREAM_NON_BLOCKING), "make a stream");
    for (std::size_t i = 0; i < engine->tensors.size(); ++i) {
      dyndeploy_trt_memory* memory = tensors[i];
      if (!memory) {
        std::size_t bytes = 8;  // no type is larger
        for (int k = 0; k < engine->tensors[i].rank; ++k)
          bytes *= static_cast<std::size_t>(std::max<std::int64_t>(engine->tensors[i].shape[k], 1));
        std::unique_ptr<dyndeploy_trt_memory> own(new dyndeploy_trt_memory);
        own->trt = &trt;
        own->bytes = bytes;
        trt.check(trt.driver.allocate(&own->device, bytes), "allocate memory of the GPU");
        memory = own.get();
        run->unread.push_back(std::move(own));
      }
      run->memory.push_back(memory);
      run->addresses.push_back(reinterpret_cast<void*>(memory->device));
#if DYNDEPLOY_TRT_BY_NAME
      if (!run->context->setTensorAddress(engine->tensors[i].name, run->addresses.back()))
        runtime::fail(DYNDEPLOY_RUN, std::string("TensorRT cannot bind '") + engine->tensors[i].name + "'.");
#endif
    }
    *result = run.release();
  });
}

std::int32_t run_once(dyndeploy_trt_run* run, dyndeploy_trt_error* error) {
  return guarded(error, [&] { run->run(); });
}

void unbind(dyndeploy_trt_run* run) { delete run; }

}  // namespace

extern "C" __attribute__((visibility("default"))) const dyndeploy_trt_functions* dyndeploy_tensorrt_module(
    void) {
  static const dyndeploy_trt_functions functions{DYNDEPLOY_TENSORRT_MODULE_ABI,
                                                 headers_version().c_str(),
                                                 open,
                                                 close,
                                                 has_plugin,
                                                 build,
                                                 release_bytes,
                                                 load,
                                                 unload,
                                                 tensor_count,
                                                 tensor,
                                                 allocate,
                                                 release,
                                                 to_host,
                                                 written,
                                                 bind,
                                                 run_once,
                                                 unbind};
  return &functions;
}
