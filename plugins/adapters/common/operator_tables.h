// The operators of domain dyndeploy that have native kernels. Generated from dyndeploy/ops; do not edit:
// python -m dyndeploy.ops.native_tables
// clang-format off
#pragma once

namespace dyndeploy {
namespace tables {

enum class Role { kActivation, kMask, kWeight };

// kData: the type that the operator computes in, the same for all such ports of a node. kFloat: always float. kIndex:
// 64-bit integers, in TensorRT 32-bit ones. The others are integers of these sizes.
enum class Element { kData, kFloat, kIndex, kUint8, kInt8, kInt32 };

// Which kind of decision an input is; kNone for all that are no masks.
enum class Gate { kNone, kSpatial, kLayer, kChannel, kToken, kHead };

// One letter per axis: equal letters of an operator are equal sizes, digits are themselves and '#' is the 16
// border classes.
struct Port {
  const char* name;
  Role role;
  Gate gate;
  Element element;
  const char* axes;
};

// Integers, or numbers with a fraction; every attribute must be given.
struct Attribute {
  const char* name;
  int length;
  bool real;
};

struct Operator {
  const char* name;
  int version;
  const char* plugin_version;  // the same, as TensorRT's creators tell it
  // As in ONNX.
  const Port* inputs;
  int input_count;
  // As in the TensorRT copy of a graph, whose weights are packed.
  const Port* plugin_inputs;
  int plugin_input_count;
  Port output;
  const Attribute* attributes;
  int attribute_count;
};

constexpr int kMaxInputs = 17;
constexpr int kMaxRank = 6;
constexpr int kMaxAttributes = 7;
constexpr int kMaxValues = 16;

constexpr Port kSpatialMaskerInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    {"weight", Role::kWeight, Gate::kNone, Element::kFloat, "gC"},
    {"bias", Role::kWeight, Gate::kNone, Element::kFloat, "g"},
};
constexpr Attribute kSpatialMaskerAttributes[] = {
    {"mask_height", 1, false},
    {"mask_width", 1, false},
};
constexpr Operator kSpatialMasker = {
    "SpatialMasker",
    1,
    "1",
    kSpatialMaskerInputs,
    3,
    kSpatialMaskerInputs,
    3,
    {"mask", Role::kMask, Gate::kNone, Element::kFloat, "Nghw"},
    kSpatialMaskerAttributes,
    2,
};

constexpr Port kChannelMaskerInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    {"weight", Role::kWeight, Gate::kNone, Element::kFloat, "GC"},
    {"bias", Role::kWeight, Gate::kNone, Element::kFloat, "G"},
};
constexpr Operator kChannelMasker = {
    "ChannelMasker",
    1,
    "1",
    kChannelMaskerInputs,
    3,
    kChannelMaskerInputs,
    3,
    {"mask", Role::kMask, Gate::kNone, Element::kFloat, "NG"},
    nullptr,
    0,
};

constexpr Port kChannelMaskerHiddenInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    {"hidden_weight", Role::kWeight, Gate::kNone, Element::kFloat, "hC"},
    {"hidden_bias", Role::kWeight, Gate::kNone, Element::kFloat, "h"},
    {"weight", Role::kWeight, Gate::kNone, Element::kFloat, "Gh"},
    {"bias", Role::kWeight, Gate::kNone, Element::kFloat, "G"},
};
constexpr Operator kChannelMaskerHidden = {
    "ChannelMaskerHidden",
    1,
    "1",
    kChannelMaskerHiddenInputs,
    5,
    kChannelMaskerHiddenInputs,
    5,
    {"mask", Role::kMask, Gate::kNone, Element::kFloat, "NG"},
    nullptr,
    0,
};

constexpr Port kSpatialBottleneckInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    {"mask", Role::kMask, Gate::kSpatial, Element::kFloat, "N1hw"},
    {"w1", Role::kWeight, Gate::kNone, Element::kData, "MC"},
    {"b1", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kData, "Mm33"},
    {"b2", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kData, "CM"},
    {"b3", Role::kWeight, Gate::kNone, Element::kData, "C"},
};
constexpr Port kSpatialBottleneckPluginInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    {"mask", Role::kMask, Gate::kSpatial, Element::kFloat, "N1hw"},
    {"w1", Role::kWeight, Gate::kNone, Element::kData, "CM"},
    {"b1", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kData, "gkm"},
    {"b2", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kData, "MC"},
    {"b3", Role::kWeight, Gate::kNone, Element::kFloat, "C"},
};
constexpr Attribute kSpatialBottleneckAttributes[] = {
    {"strides", 2, false},
    {"dilations", 2, false},
    {"pads", 4, false},
    {"group", 1, false},
};
constexpr Operator kSpatialBottleneck = {
    "SpatialBottleneck",
    1,
    "1",
    kSpatialBottleneckInputs,
    8,
    kSpatialBottleneckPluginInputs,
    8,
    {"y", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    kSpatialBottleneckAttributes,
    4,
};

constexpr Port kSpatialBottleneckProjectionInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    {"mask", Role::kMask, Gate::kSpatial, Element::kFloat, "N1hw"},
    {"w1", Role::kWeight, Gate::kNone, Element::kData, "MC"},
    {"b1", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kData, "Mm33"},
    {"b2", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kData, "OM"},
    {"b3", Role::kWeight, Gate::kNone, Element::kData, "O"},
    {"wd", Role::kWeight, Gate::kNone, Element::kData, "OC"},
    {"bd", Role::kWeight, Gate::kNone, Element::kData, "O"},
};
constexpr Port kSpatialBottleneckProjectionPluginInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    {"mask", Role::kMask, Gate::kSpatial, Element::kFloat, "N1hw"},
    {"w1", Role::kWeight, Gate::kNone, Element::kData, "CM"},
    {"b1", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kData, "gkm"},
    {"b2", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kData, "MO"},
    {"b3", Role::kWeight, Gate::kNone, Element::kFloat, "O"},
    {"wd", Role::kWeight, Gate::kNone, Element::kData, "CO"},
    {"bd", Role::kWeight, Gate::kNone, Element::kFloat, "O"},
};
constexpr Operator kSpatialBottleneckProjection = {
    "SpatialBottleneckProjection",
    1,
    "1",
    kSpatialBottleneckProjectionInputs,
    10,
    kSpatialBottleneckProjectionPluginInputs,
    10,
    {"y", Role::kActivation, Gate::kNone, Element::kData, "NPQO"},
    kSpatialBottleneckAttributes,
    4,
};

constexpr Port kLayerBottleneckInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    {"mask", Role::kMask, Gate::kLayer, Element::kFloat, "N111"},
    {"w1", Role::kWeight, Gate::kNone, Element::kData, "MC"},
    {"b1", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kData, "Mm33"},
    {"b2", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kData, "CM"},
    {"b3", Role::kWeight, Gate::kNone, Element::kData, "C"},
};
constexpr Port kLayerBottleneckPluginInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    {"mask", Role::kMask, Gate::kLayer, Element::kFloat, "N111"},
    {"w1", Role::kWeight, Gate::kNone, Element::kData, "CM"},
    {"b1", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kData, "gkm"},
    {"b2", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kData, "MC"},
    {"b3", Role::kWeight, Gate::kNone, Element::kFloat, "C"},
};
constexpr Operator kLayerBottleneck = {
    "LayerBottleneck",
    1,
    "1",
    kLayerBottleneckInputs,
    8,
    kLayerBottleneckPluginInputs,
    8,
    {"y", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    kSpatialBottleneckAttributes,
    4,
};

constexpr Port kLayerBottleneckProjectionInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    {"mask", Role::kMask, Gate::kLayer, Element::kFloat, "N111"},
    {"w1", Role::kWeight, Gate::kNone, Element::kData, "MC"},
    {"b1", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kData, "Mm33"},
    {"b2", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kData, "OM"},
    {"b3", Role::kWeight, Gate::kNone, Element::kData, "O"},
    {"wd", Role::kWeight, Gate::kNone, Element::kData, "OC"},
    {"bd", Role::kWeight, Gate::kNone, Element::kData, "O"},
};
constexpr Port kLayerBottleneckProjectionPluginInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    {"mask", Role::kMask, Gate::kLayer, Element::kFloat, "N111"},
    {"w1", Role::kWeight, Gate::kNone, Element::kData, "CM"},
    {"b1", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kData, "gkm"},
    {"b2", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kData, "MO"},
    {"b3", Role::kWeight, Gate::kNone, Element::kFloat, "O"},
    {"wd", Role::kWeight, Gate::kNone, Element::kData, "CO"},
    {"bd", Role::kWeight, Gate::kNone, Element::kFloat, "O"},
};
constexpr Operator kLayerBottleneckProjection = {
    "LayerBottleneckProjection",
    1,
    "1",
    kLayerBottleneckProjectionInputs,
    10,
    kLayerBottleneckProjectionPluginInputs,
    10,
    {"y", Role::kActivation, Gate::kNone, Element::kData, "NPQO"},
    kSpatialBottleneckAttributes,
    4,
};

constexpr Port kChannelBottleneckInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    {"mask", Role::kMask, Gate::kChannel, Element::kFloat, "NG"},
    {"w1", Role::kWeight, Gate::kNone, Element::kData, "MC"},
    {"b1", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kData, "Mm33"},
    {"b2", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kData, "CM"},
    {"b3", Role::kWeight, Gate::kNone, Element::kData, "C"},
};
constexpr Port kChannelBottleneckPluginInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    {"mask", Role::kMask, Gate::kChannel, Element::kFloat, "NG"},
    {"w1", Role::kWeight, Gate::kNone, Element::kData, "CM"},
    {"b1", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kData, "gkm"},
    {"b2", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kData, "MC"},
    {"b3", Role::kWeight, Gate::kNone, Element::kFloat, "C"},
    {"border_bias", Role::kWeight, Gate::kNone, Element::kFloat, "#M"},
    {"skipped_output", Role::kWeight, Gate::kNone, Element::kFloat, "C"},
};
constexpr Operator kChannelBottleneck = {
    "ChannelBottleneck",
    1,
    "1",
    kChannelBottleneckInputs,
    8,
    kChannelBottleneckPluginInputs,
    10,
    {"y", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    kSpatialBottleneckAttributes,
    4,
};

constexpr Port kChannelBottleneckProjectionInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    {"mask", Role::kMask, Gate::kChannel, Element::kFloat, "NG"},
    {"w1", Role::kWeight, Gate::kNone, Element::kData, "MC"},
    {"b1", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kData, "Mm33"},
    {"b2", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kData, "OM"},
    {"b3", Role::kWeight, Gate::kNone, Element::kData, "O"},
    {"wd", Role::kWeight, Gate::kNone, Element::kData, "OC"},
    {"bd", Role::kWeight, Gate::kNone, Element::kData, "O"},
};
constexpr Port kChannelBottleneckProjectionPluginInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    {"mask", Role::kMask, Gate::kChannel, Element::kFloat, "NG"},
    {"w1", Role::kWeight, Gate::kNone, Element::kData, "CM"},
    {"b1", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kData, "gkm"},
    {"b2", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kData, "MO"},
    {"b3", Role::kWeight, Gate::kNone, Element::kFloat, "O"},
    {"wd", Role::kWeight, Gate::kNone, Element::kData, "CO"},
    {"bd", Role::kWeight, Gate::kNone, Element::kFloat, "O"},
    {"border_bias", Role::kWeight, Gate::kNone, Element::kFloat, "#M"},
    {"skipped_output", Role::kWeight, Gate::kNone, Element::kFloat, "O"},
};
constexpr Operator kChannelBottleneckProjection = {
    "ChannelBottleneckProjection",
    1,
    "1",
    kChannelBottleneckProjectionInputs,
    10,
    kChannelBottleneckProjectionPluginInputs,
    12,
    {"y", Role::kActivation, Gate::kNone, Element::kData, "NPQO"},
    kSpatialBottleneckAttributes,
    4,
};

constexpr Port kSpatialChannelBottleneckInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    {"spatial_mask", Role::kMask, Gate::kSpatial, Element::kFloat, "N1hw"},
    {"channel_mask", Role::kMask, Gate::kChannel, Element::kFloat, "NG"},
    {"w1", Role::kWeight, Gate::kNone, Element::kData, "MC"},
    {"b1", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kData, "Mm33"},
    {"b2", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kData, "CM"},
    {"b3", Role::kWeight, Gate::kNone, Element::kData, "C"},
};
constexpr Port kSpatialChannelBottleneckPluginInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    {"spatial_mask", Role::kMask, Gate::kSpatial, Element::kFloat, "N1hw"},
    {"channel_mask", Role::kMask, Gate::kChannel, Element::kFloat, "NG"},
    {"w1", Role::kWeight, Gate::kNone, Element::kData, "CM"},
    {"b1", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kData, "gkm"},
    {"b2", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kData, "MC"},
    {"b3", Role::kWeight, Gate::kNone, Element::kFloat, "C"},
    {"border_bias", Role::kWeight, Gate::kNone, Element::kFloat, "#M"},
    {"skipped_output", Role::kWeight, Gate::kNone, Element::kFloat, "C"},
};
constexpr Operator kSpatialChannelBottleneck = {
    "SpatialChannelBottleneck",
    1,
    "1",
    kSpatialChannelBottleneckInputs,
    9,
    kSpatialChannelBottleneckPluginInputs,
    11,
    {"y", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    kSpatialBottleneckAttributes,
    4,
};

constexpr Port kSpatialChannelBottleneckProjectionInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    {"spatial_mask", Role::kMask, Gate::kSpatial, Element::kFloat, "N1hw"},
    {"channel_mask", Role::kMask, Gate::kChannel, Element::kFloat, "NG"},
    {"w1", Role::kWeight, Gate::kNone, Element::kData, "MC"},
    {"b1", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kData, "Mm33"},
    {"b2", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kData, "OM"},
    {"b3", Role::kWeight, Gate::kNone, Element::kData, "O"},
    {"wd", Role::kWeight, Gate::kNone, Element::kData, "OC"},
    {"bd", Role::kWeight, Gate::kNone, Element::kData, "O"},
};
constexpr Port kSpatialChannelBottleneckProjectionPluginInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    {"spatial_mask", Role::kMask, Gate::kSpatial, Element::kFloat, "N1hw"},
    {"channel_mask", Role::kMask, Gate::kChannel, Element::kFloat, "NG"},
    {"w1", Role::kWeight, Gate::kNone, Element::kData, "CM"},
    {"b1", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kData, "gkm"},
    {"b2", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kData, "MO"},
    {"b3", Role::kWeight, Gate::kNone, Element::kFloat, "O"},
    {"wd", Role::kWeight, Gate::kNone, Element::kData, "CO"},
    {"bd", Role::kWeight, Gate::kNone, Element::kFloat, "O"},
    {"border_bias", Role::kWeight, Gate::kNone, Element::kFloat, "#M"},
    {"skipped_output", Role::kWeight, Gate::kNone, Element::kFloat, "O"},
};
constexpr Operator kSpatialChannelBottleneckProjection = {
    "SpatialChannelBottleneckProjection",
    1,
    "1",
    kSpatialChannelBottleneckProjectionInputs,
    11,
    kSpatialChannelBottleneckProjectionPluginInputs,
    13,
    {"y", Role::kActivation, Gate::kNone, Element::kData, "NPQO"},
    kSpatialBottleneckAttributes,
    4,
};

constexpr Port kSpatialSEBottleneckInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    {"mask", Role::kMask, Gate::kSpatial, Element::kFloat, "N1hw"},
    {"w1", Role::kWeight, Gate::kNone, Element::kData, "MC"},
    {"b1", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kData, "Mm33"},
    {"b2", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"ws", Role::kWeight, Gate::kNone, Element::kData, "SM"},
    {"bs", Role::kWeight, Gate::kNone, Element::kData, "S"},
    {"we", Role::kWeight, Gate::kNone, Element::kData, "MS"},
    {"be", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kData, "CM"},
    {"b3", Role::kWeight, Gate::kNone, Element::kData, "C"},
};
constexpr Port kSpatialSEBottleneckPluginInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    {"mask", Role::kMask, Gate::kSpatial, Element::kFloat, "N1hw"},
    {"w1", Role::kWeight, Gate::kNone, Element::kData, "CM"},
    {"b1", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kData, "gkm"},
    {"b2", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"ws", Role::kWeight, Gate::kNone, Element::kData, "MS"},
    {"bs", Role::kWeight, Gate::kNone, Element::kFloat, "S"},
    {"we", Role::kWeight, Gate::kNone, Element::kData, "SM"},
    {"be", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kData, "MC"},
    {"b3", Role::kWeight, Gate::kNone, Element::kFloat, "C"},
};
constexpr Attribute kSpatialSEBottleneckAttributes[] = {
    {"strides", 2, false},
    {"dilations", 2, false},
    {"pads", 4, false},
    {"group", 1, false},
    {"pool_active", 1, false},
};
constexpr Operator kSpatialSEBottleneck = {
    "SpatialSEBottleneck",
    1,
    "1",
    kSpatialSEBottleneckInputs,
    12,
    kSpatialSEBottleneckPluginInputs,
    12,
    {"y", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    kSpatialSEBottleneckAttributes,
    5,
};

constexpr Port kSpatialSEBottleneckProjectionInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    {"mask", Role::kMask, Gate::kSpatial, Element::kFloat, "N1hw"},
    {"w1", Role::kWeight, Gate::kNone, Element::kData, "MC"},
    {"b1", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kData, "Mm33"},
    {"b2", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"ws", Role::kWeight, Gate::kNone, Element::kData, "SM"},
    {"bs", Role::kWeight, Gate::kNone, Element::kData, "S"},
    {"we", Role::kWeight, Gate::kNone, Element::kData, "MS"},
    {"be", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kData, "OM"},
    {"b3", Role::kWeight, Gate::kNone, Element::kData, "O"},
    {"wd", Role::kWeight, Gate::kNone, Element::kData, "OC"},
    {"bd", Role::kWeight, Gate::kNone, Element::kData, "O"},
};
constexpr Port kSpatialSEBottleneckProjectionPluginInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    {"mask", Role::kMask, Gate::kSpatial, Element::kFloat, "N1hw"},
    {"w1", Role::kWeight, Gate::kNone, Element::kData, "CM"},
    {"b1", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kData, "gkm"},
    {"b2", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"ws", Role::kWeight, Gate::kNone, Element::kData, "MS"},
    {"bs", Role::kWeight, Gate::kNone, Element::kFloat, "S"},
    {"we", Role::kWeight, Gate::kNone, Element::kData, "SM"},
    {"be", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kData, "MO"},
    {"b3", Role::kWeight, Gate::kNone, Element::kFloat, "O"},
    {"wd", Role::kWeight, Gate::kNone, Element::kData, "CO"},
    {"bd", Role::kWeight, Gate::kNone, Element::kFloat, "O"},
};
constexpr Operator kSpatialSEBottleneckProjection = {
    "SpatialSEBottleneckProjection",
    1,
    "1",
    kSpatialSEBottleneckProjectionInputs,
    14,
    kSpatialSEBottleneckProjectionPluginInputs,
    14,
    {"y", Role::kActivation, Gate::kNone, Element::kData, "NPQO"},
    kSpatialSEBottleneckAttributes,
    5,
};

