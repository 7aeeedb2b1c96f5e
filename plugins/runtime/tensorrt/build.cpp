// Building as dyndeploy/runtimes/tensorrt_device.py does, call by call.

#include <algorithm>
#include <string>
#include <vector>

#include "device.h"

#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

namespace dyndeploy {
namespace runtime {
namespace {

using nvinfer1::BuilderFlag;
using nvinfer1::DataType;

#if DYNDEPLOY_TRT_HAS_MONITOR
// Steps of the outermost phases; those within them come by the thousand.
class Monitor : public nvinfer1::IProgressMonitor {
 public:
  Monitor(void (*progress)(void*, const char*), void* user) : progress_(progress), user_(user) {}

  void phaseStart(const char* phase, const char* parent, std::int32_t steps) noexcept override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (parent) return;
    phase_ = phase ? phase : "";
    steps_ = steps;
  }
  bool stepComplete(const char* phase, std::int32_t step) noexcept override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!progress_ || !phase || phase_ != phase || steps_ <= 0) return true;
    const int percent = static_cast<int>(100LL * std::min(step + 1, steps_) / steps_);
    if (percent / 10 == told_) return true;
    told_ = percent / 10;
    progress_(user_, (phase_ + ": " + std::to_string(percent) + " %").c_str());
    return true;
  }
  void phaseFinish(const char*) noexcept override {}

 private:
  std::mutex mutex_;
  void (*progress_)(void*, const char*);
  void* user_;
  std::string phase_;
  std::int32_t steps_ = 0;
  int told_ = -1;
};
#endif

#if DYNDEPLOY_TRT_HAS_PRECISION
bool pinned(const dyndeploy_trt_plan& plan, const char* name) {
  return std::any_of(plan.float_layers, plan.float_layers + plan.float_layer_count,
                     [&](const char* layer) { return std::string(layer) == name; });
}

void keep_float(nvinfer1::INetworkDefinition& network, nvinfer1::IBuilderConfig& config,
                const dyndeploy_trt_plan& plan) {
  bool kept = false;
  for (std::int32_t i = 0; i < network.getNbLayers(); ++i) {
    nvinfer1::ILayer& layer = *network.getLayer(i);
    if (!pinned(plan, layer.getName())) continue;
    bool numbers = true;  // arithmetic on shapes stays as it is
    for (std::int32_t k = 0; k < layer.getNbOutputs(); ++k)
      numbers = numbers && layer.getOutput(k)->getType() == DataType::kFLOAT;
    if (!numbers) continue;
    kept = true;
    layer.setPrecision(DataType::kFLOAT);
    for (std::int32_t k = 0; k < layer.getNbOutputs(); ++k) layer.setOutputType(k, DataType::kFLOAT);
  }
  if (kept) config.setFlag(BuilderFlag::kOBEY_PRECISION_CONSTRAINTS);
}
#endif

void set_capabilities(nvinfer1::IBuilderConfig& config, const dyndeploy_trt_plan& plan) {
#ifdef TRT_MAJOR_RTX
  using nvinfer1::ComputeCapability;
  const struct {
    const char* text;
    ComputeCapability value;
  } known[] = {{"7.5", ComputeCapability::kSM75},
               {"8.6", ComputeCapability::kSM86},
               {"8.9", ComputeCapability::kSM89},
               {"12.0", ComputeCapability::kSM120}};
  if (plan.capability_count)
    config.setNbComputeCapabilities(static_cast<std::int32_t>(plan.capability_count));
  for (std::size_t i = 0; i < plan.capability_count; ++i) {
    const auto* found = std::find_if(std::begin(known), std::end(known), [&](const auto& entry) {
      return std::string(entry.text) == plan.capabilities[i];
    });
    if (found == std::end(known) || !config.setComputeCapability(found->value, static_cast<std::int32_t>(i)))
      fail(DYNDEPLOY_BACKEND,
           std::string("TensorRT-RTX cannot build for compute capability ") + plan.capabilities[i] + ".");
  }
#else
  (void)config;
  if (plan.capability_count)
    fail(DYNDEPLOY_INTERNAL, "These headers of TensorRT cannot name compute capabilities.");
#endif
}

template <class T>
std::unique_ptr<T> owned(T* object, const dyndeploy_trt& trt, const char* what) {
  if (!object)
    fail(DYNDEPLOY_BACKEND,
         std::string("TensorRT ") + trt.info.version + " cannot " + what + ": " + trt.logger.errors() + ".");
  return std::unique_ptr<T>(object);
}

