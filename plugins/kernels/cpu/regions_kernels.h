// What Isa::read_regions works on.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dyndeploy::cpu {

// The weights of a box's rows in each row of the result, and those of its columns.
struct Region {
  const float* cells = nullptr;  // of channel 0: the first of the box's columns in the map's first row
  std::ptrdiff_t plane = 0;      // floats between channels
  std::ptrdiff_t width = 0;      // ... between rows of the map
  // Row i of the result is made of the same number of rows of the map, from first[i] on: some weigh nothing.
  const std::int32_t* first = nullptr;
  int rows = 0;
  const float* row_weights = nullptr;  // [size][rows]
  int columns = 0;
  const float* column_weights = nullptr;  // [columns][kRegionLanes, rounded up]
};

// The result's columns are filled up to whole numbers of so many, and kRegionSlack floats behind the weights
// can be read.
constexpr int kRegionLanes = 8;
constexpr int kRegionSlack = 16;

struct Regions {
  const Region* regions = nullptr;
  int count = 0;
  int channels = 0;  // of the result
  int channel_begin = 0;
  int channel_end = 0;
  int size = 0;
  float* out = nullptr;      // (count, channels, size, size)
  float* scratch = nullptr;  // size rows of scratch_stride, at least the columns of the widest region
  std::ptrdiff_t scratch_stride = 0;  // a whole number of vectors
};

}  // namespace dyndeploy::cpu
