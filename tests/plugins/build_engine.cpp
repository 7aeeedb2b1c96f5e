// Builds the engine of a bundle's graph with a TensorRT module, on a machine that may have no GPU:
//   build_engine key BUNDLE GRAPH TENSORRT GPU CAPABILITY CUDA DRIVER PLUGINS_SHA256      where the engine is
//   kept build_engine ahead BUNDLE GRAPH TENSORRT PLUGINS_SHA256                               where
//   `dyndeploy engine` keeps it build_engine build MODULE LIBRARY BUNDLE GRAPH PLUGINS OUTPUT writes OUTPUT

#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "../../plugins/runtime/tensorrt/module.h"
#include "bundle.h"
#include "engine_files.h"
#include "error.h"
#include "files.h"
#include "json.h"

using namespace dyndeploy::runtime;

namespace {

void show(const EnginePlace& place) {
  std::printf("%s\n%s\n%s\n", place.engine.c_str(), place.beside.c_str(),
              spaced_json(place.built_from).c_str());
}

void require(std::int32_t code, const dyndeploy_trt_error& error) {
  if (code) fail(code, error.text);
}

void build(char** values) {
  void* library = dlopen(values[0], RTLD_NOW);
  if (!library) fail(DYNDEPLOY_BACKEND, dlerror());
  using Entry = const dyndeploy_trt_functions* (*)();
  const dyndeploy_trt_functions& module =
      *reinterpret_cast<Entry>(dlsym(library, DYNDEPLOY_TENSORRT_MODULE_ENTRY))();
  const Bundle bundle = Bundle::open(values[2]);
  const EnginePlan plan = read_engine_plans(bundle).graphs.at(values[3]);
  const auto say = [](void*, const char* text) { std::fprintf(stderr, "%s\n", text); };
  const dyndeploy_trt_settings settings{values[1], "", values[4], 0, say, nullptr};
  dyndeploy_trt* trt = nullptr;
  dyndeploy_trt_info info{};
  dyndeploy_trt_error error{};
  require(module.open(&settings, &trt, &info, &error), error);
  std::printf("%s\n%s\n%s\n", info.version, info.gpu, info.no_gpu);
  std::vector<const char*> layers;
  for (const std::string& layer : plan.float_layers) layers.push_back(layer.c_str());
  const dyndeploy_trt_plan given{plan.half,     plan.typed, plan.tf32, plan.workspace_mib, layers.data(),
                                 layers.size(), nullptr,    0,         plan.integers};
  const std::string copy = read_file(bundle.path(plan.copy), 1u << 30);
  dyndeploy_trt_bytes engine{}, timings{};
  require(module.build(trt, copy.data(), copy.size(), &given, "", 0, say, nullptr, &engine, &timings, &error),
          error);
  write_file(values[5], std::string(static_cast<const char*>(engine.data), engine.size));
  // Loading needs the GPU: without one it must say so.
  dyndeploy_trt_engine* loaded = nullptr;
  const std::int32_t code = module.load(trt, engine.data, engine.size, &loaded, &error);
  std::printf("%d %s\n", code, code ? error.text : "loaded");
  module.unload(loaded);
  module.release_bytes(&engine);
  module.release_bytes(&timings);
  module.close(trt);
}

}  // namespace

int main(int count, char** values) {
  try {
    const std::string what = count > 1 ? values[1] : "";
    if (what == "key" && count == 10) {
      const Bundle bundle = Bundle::open(values[2]);
      const EnginePlans plans = read_engine_plans(bundle);
      const EngineDevice device{values[4], values[5], values[6], values[7], values[8]};
      show(engine_place(engine_folder(), bundle, plans, plans.graphs.at(values[3]), device, values[9]));
    } else if (what == "ahead" && count == 6) {
      const Bundle bundle = Bundle::open(values[2]);
      const EnginePlans plans = read_engine_plans(bundle);
      show(ahead_place(bundle, plans, plans.graphs.at(values[3]), values[4], values[5]));
    } else if (what == "build" && count == 8) {
      build(values + 2);
    } else {
      return 2;
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
