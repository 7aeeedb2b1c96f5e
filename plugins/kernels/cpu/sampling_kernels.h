// What Isa::sample_rows works on.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dyndeploy::cpu {

constexpr int kMostSampledMaps = 8;

struct Sampling {
  int batch = 0;
  int cells = 0;  // of all maps
  int heads = 0;
  int channels = 0;  // of a head
  int queries = 0;
  int levels = 0;
  int points = 0;                                 // of a map
  std::int32_t sizes[2 * kMostSampledMaps] = {};  // height and width of every map
  const float* value = nullptr;      // (batch, cells, heads, channels): map behind map, row by row
  const float* locations = nullptr;  // (batch, queries, heads, levels, points, 2): x, y in fractions of a map
  const float* weights = nullptr;    // (batch, queries, heads, levels, points)
  float* out = nullptr;              // (batch, queries, heads, channels)
};

}  // namespace dyndeploy::cpu
