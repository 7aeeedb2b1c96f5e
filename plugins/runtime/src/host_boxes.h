// The operators of boxes, as dyndeploy/runtimes/host_program.py defines them.
#pragma once

#include <vector>

#include "host_value.h"

namespace dyndeploy {
namespace runtime {

// Greedy non-maximum suppression within groups: boxes (M, 4), scores (M), groups (M); the places of those
// that are left (limit), by falling score, of equal ones the first; -1 fills up.
Value keep_boxes(const Value& boxes, const Value& scores, const Value& groups, double iou_threshold,
                 double score_threshold, std::int64_t limit);

// Average pooling of bilinear samples: boxes (M, 4) are read from maps (1, C, h, w), each from the one that
// `levels` (M) says; (M, C, size, size).
Value pyramid_roi_align(const std::vector<Value>& maps, const Value& boxes, const Value& levels,
                        const std::vector<double>& strides, std::int64_t size);

}  // namespace runtime
}  // namespace dyndeploy