constexpr Port kLayerSEBottleneckInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    {"mask", Role::kMask, Gate::kLayer, Element::kFloat, "N111"},
    {"w1", Role::kWeight, Gate::kNone, Element::kData, "MC"},
    {"b1", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kData, "Mm33"},
    {"b2", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"ws", Role::kWeight, Gate::kNone, Element::kData, "SM"},
    {"bs", Role::kWeight, Gate::kNone, Element::kData, "S"},
    {"we", Role::kWeight, Gate::kNone, Element::kData, "MS"},
    {"be", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kData, "CM"},
    {"b3", Role::kWeight, Gate::kNone, Element::kData, "C"},
};
constexpr Port kLayerSEBottleneckPluginInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    {"mask", Role::kMask, Gate::kLayer, Element::kFloat, "N111"},
    {"w1", Role::kWeight, Gate::kNone, Element::kData, "CM"},
    {"b1", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kData, "gkm"},
    {"b2", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"ws", Role::kWeight, Gate::kNone, Element::kData, "MS"},
    {"bs", Role::kWeight, Gate::kNone, Element::kFloat, "S"},
    {"we", Role::kWeight, Gate::kNone, Element::kData, "SM"},
    {"be", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kData, "MC"},
    {"b3", Role::kWeight, Gate::kNone, Element::kFloat, "C"},
};
constexpr Operator kLayerSEBottleneck = {
    "LayerSEBottleneck",
    1,
    "1",
    kLayerSEBottleneckInputs,
    12,
    kLayerSEBottleneckPluginInputs,
    12,
    {"y", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    kSpatialBottleneckAttributes,
    4,
};

constexpr Port kLayerSEBottleneckProjectionInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    {"mask", Role::kMask, Gate::kLayer, Element::kFloat, "N111"},
    {"w1", Role::kWeight, Gate::kNone, Element::kData, "MC"},
    {"b1", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kData, "Mm33"},
    {"b2", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"ws", Role::kWeight, Gate::kNone, Element::kData, "SM"},
    {"bs", Role::kWeight, Gate::kNone, Element::kData, "S"},
    {"we", Role::kWeight, Gate::kNone, Element::kData, "MS"},
    {"be", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kData, "OM"},
    {"b3", Role::kWeight, Gate::kNone, Element::kData, "O"},
    {"wd", Role::kWeight, Gate::kNone, Element::kData, "OC"},
    {"bd", Role::kWeight, Gate::kNone, Element::kData, "O"},
};
constexpr Port kLayerSEBottleneckProjectionPluginInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    {"mask", Role::kMask, Gate::kLayer, Element::kFloat, "N111"},
    {"w1", Role::kWeight, Gate::kNone, Element::kData, "CM"},
    {"b1", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kData, "gkm"},
    {"b2", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"ws", Role::kWeight, Gate::kNone, Element::kData, "MS"},
    {"bs", Role::kWeight, Gate::kNone, Element::kFloat, "S"},
    {"we", Role::kWeight, Gate::kNone, Element::kData, "SM"},
    {"be", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kData, "MO"},
    {"b3", Role::kWeight, Gate::kNone, Element::kFloat, "O"},
    {"wd", Role::kWeight, Gate::kNone, Element::kData, "CO"},
    {"bd", Role::kWeight, Gate::kNone, Element::kFloat, "O"},
};
constexpr Operator kLayerSEBottleneckProjection = {
    "LayerSEBottleneckProjection",
    1,
    "1",
    kLayerSEBottleneckProjectionInputs,
    14,
    kLayerSEBottleneckProjectionPluginInputs,
    14,
    {"y", Role::kActivation, Gate::kNone, Element::kData, "NPQO"},
    kSpatialBottleneckAttributes,
    4,
};

constexpr Port kChannelSEBottleneckInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    {"mask", Role::kMask, Gate::kChannel, Element::kFloat, "NG"},
    {"w1", Role::kWeight, Gate::kNone, Element::kData, "MC"},
    {"b1", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kData, "Mm33"},
    {"b2", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"ws", Role::kWeight, Gate::kNone, Element::kData, "SM"},
    {"bs", Role::kWeight, Gate::kNone, Element::kData, "S"},
    {"we", Role::kWeight, Gate::kNone, Element::kData, "MS"},
    {"be", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kData, "CM"},
    {"b3", Role::kWeight, Gate::kNone, Element::kData, "C"},
};
constexpr Port kChannelSEBottleneckPluginInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    {"mask", Role::kMask, Gate::kChannel, Element::kFloat, "NG"},
    {"w1", Role::kWeight, Gate::kNone, Element::kData, "CM"},
    {"b1", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kData, "gkm"},
    {"b2", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"ws", Role::kWeight, Gate::kNone, Element::kData, "MS"},
    {"bs", Role::kWeight, Gate::kNone, Element::kFloat, "S"},
    {"we", Role::kWeight, Gate::kNone, Element::kData, "SM"},
    {"be", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kData, "MC"},
    {"b3", Role::kWeight, Gate::kNone, Element::kFloat, "C"},
};
constexpr Operator kChannelSEBottleneck = {
    "ChannelSEBottleneck",
    1,
    "1",
    kChannelSEBottleneckInputs,
    12,
    kChannelSEBottleneckPluginInputs,
    12,
    {"y", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    kSpatialBottleneckAttributes,
    4,
};

constexpr Port kChannelSEBottleneckProjectionInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    {"mask", Role::kMask, Gate::kChannel, Element::kFloat, "NG"},
    {"w1", Role::kWeight, Gate::kNone, Element::kData, "MC"},
    {"b1", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kData, "Mm33"},
    {"b2", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"ws", Role::kWeight, Gate::kNone, Element::kData, "SM"},
    {"bs", Role::kWeight, Gate::kNone, Element::kData, "S"},
    {"we", Role::kWeight, Gate::kNone, Element::kData, "MS"},
    {"be", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kData, "OM"},
    {"b3", Role::kWeight, Gate::kNone, Element::kData, "O"},
    {"wd", Role::kWeight, Gate::kNone, Element::kData, "OC"},
    {"bd", Role::kWeight, Gate::kNone, Element::kData, "O"},
};
constexpr Port kChannelSEBottleneckProjectionPluginInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    {"mask", Role::kMask, Gate::kChannel, Element::kFloat, "NG"},
    {"w1", Role::kWeight, Gate::kNone, Element::kData, "CM"},
    {"b1", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kData, "gkm"},
    {"b2", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"ws", Role::kWeight, Gate::kNone, Element::kData, "MS"},
    {"bs", Role::kWeight, Gate::kNone, Element::kFloat, "S"},
    {"we", Role::kWeight, Gate::kNone, Element::kData, "SM"},
    {"be", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kData, "MO"},
    {"b3", Role::kWeight, Gate::kNone, Element::kFloat, "O"},
    {"wd", Role::kWeight, Gate::kNone, Element::kData, "CO"},
    {"bd", Role::kWeight, Gate::kNone, Element::kFloat, "O"},
};
constexpr Operator kChannelSEBottleneckProjection = {
    "ChannelSEBottleneckProjection",
    1,
    "1",
    kChannelSEBottleneckProjectionInputs,
    14,
    kChannelSEBottleneckProjectionPluginInputs,
    14,
    {"y", Role::kActivation, Gate::kNone, Element::kData, "NPQO"},
    kSpatialBottleneckAttributes,
    4,
};

constexpr Port kSpatialChannelSEBottleneckInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    {"spatial_mask", Role::kMask, Gate::kSpatial, Element::kFloat, "N1hw"},
    {"channel_mask", Role::kMask, Gate::kChannel, Element::kFloat, "NG"},
    {"w1", Role::kWeight, Gate::kNone, Element::kData, "MC"},
    {"b1", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kData, "Mm33"},
    {"b2", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"ws", Role::kWeight, Gate::kNone, Element::kData, "SM"},
    {"bs", Role::kWeight, Gate::kNone, Element::kData, "S"},
    {"we", Role::kWeight, Gate::kNone, Element::kData, "MS"},
    {"be", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kData, "CM"},
    {"b3", Role::kWeight, Gate::kNone, Element::kData, "C"},
};
constexpr Port kSpatialChannelSEBottleneckPluginInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    {"spatial_mask", Role::kMask, Gate::kSpatial, Element::kFloat, "N1hw"},
    {"channel_mask", Role::kMask, Gate::kChannel, Element::kFloat, "NG"},
    {"w1", Role::kWeight, Gate::kNone, Element::kData, "CM"},
    {"b1", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kData, "gkm"},
    {"b2", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"ws", Role::kWeight, Gate::kNone, Element::kData, "MS"},
    {"bs", Role::kWeight, Gate::kNone, Element::kFloat, "S"},
    {"we", Role::kWeight, Gate::kNone, Element::kData, "SM"},
    {"be", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kData, "MC"},
    {"b3", Role::kWeight, Gate::kNone, Element::kFloat, "C"},
};
constexpr Operator kSpatialChannelSEBottleneck = {
    "SpatialChannelSEBottleneck",
    1,
    "1",
    kSpatialChannelSEBottleneckInputs,
    13,
    kSpatialChannelSEBottleneckPluginInputs,
    13,
    {"y", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    kSpatialSEBottleneckAttributes,
    5,
};

constexpr Port kSpatialChannelSEBottleneckProjectionInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    {"spatial_mask", Role::kMask, Gate::kSpatial, Element::kFloat, "N1hw"},
    {"channel_mask", Role::kMask, Gate::kChannel, Element::kFloat, "NG"},
    {"w1", Role::kWeight, Gate::kNone, Element::kData, "MC"},
    {"b1", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kData, "Mm33"},
    {"b2", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"ws", Role::kWeight, Gate::kNone, Element::kData, "SM"},
    {"bs", Role::kWeight, Gate::kNone, Element::kData, "S"},
    {"we", Role::kWeight, Gate::kNone, Element::kData, "MS"},
    {"be", Role::kWeight, Gate::kNone, Element::kData, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kData, "OM"},
    {"b3", Role::kWeight, Gate::kNone, Element::kData, "O"},
    {"wd", Role::kWeight, Gate::kNone, Element::kData, "OC"},
    {"bd", Role::kWeight, Gate::kNone, Element::kData, "O"},
};
constexpr Port kSpatialChannelSEBottleneckProjectionPluginInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    {"spatial_mask", Role::kMask, Gate::kSpatial, Element::kFloat, "N1hw"},
    {"channel_mask", Role::kMask, Gate::kChannel, Element::kFloat, "NG"},
    {"w1", Role::kWeight, Gate::kNone, Element::kData, "CM"},
    {"b1", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kData, "gkm"},
    {"b2", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"ws", Role::kWeight, Gate::kNone, Element::kData, "MS"},
    {"bs", Role::kWeight, Gate::kNone, Element::kFloat, "S"},
    {"we", Role::kWeight, Gate::kNone, Element::kData, "SM"},
    {"be", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kData, "MO"},
    {"b3", Role::kWeight, Gate::kNone, Element::kFloat, "O"},
    {"wd", Role::kWeight, Gate::kNone, Element::kData, "CO"},
    {"bd", Role::kWeight, Gate::kNone, Element::kFloat, "O"},
};
constexpr Operator kSpatialChannelSEBottleneckProjection = {
    "SpatialChannelSEBottleneckProjection",
    1,
    "1",
    kSpatialChannelSEBottleneckProjectionInputs,
    15,
    kSpatialChannelSEBottleneckProjectionPluginInputs,
    15,
    {"y", Role::kActivation, Gate::kNone, Element::kData, "NPQO"},
    kSpatialSEBottleneckAttributes,
    5,
};

constexpr Port kTokenMaskerInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NTD"},
    {"weight", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
    {"bias", Role::kWeight, Gate::kNone, Element::kFloat, "1"},
};
constexpr Attribute kTokenMaskerAttributes[] = {
    {"epsilon", 1, true},
    {"normalise", 1, false},
    {"kept", 1, false},
};
constexpr Operator kTokenMasker = {
    "TokenMasker",
    1,
    "1",
    kTokenMaskerInputs,
    3,
    kTokenMaskerInputs,
    3,
    {"mask", Role::kMask, Gate::kNone, Element::kFloat, "NT"},
    kTokenMaskerAttributes,
    3,
};

constexpr Port kClassTokenHeadMaskerInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NTD"},
    {"weight", Role::kWeight, Gate::kNone, Element::kFloat, "AD"},
    {"bias", Role::kWeight, Gate::kNone, Element::kFloat, "A"},
};
constexpr Attribute kClassTokenHeadMaskerAttributes[] = {
    {"epsilon", 1, true},
    {"normalise", 1, false},
};
constexpr Operator kClassTokenHeadMasker = {
    "ClassTokenHeadMasker",
    1,
    "1",
    kClassTokenHeadMaskerInputs,
    3,
    kClassTokenHeadMaskerInputs,
    3,
    {"mask", Role::kMask, Gate::kNone, Element::kFloat, "NA"},
    kClassTokenHeadMaskerAttributes,
    2,
};

constexpr Port kClassTokenLayerMaskerInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NTD"},
    {"weight", Role::kWeight, Gate::kNone, Element::kFloat, "1D"},
    {"bias", Role::kWeight, Gate::kNone, Element::kFloat, "1"},
};
constexpr Operator kClassTokenLayerMasker = {
    "ClassTokenLayerMasker",
    1,
    "1",
    kClassTokenLayerMaskerInputs,
    3,
    kClassTokenLayerMaskerInputs,
    3,
    {"mask", Role::kMask, Gate::kNone, Element::kFloat, "N111"},
    kClassTokenHeadMaskerAttributes,
    2,
};

