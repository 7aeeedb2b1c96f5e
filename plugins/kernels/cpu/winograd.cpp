#include <algorithm>

#include "caches.h"
#include "gemm.h"
#include "shape.h"

namespace dyndeploy::cpu {

void winograd_weights(const float* weights, std::size_t count, float* out) {
  // G g G^T with G = (1 0 0, 1/2 1/2 1/2, 1/2 -1/2 1/2, 0 0 1), in doubles: done once, used everywhere.
  const auto spread = [](double a, double b, double c, double (&to)[4]) {
    to[0] = a;
    to[1] = (a + c + b) / 2;
    to[2] = (a + c - b) / 2;
    to[3] = c;
  };
  for (std::size_t i = 0; i < count; ++i, weights += 9, out += kWinogradPlanes) {
    double columns[3][4];
    for (int j = 0; j < 3; ++j) spread(weights[j], weights[3 + j], weights[6 + j], columns[j]);
    for (int y = 0; y < 4; ++y) {
      double row[4];
      spread(columns[0][y], columns[1][y], columns[2][y], row);
      for (int x = 0; x < 4; ++x) out[4 * y + x] = static_cast<float>(row[x]);
    }
  }
}

bool winograd_pays(const Isa& isa, int pixels, int tiles, bool copies) {
  // Rows of a product that take as long as its weights take to come from memory: few rows take no less. On
  // one core of the machines at hand 13 to 28 with vectors of 16 floats.
  const int memory_rows = 7 * isa.vector_width / 4;
  // Copying weights takes as long as multiplying so many rows with them.
  const int copy_rows = copies ? 24 : 0;
  const auto cost = [=](int rows) { return std::int64_t{std::max(rows, memory_rows) + copy_rows}; };
  // The transforms take an eighth.
  return kWinogradPlanes * cost(tiles) * 9 < 9 * cost(pixels) * 8;
}

int winograd_block(const Isa& isa, int inputs) {
  const std::int64_t bytes = std::int64_t{4} * kWinogradPlanes * round_up(inputs, kBlock);
  const auto fit = static_cast<int>(std::min<std::int64_t>(blocks().planes / bytes, kMaxWinogradTiles));
  return std::max(fit / isa.tile_rows, 1) * isa.tile_rows;
}

std::size_t winograd_plane_floats(int inputs, int block) {
  return std::size_t{kWinogradPlanes} * static_cast<std::size_t>(block) *
         static_cast<std::size_t>(round_up(inputs, kBlock));
}

std::size_t winograd_product_floats(const Isa& isa, int block) {
  return std::size_t{kWinogradPlanes} * static_cast<std::size_t>(block) *
         static_cast<std::size_t>(isa.panel_width);
}

}  // namespace dyndeploy::cpu
