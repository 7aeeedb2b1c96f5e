// A TensorRT module without TensorRT or a GPU: ONNX Runtime computes, in memory that stands for a device's
// and has its own copy of every tensor. What the runtime does not bring from one to the other is not there.
// Engines are the graphs that they are built from, behind a line that says for what. DYNDEPLOY_STAND_IN_FAILS
// names what shall fail.

#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "../../plugins/runtime/tensorrt/module.h"
#include "error.h"
#include "files.h"
#include "onnxruntime.h"

using namespace dyndeploy::runtime;

struct dyndeploy_trt {
  std::shared_ptr<Backend> backend;
};

struct dyndeploy_trt_memory {
  std::vector<char> host, device;
  bool host_newer, device_newer;
};

struct dyndeploy_trt_engine {
  dyndeploy_trt* trt;
  std::unique_ptr<Graph> graph;
  std::vector<dyndeploy_trt_tensor> tensors;
};

struct dyndeploy_trt_run {
  dyndeploy_trt_engine* engine;
  std::vector<dyndeploy_trt_memory*> memory;
  std::vector<std::unique_ptr<dyndeploy_trt_memory>> unread;
  std::unique_ptr<Binding> binding;
};

namespace {

constexpr const char* kMagic = "stand-in engine\n";

bool fails(const char* what) {
  const char* named = std::getenv("DYNDEPLOY_STAND_IN_FAILS");
  return named && std::string(named) == what;
}

std::string said(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value ? value : otherwise;
}

template <class Work>
std::int32_t guarded(dyndeploy_trt_error* error, Work work) {
  try {
    work();
    return DYNDEPLOY_OK;
  } catch (const Error& found) {
    std::strncpy(error->text, found.what(), sizeof error->text - 1);
    return found.code();
  } catch (const std::exception& found) {
    std::strncpy(error->text, found.what(), sizeof error->text - 1);
    return DYNDEPLOY_INTERNAL;
  }
}

std::int32_t open(const dyndeploy_trt_settings*, dyndeploy_trt** result, dyndeploy_trt_info* info,
                  dyndeploy_trt_error* error) {
  return guarded(error, [&] {
    std::strcpy(info->version, said("DYNDEPLOY_STAND_IN_VERSION", "8.2.1.8").c_str());
    info->interface = std::atoi(info->version);
    std::strcpy(info->library, "libnvinfer.so.8");
    if (fails("gpu")) {
      std::strcpy(info->no_gpu, "cuInit failed with CUDA error 100");
    } else {
      std::strcpy(info->gpu, "stand-in");
      std::strcpy(info->capability, "5.3");
      std::strcpy(info->cuda, "10.2.0");
      std::strcpy(info->driver, "10.2");
    }
    *result = new dyndeploy_trt{open_onnxruntime_backend(OrtSettings{})};
  });
}

void close(dyndeploy_trt* trt) { delete trt; }
std::int32_t has_plugin(dyndeploy_trt*, const char*, const char*) { return !fails("plugin"); }

std::int32_t build(dyndeploy_trt*, const void* onnx, std::size_t size, const dyndeploy_trt_plan*,
                   const void* timings, std::size_t timings_size, void (*progress)(void*, const char*),
                   void* user, dyndeploy_trt_bytes* engine, dyndeploy_trt_bytes* later,
                   dyndeploy_trt_error* error) {
  return guarded(error, [&] {
    if (fails("build"))
      fail(DYNDEPLOY_BACKEND, "TensorRT 8.2.1.8 could not build the engine: it gives no reason.");
    if (progress) progress(user, "Building: 50 %");
    const std::string content = kMagic + std::string(static_cast<const char*>(onnx), size);
    const std::string seen = std::string(static_cast<const char*>(timings), timings_size) + "t";
    for (const auto& pair : {std::make_pair(engine, &content), std::make_pair(later, &seen)}) {
      pair.first->data = std::malloc(pair.second->size());
      pair.first->size = pair.second->size();
      std::memcpy(pair.first->data, pair.second->data(), pair.second->size());
    }
  });
}

void release_bytes(dyndeploy_trt_bytes* bytes) { std::free(bytes->data); }

std::int32_t load(dyndeploy_trt* trt, const void* data, std::size_t size, dyndeploy_trt_engine** result,
                  dyndeploy_trt_error* error) {
  return guarded(error, [&] {
    const std::string content(static_cast<const char*>(data), size);
    if (content.compare(0, std::strlen(kMagic), kMagic) != 0)
      fail(DYNDEPLOY_BACKEND, "TensorRT refuses the engine.");
    const std::string folder = said("TMPDIR", "/tmp");
    const std::string path =
        folder + "/stand_in_" + std::to_string(reinterpret_cast<std::uintptr_t>(result)) + ".onnx";
    write_file(path, content.substr(std::strlen(kMagic)));
    std::unique_ptr<dyndeploy_trt_engine> loaded(new dyndeploy_trt_engine{trt, trt->backend->open(path), {}});
    std::remove(path.c_str());
    // Outputs first: the order is the engine's own affair.
    for (const auto* infos : {&loaded->graph->outputs(), &loaded->graph->inputs()})
      for (const TensorInfo& info : *infos) {
        dyndeploy_trt_tensor tensor{info.name.c_str(),
                                    infos == &loaded->graph->inputs(),
                                    info.type,
                                    static_cast<std::int32_t>(info.shape.size()),
                                    {}};
        std::copy(info.shape.begin(), info.shape.end(), tensor.shape);
        loaded->tensors.push_back(tensor);
      }
    *result = loaded.release();
  });
}

void unload(dyndeploy_trt_engine* engine) { delete engine; }
std::size_t tensor_count(const dyndeploy_trt_engine* engine) { return engine->tensors.size(); }
void tensor(const dyndeploy_trt_engine* engine, std::size_t index, dyndeploy_trt_tensor* result) {
  *result = engine->tensors[index];
}

std::int32_t allocate(dyndeploy_trt*, std::size_t bytes, dyndeploy_trt_memory** result, void** host,
                      dyndeploy_trt_error* error) {
  return guarded(error, [&] {
    // What was never brought there is a NaN.
    *result = new dyndeploy_trt_memory{std::vector<char>(bytes, '\xff'), std::vector<char>(bytes, '\xff'),
                                       false, false};
    *host = (*result)->host.data();
  });
}

void release(dyndeploy_trt_memory* memory) { delete memory; }

std::int32_t to_host(dyndeploy_trt_memory* memory, dyndeploy_trt_error*) {
  if (memory->device_newer) std::memcpy(memory->host.data(), memory->device.data(), memory->host.size());
  memory->device_newer = false;
  return DYNDEPLOY_OK;
}

void written(dyndeploy_trt_memory* memory) {
  memory->host_newer = true;
  memory->device_newer = false;
}

std::int32_t bind(dyndeploy_trt_engine* engine, dyndeploy_trt_memory* const* tensors, std::int32_t,
                  dyndeploy_trt_run** result, dyndeploy_trt_error* error) {
  return guarded(error, [&] {
    std::unique_ptr<dyndeploy_trt_run> run(new dyndeploy_trt_run{engine, {}, {}, nullptr});
    std::vector<Slot> inputs, outputs;
    for (std::size_t i = 0; i < engine->tensors.size(); ++i) {
      const dyndeploy_trt_tensor& info = engine->tensors[i];
      const Shape shape(info.shape, info.shape + info.rank);
      dyndeploy_trt_memory* memory = tensors[i];
      if (!memory) {
        const std::size_t bytes = elements(shape) * element_bytes(info.type);
        run->unread.emplace_back(new dyndeploy_trt_memory{{}, std::vector<char>(bytes), false, false});
        memory = run->unread.back().get();
      }
      run->memory.push_back(memory);
      (info.is_input ? inputs : outputs).push_back({info.name, info.type, shape, memory->device.data()});
    }
    run->binding = engine->graph->bind(inputs, outputs);
    *result = run.release();
  });
}

std::int32_t run_once(dyndeploy_trt_run* run, dyndeploy_trt_error* error) {
  return guarded(error, [&] {
    if (fails("run")) fail(DYNDEPLOY_RUN, "TensorRT could not run the engine: it gives no reason.");
    for (std::size_t i = 0; i < run->memory.size(); ++i) {
      dyndeploy_trt_memory& memory = *run->memory[i];
      // In place: the graph is bound to these bytes.
      if (run->engine->tensors[i].is_input && memory.host_newer)
        std::memcpy(memory.device.data(), memory.host.data(), memory.host.size());
      memory.host_newer = false;
    }
    run->binding->run();
    for (std::size_t i = 0; i < run->memory.size(); ++i)
      if (!run->engine->tensors[i].is_input) run->memory[i]->device_newer = true;
  });
}

void unbind(dyndeploy_trt_run* run) { delete run; }

}  // namespace

extern "C" __attribute__((visibility("default"))) const dyndeploy_trt_functions* dyndeploy_tensorrt_module(
    void) {
  static const dyndeploy_trt_functions functions{DYNDEPLOY_TENSORRT_MODULE_ABI,
                                                 "8.2.1.8",
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
