// Unit tests of deformable attention against a naive sum over all cells in double. Usage: test_sampling_cpu
// ISA

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <vector>

#include "checks.h"
#include "pools.h"
#include "sampling.h"

namespace {

using namespace dyndeploy::cpu;

using Numbers = std::vector<float>;

struct Problem {
  Numbers value, locations, weights;
  Sampling call;
};

Problem make_problem(Rng& rng, int batch, int heads, int channels, int queries, int levels, int points) {
  Problem p;
  Sampling& s = p.call;
  s.batch = batch;
  s.heads = heads;
  s.channels = channels;
  s.queries = queries;
  s.levels = levels;
  s.points = points;
  for (int level = 0; level < levels; ++level) {
    s.sizes[2 * level] = pick(rng, 1, 7);
    s.sizes[2 * level + 1] = pick(rng, 1, 7);
    s.cells += s.sizes[2 * level] * s.sizes[2 * level + 1];
  }
  p.value = normal(rng, product_of({batch, s.cells, heads, channels}), 1.0);
  const std::size_t samples = product_of({batch, queries, heads, levels, points});
  p.locations = normal(rng, 2 * samples, 0.5, 0.5);
  p.weights = normal(rng, samples, 1.0);
  // Some are far away, or nowhere.
  for (float& v : p.locations) {
    if (coin(rng, 0.01)) v = coin(rng) ? 1e30f : -std::numeric_limits<float>::infinity();
    if (coin(rng, 0.01)) v = std::numeric_limits<float>::quiet_NaN();
  }
  s.value = p.value.data();
  s.locations = p.locations.data();
  s.weights = p.weights.data();
  return p;
}

double tent(double at, int cell) { return std::max(0.0, 1.0 - std::fabs(at - cell)); }

double expected(const Sampling& s, int pair, int channel) {
  const int head = pair % s.heads, image = pair / s.heads / s.queries;
  double sum = 0.0;
  for (int level = 0, first = 0; level < s.levels; ++level) {
    const int height = s.sizes[2 * level], width = s.sizes[2 * level + 1];
    for (int point = 0; point < s.points; ++point) {
      const std::size_t at =
          product_of({pair, s.levels, s.points}) + static_cast<std::size_t>(level * s.points + point);
      const double column = static_cast<double>(s.locations[2 * at]) * width - 0.5;
      const double row = static_cast<double>(s.locations[2 * at + 1]) * height - 0.5;
      for (int cell = 0; cell < height * width; ++cell) {
        const double share = tent(row, cell / width) * tent(column, cell % width);
        if (!(share > 0.0)) continue;
        const std::size_t place = product_of({image * s.cells + first + cell, s.heads, s.channels}) +
                                  static_cast<std::size_t>(head * s.channels + channel);
        sum += share * static_cast<double>(s.weights[at]) * static_cast<double>(s.value[place]);
      }
    }
    first += height * width;
  }
  return sum;
}

constexpr float kUntouched = 12345.0f;

void check(const Isa& isa, Problem& p, int count, bool in_turn) {
  Sampling& s = p.call;
  const std::size_t numbers = product_of({s.batch, s.queries, s.heads, s.channels});
  // Nothing is written behind the result.
  Numbers out(numbers + 32, kUntouched);
  s.out = out.data();
  run_sampling(isa, s, in_turn ? one_by_one(count) : threads(count));
  double worst = 0.0;
  for (std::size_t i = 0; i < numbers; ++i) {
    const int channel = static_cast<int>(i) % s.channels, pair = static_cast<int>(i) / s.channels;
    worst = std::max(worst, std::fabs(static_cast<double>(out[i]) - expected(s, pair, channel)));
  }
  CHECK(worst <= 1e-4, "%d heads of %d channels, %d queries, %d x %d points, %d threads: off by %g", s.heads,
        s.channels, s.queries, s.levels, s.points, count, worst);
  for (std::size_t i = numbers; i < out.size(); ++i)
    CHECK(out[i] == kUntouched, "number %zu behind the result", i);
}

void test_random(const Isa& isa) {
  Rng rng(1);
  for (const int channels : {1, 3, 8, 16, 17, 32, 48, 75, 130}) {
    for (int round = 0; round < 4; ++round) {
      Problem p = make_problem(rng, pick(rng, 1, 2), pick(rng, 1, 3), channels, pick(rng, 1, 70),
                               pick(rng, 1, 4), pick(rng, 1, 4));
      check(isa, p, pick(rng, 1, 3), coin(rng));
    }
  }
  // More samples than are looked up at a time.
  for (const int points : {16, 33, 150}) {
    Problem p = make_problem(rng, 1, 2, 20, 3, 4, points);
    check(isa, p, 1, false);
  }
}

// A result does not depend on the number of threads, nor on the queries beside it.
void test_alone(const Isa& isa) {
  Rng rng(2);
  Problem p = make_problem(rng, 1, 2, 24, 150, 3, 4);
  const std::size_t each = product_of({2, 24}), samples = product_of({2, 3, 4});
  Numbers together(150 * each), alone(150 * each);
  p.call.out = together.data();
  run_sampling(isa, p.call, threads(3));
  Sampling one = p.call;
  one.queries = 1;
  for (std::size_t i = 0; i < 150; ++i) {
    one.locations = p.call.locations + 2 * i * samples;
    one.weights = p.call.weights + i * samples;
    one.out = alone.data() + i * each;
    run_sampling(isa, one, threads(1));
  }
  CHECK(together == alone, "queries read each other");
}

}  // namespace

int main(int count, char** arguments) {
  const Isa* const isa = count == 2 ? find_isa(arguments[1]) : nullptr;
  if (!isa) {
    std::printf("usage: test_sampling_cpu ISA, one that this machine runs\n");
    return count == 2 ? 77 : 2;
  }
  test_random(*isa);
  test_alone(*isa);
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures ? 1 : 0;
}
