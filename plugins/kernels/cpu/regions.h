// Reading boxes from the levels of a feature pyramid (RoI align): average pooling of bilinear samples.
//
// A sample's weights are those of its row times those of its column. So a box is two small products per
// channel, (size x rows) x (rows x columns) x (columns x size), and every pixel under it is read about once
// instead of four times per sample.
#pragma once

#include <cstdint>

#include "gemm.h"
#include "parallel.h"
#include "workspace.h"

namespace dyndeploy::cpu {

constexpr int kPyramidLevels = 4;
// Of one bin along one axis. A box that asks for more, or whose sides are no numbers, gives 0.
constexpr float kMostSamples = 1 << 15;

struct PyramidLevel {
  const float* cells = nullptr;  // (channels, height, width)
  int height = 0;
  int width = 0;
  int stride = 1;  // pixels of the boxes' coordinates per cell
};

struct RegionsCall {
  PyramidLevel levels[kPyramidLevels];
  int channels = 0;
  int count = 0;
  const float* boxes = nullptr;         // (count, 4): x1, y1, x2, y2
  const std::int64_t* level = nullptr;  // (count); what lies outside is taken for the nearest
  int size = 0;                         // side of the result
  float* out = nullptr;                 // (count, channels, size, size)
};

// Half-pixel coordinates, as many samples per bin as it has cells.
void run_regions(const Isa& isa, const RegionsCall& call, Workspace& workspace, const ThreadPool& pool);

}  // namespace dyndeploy::cpu
