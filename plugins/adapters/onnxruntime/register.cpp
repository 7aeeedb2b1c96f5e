// The library's entry points: what ONNX Runtime calls when a session registers the library, and what the
// library can compute in.

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "bottleneck_op.h"
#include "channel_masker.h"
#include "image_convolution_op.h"
#include "regions_op.h"
#include "sampling_op.h"
#include "spatial_masker.h"
#include "token_masker_op.h"
#include "transformer_block_op.h"

#if defined(__GNUC__)
#define DYNDEPLOY_EXPORT __attribute__((visibility("default")))
#else
#define DYNDEPLOY_EXPORT
#endif

namespace dyndeploy::ort {
namespace {

constexpr const char* kDomain = "dyndeploy";
// The session's intra-op thread count, which no API tells. It only sets how finely work is cut; the session's
// pool decides how many threads run.
constexpr const char* kThreadsEntry = "dyndeploy.threads";
constexpr int kMaxThreads = 256;
// What the products of blocks of floats compute in: "fp32", the default, or "bf16". "int8" is "fp32" for what
// is left in floats beside operators in integers, which are what they are whatever stands here.
constexpr const char* kPrecisionEntry = "dyndeploy.precision";

// The kernel class of every kind in the operators' table.
using QuantizedImageConvolutionKernel = ImageConvolutionKernel;
using QuantizedSpatialMaskerKernel = SpatialMaskerKernel;
using QuantizedChannelMaskerKernel = ChannelMaskerKernel;
using QuantizedSpatialBottleneckKernel = QuantizedBottleneckKernel;
using QuantizedLayerBottleneckKernel = QuantizedBottleneckKernel;
using QuantizedChannelBottleneckKernel = QuantizedBottleneckKernel;
using QuantizedSpatialChannelBottleneckKernel = QuantizedBottleneckKernel;
using SpatialBottleneckKernel = BottleneckKernel;
using LayerBottleneckKernel = BottleneckKernel;
using ChannelBottleneckKernel = BottleneckKernel;
using SpatialChannelBottleneckKernel = BottleneckKernel;
using SpatialSeBottleneckKernel = BottleneckKernel;
using LayerSeBottleneckKernel = BottleneckKernel;
using ChannelSeBottleneckKernel = BottleneckKernel;
using SpatialChannelSeBottleneckKernel = BottleneckKernel;

// Sessions keep bare pointers to the operators, so a domain is never freed. There is one per runtime,
// thread count and pair of instruction sets.
class Domain {
 public:
  Domain(const Api& api, const cpu::Isa& isa, const cpu::QuantizedIsa& quantized_isa, int threads)
      : api_(api), registration_(isa, quantized_isa, threads) {
    check(api_, api_.CreateCustomOpDomain(kDomain, &domain_));
#define DYNDEPLOY_ADD(NAME, KIND) add<KIND##Kernel>(tables::k##NAME);
    DYNDEPLOY_CPU_OPERATORS(DYNDEPLOY_ADD)
#undef DYNDEPLOY_ADD
  }
  OrtCustomOpDomain* get() const { return domain_; }

 private:
  template <class Kernel>
  void add(const tables::Operator& op) {
    const auto custom = std::make_shared<CustomOp<Kernel>>(op, api_, registration_);
    ops_.push_back(custom);
    check(api_, api_.CustomOpDomain_Add(domain_, custom.get()));
  }

  const Api api_;
  Registration registration_;
  std::vector<std::shared_ptr<const abi::CustomOp>> ops_;
  OrtCustomOpDomain* domain_ = nullptr;
};

std::optional<std::string> config_entry(const Api& api, const OrtSessionOptions* options, const char* key) {
  int has_entry = 0;
  check(api, api.HasSessionConfigEntry(options, key, &has_entry));
  if (!has_entry) return std::nullopt;
  std::size_t size = 0;
  check(api, api.GetSessionConfigEntry(options, key, nullptr, &size));
  std::string text(size, '\0');
  check(api, api.GetSessionConfigEntry(options, key, text.data(), &size));
  text.resize(size ? size - 1 : 0);
  return text;
}

int session_threads(const Api& api, const OrtSessionOptions* options) {
  const std::optional<std::string> entry = config_entry(api, options, kThreadsEntry);
  // Work cut for more threads than there are processors would wait for those that do not run.
  const int processors = std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMaxThreads);
  if (!entry) return processors;
  const std::string& text = *entry;
  int threads = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), threads);
  if (error != std::errc() || end != text.data() + text.size() || threads < 1) {
    throw InvalidArgument(std::string("dyndeploy: session config entry ") + kThreadsEntry + " is '" + text +
                          "', expected a positive integer");
  }
  return std::min(threads, processors);
}

