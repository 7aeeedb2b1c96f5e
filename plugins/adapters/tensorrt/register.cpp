// The library's entry points. Creators are registered when the library is loaded (dlopen, ctypes, trtexec
// --plugins and --staticPlugins), and offered to IPluginRegistry::loadLibrary (trtexec --dynamicPlugins),
// which asks for getPluginCreators in 8.6 and for getCreators since.
//
// The registry knows a plugin by name, version and namespace, so only one interface can be registered. From
// 10 on it is IPluginV3: its creators are not deprecated, it can refuse shapes while an engine is built, and
// its stored fields survive better than opaque bytes. DYNDEPLOY_TENSORRT_USE_V2 takes IPluginV2DynamicExt,
// for users of the registry that look for the old creators only (ONNX Runtime's TensorRT provider did, up
// to 1.21).

#include <cstring>

#include "log.h"
#include "plugin_v2.h"
#include "plugin_v3.h"
#include "tuning.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

namespace dyndeploy {
namespace tensorrt {
namespace {

#if DYNDEPLOY_TENSORRT_HAS_V3 && !defined(DYNDEPLOY_TENSORRT_USE_V2)
constexpr bool kHasTactics = true;
template <const Operator& op>
using Creator = CreatorV3<op>;
#else
constexpr bool kHasTactics = false;
template <const Operator& op>
using Creator = CreatorV2<op>;
#endif

#if DYNDEPLOY_TENSORRT_HAS_V3
using AnyCreator = nvinfer1::IPluginCreatorInterface;
#else
using AnyCreator = nvinfer1::IPluginCreator;
#endif

#define DYNDEPLOY_REGISTER(NAME, KIND)    \
  using NAME##Creator = Creator<k##NAME>; \
  REGISTER_TENSORRT_PLUGIN(NAME##Creator);
DYNDEPLOY_TENSORRT_OPERATORS(DYNDEPLOY_REGISTER)
#undef DYNDEPLOY_REGISTER

template <class Interface>
Interface* const* all_creators(int32_t& count) {
#define DYNDEPLOY_INSTANCE(NAME, KIND) static NAME##Creator NAME##_instance;
#define DYNDEPLOY_ADDRESS(NAME, KIND) &NAME##_instance,
  DYNDEPLOY_TENSORRT_OPERATORS(DYNDEPLOY_INSTANCE)
  static Interface* const creators[] = {DYNDEPLOY_TENSORRT_OPERATORS(DYNDEPLOY_ADDRESS)};
#undef DYNDEPLOY_INSTANCE
#undef DYNDEPLOY_ADDRESS
  count = static_cast<int32_t>(sizeof(creators) / sizeof(creators[0]));
  return creators;
}

int32_t write_words(const std::string& words, char* text, int32_t size) {
  const int32_t length = static_cast<int32_t>(words.size());
  if (text && size > 0) {
    const int32_t written = length < size ? length : size - 1;
    std::memcpy(text, words.data(), static_cast<std::size_t>(written));
    text[written] = 0;
  }
  return length;
}

}  // namespace
}  // namespace tensorrt
}  // namespace dyndeploy

#define DYNDEPLOY_EXPORT extern "C" __attribute__((visibility("default")))

DYNDEPLOY_EXPORT dyndeploy::tensorrt::AnyCreator* const* getCreators(int32_t& count) {
  return dyndeploy::tensorrt::all_creators<dyndeploy::tensorrt::AnyCreator>(count);
}

#if !DYNDEPLOY_TENSORRT_HAS_V3 || defined(DYNDEPLOY_TENSORRT_USE_V2)
DYNDEPLOY_EXPORT nvinfer1::IPluginCreator* const* getPluginCreators(int32_t& count) {
  return dyndeploy::tensorrt::all_creators<nvinfer1::IPluginCreator>(count);
}
#endif

// Which kernels an operator would run, in words. `attributes` are the values of all its attributes (those of
// real ones as the bits of a float), `shapes`
// the rank and the sizes of every input, x first; capability 0 asks the current device; `tactic` is the
// builder's, 0 takes the one that this process has timed, else the formula's. Returns the length of the
// words, of which as many are written as fit, or -1 where there is no such operator or node.
DYNDEPLOY_EXPORT int32_t DyndeployKernels(const char* name, const int32_t* attributes,
                                          int32_t attribute_count, const int64_t* shapes, int32_t shape_count,
                                          int32_t half, int32_t capability, int32_t processors, char* text,
                                          int32_t size, int32_t tactic) {
  using namespace dyndeploy::tensorrt;
  const std::string words = name ? describe_kernels(name, attributes, attribute_count, shapes, shape_count,
                                                    half != 0, capability, processors, tactic, kHasTactics)
                                 : std::string();
  return words.empty() ? -1 : write_words(words, text, size);
}

// Tactics that plugins have timed themselves (where TensorRT has none, before 10), a line each, to be kept
// and read again by a later process with this library on this device. Returns the length, 0 for none; as many
// are written as fit.
DYNDEPLOY_EXPORT int32_t DyndeployTimedTactics(char* text, int32_t size) {
  return dyndeploy::tensorrt::write_words(dyndeploy::tensorrt::timed_tactics(), text, size);
}

// Reads them; returns how many, or -1 where the text is of another format, and nothing is taken.
DYNDEPLOY_EXPORT int32_t DyndeployReadTimedTactics(const char* text) {
  return text ? dyndeploy::tensorrt::read_timed_tactics(text) : -1;
}

DYNDEPLOY_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  dyndeploy::tensorrt::set_logger_finder(finder);
}

#pragma GCC diagnostic pop