constexpr Port kTokenTransformerBlockInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NTD"},
    {"token", Role::kMask, Gate::kToken, Element::kFloat, "NT"},
    {"norm1_weight", Role::kWeight, Gate::kNone, Element::kData, "D"},
    {"norm1_bias", Role::kWeight, Gate::kNone, Element::kData, "D"},
    {"w_qkv", Role::kWeight, Gate::kNone, Element::kData, "3AdD"},
    {"b_qkv", Role::kWeight, Gate::kNone, Element::kData, "3Ad"},
    {"w_proj", Role::kWeight, Gate::kNone, Element::kData, "DAd"},
    {"b_proj", Role::kWeight, Gate::kNone, Element::kData, "D"},
    {"norm2_weight", Role::kWeight, Gate::kNone, Element::kData, "D"},
    {"norm2_bias", Role::kWeight, Gate::kNone, Element::kData, "D"},
    {"w_fc1", Role::kWeight, Gate::kNone, Element::kData, "FD"},
    {"b_fc1", Role::kWeight, Gate::kNone, Element::kData, "F"},
    {"w_fc2", Role::kWeight, Gate::kNone, Element::kData, "DF"},
    {"b_fc2", Role::kWeight, Gate::kNone, Element::kData, "D"},
};
constexpr Port kTokenTransformerBlockPluginInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NTD"},
    {"token", Role::kMask, Gate::kToken, Element::kFloat, "NT"},
    {"norm1_weight", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
    {"norm1_bias", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
    {"w_qkv", Role::kWeight, Gate::kNone, Element::kData, "D3Ad"},
    {"b_qkv", Role::kWeight, Gate::kNone, Element::kFloat, "3Ad"},
    {"w_proj", Role::kWeight, Gate::kNone, Element::kData, "AdD"},
    {"b_proj", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
    {"norm2_weight", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
    {"norm2_bias", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
    {"w_fc1", Role::kWeight, Gate::kNone, Element::kData, "DF"},
    {"b_fc1", Role::kWeight, Gate::kNone, Element::kFloat, "F"},
    {"w_fc2", Role::kWeight, Gate::kNone, Element::kData, "FD"},
    {"b_fc2", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
};
constexpr Attribute kTokenTransformerBlockAttributes[] = {
    {"epsilon", 1, true},
    {"scale", 1, true},
    {"token_mlp", 1, false},
    {"head_mode", 1, false},
};
constexpr Operator kTokenTransformerBlock = {
    "TokenTransformerBlock",
    1,
    "1",
    kTokenTransformerBlockInputs,
    14,
    kTokenTransformerBlockPluginInputs,
    14,
    {"y", Role::kActivation, Gate::kNone, Element::kData, "NTD"},
    kTokenTransformerBlockAttributes,
    4,
};

constexpr Port kHeadTransformerBlockInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NTD"},
    {"head", Role::kMask, Gate::kHead, Element::kFloat, "NA"},
    {"norm1_weight", Role::kWeight, Gate::kNone, Element::kData, "D"},
    {"norm1_bias", Role::kWeight, Gate::kNone, Element::kData, "D"},
    {"w_qkv", Role::kWeight, Gate::kNone, Element::kData, "3AdD"},
    {"b_qkv", Role::kWeight, Gate::kNone, Element::kData, "3Ad"},
    {"w_proj", Role::kWeight, Gate::kNone, Element::kData, "DAd"},
    {"b_proj", Role::kWeight, Gate::kNone, Element::kData, "D"},
    {"norm2_weight", Role::kWeight, Gate::kNone, Element::kData, "D"},
    {"norm2_bias", Role::kWeight, Gate::kNone, Element::kData, "D"},
    {"w_fc1", Role::kWeight, Gate::kNone, Element::kData, "FD"},
    {"b_fc1", Role::kWeight, Gate::kNone, Element::kData, "F"},
    {"w_fc2", Role::kWeight, Gate::kNone, Element::kData, "DF"},
    {"b_fc2", Role::kWeight, Gate::kNone, Element::kData, "D"},
};
constexpr Port kHeadTransformerBlockPluginInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NTD"},
    {"head", Role::kMask, Gate::kHead, Element::kFloat, "NA"},
    {"norm1_weight", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
    {"norm1_bias", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
    {"w_qkv", Role::kWeight, Gate::kNone, Element::kData, "D3Ad"},
    {"b_qkv", Role::kWeight, Gate::kNone, Element::kFloat, "3Ad"},
    {"w_proj", Role::kWeight, Gate::kNone, Element::kData, "AdD"},
    {"b_proj", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
    {"norm2_weight", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
    {"norm2_bias", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
    {"w_fc1", Role::kWeight, Gate::kNone, Element::kData, "DF"},
    {"b_fc1", Role::kWeight, Gate::kNone, Element::kFloat, "F"},
    {"w_fc2", Role::kWeight, Gate::kNone, Element::kData, "FD"},
    {"b_fc2", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
};
constexpr Operator kHeadTransformerBlock = {
    "HeadTransformerBlock",
    1,
    "1",
    kHeadTransformerBlockInputs,
    14,
    kHeadTransformerBlockPluginInputs,
    14,
    {"y", Role::kActivation, Gate::kNone, Element::kData, "NTD"},
    kTokenTransformerBlockAttributes,
    4,
};

constexpr Port kLayerTransformerBlockInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NTD"},
    {"attention", Role::kMask, Gate::kLayer, Element::kFloat, "N111"},
    {"mlp", Role::kMask, Gate::kLayer, Element::kFloat, "N111"},
    {"norm1_weight", Role::kWeight, Gate::kNone, Element::kData, "D"},
    {"norm1_bias", Role::kWeight, Gate::kNone, Element::kData, "D"},
    {"w_qkv", Role::kWeight, Gate::kNone, Element::kData, "3AdD"},
    {"b_qkv", Role::kWeight, Gate::kNone, Element::kData, "3Ad"},
    {"w_proj", Role::kWeight, Gate::kNone, Element::kData, "DAd"},
    {"b_proj", Role::kWeight, Gate::kNone, Element::kData, "D"},
    {"norm2_weight", Role::kWeight, Gate::kNone, Element::kData, "D"},
    {"norm2_bias", Role::kWeight, Gate::kNone, Element::kData, "D"},
    {"w_fc1", Role::kWeight, Gate::kNone, Element::kData, "FD"},
    {"b_fc1", Role::kWeight, Gate::kNone, Element::kData, "F"},
    {"w_fc2", Role::kWeight, Gate::kNone, Element::kData, "DF"},
    {"b_fc2", Role::kWeight, Gate::kNone, Element::kData, "D"},
};
constexpr Port kLayerTransformerBlockPluginInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NTD"},
    {"attention", Role::kMask, Gate::kLayer, Element::kFloat, "N111"},
    {"mlp", Role::kMask, Gate::kLayer, Element::kFloat, "N111"},
    {"norm1_weight", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
    {"norm1_bias", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
    {"w_qkv", Role::kWeight, Gate::kNone, Element::kData, "D3Ad"},
    {"b_qkv", Role::kWeight, Gate::kNone, Element::kFloat, "3Ad"},
    {"w_proj", Role::kWeight, Gate::kNone, Element::kData, "AdD"},
    {"b_proj", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
    {"norm2_weight", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
    {"norm2_bias", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
    {"w_fc1", Role::kWeight, Gate::kNone, Element::kData, "DF"},
    {"b_fc1", Role::kWeight, Gate::kNone, Element::kFloat, "F"},
    {"w_fc2", Role::kWeight, Gate::kNone, Element::kData, "FD"},
    {"b_fc2", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
};
constexpr Operator kLayerTransformerBlock = {
    "LayerTransformerBlock",
    1,
    "1",
    kLayerTransformerBlockInputs,
    15,
    kLayerTransformerBlockPluginInputs,
    15,
    {"y", Role::kActivation, Gate::kNone, Element::kData, "NTD"},
    kTokenTransformerBlockAttributes,
    4,
};

constexpr Port kTokenHeadTransformerBlockInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NTD"},
    {"token", Role::kMask, Gate::kToken, Element::kFloat, "NT"},
    {"head", Role::kMask, Gate::kHead, Element::kFloat, "NA"},
    {"norm1_weight", Role::kWeight, Gate::kNone, Element::kData, "D"},
    {"norm1_bias", Role::kWeight, Gate::kNone, Element::kData, "D"},
    {"w_qkv", Role::kWeight, Gate::kNone, Element::kData, "3AdD"},
    {"b_qkv", Role::kWeight, Gate::kNone, Element::kData, "3Ad"},
    {"w_proj", Role::kWeight, Gate::kNone, Element::kData, "DAd"},
    {"b_proj", Role::kWeight, Gate::kNone, Element::kData, "D"},
    {"norm2_weight", Role::kWeight, Gate::kNone, Element::kData, "D"},
    {"norm2_bias", Role::kWeight, Gate::kNone, Element::kData, "D"},
    {"w_fc1", Role::kWeight, Gate::kNone, Element::kData, "FD"},
    {"b_fc1", Role::kWeight, Gate::kNone, Element::kData, "F"},
    {"w_fc2", Role::kWeight, Gate::kNone, Element::kData, "DF"},
    {"b_fc2", Role::kWeight, Gate::kNone, Element::kData, "D"},
};
constexpr Port kTokenHeadTransformerBlockPluginInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NTD"},
    {"token", Role::kMask, Gate::kToken, Element::kFloat, "NT"},
    {"head", Role::kMask, Gate::kHead, Element::kFloat, "NA"},
    {"norm1_weight", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
    {"norm1_bias", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
    {"w_qkv", Role::kWeight, Gate::kNone, Element::kData, "D3Ad"},
    {"b_qkv", Role::kWeight, Gate::kNone, Element::kFloat, "3Ad"},
    {"w_proj", Role::kWeight, Gate::kNone, Element::kData, "AdD"},
    {"b_proj", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
    {"norm2_weight", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
    {"norm2_bias", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
    {"w_fc1", Role::kWeight, Gate::kNone, Element::kData, "DF"},
    {"b_fc1", Role::kWeight, Gate::kNone, Element::kFloat, "F"},
    {"w_fc2", Role::kWeight, Gate::kNone, Element::kData, "FD"},
    {"b_fc2", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
};
constexpr Operator kTokenHeadTransformerBlock = {
    "TokenHeadTransformerBlock",
    1,
    "1",
    kTokenHeadTransformerBlockInputs,
    15,
    kTokenHeadTransformerBlockPluginInputs,
    15,
    {"y", Role::kActivation, Gate::kNone, Element::kData, "NTD"},
    kTokenTransformerBlockAttributes,
    4,
};

constexpr Port kTokenLayerTransformerBlockInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NTD"},
    {"token", Role::kMask, Gate::kToken, Element::kFloat, "NT"},
    {"attention", Role::kMask, Gate::kLayer, Element::kFloat, "N111"},
    {"mlp", Role::kMask, Gate::kLayer, Element::kFloat, "N111"},
    {"norm1_weight", Role::kWeight, Gate::kNone, Element::kData, "D"},
    {"norm1_bias", Role::kWeight, Gate::kNone, Element::kData, "D"},
    {"w_qkv", Role::kWeight, Gate::kNone, Element::kData, "3AdD"},
    {"b_qkv", Role::kWeight, Gate::kNone, Element::kData, "3Ad"},
    {"w_proj", Role::kWeight, Gate::kNone, Element::kData, "DAd"},
    {"b_proj", Role::kWeight, Gate::kNone, Element::kData, "D"},
    {"norm2_weight", Role::kWeight, Gate::kNone, Element::kData, "D"},
    {"norm2_bias", Role::kWeight, Gate::kNone, Element::kData, "D"},
    {"w_fc1", Role::kWeight, Gate::kNone, Element::kData, "FD"},
    {"b_fc1", Role::kWeight, Gate::kNone, Element::kData, "F"},
    {"w_fc2", Role::kWeight, Gate::kNone, Element::kData, "DF"},
    {"b_fc2", Role::kWeight, Gate::kNone, Element::kData, "D"},
};
constexpr Port kTokenLayerTransformerBlockPluginInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NTD"},
    {"token", Role::kMask, Gate::kToken, Element::kFloat, "NT"},
    {"attention", Role::kMask, Gate::kLayer, Element::kFloat, "N111"},
    {"mlp", Role::kMask, Gate::kLayer, Element::kFloat, "N111"},
    {"norm1_weight", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
    {"norm1_bias", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
    {"w_qkv", Role::kWeight, Gate::kNone, Element::kData, "D3Ad"},
    {"b_qkv", Role::kWeight, Gate::kNone, Element::kFloat, "3Ad"},
    {"w_proj", Role::kWeight, Gate::kNone, Element::kData, "AdD"},
    {"b_proj", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
    {"norm2_weight", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
    {"norm2_bias", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
    {"w_fc1", Role::kWeight, Gate::kNone, Element::kData, "DF"},
    {"b_fc1", Role::kWeight, Gate::kNone, Element::kFloat, "F"},
    {"w_fc2", Role::kWeight, Gate::kNone, Element::kData, "FD"},
    {"b_fc2", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
};
constexpr Operator kTokenLayerTransformerBlock = {
    "TokenLayerTransformerBlock",
    1,
    "1",
    kTokenLayerTransformerBlockInputs,
    16,
    kTokenLayerTransformerBlockPluginInputs,
    16,
    {"y", Role::kActivation, Gate::kNone, Element::kData, "NTD"},
    kTokenTransformerBlockAttributes,
    4,
};

constexpr Port kHeadLayerTransformerBlockInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NTD"},
    {"head", Role::kMask, Gate::kHead, Element::kFloat, "NA"},
    {"attention", Role::kMask, Gate::kLayer, Element::kFloat, "N111"},
    {"mlp", Role::kMask, Gate::kLayer, Element::kFloat, "N111"},
    {"norm1_weight", Role::kWeight, Gate::kNone, Element::kData, "D"},
    {"norm1_bias", Role::kWeight, Gate::kNone, Element::kData, "D"},
    {"w_qkv", Role::kWeight, Gate::kNone, Element::kData, "3AdD"},
    {"b_qkv", Role::kWeight, Gate::kNone, Element::kData, "3Ad"},
    {"w_proj", Role::kWeight, Gate::kNone, Element::kData, "DAd"},
    {"b_proj", Role::kWeight, Gate::kNone, Element::kData, "D"},
    {"norm2_weight", Role::kWeight, Gate::kNone, Element::kData, "D"},
    {"norm2_bias", Role::kWeight, Gate::kNone, Element::kData, "D"},
    {"w_fc1", Role::kWeight, Gate::kNone, Element::kData, "FD"},
    {"b_fc1", Role::kWeight, Gate::kNone, Element::kData, "F"},
    {"w_fc2", Role::kWeight, Gate::kNone, Element::kData, "DF"},
    {"b_fc2", Role::kWeight, Gate::kNone, Element::kData, "D"},
};
constexpr Port kHeadLayerTransformerBlockPluginInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NTD"},
    {"head", Role::kMask, Gate::kHead, Element::kFloat, "NA"},
    {"attention", Role::kMask, Gate::kLayer, Element::kFloat, "N111"},
    {"mlp", Role::kMask, Gate::kLayer, Element::kFloat, "N111"},
    {"norm1_weight", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
    {"norm1_bias", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
    {"w_qkv", Role::kWeight, Gate::kNone, Element::kData, "D3Ad"},
    {"b_qkv", Role::kWeight, Gate::kNone, Element::kFloat, "3Ad"},
    {"w_proj", Role::kWeight, Gate::kNone, Element::kData, "AdD"},
    {"b_proj", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
    {"norm2_weight", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
    {"norm2_bias", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
    {"w_fc1", Role::kWeight, Gate::kNone, Element::kData, "DF"},
    {"b_fc1", Role::kWeight, Gate::kNone, Element::kFloat, "F"},
    {"w_fc2", Role::kWeight, Gate::kNone, Element::kData, "FD"},
    {"b_fc2", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
};
constexpr Operator kHeadLayerTransformerBlock = {
    "HeadLayerTransformerBlock",
    1,
    "1",
    kHeadLayerTransformerBlockInputs,
    16,
    kHeadLayerTransformerBlockPluginInputs,
    16,
    {"y", Role::kActivation, Gate::kNone, Element::kData, "NTD"},
    kTokenTransformerBlockAttributes,
    4,
};

constexpr Port kTokenHeadLayerTransformerBlockInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NTD"},
    {"token", Role::kMask, Gate::kToken, Element::kFloat, "NT"},
    {"head", Role::kMask, Gate::kHead, Element::kFloat, "NA"},
    {"attention", Role::kMask, Gate::kLayer, Element::kFloat, "N111"},
    {"mlp", Role::kMask, Gate::kLayer, Element::kFloat, "N111"},
    {"norm1_weight", Role::kWeight, Gate::kNone, Element::kData, "D"},
    {"norm1_bias", Role::kWeight, Gate::kNone, Element::kData, "D"},
    {"w_qkv", Role::kWeight, Gate::kNone, Element::kData, "3AdD"},
    {"b_qkv", Role::kWeight, Gate::kNone, Element::kData, "3Ad"},
    {"w_proj", Role::kWeight, Gate::kNone, Element::kData, "DAd"},
    {"b_proj", Role::kWeight, Gate::kNone, Element::kData, "D"},
    {"norm2_weight", Role::kWeight, Gate::kNone, Element::kData, "D"},
    {"norm2_bias", Role::kWeight, Gate::kNone, Element::kData, "D"},
    {"w_fc1", Role::kWeight, Gate::kNone, Element::kData, "FD"},
    {"b_fc1", Role::kWeight, Gate::kNone, Element::kData, "F"},
    {"w_fc2", Role::kWeight, Gate::kNone, Element::kData, "DF"},
    {"b_fc2", Role::kWeight, Gate::kNone, Element::kData, "D"},
};
constexpr Port kTokenHeadLayerTransformerBlockPluginInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NTD"},
    {"token", Role::kMask, Gate::kToken, Element::kFloat, "NT"},
    {"head", Role::kMask, Gate::kHead, Element::kFloat, "NA"},
    {"attention", Role::kMask, Gate::kLayer, Element::kFloat, "N111"},
    {"mlp", Role::kMask, Gate::kLayer, Element::kFloat, "N111"},
    {"norm1_weight", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
    {"norm1_bias", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
    {"w_qkv", Role::kWeight, Gate::kNone, Element::kData, "D3Ad"},
    {"b_qkv", Role::kWeight, Gate::kNone, Element::kFloat, "3Ad"},
    {"w_proj", Role::kWeight, Gate::kNone, Element::kData, "AdD"},
    {"b_proj", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
    {"norm2_weight", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
    {"norm2_bias", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
    {"w_fc1", Role::kWeight, Gate::kNone, Element::kData, "DF"},
    {"b_fc1", Role::kWeight, Gate::kNone, Element::kFloat, "F"},
    {"w_fc2", Role::kWeight, Gate::kNone, Element::kData, "FD"},
    {"b_fc2", Role::kWeight, Gate::kNone, Element::kFloat, "D"},
};
constexpr Operator kTokenHeadLayerTransformerBlock = {
    "TokenHeadLayerTransformerBlock",
    1,
    "1",
    kTokenHeadLayerTransformerBlockInputs,
    17,
    kTokenHeadLayerTransformerBlockPluginInputs,
    17,
    {"y", Role::kActivation, Gate::kNone, Element::kData, "NTD"},
    kTokenTransformerBlockAttributes,
    4,
};

constexpr Port kQuantizedSpatialMaskerInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kUint8, "NHWC"},
    {"weight", Role::kWeight, Gate::kNone, Element::kFloat, "gC"},
    {"bias", Role::kWeight, Gate::kNone, Element::kFloat, "g"},
};
constexpr Operator kQuantizedSpatialMasker = {
    "QuantizedSpatialMasker",
    1,
    "1",
    kQuantizedSpatialMaskerInputs,
    3,
    kQuantizedSpatialMaskerInputs,
    3,
    {"mask", Role::kMask, Gate::kNone, Element::kFloat, "Nghw"},
    kSpatialMaskerAttributes,
    2,
};

constexpr Port kQuantizedChannelMaskerInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kUint8, "NHWC"},
    {"weight", Role::kWeight, Gate::kNone, Element::kFloat, "GC"},
    {"bias", Role::kWeight, Gate::kNone, Element::kFloat, "G"},
};
constexpr Operator kQuantizedChannelMasker = {
    "QuantizedChannelMasker",
    1,
    "1",
    kQuantizedChannelMaskerInputs,
    3,
    kQuantizedChannelMaskerInputs,
    3,
    {"mask", Role::kMask, Gate::kNone, Element::kFloat, "NG"},
    nullptr,
    0,
};

constexpr Port kQuantizedChannelMaskerHiddenInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kUint8, "NHWC"},
    {"hidden_weight", Role::kWeight, Gate::kNone, Element::kFloat, "hC"},
    {"hidden_bias", Role::kWeight, Gate::kNone, Element::kFloat, "h"},
    {"weight", Role::kWeight, Gate::kNone, Element::kFloat, "Gh"},
    {"bias", Role::kWeight, Gate::kNone, Element::kFloat, "G"},
};
constexpr Operator kQuantizedChannelMaskerHidden = {
    "QuantizedChannelMaskerHidden",
    1,
    "1",
    kQuantizedChannelMaskerHiddenInputs,
    5,
    kQuantizedChannelMaskerHiddenInputs,
    5,
    {"mask", Role::kMask, Gate::kNone, Element::kFloat, "NG"},
    nullptr,
    0,
};

constexpr Port kQuantizedSpatialBottleneckInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kUint8, "NHWC"},
    {"mask", Role::kMask, Gate::kSpatial, Element::kFloat, "N1hw"},
    {"w1", Role::kWeight, Gate::kNone, Element::kInt8, "MC"},
    {"b1", Role::kWeight, Gate::kNone, Element::kInt32, "M"},
    {"m1", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kInt8, "Mm33"},
    {"b2", Role::kWeight, Gate::kNone, Element::kInt32, "M"},
    {"m2", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kInt8, "CM"},
    {"b3", Role::kWeight, Gate::kNone, Element::kInt32, "C"},
    {"m3", Role::kWeight, Gate::kNone, Element::kFloat, "C"},
};
constexpr Port kQuantizedSpatialBottleneckPluginInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kUint8, "NHWC"},
    {"mask", Role::kMask, Gate::kSpatial, Element::kFloat, "N1hw"},
    {"w1", Role::kWeight, Gate::kNone, Element::kInt8, "MC"},
    {"b1", Role::kWeight, Gate::kNone, Element::kInt32, "M"},
    {"m1", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kInt8, "M9m"},
    {"b2", Role::kWeight, Gate::kNone, Element::kInt32, "M"},
    {"m2", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kInt8, "CM"},
    {"b3", Role::kWeight, Gate::kNone, Element::kInt32, "C"},
    {"m3", Role::kWeight, Gate::kNone, Element::kFloat, "C"},
};
constexpr Operator kQuantizedSpatialBottleneck = {
    "QuantizedSpatialBottleneck",
    1,
    "1",
    kQuantizedSpatialBottleneckInputs,
    11,
    kQuantizedSpatialBottleneckPluginInputs,
    11,
    {"y", Role::kActivation, Gate::kNone, Element::kUint8, "NHWC"},
    kSpatialBottleneckAttributes,
    4,
};

constexpr Port kQuantizedSpatialBottleneckProjectionInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kUint8, "NHWC"},
    {"mask", Role::kMask, Gate::kSpatial, Element::kFloat, "N1hw"},
    {"w1", Role::kWeight, Gate::kNone, Element::kInt8, "MC"},
    {"b1", Role::kWeight, Gate::kNone, Element::kInt32, "M"},
    {"m1", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kInt8, "Mm33"},
    {"b2", Role::kWeight, Gate::kNone, Element::kInt32, "M"},
    {"m2", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kInt8, "OM"},
    {"b3", Role::kWeight, Gate::kNone, Element::kInt32, "O"},
    {"m3", Role::kWeight, Gate::kNone, Element::kFloat, "O"},
    {"wd", Role::kWeight, Gate::kNone, Element::kInt8, "OC"},
    {"bd", Role::kWeight, Gate::kNone, Element::kInt32, "O"},
    {"md", Role::kWeight, Gate::kNone, Element::kFloat, "O"},
};
constexpr Port kQuantizedSpatialBottleneckProjectionPluginInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kUint8, "NHWC"},
    {"mask", Role::kMask, Gate::kSpatial, Element::kFloat, "N1hw"},
    {"w1", Role::kWeight, Gate::kNone, Element::kInt8, "MC"},
    {"b1", Role::kWeight, Gate::kNone, Element::kInt32, "M"},
    {"m1", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kInt8, "M9m"},
    {"b2", Role::kWeight, Gate::kNone, Element::kInt32, "M"},
    {"m2", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kInt8, "OM"},
    {"b3", Role::kWeight, Gate::kNone, Element::kInt32, "O"},
    {"m3", Role::kWeight, Gate::kNone, Element::kFloat, "O"},
    {"wd", Role::kWeight, Gate::kNone, Element::kInt8, "OC"},
    {"bd", Role::kWeight, Gate::kNone, Element::kInt32, "O"},
    {"md", Role::kWeight, Gate::kNone, Element::kFloat, "O"},
};
constexpr Operator kQuantizedSpatialBottleneckProjection = {
    "QuantizedSpatialBottleneckProjection",
    1,
    "1",
    kQuantizedSpatialBottleneckProjectionInputs,
    14,
    kQuantizedSpatialBottleneckProjectionPluginInputs,
    14,
    {"y", Role::kActivation, Gate::kNone, Element::kUint8, "NPQO"},
    kSpatialBottleneckAttributes,
    4,
};

constexpr Port kQuantizedLayerBottleneckInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kUint8, "NHWC"},
    {"mask", Role::kMask, Gate::kLayer, Element::kFloat, "N111"},
    {"w1", Role::kWeight, Gate::kNone, Element::kInt8, "MC"},
    {"b1", Role::kWeight, Gate::kNone, Element::kInt32, "M"},
    {"m1", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kInt8, "Mm33"},
    {"b2", Role::kWeight, Gate::kNone, Element::kInt32, "M"},
    {"m2", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kInt8, "CM"},
    {"b3", Role::kWeight, Gate::kNone, Element::kInt32, "C"},
    {"m3", Role::kWeight, Gate::kNone, Element::kFloat, "C"},
};
constexpr Port kQuantizedLayerBottleneckPluginInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kUint8, "NHWC"},
    {"mask", Role::kMask, Gate::kLayer, Element::kFloat, "N111"},
    {"w1", Role::kWeight, Gate::kNone, Element::kInt8, "MC"},
    {"b1", Role::kWeight, Gate::kNone, Element::kInt32, "M"},
    {"m1", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kInt8, "M9m"},
    {"b2", Role::kWeight, Gate::kNone, Element::kInt32, "M"},
    {"m2", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kInt8, "CM"},
    {"b3", Role::kWeight, Gate::kNone, Element::kInt32, "C"},
    {"m3", Role::kWeight, Gate::kNone, Element::kFloat, "C"},
};
constexpr Operator kQuantizedLayerBottleneck = {
    "QuantizedLayerBottleneck",
    1,
    "1",
    kQuantizedLayerBottleneckInputs,
    11,
    kQuantizedLayerBottleneckPluginInputs,
    11,
    {"y", Role::kActivation, Gate::kNone, Element::kUint8, "NHWC"},
    kSpatialBottleneckAttributes,
    4,
};

constexpr Port kQuantizedLayerBottleneckProjectionInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kUint8, "NHWC"},
    {"mask", Role::kMask, Gate::kLayer, Element::kFloat, "N111"},
    {"w1", Role::kWeight, Gate::kNone, Element::kInt8, "MC"},
    {"b1", Role::kWeight, Gate::kNone, Element::kInt32, "M"},
    {"m1", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kInt8, "Mm33"},
    {"b2", Role::kWeight, Gate::kNone, Element::kInt32, "M"},
    {"m2", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kInt8, "OM"},
    {"b3", Role::kWeight, Gate::kNone, Element::kInt32, "O"},
    {"m3", Role::kWeight, Gate::kNone, Element::kFloat, "O"},
    {"wd", Role::kWeight, Gate::kNone, Element::kInt8, "OC"},
    {"bd", Role::kWeight, Gate::kNone, Element::kInt32, "O"},
    {"md", Role::kWeight, Gate::kNone, Element::kFloat, "O"},
};
constexpr Port kQuantizedLayerBottleneckProjectionPluginInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kUint8, "NHWC"},
    {"mask", Role::kMask, Gate::kLayer, Element::kFloat, "N111"},
    {"w1", Role::kWeight, Gate::kNone, Element::kInt8, "MC"},
    {"b1", Role::kWeight, Gate::kNone, Element::kInt32, "M"},
    {"m1", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kInt8, "M9m"},
    {"b2", Role::kWeight, Gate::kNone, Element::kInt32, "M"},
    {"m2", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kInt8, "OM"},
    {"b3", Role::kWeight, Gate::kNone, Element::kInt32, "O"},
    {"m3", Role::kWeight, Gate::kNone, Element::kFloat, "O"},
    {"wd", Role::kWeight, Gate::kNone, Element::kInt8, "OC"},
    {"bd", Role::kWeight, Gate::kNone, Element::kInt32, "O"},
    {"md", Role::kWeight, Gate::kNone, Element::kFloat, "O"},
};
constexpr Operator kQuantizedLayerBottleneckProjection = {
    "QuantizedLayerBottleneckProjection",
    1,
    "1",
    kQuantizedLayerBottleneckProjectionInputs,
    14,
    kQuantizedLayerBottleneckProjectionPluginInputs,
    14,
    {"y", Role::kActivation, Gate::kNone, Element::kUint8, "NPQO"},
    kSpatialBottleneckAttributes,
    4,
};

constexpr Port kQuantizedChannelBottleneckInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kUint8, "NHWC"},
    {"mask", Role::kMask, Gate::kChannel, Element::kFloat, "NG"},
    {"w1", Role::kWeight, Gate::kNone, Element::kInt8, "MC"},
    {"b1", Role::kWeight, Gate::kNone, Element::kInt32, "M"},
    {"m1", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kInt8, "Mm33"},
    {"b2", Role::kWeight, Gate::kNone, Element::kInt32, "M"},
    {"m2", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kInt8, "CM"},
    {"b3", Role::kWeight, Gate::kNone, Element::kInt32, "C"},
    {"m3", Role::kWeight, Gate::kNone, Element::kFloat, "C"},
};
constexpr Port kQuantizedChannelBottleneckPluginInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kUint8, "NHWC"},
    {"mask", Role::kMask, Gate::kChannel, Element::kFloat, "NG"},
    {"w1", Role::kWeight, Gate::kNone, Element::kInt8, "MC"},
    {"b1", Role::kWeight, Gate::kNone, Element::kInt32, "M"},
    {"m1", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kInt8, "M9m"},
    {"b2", Role::kWeight, Gate::kNone, Element::kInt32, "M"},
    {"m2", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kInt8, "CM"},
    {"b3", Role::kWeight, Gate::kNone, Element::kInt32, "C"},
    {"m3", Role::kWeight, Gate::kNone, Element::kFloat, "C"},
};
constexpr Operator kQuantizedChannelBottleneck = {
    "QuantizedChannelBottleneck",
    1,
    "1",
    kQuantizedChannelBottleneckInputs,
    11,
    kQuantizedChannelBottleneckPluginInputs,
    11,
    {"y", Role::kActivation, Gate::kNone, Element::kUint8, "NHWC"},
    kSpatialBottleneckAttributes,
    4,
};

constexpr Port kQuantizedChannelBottleneckProjectionInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kUint8, "NHWC"},
    {"mask", Role::kMask, Gate::kChannel, Element::kFloat, "NG"},
    {"w1", Role::kWeight, Gate::kNone, Element::kInt8, "MC"},
    {"b1", Role::kWeight, Gate::kNone, Element::kInt32, "M"},
    {"m1", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kInt8, "Mm33"},
    {"b2", Role::kWeight, Gate::kNone, Element::kInt32, "M"},
    {"m2", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kInt8, "OM"},
    {"b3", Role::kWeight, Gate::kNone, Element::kInt32, "O"},
    {"m3", Role::kWeight, Gate::kNone, Element::kFloat, "O"},
    {"wd", Role::kWeight, Gate::kNone, Element::kInt8, "OC"},
    {"bd", Role::kWeight, Gate::kNone, Element::kInt32, "O"},
    {"md", Role::kWeight, Gate::kNone, Element::kFloat, "O"},
};
constexpr Port kQuantizedChannelBottleneckProjectionPluginInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kUint8, "NHWC"},
    {"mask", Role::kMask, Gate::kChannel, Element::kFloat, "NG"},
    {"w1", Role::kWeight, Gate::kNone, Element::kInt8, "MC"},
    {"b1", Role::kWeight, Gate::kNone, Element::kInt32, "M"},
    {"m1", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kInt8, "M9m"},
    {"b2", Role::kWeight, Gate::kNone, Element::kInt32, "M"},
    {"m2", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kInt8, "OM"},
    {"b3", Role::kWeight, Gate::kNone, Element::kInt32, "O"},
    {"m3", Role::kWeight, Gate::kNone, Element::kFloat, "O"},
    {"wd", Role::kWeight, Gate::kNone, Element::kInt8, "OC"},
    {"bd", Role::kWeight, Gate::kNone, Element::kInt32, "O"},
    {"md", Role::kWeight, Gate::kNone, Element::kFloat, "O"},
};
constexpr Operator kQuantizedChannelBottleneckProjection = {
    "QuantizedChannelBottleneckProjection",
    1,
    "1",
    kQuantizedChannelBottleneckProjectionInputs,
    14,
    kQuantizedChannelBottleneckProjectionPluginInputs,
    14,
    {"y", Role::kActivation, Gate::kNone, Element::kUint8, "NPQO"},
    kSpatialBottleneckAttributes,
    4,
};

