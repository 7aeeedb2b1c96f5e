// What all tests of kernels share: checks that are counted, and random numbers.

#pragma once

#include <cstddef>
#include <cstdio>
#include <initializer_list>
#include <random>
#include <vector>

static int failures = 0;
static int checks = 0;

#define CHECK(condition, ...)                                     \
  do {                                                            \
    ++checks;                                                     \
    if (!(condition)) {                                           \
      ++failures;                                                 \
      std::printf("%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::printf(__VA_ARGS__);                                   \
      std::printf("\n");                                          \
    }                                                             \
  } while (false)

using Rng = std::mt19937;

inline int pick(Rng& rng, int low, int high) { return std::uniform_int_distribution<int>(low, high)(rng); }
inline bool coin(Rng& rng, double p = 0.5) { return std::bernoulli_distribution(p)(rng); }

inline std::vector<float> normal(Rng& rng, std::size_t count, double scale, double mean = 0.0) {
  std::normal_distribution<float> distribution(static_cast<float>(mean), static_cast<float>(scale));
  std::vector<float> values(count);
  for (float& v : values) v = distribution(rng);
  return values;
}

inline std::size_t product_of(std::initializer_list<int> sizes) {
  std::size_t product = 1;
  for (const int s : sizes) product *= static_cast<std::size_t>(s);
  return product;
}