cpu::Precision session_precision(const Api& api, const OrtSessionOptions* options) {
  const std::string text = config_entry(api, options, kPrecisionEntry).value_or("fp32");
  if (text == "bf16") return cpu::Precision::kBfloat16;
  if (text == "fp32" || text == "int8") return cpu::Precision::kFloat32;
  throw InvalidArgument(std::string("dyndeploy: session config entry ") + kPrecisionEntry + " is '" + text +
                        "', expected fp32, bf16 or int8");
}

template <class Isa>
std::string names_of(int (*available)(const Isa** out, int capacity), const char* separator) {
  const Isa* isas[16];
  const int count = available(isas, 16);
  std::string names;
  for (int i = 0; i < count; ++i) names += (i ? separator : "") + std::string(isas[i]->name);
  return names;
}

// The instruction sets for floats that run here, best first.
std::string instruction_sets(const char* separator) {
  return names_of<cpu::Isa>(&cpu::available_isas, separator);
}

// `runtime` tells one loaded runtime from another.
void register_ops(const Api& api, const void* runtime, OrtSessionOptions* options) {
  const cpu::Precision precision = session_precision(api, options);
  const cpu::Isa* isa = cpu::select_isa(precision);
  if (!isa && precision == cpu::Precision::kBfloat16)
    throw InvalidArgument(
        "dyndeploy: bf16 needs a CPU with AVX-512 BF16, and a library whose compiler knew that instruction "
        "set; if DYNDEPLOY_CPU_ISA is set, it must name avx512");
  const cpu::QuantizedIsa* quantized_isa = cpu::select_quantized_isa();
  if (!isa || !quantized_isa) {
    const char* named = std::getenv("DYNDEPLOY_CPU_ISA");
    throw InvalidArgument(
        "dyndeploy: this machine cannot run the instruction set '" + std::string(named ? named : "") +
        "' that DYNDEPLOY_CPU_ISA names; with this library it runs " + instruction_sets(", "));
  }
  const int threads = session_threads(api, options);
  static std::mutex mutex;
  using Key = std::tuple<const void*, const cpu::Isa*, const cpu::QuantizedIsa*, int>;
  static std::map<Key, std::unique_ptr<Domain>>& domains = *new std::map<Key, std::unique_ptr<Domain>>;
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<Domain>& domain = domains[{runtime, isa, quantized_isa, threads}];
  if (!domain) domain = std::make_unique<Domain>(api, *isa, *quantized_isa, threads);
  check(api, api.AddCustomOpDomain(options, domain->get()));
}

}  // namespace
}  // namespace dyndeploy::ort

extern "C" {

// What kPrecisionEntry may be, separated by spaces. A library without this function is older than the entry,
// which it would ignore: whoever asks for BF16 has to look here first. One that names int8 has the operators
// in integers; where another is loaded, their function bodies run.
DYNDEPLOY_EXPORT const char* DyndeployPrecisions() { return "fp32 bf16 int8"; }

// The instruction sets that DYNDEPLOY_CPU_ISA may name on this machine, best first, separated by spaces.
DYNDEPLOY_EXPORT const char* DyndeployInstructionSets() {
  static const std::string& names = *new std::string(dyndeploy::ort::instruction_sets(" "));
  return names.c_str();
}

// Those for integers, which it may name as well. The name of one for floats stands for the best one that
// needs nothing beyond it.
DYNDEPLOY_EXPORT const char* DyndeployIntegerInstructionSets() {
  namespace cpu = dyndeploy::cpu;
  static const std::string& names =
      *new std::string(dyndeploy::ort::names_of<cpu::QuantizedIsa>(&cpu::available_quantized_isas, " "));
  return names.c_str();
}

// The one that a session of this precision would get if it registered the library now; empty when it would be
// refused.
DYNDEPLOY_EXPORT const char* DyndeployInstructionSet(const char* precision) {
  namespace cpu = dyndeploy::cpu;
  const std::string asked = precision;
  if (asked == "int8") {
    const cpu::QuantizedIsa* isa = cpu::select_quantized_isa();
    return isa ? isa->name : "";
  }
  const bool bf16 = asked == "bf16";
  const cpu::Isa* isa = cpu::select_isa(bf16 ? cpu::Precision::kBfloat16 : cpu::Precision::kFloat32);
  return isa ? isa->name : "";
}

DYNDEPLOY_EXPORT OrtStatus* DYNDEPLOY_ORT_CALL RegisterCustomOps(OrtSessionOptions* options,
                                                                 const dyndeploy::ort::abi::Base* base) {
  const dyndeploy::ort::abi::Table* table = base->GetApi(dyndeploy::ort::abi::kVersion);
  // Nothing can be reported to a runtime that is too old for this API; the runtime says so itself on stderr.
  if (!table) return nullptr;
  const dyndeploy::ort::Api api(*table);
  return dyndeploy::ort::guarded(api, [&] { dyndeploy::ort::register_ops(api, base, options); });
}
}
