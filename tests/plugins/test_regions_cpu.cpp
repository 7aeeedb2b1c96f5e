// Unit tests of reading boxes from a pyramid against a naive sum of samples in double. Usage:
// test_regions_cpu ISA

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <vector>

#include "checks.h"
#include "pools.h"
#include "regions.h"

namespace {

using namespace dyndeploy::cpu;

using Numbers = std::vector<float>;

struct Problem {
  std::vector<Numbers> maps;
  Numbers boxes;
  std::vector<std::int64_t> levels;
  RegionsCall call;
};

Problem make_problem(Rng& rng, int height, int width, int channels, int count, int size) {
  Problem p;
  for (int i = 0; i < kPyramidLevels; ++i) {
    PyramidLevel& level = p.call.levels[i];
    level.stride = 4 << i;
    level.height = std::max(1, height >> i);
    level.width = std::max(1, width >> i);
    p.maps.push_back(normal(rng, product_of({channels, level.height, level.width}), 1.0));
  }
  for (int i = 0; i < kPyramidLevels; ++i)
    p.call.levels[i].cells = p.maps[static_cast<std::size_t>(i)].data();
  std::uniform_real_distribution<float> place(-20.0f,
                                              4.0f * static_cast<float>(std::max(height, width)) + 20.0f);
  for (int i = 0; i < count; ++i) {
    float from_x = place(rng), from_y = place(rng), to_x = place(rng), to_y = place(rng);
    // Sides that are whole cells decide how many samples there are by a comparison with equality.
    if (coin(rng, 0.3)) {
      for (float* v : {&from_x, &from_y, &to_x, &to_y}) *v = 4.0f * std::round(*v / 4.0f);
    }
    // Some are empty, or upside down.
    if (coin(rng, 0.8) && to_x < from_x) std::swap(from_x, to_x);
    if (coin(rng, 0.8) && to_y < from_y) std::swap(from_y, to_y);
    if (coin(rng, 0.1)) to_x = from_x;
    for (const float v : {from_x, from_y, to_x, to_y}) p.boxes.push_back(v);
    p.levels.push_back(pick(rng, -1, kPyramidLevels));
  }
  p.call.channels = channels;
  p.call.count = count;
  p.call.size = size;
  p.call.boxes = p.boxes.data();
  p.call.level = p.levels.data();
  return p;
}

double sample(const PyramidLevel& level, const float* cells, float y, float x) {
  if (!(y >= -1.0f && y <= static_cast<float>(level.height) && x >= -1.0f &&
        x <= static_cast<float>(level.width)))
    return 0.0;
  y = std::max(y, 0.0f);
  x = std::max(x, 0.0f);
  const int top = std::min(static_cast<int>(y), level.height - 1),
            left = std::min(static_cast<int>(x), level.width - 1);
  const int bottom = std::min(top + 1, level.height - 1), right = std::min(left + 1, level.width - 1);
  const double down = bottom == top ? 0.0 : static_cast<double>(y) - top;
  const double across = right == left ? 0.0 : static_cast<double>(x) - left;
  const auto at = [&](int row, int column) {
    return static_cast<double>(cells[static_cast<std::ptrdiff_t>(row) * level.width + column]);
  };
  return (1 - down) * ((1 - across) * at(top, left) + across * at(top, right)) +
         down * ((1 - across) * at(bottom, left) + across * at(bottom, right));
}

// As torchvision's roi_align: aligned, sampling_ratio 0.
std::vector<double> expected(const RegionsCall& call) {
  std::vector<double> result;
  for (int n = 0; n < call.count; ++n) {
    const PyramidLevel& level =
        call.levels[std::min<std::int64_t>(std::max<std::int64_t>(call.level[n], 0), kPyramidLevels - 1)];
    const float scale = 1.0f / static_cast<float>(level.stride);
    const float* const box = call.boxes + 4 * n;
    volatile float begin_x = box[0] * scale - 0.5f, begin_y = box[1] * scale - 0.5f;
    volatile float bin_x = (box[2] * scale - 0.5f - begin_x) / static_cast<float>(call.size);
    volatile float bin_y = (box[3] * scale - 0.5f - begin_y) / static_cast<float>(call.size);
    const bool there = bin_x > 0.0f && bin_y > 0.0f && bin_x <= kMostSamples && bin_y <= kMostSamples;
    const int rows = there ? static_cast<int>(std::ceil(bin_y)) : 0;
    const int columns = there ? static_cast<int>(std::ceil(bin_x)) : 0;
    for (int c = 0; c < call.channels; ++c) {
      const float* const cells = level.cells + static_cast<std::ptrdiff_t>(c) * level.height * level.width;
      for (int i = 0; i < call.size; ++i) {
        for (int j = 0; j < call.size; ++j) {
          double sum = 0.0;
          for (int a = 0; a < rows; ++a) {
            volatile float first_y = static_cast<float>(i) * bin_y;
            volatile float y = begin_y + first_y;
            y = y + (static_cast<float>(a) + 0.5f) * bin_y / static_cast<float>(rows);
            for (int b = 0; b < columns; ++b) {
              volatile float first_x = static_cast<float>(j) * bin_x;
              volatile float x = begin_x + first_x;
              x = x + (static_cast<float>(b) + 0.5f) * bin_x / static_cast<float>(columns);
              sum += sample(level, cells, y, x);
            }
          }
          result.push_back(sum / std::max(rows * columns, 1));
        }
      }
    }
  }
  return result;
}

constexpr float kUntouched = 12345.0f;

void check(const Isa& isa, Problem& p, int threads_count, bool in_turn) {
  RegionsCall& call = p.call;
  const std::size_t numbers = product_of({call.count, call.channels, call.size, call.size});
  // Nothing is written behind the result.
  Numbers out(numbers + 32, kUntouched);
  call.out = out.data();
  Workspace workspace;
  run_regions(isa, call, workspace, in_turn ? one_by_one(threads_count) : threads(threads_count));
  const std::vector<double> wanted = expected(call);
  double worst = 0.0;
  for (std::size_t i = 0; i < numbers; ++i)
    worst = std::max(worst, std::fabs(static_cast<double>(out[i]) - wanted[i]));
  CHECK(worst <= 1e-5, "size %d, %d channels, %d boxes, %dx%d, %d threads: off by %g", call.size,
        call.channels, call.count, call.levels[0].height, call.levels[0].width, threads_count, worst);
  for (std::size_t i = numbers; i < out.size(); ++i)
    CHECK(out[i] == kUntouched, "number %zu behind the result", i);
}

void test_random(const Isa& isa) {
  Rng rng(1);
  for (const int size : {1, 2, 7, 8, 9, 14, 17, 24}) {
    for (int round = 0; round < 4; ++round) {
      Problem p =
          make_problem(rng, pick(rng, 1, 60), pick(rng, 1, 90), pick(rng, 1, 11), pick(rng, 1, 9), size);
      check(isa, p, pick(rng, 1, 3), coin(rng));
    }
  }
}

// What are no boxes gives zeros.
void test_odd_boxes(const Isa& isa) {
  Rng rng(2);
  Problem p = make_problem(rng, 8, 12, 3, 5, 7);
  const float none = std::numeric_limits<float>::quiet_NaN(), far = std::numeric_limits<float>::infinity();
  p.boxes = {none, 0, 8, 8, 0, 0, far, 8, -far, 0, 8, 8, 1e9f, 1e9f, 2e9f, 2e9f, 0, 0, 1e30f, 1e30f};
  p.levels = {0, 0, 1, 2, 3};
  p.call.boxes = p.boxes.data();
  p.call.level = p.levels.data();
  Numbers out(product_of({5, 3, 7, 7}), kUntouched);
  p.call.out = out.data();
  Workspace workspace;
  run_regions(isa, p.call, workspace, threads(1));
  for (const float v : out) CHECK(v == 0.0f, "%g", static_cast<double>(v));
}

// A result does not depend on the number of threads, nor on the boxes beside it.
void test_alone(const Isa& isa) {
  Rng rng(3);
  Problem p = make_problem(rng, 50, 76, 9, 12, 7);
  const std::size_t numbers = product_of({12, 9, 7, 7});
  Numbers together(numbers), alone(numbers);
  Workspace workspace;
  p.call.out = together.data();
  run_regions(isa, p.call, workspace, threads(3));
  RegionsCall one = p.call;
  one.count = 1;
  for (int i = 0; i < 12; ++i) {
    one.boxes = p.call.boxes + 4 * i;
    one.level = p.call.level + i;
    one.out = alone.data() + static_cast<std::size_t>(i) * numbers / 12;
    workspace.reset();
    run_regions(isa, one, workspace, threads(1));
  }
  CHECK(together == alone, "boxes read each other");
}

}  // namespace

int main(int count, char** arguments) {
  const Isa* const isa = count == 2 ? find_isa(arguments[1]) : nullptr;
  if (!isa) {
    std::printf("usage: test_regions_cpu ISA, one that this machine runs\n");
    return count == 2 ? 77 : 2;
  }
  test_random(*isa);
  test_odd_boxes(*isa);
  test_alone(*isa);
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures ? 1 : 0;
}
