// How two sets of detections in one image differ: each with its partner, so that an order of equal scores is
// no error. As dyndeploy/tasks/detection.py compares them; dyndeploy/precisions.py explains the limits.
#pragma once

#include <cstddef>

#include "detection.h"

namespace dyndeploy {
namespace runtime {

// How far partners may be apart.
struct DetectionLimits {
  double box;       // of a coordinate, in pixels of the network's input
  double score;     // at most; a tenth of it may move a score over the cut
  double mask_iou;  // least intersection over union of masks
  double unpaired;  // share of detections that may have no partner
};

struct DetectionDifference {
  std::size_t matched = 0, missed = 0, extra = 0;
  std::size_t excused = 0;  // without a partner, which rounding of a score at the cut explains
  double box = 0, score = 0, mask_iou = 1;  // of partners: the largest, the largest, the least
};

// `threshold`: detections have a higher score; `most`: of a full set.
DetectionDifference compare(const Found& found, const Found& expected, const DetectionLimits& limits,
                            double threshold, std::size_t most);

}  // namespace runtime
}  // namespace dyndeploy