std::string parser_errors(nvonnxparser::IParser& parser) {
  std::string text;
  for (int i = 0; i < parser.getNbErrors(); ++i)
    text += (text.empty() ? "" : "; ") + one_line(parser.getError(i)->desc());
  return text.substr(0, 1200);
}

std::string content(const nvinfer1::IHostMemory& memory) {
  return std::string(static_cast<const char*>(memory.data()), memory.size());
}

}  // namespace

Built build_engine(dyndeploy_trt& trt, const void* onnx, std::size_t size, const dyndeploy_trt_plan& plan,
                   const void* timings, std::size_t timings_size, void (*progress)(void*, const char*),
                   void* user) {
  if (!trt.entries.parser) fail(DYNDEPLOY_BACKEND, trt.parser_missing);
  if (trt.context) trt.use();
  trt.logger.forget();
#if DYNDEPLOY_TRT_HAS_MONITOR
  Monitor monitor(progress, user);  // outlives the configuration
#else
  (void)progress, (void)user;
#endif
  const auto builder =
      owned(static_cast<nvinfer1::IBuilder*>(trt.entries.builder(&trt.logger, trt.entries.version)), trt,
            "use the GPU");
  std::uint32_t flags = 0;
#if DYNDEPLOY_TRT_IMPLICIT_BATCH
  flags |= 1u << static_cast<std::uint32_t>(nvinfer1::NetworkDefinitionCreationFlag::kEXPLICIT_BATCH);
#endif
#if DYNDEPLOY_TRT_HAS_TYPED
  if (plan.typed)
    flags |= 1u << static_cast<std::uint32_t>(nvinfer1::NetworkDefinitionCreationFlag::kSTRONGLY_TYPED);
#endif
  const auto network = owned(builder->createNetworkV2(flags), trt, "make a network");
  const auto parser = owned(static_cast<nvonnxparser::IParser*>(
                                trt.entries.parser(network.get(), &trt.logger, NV_ONNX_PARSER_VERSION)),
                            trt, "make a parser");
  if (!parser->parse(onnx, size, nullptr)) {
    const std::string said = parser_errors(*parser);
    fail(DYNDEPLOY_BACKEND, std::string("TensorRT ") + trt.info.version + " cannot read the graph: " +
                                (said.empty() ? trt.logger.errors() : said) + ".");
  }
  const auto config = owned(builder->createBuilderConfig(), trt, "make a configuration");
  const std::size_t workspace = static_cast<std::size_t>(plan.workspace_mib) << 20;
#if DYNDEPLOY_TRT_HAS_POOLS
  config->setMemoryPoolLimit(nvinfer1::MemoryPoolType::kWORKSPACE, workspace);
#else
  config->setMaxWorkspaceSize(workspace);
#endif
  config->setProfilingVerbosity(nvinfer1::ProfilingVerbosity::kDETAILED);
  if (plan.tf32) {
    config->setFlag(BuilderFlag::kTF32);
  } else {
    config->clearFlag(BuilderFlag::kTF32);
  }
  set_capabilities(*config, plan);
#if DYNDEPLOY_TRT_HAS_PRECISION
  if (plan.half && !plan.typed) {
    config->setFlag(BuilderFlag::kFP16);
    keep_float(*network, *config, plan);
  }
  if (plan.integers && !plan.typed) config->setFlag(BuilderFlag::kINT8);
#endif
#if DYNDEPLOY_TRT_HAS_MONITOR
  config->setProgressMonitor(&monitor);
#endif
  const auto cache = owned(config->createTimingCache(timings, timings_size), trt, "make a timing cache");
  config->setTimingCache(*cache, false);
  const auto engine =
      std::unique_ptr<nvinfer1::IHostMemory>(builder->buildSerializedNetwork(*network, *config));
  if (!engine)
    fail(DYNDEPLOY_BACKEND, std::string("TensorRT ") + trt.info.version +
                                " could not build the engine (if memory ran out, close other programs): " +
                                trt.logger.errors() + ".");
  Built built{content(*engine), ""};
  if (const nvinfer1::ITimingCache* used = config->getTimingCache()) {
    const auto later = std::unique_ptr<nvinfer1::IHostMemory>(used->serialize());
    if (later) built.timings = content(*later);
  }
  return built;
}

}  // namespace runtime
}  // namespace dyndeploy
