// Instance masks in an image's own pixels, as runs. Values are those of dyndeploy/tasks/detection.py and
// queries.py, whose products NumPy sums up with one rounding for a term.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace dyndeploy {
namespace runtime {

// COCO's run-length encoding: lengths of runs down the columns, of pixels that are not and that are in the
// mask, in turn.
using Runs = std::vector<std::uint32_t>;

// COCO's text of it.
std::string runs_text(const std::uint32_t* runs, std::size_t count);
// Write 0 and 1, rows of `width`. False where the runs are of another number of pixels.
bool runs_pixels(const std::uint32_t* runs, std::size_t count, std::int64_t height, std::int64_t width,
                 std::uint8_t* pixels);

// The cells of an axis of a mask that give a pixel's value, and their weights.
struct Cells {
  std::int64_t first;
  std::int32_t count;
  float weights[4];
};

// What is known of the mask of a query besides its runs.
struct QueryMask {
  float mean;    // probability within the mask; 0 where it is empty
  float box[4];  // around it
};

// Memory stays between calls. Runs are appended.
class MaskPaster {
 public:
  // A mask of `side` x `side` probabilities over a box x1, y1, x2, y2: the pixels that are at least a half.
  void paste(const float* values, std::int64_t side, const float* box, std::int64_t height,
             std::int64_t width, Runs& runs);

  // Where the image lies in masks of `rows` x `columns` cells of `stride` pixels each: resized to so many
  // pixels.
  void place(std::int64_t rows, std::int64_t columns, std::int64_t stride, std::int64_t resized_height,
             std::int64_t resized_width, std::int64_t height, std::int64_t width);
  // After place(): the mask of a query's logits: the pixels above 0.
  QueryMask enlarge(const float* logits, Runs& runs);

 private:
  // Pixels of the image that are looked at; what is outside is not in the mask.
  struct Region {
    std::int64_t top, bottom, left, right;
  };

  template <class Look>
  void sample(const float* values, std::int64_t columns, const Region& region, Look look);
  void append_runs(const Region& region, std::int64_t height, std::int64_t width, Runs& runs) const;

  std::vector<Cells> down_, across_;  // of the pixels of the region; of queries of the image
  std::vector<float> between_;
  std::vector<std::uint8_t> bits_;  // of the region, down the columns
  std::vector<char> positive_rows_, positive_columns_;
  std::int64_t rows_ = 0, columns_ = 0, height_ = 0, width_ = 0;
};

}  // namespace runtime
}  // namespace dyndeploy
