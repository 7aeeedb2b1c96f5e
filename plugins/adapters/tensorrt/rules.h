// The kinds of operators; one file each.
#pragma once

#include "operators.h"

namespace dyndeploy {
namespace tensorrt {

extern const Rules kBottleneckRules;
extern const Rules kQuantizedBottleneckRules;
extern const Rules kQuantizeBytesRules;
extern const Rules kDequantizeBytesRules;
extern const Rules kTransformerRules;
extern const Rules kSpatialMaskerRules;
extern const Rules kChannelMaskerRules;
extern const Rules kTokenMaskerRules;
extern const Rules kClassTokenMaskerRules;
extern const Rules kDeformableAttentionRules;
extern const Rules kPyramidRegionsRules;

// Whether all sizes that an operator's inputs name are known.
bool all_known(const Operator& op, const Sizes& sizes);

// All sizes but the batch are at least 1.
std::string check_positive(const Operator& op, const Sizes& sizes);

// An axis of the output that an input has as well.
inline DerivedSize same(char letter) { return {letter, 1}; }

}  // namespace tensorrt
}  // namespace dyndeploy
