// An operator's attributes as TensorRT hands them over: fields of a node, bytes of an engine.
#pragma once

#include <cstddef>
#include <string>

#include "api.h"
#include "operators.h"

namespace dyndeploy {
namespace tensorrt {

// Serialised: the words magic, version, operator (a hash of its name), number of values, whether half only,
// the largest batch, the tactic, then the values. Engines are never moved between machines, so the words have
// the machine's byte order; a foreign order shows as a foreign magic.
constexpr std::uint32_t kMagic = 0x444c5944;
constexpr std::int32_t kVersion = 3;

std::size_t serialized_size(const Operator& op);
void serialize(const Operator& op, const Attributes& attributes, void* buffer);
std::string deserialize(const Operator& op, const void* data, std::size_t size, Attributes* attributes);

// What plugin_version and plugin_namespace say is the business of TensorRT's parser, the fields may hold
// them. With `stored` the fields come from an engine and must name the version of the format.
constexpr const char* kVersionField = "dyndeploy_format";
constexpr const char* kHalfField = "plugin_half_only";       // 0 where a node does not have it
constexpr const char* kBatchField = "plugin_largest_batch";  // likewise
constexpr const char* kTimingField = "plugin_timing_rates";  // likewise; never stored
constexpr const char* kTuningField = "plugin_tuning";        // 1 where a node does not have it; never stored
constexpr const char* kTacticField = "dyndeploy_tactic";     // stored, and no attribute of a node
std::string read_fields(const Operator& op, const nvinfer1::PluginFieldCollection* fields, bool stored,
                        Attributes* attributes);

// The fields of an operator, pointing at `attributes` when there are values to tell.
class Fields {
 public:
  // Names, types and lengths, without data.
  explicit Fields(const Operator& op);
  Fields(const Operator& op, const Attributes& attributes);
  Fields(const Fields&) = delete;
  Fields& operator=(const Fields&) = delete;
  const nvinfer1::PluginFieldCollection* get() const { return &collection_; }

 private:
  static constexpr int kMaxFields = tables::kMaxAttributes + 4;  // of a node, and as many of an engine
  nvinfer1::PluginField fields_[kMaxFields];
  nvinfer1::PluginFieldCollection collection_;
};

}  // namespace tensorrt
}  // namespace dyndeploy