constexpr Port kQuantizedSpatialChannelBottleneckInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kUint8, "NHWC"},
    {"spatial_mask", Role::kMask, Gate::kSpatial, Element::kFloat, "N1hw"},
    {"channel_mask", Role::kMask, Gate::kChannel, Element::kFloat, "NG"},
    {"w1", Role::kWeight, Gate::kNone, Element::kInt8, "MC"},
    {"b1", Role::kWeight, Gate::kNone, Element::kInt32, "M"},
    {"m1", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kInt8, "Mm33"},
    {"b2", Role::kWeight, Gate::kNone, Element::kInt32, "M"},
    {"m2", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kInt8, "CM"},
    {"b3", Role::kWeight, Gate::kNone, Element::kInt32, "C"},
    {"m3", Role::kWeight, Gate::kNone, Element::kFloat, "C"},
};
constexpr Port kQuantizedSpatialChannelBottleneckPluginInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kUint8, "NHWC"},
    {"spatial_mask", Role::kMask, Gate::kSpatial, Element::kFloat, "N1hw"},
    {"channel_mask", Role::kMask, Gate::kChannel, Element::kFloat, "NG"},
    {"w1", Role::kWeight, Gate::kNone, Element::kInt8, "MC"},
    {"b1", Role::kWeight, Gate::kNone, Element::kInt32, "M"},
    {"m1", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kInt8, "M9m"},
    {"b2", Role::kWeight, Gate::kNone, Element::kInt32, "M"},
    {"m2", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kInt8, "CM"},
    {"b3", Role::kWeight, Gate::kNone, Element::kInt32, "C"},
    {"m3", Role::kWeight, Gate::kNone, Element::kFloat, "C"},
};
constexpr Operator kQuantizedSpatialChannelBottleneck = {
    "QuantizedSpatialChannelBottleneck",
    1,
    "1",
    kQuantizedSpatialChannelBottleneckInputs,
    12,
    kQuantizedSpatialChannelBottleneckPluginInputs,
    12,
    {"y", Role::kActivation, Gate::kNone, Element::kUint8, "NHWC"},
    kSpatialBottleneckAttributes,
    4,
};

