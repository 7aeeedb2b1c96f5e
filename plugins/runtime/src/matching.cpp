#include "matching.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace dyndeploy {
namespace runtime {
namespace {

// Cost of pairing what must not be paired; above that of all other pairs together.
constexpr double kFar = 1e9;
constexpr double kSameObject = 0.5;  // least intersection over union of the boxes of a pair

double score_of(const dyndeploy_detection& one) { return static_cast<double>(one.score); }

double apart(const dyndeploy_detection& one, const dyndeploy_detection& other) {
  const double sides[] = {static_cast<double>(one.x1 - other.x1), static_cast<double>(one.y1 - other.y1),
                          static_cast<double>(one.x2 - other.x2), static_cast<double>(one.y2 - other.y2)};
  double most = 0;
  for (const double side : sides) most = std::max(most, std::fabs(side));
  return most;
}

double area(const dyndeploy_detection& one) {
  return static_cast<double>(one.x2 - one.x1) * static_cast<double>(one.y2 - one.y1);
}

double box_iou(const dyndeploy_detection& one, const dyndeploy_detection& other) {
  const double width = static_cast<double>(std::min(one.x2, other.x2) - std::max(one.x1, other.x1));
  const double height = static_cast<double>(std::min(one.y2, other.y2) - std::max(one.y1, other.y1));
  const double shared = std::max(width, 0.0) * std::max(height, 0.0);
  const double whole = area(one) + area(other) - shared;
  return whole > 0 ? shared / whole : 0;
}

// 1 where at most one pixel differs: rounding decides one at the rim, which would be much of a tiny mask.
double mask_iou(const dyndeploy_detection& one, const dyndeploy_detection& other) {
  std::uint64_t both = 0, either = 0;
  std::size_t i = 0, k = 0;
  std::uint32_t left = one.run_count ? one.runs[0] : 0, right = other.run_count ? other.runs[0] : 0;
  while (i < one.run_count && k < other.run_count) {
    const std::uint32_t length = std::min(left, right);
    both += i % 2 && k % 2 ? length : 0;
    either += i % 2 || k % 2 ? length : 0;
    left -= length;
    right -= length;
    if (!left && ++i < one.run_count) left = one.runs[i];
    if (!right && ++k < other.run_count) right = other.runs[k];
  }
  if (either - both <= 1) return 1;
  return static_cast<double>(both) / static_cast<double>(either);
}

// The partner of each row in the assignment of least cost (Kuhn and Munkres, with potentials); there are at
// least as many columns as rows.
std::vector<std::size_t> assigned(const std::vector<std::vector<double>>& costs) {
  const std::size_t rows = costs.size(), columns = costs[0].size();
  std::vector<double> of_rows(rows + 1, 0), of_columns(columns + 1, 0);
  std::vector<std::size_t> row_of(columns + 1, 0), before(columns + 1, 0);  // from 1; 0: none
  for (std::size_t row = 1; row <= rows; ++row) {
    row_of[0] = row;
    std::size_t at = 0;
    std::vector<double> least(columns + 1, std::numeric_limits<double>::infinity());
    std::vector<char> used(columns + 1, 0);
    do {
      used[at] = 1;
      const std::size_t current = row_of[at];
      double step = std::numeric_limits<double>::infinity();
      std::size_t next = 0;
      for (std::size_t column = 1; column <= columns; ++column) {
        if (used[column]) continue;
        const double cost = costs[current - 1][column - 1] - of_rows[current] - of_columns[column];
        if (cost < least[column]) {
          least[column] = cost;
          before[column] = at;
        }
        if (least[column] < step) {
          step = least[column];
          next = column;
        }
      }
      for (std::size_t column = 0; column <= columns; ++column) {
        if (used[column]) {
          of_rows[row_of[column]] += step;
          of_columns[column] -= step;
        } else {
          least[column] -= step;
        }
      }
      at = next;
    } while (row_of[at]);
    for (; at; at = before[at]) row_of[at] = row_of[before[at]];
  }
  std::vector<std::size_t> found(rows, 0);
  for (std::size_t column = 1; column <= columns; ++column)
    if (row_of[column]) found[row_of[column] - 1] = column - 1;
  return found;
}

// Scores without a partner that rounding at the threshold does not explain.
std::vector<double> unexplained(const Found& all, const std::vector<char>& paired, double threshold,
                                double margin, std::size_t& excused) {
  std::vector<double> alone;
  for (std::size_t i = 0; i < all.detections.size(); ++i) {
    if (paired[i]) continue;
    const double score = score_of(all.detections[i]);
    if (std::fabs(score - threshold) > margin) {
      alone.push_back(score);
    } else {
      ++excused;
    }
  }
  return alone;
}

}  // namespace

DetectionDifference compare(const Found& found, const Found& expected, const DetectionLimits& limits,
                            double threshold, std::size_t most) {
  const std::vector<dyndeploy_detection>&got = found.detections, &wanted = expected.detections;
  DetectionDifference difference;
  std::vector<char> of_got(got.size(), 0), of_wanted(wanted.size(), 0);
  const bool turned = wanted.size() > got.size();
  const auto& rows = turned ? got : wanted;
  const auto& columns = turned ? wanted : got;
  if (!rows.empty()) {
    std::vector<std::vector<double>> costs(rows.size(), std::vector<double>(columns.size(), kFar));
    for (std::size_t i = 0; i < rows.size(); ++i)
      for (std::size_t k = 0; k < columns.size(); ++k) {
        const double box = apart(rows[i], columns[k]);
        const double score = std::fabs(score_of(rows[i]) - score_of(columns[k]));
        const bool same =
            rows[i].label == columns[k].label && (box < 1 || box_iou(rows[i], columns[k]) >= kSameObject);
        if (same && box <= limits.box && score <= limits.score) costs[i][k] = box + 10 * score;
      }
    const std::vector<std::size_t> partners = assigned(costs);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const std::size_t k = partners[i];
      if (costs[i][k] >= kFar) continue;
      const bool masks = rows[i].run_count && columns[k].run_count;
      const double overlap = masks ? mask_iou(rows[i], columns[k]) : 1;
      if (overlap < limits.mask_iou) continue;
      (turned ? of_got : of_wanted)[i] = (turned ? of_wanted : of_got)[k] = 1;
      ++difference.matched;
      difference.box = std::max(difference.box, apart(rows[i], columns[k]));
      difference.score = std::max(difference.score, std::fabs(score_of(rows[i]) - score_of(columns[k])));
      difference.mask_iou = std::min(difference.mask_iou, overlap);
    }
  }
  const double margin = limits.score / 10;
  std::vector<double> missed = unexplained(expected, of_wanted, threshold, margin, difference.excused);
  std::vector<double> extra = unexplained(found, of_got, threshold, margin, difference.excused);
  std::size_t swapped = 0;
  if (got.size() == most && wanted.size() == most && most) {
    // At the end of two full lists one may have taken the other's place.
    const double cut = std::min(score_of(got.back()), score_of(wanted.back())) + margin;
    const auto at_end = [cut](const std::vector<double>& scores) {
      return std::count_if(scores.begin(), scores.end(), [cut](double score) { return score <= cut; });
    };
    swapped = static_cast<std::size_t>(std::min(at_end(missed), at_end(extra)));
  }
  difference.missed = missed.size() - swapped;
  difference.extra = extra.size() - swapped;
  difference.excused += 2 * swapped;
  return difference;
}

}  // namespace runtime
}  // namespace dyndeploy
