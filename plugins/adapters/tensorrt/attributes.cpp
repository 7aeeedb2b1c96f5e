#include "attributes.h"

#include <cstring>

namespace dyndeploy {
namespace tensorrt {
namespace {

constexpr int kHeaderWords = 4;

// FNV-1a.
std::uint32_t name_hash(const char* name) {
  std::uint32_t hash = 2166136261u;
  for (; *name; ++name) hash = (hash ^ static_cast<unsigned char>(*name)) * 16777619u;
  return hash;
}

void write_header(const Operator& op, std::uint32_t* words) {
  words[0] = kMagic;
  words[1] = static_cast<std::uint32_t>(kVersion);
  words[2] = name_hash(op.name);
  words[3] = static_cast<std::uint32_t>(op.value_count());
}

std::string known_names(const Operator& op) {
  std::string text;
  for (int i = 0; i < op.attribute_count; ++i) text += (i ? ", " : "") + std::string(op.attributes[i].name);
  return text.empty() ? "none" : text;
}

// Integers of a field, empty text when they fit 32 bits.
std::string read_integers(const nvinfer1::PluginField& field, int length, std::int32_t* values) {
  const std::string name = field.name;
  if (field.length != length || !field.data) {
    return "attribute " + name + " has " + std::to_string(field.data ? field.length : 0) +
           " values, expected " + std::to_string(length);
  }
  if (field.type == nvinfer1::PluginFieldType::kINT32) {
    std::memcpy(values, field.data, static_cast<std::size_t>(length) * sizeof(std::int32_t));
    return std::string();
  }
#if NV_TENSORRT_MAJOR >= 10
  if (field.type == nvinfer1::PluginFieldType::kINT64) {
    for (int i = 0; i < length; ++i) {
      std::int64_t value = 0;
      std::memcpy(&value, static_cast<const char*>(field.data) + static_cast<std::size_t>(i) * sizeof(value),
                  sizeof(value));
      if (value < INT32_MIN || value > INT32_MAX) {
        return "attribute " + name + " holds " + std::to_string(value) + ", too large";
      }
      values[i] = static_cast<std::int32_t>(value);
    }
    return std::string();
  }
#endif
  return "attribute " + name + " must hold integers, its field type is " +
         std::to_string(static_cast<int>(field.type));
}

// Numbers of a field, kept as bits.
std::string read_reals(const nvinfer1::PluginField& field, int length, std::int32_t* values) {
  const std::string name = field.name;
  if (field.length != length || !field.data) {
    return "attribute " + name + " has " + std::to_string(field.data ? field.length : 0) +
           " values, expected " + std::to_string(length);
  }
  if (field.type == nvinfer1::PluginFieldType::kFLOAT32) {
    std::memcpy(values, field.data, static_cast<std::size_t>(length) * sizeof(float));
    return std::string();
  }
  return "attribute " + name + " must hold 32-bit floats, its field type is " +
         std::to_string(static_cast<int>(field.type));
}

nvinfer1::PluginFieldType type_of(const tables::Attribute& attribute) {
  return attribute.real ? nvinfer1::PluginFieldType::kFLOAT32 : nvinfer1::PluginFieldType::kINT32;
}

std::string check_half(const Attributes& attributes) {
  if (attributes.half_only == 0 || attributes.half_only == 1) return std::string();
  return std::string("attribute ") + kHalfField + " is " + std::to_string(attributes.half_only) +
         ", expected 0 or 1";
}

std::string check_batch(const Attributes& attributes) {
  if (attributes.largest_batch >= 0) return std::string();
  return std::string("attribute ") + kBatchField + " is " + std::to_string(attributes.largest_batch) +
         ", expected 0 or more";
}

std::string check_tuning(const Attributes& attributes) {
  if (attributes.tuning == 0 || attributes.tuning == 1) return std::string();
  return std::string("attribute ") + kTuningField + " is " + std::to_string(attributes.tuning) +
         ", expected 0 or 1";
}

std::string check_tactic(const Attributes& attributes) {
  cuda::Tiles tiles;
  if (tiles_of(attributes.tactic, &tiles)) return std::string();
  return "the engine holds tactic " + std::to_string(attributes.tactic) +
         ", which this library does not know";
}

std::string check_timing(const Attributes& attributes) {
  for (const std::int32_t rate : attributes.timing_rates) {
    if (rate < 0 || rate > 1000) {
      return std::string("attribute ") + kTimingField + " holds " + std::to_string(rate) +
             ", expected 0 to 1000";
    }
  }
  return std::string();
}

}  // namespace

std::size_t serialized_size(const Operator& op) {
  return (kHeaderWords + 3 + static_cast<std::size_t>(op.value_count())) * sizeof(std::uint32_t);
}

void serialize(const Operator& op, const Attributes& attributes, void* buffer) {
  std::uint32_t header[kHeaderWords];
  write_header(op, header);
  const std::int32_t further[] = {attributes.half_only, attributes.largest_batch, attributes.tactic};
  char* at = static_cast<char*>(buffer);
  const auto put = [&](const void* from, std::size_t bytes) {
    std::memcpy(at, from, bytes);
    at += bytes;
  };
  put(header, sizeof(header));
  put(further, sizeof(further));
  put(attributes.values, static_cast<std::size_t>(op.value_count()) * sizeof(std::int32_t));
}

std::string deserialize(const Operator& op, const void* data, std::size_t size, Attributes* attributes) {
  std::uint32_t expected[kHeaderWords], found[kHeaderWords];
  write_header(op, expected);
  if (!data || size < sizeof(found)) {
    return "the engine holds " + std::to_string(data ? size : 0) +
           " bytes for this plugin, fewer than a header";
  }
  std::memcpy(found, data, sizeof(found));
  if (found[0] != expected[0]) return "the engine holds data that dyndeploy has not written";
  if (found[1] != expected[1]) {
    return "the engine was built with format version " + std::to_string(found[1]) +
           " of this plugin, this library has " + std::to_string(expected[1]) + "; build the engine again";
  }
  if (found[2] != expected[2]) return "the engine holds the data of another operator";
  if (found[3] != expected[3] || size != serialized_size(op)) {
    return "the engine's data for this plugin are damaged: " + std::to_string(size) + " bytes with " +
           std::to_string(found[3]) + " values, expected " + std::to_string(serialized_size(op)) + " with " +
           std::to_string(expected[3]);
  }
  *attributes = Attributes();
  std::int32_t further[3];
  const char* at = static_cast<const char*>(data) + sizeof(found);
  const auto take = [&](void* to, std::size_t bytes) {
    std::memcpy(to, at, bytes);
    at += bytes;
  };
  take(further, sizeof(further));
  attributes->half_only = further[0];
  attributes->largest_batch = further[1];
  attributes->tactic = further[2];
  take(attributes->values, static_cast<std::size_t>(op.value_count()) * sizeof(std::int32_t));
  std::string problem = check_half(*attributes);
  if (problem.empty()) problem = check_batch(*attributes);
  if (problem.empty()) problem = check_tactic(*attributes);
  if (!problem.empty()) return problem;
  return op.rules->check_attributes(op, *attributes);
}

std::string read_fields(const Operator& op, const nvinfer1::PluginFieldCollection* fields, bool stored,
                        Attributes* attributes) {
  *attributes = Attributes();
  attributes->tuning = stored ? 0 : 1;
  bool seen[kMaxValues] = {};
  bool versioned = false, stated = false, planned = false, chosen = false;
  const int count = fields ? fields->nbFields : 0;
  for (int i = 0; i < count; ++i) {
    const nvinfer1::PluginField& field = fields->fields[i];
    if (!field.name) return "a field has no name";
    if (std::strcmp(field.name, "plugin_version") == 0 || std::strcmp(field.name, "plugin_namespace") == 0) {
      continue;
    }
    if (stored && std::strcmp(field.name, kVersionField) == 0) {
      std::int32_t version = 0;
      const std::string problem = read_integers(field, 1, &version);
      if (!problem.empty()) return problem;
      if (version != kVersion) {
        return "the engine was built with format version " + std::to_string(version) +
               " of this plugin, this library has " + std::to_string(kVersion) + "; build the engine again";
      }
      versioned = true;
      continue;
    }
    if (std::strcmp(field.name, kHalfField) == 0) {
      std::string problem = read_integers(field, 1, &attributes->half_only);
      if (problem.empty()) problem = check_half(*attributes);
      if (!problem.empty()) return problem;
      stated = true;
      continue;
    }
    if (std::strcmp(field.name, kBatchField) == 0) {
      std::string problem = read_integers(field, 1, &attributes->largest_batch);
      if (problem.empty()) problem = check_batch(*attributes);
      if (!problem.empty()) return problem;
      planned = true;
      continue;
    }
    if (stored && std::strcmp(field.name, kTacticField) == 0) {
      std::string problem = read_integers(field, 1, &attributes->tactic);
      if (problem.empty()) problem = check_tactic(*attributes);
      if (!problem.empty()) return problem;
      chosen = true;
      continue;
    }
    if (!stored && std::strcmp(field.name, kTuningField) == 0) {
      std::string problem = read_integers(field, 1, &attributes->tuning);
      if (problem.empty()) problem = check_tuning(*attributes);
      if (!problem.empty()) return problem;
      continue;
    }
    if (!stored && std::strcmp(field.name, kTimingField) == 0) {
      std::string problem = read_integers(field, kTimedMasks, attributes->timing_rates);
      if (problem.empty()) problem = check_timing(*attributes);
      if (!problem.empty()) return problem;
      continue;
    }
    int offset = 0, index = 0;
    while (index < op.attribute_count && std::strcmp(op.attributes[index].name, field.name) != 0) {
      offset += op.attributes[index++].length;
    }
    if (index == op.attribute_count) {
      return std::string("unknown attribute ") + field.name + "; this operator has " + known_names(op);
    }
    if (seen[index]) return std::string("attribute ") + field.name + " is given twice";
    seen[index] = true;
    const tables::Attribute& attribute = op.attributes[index];
    const std::string problem = attribute.real
                                    ? read_reals(field, attribute.length, attributes->values + offset)
                                    : read_integers(field, attribute.length, attributes->values + offset);
    if (!problem.empty()) return problem;
  }
  for (int i = 0; i < op.attribute_count; ++i) {
    if (!seen[i]) return std::string("attribute ") + op.attributes[i].name + " is missing";
  }
  if (stored && !stated) return std::string("attribute ") + kHalfField + " is missing";
  if (stored && !planned) return std::string("attribute ") + kBatchField + " is missing";
  if (stored && !versioned) return "the engine holds data that dyndeploy has not written";
  if (stored && !chosen) return std::string("attribute ") + kTacticField + " is missing";
  return op.rules->check_attributes(op, *attributes);
}

Fields::Fields(const Operator& op) {
  for (int i = 0; i < op.attribute_count; ++i) {
    fields_[i] = nvinfer1::PluginField(op.attributes[i].name, nullptr, type_of(op.attributes[i]),
                                       op.attributes[i].length);
  }
  fields_[op.attribute_count] =
      nvinfer1::PluginField(kHalfField, nullptr, nvinfer1::PluginFieldType::kINT32, 1);
  fields_[op.attribute_count + 1] =
      nvinfer1::PluginField(kBatchField, nullptr, nvinfer1::PluginFieldType::kINT32, 1);
  fields_[op.attribute_count + 2] =
      nvinfer1::PluginField(kTimingField, nullptr, nvinfer1::PluginFieldType::kINT32, kTimedMasks);
  fields_[op.attribute_count + 3] =
      nvinfer1::PluginField(kTuningField, nullptr, nvinfer1::PluginFieldType::kINT32, 1);
  collection_.nbFields = op.attribute_count + 4;
  collection_.fields = fields_;
}

Fields::Fields(const Operator& op, const Attributes& attributes) : Fields(op) {
  const std::int32_t* values = attributes.values;
  for (int i = 0; i < op.attribute_count; ++i) {
    fields_[i].data = values;
    values += op.attributes[i].length;
  }
  fields_[op.attribute_count].data = &attributes.half_only;
  fields_[op.attribute_count + 1].data = &attributes.largest_batch;
  // In the places of the rates and of tuning: what is stored runs on real masks, with tiles that are chosen.
  fields_[op.attribute_count + 2] =
      nvinfer1::PluginField(kVersionField, &kVersion, nvinfer1::PluginFieldType::kINT32, 1);
  fields_[op.attribute_count + 3] =
      nvinfer1::PluginField(kTacticField, &attributes.tactic, nvinfer1::PluginFieldType::kINT32, 1);
}

}  // namespace tensorrt
}  // namespace dyndeploy