constexpr Port kQuantizedSpatialChannelBottleneckProjectionInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kUint8, "NHWC"},
    {"spatial_mask", Role::kMask, Gate::kSpatial, Element::kFloat, "N1hw"},
    {"channel_mask", Role::kMask, Gate::kChannel, Element::kFloat, "NG"},
    {"w1", Role::kWeight, Gate::kNone, Element::kInt8, "MC"},
    {"b1", Role::kWeight, Gate::kNone, Element::kInt32, "M"},
    {"m1", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kInt8, "Mm33"},
    {"b2", Role::kWeight, Gate::kNone, Element::kInt32, "M"},
    {"m2", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kInt8, "OM"},
    {"b3", Role::kWeight, Gate::kNone, Element::kInt32, "O"},
    {"m3", Role::kWeight, Gate::kNone, Element::kFloat, "O"},
    {"wd", Role::kWeight, Gate::kNone, Element::kInt8, "OC"},
    {"bd", Role::kWeight, Gate::kNone, Element::kInt32, "O"},
    {"md", Role::kWeight, Gate::kNone, Element::kFloat, "O"},
};
constexpr Port kQuantizedSpatialChannelBottleneckProjectionPluginInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kUint8, "NHWC"},
    {"spatial_mask", Role::kMask, Gate::kSpatial, Element::kFloat, "N1hw"},
    {"channel_mask", Role::kMask, Gate::kChannel, Element::kFloat, "NG"},
    {"w1", Role::kWeight, Gate::kNone, Element::kInt8, "MC"},
    {"b1", Role::kWeight, Gate::kNone, Element::kInt32, "M"},
    {"m1", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w2", Role::kWeight, Gate::kNone, Element::kInt8, "M9m"},
    {"b2", Role::kWeight, Gate::kNone, Element::kInt32, "M"},
    {"m2", Role::kWeight, Gate::kNone, Element::kFloat, "M"},
    {"w3", Role::kWeight, Gate::kNone, Element::kInt8, "OM"},
    {"b3", Role::kWeight, Gate::kNone, Element::kInt32, "O"},
    {"m3", Role::kWeight, Gate::kNone, Element::kFloat, "O"},
    {"wd", Role::kWeight, Gate::kNone, Element::kInt8, "OC"},
    {"bd", Role::kWeight, Gate::kNone, Element::kInt32, "O"},
    {"md", Role::kWeight, Gate::kNone, Element::kFloat, "O"},
};
constexpr Operator kQuantizedSpatialChannelBottleneckProjection = {
    "QuantizedSpatialChannelBottleneckProjection",
    1,
    "1",
    kQuantizedSpatialChannelBottleneckProjectionInputs,
    15,
    kQuantizedSpatialChannelBottleneckProjectionPluginInputs,
    15,
    {"y", Role::kActivation, Gate::kNone, Element::kUint8, "NPQO"},
    kSpatialBottleneckAttributes,
    4,
};

constexpr Port kQuantizedImageConvolutionInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kFloat, "NCHW"},
    {"w", Role::kWeight, Gate::kNone, Element::kInt8, "OCRS"},
    {"b", Role::kWeight, Gate::kNone, Element::kInt32, "O"},
    {"m", Role::kWeight, Gate::kNone, Element::kFloat, "O"},
};
constexpr Attribute kQuantizedImageConvolutionAttributes[] = {
    {"strides", 2, false},
    {"pads", 4, false},
    {"pool_shape", 2, false},
    {"pool_strides", 2, false},
    {"pool_pads", 4, false},
    {"scale", 1, true},
    {"zero_point", 1, false},
};
constexpr Operator kQuantizedImageConvolution = {
    "QuantizedImageConvolution",
    1,
    "1",
    kQuantizedImageConvolutionInputs,
    4,
    kQuantizedImageConvolutionInputs,
    4,
    {"y", Role::kActivation, Gate::kNone, Element::kUint8, "NPQO"},
    kQuantizedImageConvolutionAttributes,
    7,
};

constexpr Port kQuantizeBytesInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
};
constexpr Attribute kQuantizeBytesAttributes[] = {
    {"scale", 1, true},
};
constexpr Operator kQuantizeBytes = {
    "QuantizeBytes",
    1,
    "1",
    kQuantizeBytesInputs,
    1,
    kQuantizeBytesInputs,
    1,
    {"y", Role::kActivation, Gate::kNone, Element::kUint8, "NHWC"},
    kQuantizeBytesAttributes,
    1,
};

