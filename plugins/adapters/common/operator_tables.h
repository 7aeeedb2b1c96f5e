// The operators of domain dyndeploy that have native kernels. Generated from dyndeploy/ops; do not edit:
// python -m dyndeploy.ops.native_tables
// clang-format off
#pragma once

namespace dyndeploy {
namespace tables {

enum class Role { kActivation, kMask, kWeight };

// kData: the type that the operator computes in, the same for all such ports of a node. kFloat: always float.
enum class Element { kData, kFloat };

// Which kind of decision an input is; kNone for all that are no masks.
enum class Gate { kNone, kSpatial, kLayer, kChannel };

// One letter per axis: equal letters of an operator are equal sizes, digits are themselves and '#' is the 16
// border classes.
struct Port {
  const char* name;
  Role role;
  Gate gate;
  Element element;
  const char* axes;
};

// Integers; every attribute must be given.
struct Attribute {
  const char* name;
  int length;
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

constexpr int kMaxInputs = 15;
constexpr int kMaxRank = 4;
constexpr int kMaxAttributes = 5;
constexpr int kMaxValues = 10;

constexpr Port kSpatialMaskerInputs[] = {
    {"x", Role::kActivation, Gate::kNone, Element::kData, "NHWC"},
    {"weight", Role::kWeight, Gate::kNone, Element::kFloat, "gC"},
    {"bias", Role::kWeight, Gate::kNone, Element::kFloat, "g"},
};
constexpr Attribute kSpatialMaskerAttributes[] = {
    {"mask_height", 1},
    {"mask_width", 1},
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
    {"strides", 2},
    {"dilations", 2},
    {"pads", 4},
    {"group", 1},
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
    {"strides", 2},
    {"dilations", 2},
    {"pads", 4},
    {"group", 1},
    {"pool_active", 1},
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

// DO(operator, kind): operators of one kind share their kernels.
#define DYNDEPLOY_CPU_OPERATORS(DO)                                \
  DO(SpatialMasker, SpatialMasker)                                 \
  DO(ChannelMasker, ChannelMasker)                                 \
  DO(ChannelMaskerHidden, ChannelMasker)                           \
  DO(SpatialBottleneck, SpatialBottleneck)                         \
  DO(SpatialBottleneckProjection, SpatialBottleneck)               \
  DO(LayerBottleneck, LayerBottleneck)                             \
  DO(LayerBottleneckProjection, LayerBottleneck)                   \
  DO(ChannelBottleneck, ChannelBottleneck)                         \
  DO(ChannelBottleneckProjection, ChannelBottleneck)               \
  DO(SpatialChannelBottleneck, SpatialChannelBottleneck)           \
  DO(SpatialChannelBottleneckProjection, SpatialChannelBottleneck) \
  DO(SpatialSEBottleneck, SpatialSeBottleneck)                     \
  DO(SpatialSEBottleneckProjection, SpatialSeBottleneck)           \
  DO(LayerSEBottleneck, LayerSeBottleneck)                         \
  DO(LayerSEBottleneckProjection, LayerSeBottleneck)               \
  DO(ChannelSEBottleneck, ChannelSeBottleneck)                     \
  DO(ChannelSEBottleneckProjection, ChannelSeBottleneck)           \
  DO(SpatialChannelSEBottleneck, SpatialChannelSeBottleneck)       \
  DO(SpatialChannelSEBottleneckProjection, SpatialChannelSeBottleneck)

// DO(operator, kind): operators of one kind share their kernels.
#define DYNDEPLOY_TENSORRT_OPERATORS(DO)                           \
  DO(SpatialMasker, SpatialMasker)                                 \
  DO(ChannelMasker, ChannelMasker)                                 \
  DO(ChannelMaskerHidden, ChannelMasker)                           \
  DO(SpatialBottleneck, SpatialBottleneck)                         \
  DO(SpatialBottleneckProjection, SpatialBottleneck)               \
  DO(LayerBottleneck, LayerBottleneck)                             \
  DO(LayerBottleneckProjection, LayerBottleneck)                   \
  DO(ChannelBottleneck, ChannelBottleneck)                         \
  DO(ChannelBottleneckProjection, ChannelBottleneck)               \
  DO(SpatialChannelBottleneck, SpatialChannelBottleneck)           \
  DO(SpatialChannelBottleneckProjection, SpatialChannelBottleneck) \
  DO(SpatialSEBottleneck, SpatialSeBottleneck)                     \
  DO(SpatialSEBottleneckProjection, SpatialSeBottleneck)           \
  DO(LayerSEBottleneck, LayerSeBottleneck)                         \
  DO(LayerSEBottleneckProjection, LayerSeBottleneck)               \
  DO(ChannelSEBottleneck, ChannelSeBottleneck)                     \
  DO(ChannelSEBottleneckProjection, ChannelSeBottleneck)           \
  DO(SpatialChannelSEBottleneck, SpatialChannelSeBottleneck)       \
  DO(SpatialChannelSEBottleneckProjection, SpatialChannelSeBottleneck)

}  // namespace tables
}  // namespace dyndeploy