constexpr Port kDequantizeBytesInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kUint8, "NHWC"},
};
constexpr Operator kDequantizeBytes = {
    "DequantizeBytes",
    1,
    "1",
    kDequantizeBytesInputs,
    1,
    kDequantizeBytesInputs,
    1,
    {"y", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    kQuantizeBytesAttributes,
    1,
};

constexpr Port kPyramidRoiAlignInputs[] = {
    {"p0", Role::kActivation, Gate::kNone, Element::kData, "1CHW"},
    {"p1", Role::kActivation, Gate::kNone, Element::kData, "1CIX"},
    {"p2", Role::kActivation, Gate::kNone, Element::kData, "1CJY"},
    {"p3", Role::kActivation, Gate::kNone, Element::kData, "1CKZ"},
    {"boxes", Role::kActivation, Gate::kNone, Element::kFloat, "N4"},
    {"levels", Role::kActivation, Gate::kNone, Element::kIndex, "N"},
};
constexpr Attribute kPyramidRoiAlignAttributes[] = {
    {"strides", 4, false},
    {"size", 1, false},
};
constexpr Operator kPyramidRoiAlign = {
    "PyramidRoiAlign",
    1,
    "1",
    kPyramidRoiAlignInputs,
    6,
    kPyramidRoiAlignInputs,
    6,
    {"y", Role::kActivation, Gate::kNone, Element::kData, "NCSS"},
    kPyramidRoiAlignAttributes,
    2,
};

constexpr Port kMultiscaleDeformableAttention3Inputs[] = {
    {"value", Role::kActivation, Gate::kNone, Element::kData, "NSAd"},
    {"locations", Role::kActivation, Gate::kNone, Element::kFloat, "NQA3P2"},
    {"weights", Role::kActivation, Gate::kNone, Element::kFloat, "NQA3P"},
};
constexpr Attribute kMultiscaleDeformableAttention3Attributes[] = {
    {"sizes", 6, false},
};
constexpr Operator kMultiscaleDeformableAttention3 = {
    "MultiscaleDeformableAttention3",
    1,
    "1",
    kMultiscaleDeformableAttention3Inputs,
    3,
    kMultiscaleDeformableAttention3Inputs,
    3,
    {"y", Role::kActivation, Gate::kNone, Element::kData, "NQAd"},
    kMultiscaleDeformableAttention3Attributes,
    1,
};

constexpr Port kMultiscaleDeformableAttention4Inputs[] = {
    {"value", Role::kActivation, Gate::kNone, Element::kData, "NSAd"},
    {"locations", Role::kActivation, Gate::kNone, Element::kFloat, "NQA4P2"},
    {"weights", Role::kActivation, Gate::kNone, Element::kFloat, "NQA4P"},
};
constexpr Attribute kMultiscaleDeformableAttention4Attributes[] = {
    {"sizes", 8, false},
};
constexpr Operator kMultiscaleDeformableAttention4 = {
    "MultiscaleDeformableAttention4",
    1,
    "1",
    kMultiscaleDeformableAttention4Inputs,
    3,
    kMultiscaleDeformableAttention4Inputs,
    3,
    {"y", Role::kActivation, Gate::kNone, Element::kData, "NQAd"},
    kMultiscaleDeformableAttention4Attributes,
    1,
};

// DO(operator, kind): operators of one kind share their kernels.
#define DYNDEPLOY_CPU_OPERATORS(DO)                                                  \
  DO(SpatialMasker, SpatialMasker)                                                   \
  DO(ChannelMasker, ChannelMasker)                                                   \
  DO(ChannelMaskerHidden, ChannelMasker)                                             \
  DO(SpatialBottleneck, SpatialBottleneck)                                           \
  DO(SpatialBottleneckProjection, SpatialBottleneck)                                 \
  DO(LayerBottleneck, LayerBottleneck)                                               \
  DO(LayerBottleneckProjection, LayerBottleneck)                                     \
  DO(ChannelBottleneck, ChannelBottleneck)                                           \
  DO(ChannelBottleneckProjection, ChannelBottleneck)                                 \
  DO(SpatialChannelBottleneck, SpatialChannelBottleneck)                             \
  DO(SpatialChannelBottleneckProjection, SpatialChannelBottleneck)                   \
  DO(SpatialSEBottleneck, SpatialSeBottleneck)                                       \
  DO(SpatialSEBottleneckProjection, SpatialSeBottleneck)                             \
  DO(LayerSEBottleneck, LayerSeBottleneck)                                           \
  DO(LayerSEBottleneckProjection, LayerSeBottleneck)                                 \
  DO(ChannelSEBottleneck, ChannelSeBottleneck)                                       \
  DO(ChannelSEBottleneckProjection, ChannelSeBottleneck)                             \
  DO(SpatialChannelSEBottleneck, SpatialChannelSeBottleneck)                         \
  DO(SpatialChannelSEBottleneckProjection, SpatialChannelSeBottleneck)               \
  DO(TokenMasker, TokenMasker)                                                       \
  DO(ClassTokenHeadMasker, ClassTokenMasker)                                         \
  DO(ClassTokenLayerMasker, ClassTokenMasker)                                        \
  DO(TokenTransformerBlock, TransformerBlock)                                        \
  DO(HeadTransformerBlock, TransformerBlock)                                         \
  DO(LayerTransformerBlock, TransformerBlock)                                        \
  DO(TokenHeadTransformerBlock, TransformerBlock)                                    \
  DO(TokenLayerTransformerBlock, TransformerBlock)                                   \
  DO(HeadLayerTransformerBlock, TransformerBlock)                                    \
  DO(TokenHeadLayerTransformerBlock, TransformerBlock)                               \
  DO(QuantizedSpatialMasker, QuantizedSpatialMasker)                                 \
  DO(QuantizedChannelMasker, QuantizedChannelMasker)                                 \
  DO(QuantizedChannelMaskerHidden, QuantizedChannelMasker)                           \
  DO(QuantizedSpatialBottleneck, QuantizedSpatialBottleneck)                         \
  DO(QuantizedSpatialBottleneckProjection, QuantizedSpatialBottleneck)               \
  DO(QuantizedLayerBottleneck, QuantizedLayerBottleneck)                             \
  DO(QuantizedLayerBottleneckProjection, QuantizedLayerBottleneck)                   \
  DO(QuantizedChannelBottleneck, QuantizedChannelBottleneck)                         \
  DO(QuantizedChannelBottleneckProjection, QuantizedChannelBottleneck)               \
  DO(QuantizedSpatialChannelBottleneck, QuantizedSpatialChannelBottleneck)           \
  DO(QuantizedSpatialChannelBottleneckProjection, QuantizedSpatialChannelBottleneck) \
  DO(QuantizedImageConvolution, QuantizedImageConvolution)                           \
  DO(PyramidRoiAlign, PyramidRegions)                                                \
  DO(MultiscaleDeformableAttention3, DeformableAttention)                            \
  DO(MultiscaleDeformableAttention4, DeformableAttention)

// DO(operator, kind): operators of one kind share their kernels.
#define DYNDEPLOY_TENSORRT_OPERATORS(DO)                                             \
  DO(SpatialMasker, SpatialMasker)                                                   \
  DO(ChannelMasker, ChannelMasker)                                                   \
  DO(ChannelMaskerHidden, ChannelMasker)                                             \
  DO(SpatialBottleneck, SpatialBottleneck)                                           \
  DO(SpatialBottleneckProjection, SpatialBottleneck)                                 \
  DO(LayerBottleneck, LayerBottleneck)                                               \
  DO(LayerBottleneckProjection, LayerBottleneck)                                     \
  DO(ChannelBottleneck, ChannelBottleneck)                                           \
  DO(ChannelBottleneckProjection, ChannelBottleneck)                                 \
  DO(SpatialChannelBottleneck, SpatialChannelBottleneck)                             \
  DO(SpatialChannelBottleneckProjection, SpatialChannelBottleneck)                   \
  DO(SpatialSEBottleneck, SpatialSeBottleneck)                                       \
  DO(SpatialSEBottleneckProjection, SpatialSeBottleneck)                             \
  DO(LayerSEBottleneck, LayerSeBottleneck)                                           \
  DO(LayerSEBottleneckProjection, LayerSeBottleneck)                                 \
  DO(ChannelSEBottleneck, ChannelSeBottleneck)                                       \
  DO(ChannelSEBottleneckProjection, ChannelSeBottleneck)                             \
  DO(SpatialChannelSEBottleneck, SpatialChannelSeBottleneck)                         \
  DO(SpatialChannelSEBottleneckProjection, SpatialChannelSeBottleneck)               \
  DO(TokenMasker, TokenMasker)                                                       \
  DO(ClassTokenHeadMasker, ClassTokenMasker)                                         \
  DO(ClassTokenLayerMasker, ClassTokenMasker)                                        \
  DO(TokenTransformerBlock, TransformerBlock)                                        \
  DO(HeadTransformerBlock, TransformerBlock)                                         \
  DO(LayerTransformerBlock, TransformerBlock)                                        \
  DO(TokenHeadTransformerBlock, TransformerBlock)                                    \
  DO(TokenLayerTransformerBlock, TransformerBlock)                                   \
  DO(HeadLayerTransformerBlock, TransformerBlock)                                    \
  DO(TokenHeadLayerTransformerBlock, TransformerBlock)                               \
  DO(QuantizedSpatialMasker, QuantizedSpatialMasker)                                 \
  DO(QuantizedChannelMasker, QuantizedChannelMasker)                                 \
  DO(QuantizedChannelMaskerHidden, QuantizedChannelMasker)                           \
  DO(QuantizedSpatialBottleneck, QuantizedSpatialBottleneck)                         \
  DO(QuantizedSpatialBottleneckProjection, QuantizedSpatialBottleneck)               \
  DO(QuantizedLayerBottleneck, QuantizedLayerBottleneck)                             \
  DO(QuantizedLayerBottleneckProjection, QuantizedLayerBottleneck)                   \
  DO(QuantizedChannelBottleneck, QuantizedChannelBottleneck)                         \
  DO(QuantizedChannelBottleneckProjection, QuantizedChannelBottleneck)               \
  DO(QuantizedSpatialChannelBottleneck, QuantizedSpatialChannelBottleneck)           \
  DO(QuantizedSpatialChannelBottleneckProjection, QuantizedSpatialChannelBottleneck) \
  DO(QuantizeBytes, QuantizeBytes)                                                   \
  DO(DequantizeBytes, DequantizeBytes)                                               \
  DO(PyramidRoiAlign, PyramidRegions)                                                \
  DO(MultiscaleDeformableAttention3, DeformableAttention)                            \
  DO(MultiscaleDeformableAttention4, DeformableAttention)

}  // namespace tables
}  // namespace dyndeploy
