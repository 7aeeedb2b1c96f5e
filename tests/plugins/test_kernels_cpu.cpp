// Unit tests of the CPU kernels against a naive reference in double. Usage: test_kernels_cpu ISA | parts

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "bottleneck.h"
#include "caches.h"
#include "checks.h"
#include "lists.h"
#include "masker.h"
#include "pools.h"

namespace {

using namespace dyndeploy::cpu;

// ------------------------------------------------------------------------------------------------- reference

struct Problem {
  BottleneckLayer layer;
  BottleneckShape shape;
  std::vector<float> w1, b1, w2, b2, w3, b3, wd, bd, squeeze, squeeze_bias, excite, excite_bias, x;
  std::vector<float> spatial_mask, channel_mask;  // empty: none
  int mask_height = 0, mask_width = 0, channel_groups = 0;

  BottleneckWeights weights() const {
    BottleneckWeights w;
    w.w1 = w1.data();
    w.b1 = b1.data();
    w.w2 = w2.data();
    w.b2 = b2.data();
    w.w3 = w3.data();
    w.b3 = b3.data();
    w.wd = layer.projection ? wd.data() : nullptr;
    w.bd = layer.projection ? bd.data() : nullptr;
    w.squeeze = squeeze.data();
    w.squeeze_bias = squeeze_bias.data();
    w.excite = excite.data();
    w.excite_bias = excite_bias.data();
    return w;
  }
  std::size_t outputs() const {
    return product_of({shape.batch, shape.out_height, shape.out_width, layer.outputs});
  }
};

// To the nearest of 8 significant bits, ties to even.
double rounded_to_bf16(double value) {
  int exponent = 0;
  const double fraction = std::frexp(value, &exponent);
  return std::ldexp(std::nearbyint(std::ldexp(fraction, 8)), exponent - 8);
}

// bf16: weights, and what each convolution reads, are rounded to BF16; nothing else is. Narrow groups and
// squeeze-excites are computed in floats.
std::vector<double> reference(const Problem& original, bool bf16) {
  Problem p = original;
  const BottleneckLayer& l = p.layer;
  const BottleneckShape& s = p.shape;
  const int C = l.inputs, M = l.middle, Co = l.outputs, width = M / l.groups;
  const bool narrow = l.groups > 1 && width <= kMaxGroupOutputs && (l.zero_skipped || p.channel_mask.empty());
  const auto round = [bf16](double v) { return bf16 ? rounded_to_bf16(v) : v; };
  for (std::vector<float>* weights : {&p.w1, &p.w2, &p.w3, &p.wd}) {
    if (weights == &p.w2 && narrow) continue;
    for (float& w : *weights) w = static_cast<float>(round(w));
  }
  std::vector<double> y(p.outputs());
  for (int n = 0; n < s.batch; ++n) {
    std::vector<double> keep(static_cast<std::size_t>(M), 1.0);
    if (p.channel_groups) {
      for (int c = 0; c < M; ++c)
        keep[c] = p.channel_mask[static_cast<std::size_t>(n) * p.channel_groups + c / (M / p.channel_groups)];
    }
    // Where some channels are skipped, activations are kept as the difference from a skipped channel's
    // constant.
    const double kept = std::accumulate(keep.begin(), keep.end(), 0.0);
    const bool difference = kept > 0 && kept < M && !l.zero_skipped;
    const auto stored = [&](double v, float bias, bool rounds = true) {
      const double constant = difference ? std::max(0.0f, bias) : 0.0;
      return rounds ? round(v - constant) + constant : v;
    };
    const auto masked = [&](double z, float bias, double on) {
      return l.zero_skipped ? on * std::max(0.0, z + bias) : std::max(0.0, on * z + bias);
    };
    const auto is_active = [&](int oy, int ox) {
      if (p.spatial_mask.empty()) return true;
      const int i = oy * p.mask_height / s.out_height, j = ox * p.mask_width / s.out_width;
      return p.spatial_mask[product_of({n, p.mask_height, p.mask_width}) + i * p.mask_width + j] > 0.5f;
    };
    const float* x = p.x.data() + product_of({n, s.height, s.width, C});
    std::vector<double> h1(product_of({s.height, s.width, M}));
    for (int i = 0; i < s.height * s.width; ++i) {
      for (int m = 0; m < M; ++m) {
        double z = 0.0;
        for (int c = 0; c < C; ++c)
          z += double{p.w1[static_cast<std::size_t>(m) * C + c]} * round(x[i * C + c]);
        h1[static_cast<std::size_t>(i) * M + m] = stored(masked(z, p.b1[m], keep[m]), p.b1[m], !narrow);
      }
    }
    std::vector<double> h2(product_of({s.out_height, s.out_width, M})), means(static_cast<std::size_t>(M));
    int pixels = 0;
    for (int oy = 0; oy < s.out_height; ++oy) {
      for (int ox = 0; ox < s.out_width; ++ox) {
        if (!is_active(oy, ox) && !(l.squeeze && l.dense_mean)) continue;
        ++pixels;
        for (int m = 0; m < M; ++m) {
          double z = 0.0;
          for (int t = 0; t < 9; ++t) {
            const int iy = oy * l.stride + (t / 3 - 1) * l.dilation,
                      ix = ox * l.stride + (t % 3 - 1) * l.dilation;
            if (iy < 0 || iy >= s.height || ix < 0 || ix >= s.width) continue;
            for (int c = 0; c < width; ++c) {
              z += double{p.w2[(static_cast<std::size_t>(m) * width + c) * 9 + t]} *
                   h1[(static_cast<std::size_t>(iy) * s.width + ix) * M + m / width * width + c];
            }
          }
          const double v = stored(masked(z, p.b2[m], keep[m]), p.b2[m], !l.squeeze);
          h2[(static_cast<std::size_t>(oy) * s.out_width + ox) * M + m] = v;
          means[m] += v;
        }
      }
    }
    std::vector<double> factors(static_cast<std::size_t>(M), 1.0);
    if (l.squeeze) {
      std::vector<double> hidden(p.squeeze_bias.begin(), p.squeeze_bias.end());
      for (int i = 0; i < l.squeeze; ++i) {
        for (int m = 0; m < M; ++m)
          hidden[i] +=
              double{p.squeeze[static_cast<std::size_t>(i) * M + m]} * means[m] / std::max(pixels, 1);
      }
      for (int m = 0; m < M; ++m) {
        double z = p.excite_bias[m];
        for (int i = 0; i < l.squeeze; ++i)
          z += p.excite[static_cast<std::size_t>(m) * l.squeeze + i] * std::max(0.0, hidden[i]);
        factors[m] = 1.0 / (1.0 + std::exp(-z));
      }
    }
    for (int oy = 0; oy < s.out_height; ++oy) {
      for (int ox = 0; ox < s.out_width; ++ox) {
        const double* const row = h2.data() + (static_cast<std::size_t>(oy) * s.out_width + ox) * M;
        for (int o = 0; o < Co; ++o) {
          const float* centre = x + (static_cast<std::size_t>(oy) * l.stride * s.width + ox * l.stride) * C;
          double v = l.projection ? p.bd[o] : centre[o];
          for (int c = 0; c < C && l.projection; ++c)
            v += double{p.wd[static_cast<std::size_t>(o) * C + c]} * round(centre[c]);
          if (is_active(oy, ox)) {
            v += p.b3[o];
            for (int m = 0; m < M; ++m) {
              const double h = l.squeeze ? round(row[m] * factors[m]) : row[m];
              v += p.w3[static_cast<std::size_t>(o) * M + m] * h;
            }
          }
          y[product_of({n, s.out_height, s.out_width, Co}) +
            (static_cast<std::size_t>(oy) * s.out_width + ox) * Co + o] = std::max(0.0, v);
        }
      }
    }
  }
  return y;
}

// -------------------------------------------------------------------------------------------------- problems

enum class Masks { kNone, kSpatial, kLayer, kChannel, kBoth };

Problem make_problem(Rng& rng, BottleneckLayer layer, int batch, int height, int width, Masks masks,
                     double rate) {
  Problem p;
  p.layer = layer;
  p.shape = bottleneck_shape(layer, batch, height, width);
  const int C = layer.inputs, M = layer.middle, Co = layer.outputs, group = M / layer.groups;
  p.w1 = normal(rng, product_of({M, C}), 1 / std::sqrt(C));
  p.b1 = normal(rng, product_of({M}), 0.5);
  p.w2 = normal(rng, product_of({M, group, 9}), 1 / std::sqrt(9.0 * group));
  p.b2 = normal(rng, product_of({M}), 0.5);
  p.w3 = normal(rng, product_of({Co, M}), 1 / std::sqrt(M));
  p.b3 = normal(rng, product_of({Co}), 0.5);
  if (layer.projection) {
    p.wd = normal(rng, product_of({Co, C}), 1 / std::sqrt(C));
    p.bd = normal(rng, product_of({Co}), 0.5);
  }
  if (layer.squeeze) {
    p.squeeze = normal(rng, product_of({layer.squeeze, M}), 1 / std::sqrt(M));
    p.squeeze_bias = normal(rng, product_of({layer.squeeze}), 0.5);
    p.excite = normal(rng, product_of({M, layer.squeeze}), 1 / std::sqrt(layer.squeeze));
    p.excite_bias = normal(rng, product_of({M}), 0.5);
  }
  p.x = normal(rng, product_of({batch, height, width, C}), 1.0);
  for (float& v : p.x) v = std::fabs(v);
  if (masks == Masks::kSpatial || masks == Masks::kBoth || masks == Masks::kLayer) {
    const bool layer_mask = masks == Masks::kLayer;
    p.mask_height = layer_mask ? 1 : pick(rng, 1, p.shape.out_height);
    p.mask_width = layer_mask ? 1 : pick(rng, 1, p.shape.out_width);
    p.spatial_mask.resize(product_of({batch, p.mask_height, p.mask_width}));
    for (float& v : p.spatial_mask) v = coin(rng, rate) ? 1.0f : 0.0f;
  }
  if (masks == Masks::kChannel || masks == Masks::kBoth) {
    std::vector<int> divisors;
    for (int d = 1; d <= M; ++d) {
      if (M % d == 0) divisors.push_back(d);
    }
    p.channel_groups =
        divisors[static_cast<std::size_t>(pick(rng, 0, static_cast<int>(divisors.size()) - 1))];
    p.channel_mask.resize(product_of({batch, p.channel_groups}));
    for (float& v : p.channel_mask) v = coin(rng, rate) ? 1.0f : 0.0f;
  }
  return p;
}

std::vector<float> run(const Isa& isa, const Problem& p, const ThreadPool& pool, bool in_place,
                       Workspace& workspace) {
  Arena arena(0);  // exact buffers, so that the sanitizers see what is read beyond them
  // As a graph tells it, or not.
  const BottleneckShape expected = p.shape.height % 2 ? p.shape : BottleneckShape{};
  const PackedBottleneck packed(isa, p.layer, p.weights(), p.channel_groups > 0, expected, arena);
  std::vector<float> y = in_place ? p.x : std::vector<float>(p.outputs(), std::nanf(""));
  BottleneckCall call;
  call.weights = &packed;
  call.shape = p.shape;
  call.x = in_place ? y.data() : p.x.data();
  call.y = y.data();
  call.spatial_mask = p.spatial_mask.empty() ? nullptr : p.spatial_mask.data();
  call.mask_height = p.mask_height;
  call.mask_width = p.mask_width;
  call.channel_mask = p.channel_groups ? p.channel_mask.data() : nullptr;
  call.channel_groups = p.channel_groups;
  workspace.reset();
  run_bottleneck(call, workspace, pool);
  return y;
}

std::string describe(const Problem& p, double rate) {
  char text[256];
  std::snprintf(text, sizeof text,
                "C %d M %d Co %d stride %d dilation %d groups %d projection %d, %dx%dx%d, masks %dx%d, %d "
                "groups, zero %d, squeeze %d, dense mean %d, rate %.2f",
                p.layer.inputs, p.layer.middle, p.layer.outputs, p.layer.stride, p.layer.dilation,
                p.layer.groups, p.layer.projection, p.shape.batch, p.shape.height, p.shape.width,
                p.mask_height, p.mask_width, p.channel_groups, p.layer.zero_skipped, p.layer.squeeze,
                p.layer.dense_mean, rate);
  return text;
}

// tolerance: relative to the largest output.
void check_problem(const Isa& isa, const Problem& p, double rate, Workspace& workspace, double tolerance) {
  const std::vector<double> expected = reference(p, isa.inputs_per_row == 2);
  double scale = 1.0;
  for (const double v : expected) scale = std::max(scale, v);
  // A workspace that has seen nothing yet keeps every piece in a buffer of its own, where AddressSanitizer
  // watches it.
  Workspace fresh;
  const std::vector<float> single = run(isa, p, threads(1), false, fresh);
  double worst = 0.0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double error = std::fabs(single[i] - expected[i]);
    worst = error > worst || std::isnan(error) ? error : worst;
    if (std::isnan(error)) break;
  }
  CHECK(worst <= tolerance * scale, "error %g at scale %g: %s", worst, scale, describe(p, rate).c_str());
  // The same sums in the same order, whoever computes them.
  const std::size_t bytes = single.size() * sizeof(float);
  const auto same = [&](const std::vector<float>& other) {
    return std::memcmp(single.data(), other.data(), bytes) == 0;
  };
  Workspace other_fresh;
  CHECK(same(run(isa, p, threads(3), false, other_fresh)), "3 threads: %s", describe(p, rate).c_str());
  CHECK(same(run(isa, p, one_by_one(5), false, workspace)), "5 workers, one thread: %s",
        describe(p, rate).c_str());
  if (!p.layer.projection) {
    CHECK(same(run(isa, p, threads(2), true, workspace)), "in place: %s", describe(p, rate).c_str());
  }
}

void test_pack(const Isa& isa) {
  Rng rng(7);
  const int PW = isa.panel_width;
  for (int round = 0; round < 40; ++round) {
    PackSource source;
    source.taps = coin(rng) ? 1 : 9;
    source.inputs = pick(rng, 1, 40);
    source.outputs = pick(rng, 1, 3 * PW);
    const int panels = (source.outputs + PW - 1) / PW, begin = pick(rng, 0, panels - 1);
    const std::vector<float> weights =
        normal(rng, product_of({source.outputs, source.inputs, source.taps}), 1.0);
    source.weights = weights.data();
    const int per_row = isa.inputs_per_row, tap_rows = (source.inputs + per_row - 1) / per_row;
    const std::size_t panel = product_of({source.taps, tap_rows, PW});
    constexpr float kUntouched = 1e30f;
    std::vector<float> packed(panel * static_cast<std::size_t>(panels), kUntouched);
    isa.pack(source, begin, panels, packed.data());
    bool equal = true;
    for (std::size_t i = 0; i < packed.size(); ++i) {
      const int p = static_cast<int>(i / panel), n = p * PW + static_cast<int>(i % PW);
      const int row = static_cast<int>(i % panel) / PW, tap = row / tap_rows;
      const auto weight = [&](int input) {
        return n < source.outputs && input < source.inputs
                   ? weights[product_of({n, source.inputs, source.taps}) +
                             static_cast<std::size_t>(input * source.taps + tap)]
                   : 0.0f;
      };
      if (p < begin) {
        equal = equal && packed[i] == kUntouched;
      } else if (per_row == 1) {
        equal = equal && packed[i] == weight(row % tap_rows);
      } else {
        std::uint32_t pair;
        std::memcpy(&pair, &packed[i], sizeof pair);
        for (int half = 0; half < 2; ++half) {
          const std::uint32_t bits = half ? pair & 0xffff0000u : pair << 16;
          float value;
          std::memcpy(&value, &bits, sizeof value);
          equal = equal && value == rounded_to_bf16(weight(2 * (row % tap_rows) + half));
        }
      }
    }
    CHECK(equal, "%d x %d x %d", source.outputs, source.inputs, source.taps);
  }
}

// An intermediate value next to the middle of two BF16 numbers may be rounded to the other one than in the
// reference, which changes it by 2^-8; see test_exact() for a test without tolerance.
double tolerance_of(const Isa& isa) { return isa.inputs_per_row == 2 ? 4e-3 : 2e-5; }

void test_bottlenecks(const Isa& isa) {
  Rng rng(7);
  Workspace workspace;
  for (int i = 0; i < 360; ++i) {
    BottleneckLayer layer;
    layer.projection = coin(rng);
    layer.groups = coin(rng, 0.6) ? 1 : pick(rng, 2, 4);
    layer.middle = layer.groups * pick(rng, 1, layer.groups > 1 ? 20 : 70);
    layer.inputs = pick(rng, 1, 80);
    layer.outputs = layer.projection ? pick(rng, 1, 120) : layer.inputs;
    layer.stride = layer.projection ? pick(rng, 1, 2) : 1;
    layer.dilation = pick(rng, 1, 3);
    layer.zero_skipped = i % 2;
    if (i % 3 == 0) {
      layer.groups = pick(rng, 1, 4);
      static constexpr int kRegNets[] = {8, 16, 24, 56, 112};
      layer.middle = layer.groups * (coin(rng) ? kRegNets[pick(rng, 0, 4)] : pick(rng, 1, 40));
      layer.squeeze = i % 6 ? pick(rng, 1, 20) : 0;
      layer.dense_mean = coin(rng);
    }
    static constexpr Masks kMasks[] = {Masks::kNone, Masks::kSpatial, Masks::kLayer, Masks::kChannel,
                                       Masks::kBoth};
    static constexpr double kRates[] = {0.0, 0.1, 0.5, 0.9, 1.0};
    const double rate = kRates[pick(rng, 0, 4)];
    check_problem(
        isa,
        make_problem(rng, layer, pick(rng, 1, 3), pick(rng, 1, 13), pick(rng, 1, 13), kMasks[i % 5], rate),
        rate, workspace, tolerance_of(isa));
  }
}

// Numbers of so few bits that every product and every sum is exact: whatever the order of the sums, results
// have to be those of the reference to the last bit. Rounding to BF16 remains, ties included.
void test_exact(const Isa& isa) {
  Rng rng(19);
  Workspace workspace;
  for (int i = 0; i < 100; ++i) {
    BottleneckLayer layer;
    layer.projection = coin(rng);
    layer.groups = coin(rng, 0.7) ? 1 : 3;
    layer.middle = layer.groups * pick(rng, 1, layer.groups > 1 ? 15 : 70);
    layer.inputs = i % 10 ? pick(rng, 1, 90) : pick(rng, 1100, 1300);
    layer.outputs = layer.projection ? pick(rng, 1, 90) : layer.inputs;
    layer.stride = layer.projection ? pick(rng, 1, 2) : 1;
    static constexpr Masks kMasks[] = {Masks::kNone, Masks::kSpatial, Masks::kChannel, Masks::kBoth};
    const int side = i % 10 ? 9 : 3;
    Problem p =
        make_problem(rng, layer, pick(rng, 1, 2), pick(rng, 1, side), pick(rng, 1, side), kMasks[i % 4], 0.5);
    const auto quarters = [&](std::vector<float>& values, int most) {
      for (float& v : values) v = static_cast<float>(pick(rng, -most, most)) / 4;
    };
    for (std::vector<float>* weights : {&p.w1, &p.w2, &p.w3, &p.wd}) quarters(*weights, 2);
    for (std::vector<float>* biases : {&p.b1, &p.b2, &p.b3, &p.bd}) quarters(*biases, 8);
    // 10 bits, more than BF16 keeps; never negative, like the output of the block before.
    for (float& v : p.x) v = static_cast<float>(pick(rng, 0, 1000)) / 64;
    check_problem(isa, p, 0.5, workspace, 0.0);
  }
}

// Sizes that take every path: weights beyond a chunk and beyond L2, more rows than one block, sliced copies,
// rows so many that active channels are copied first.
void test_large(const Isa& isa) {
  Rng rng(11);
  Workspace workspace;
  struct Size {
    int inputs, middle, outputs, height, width;
    bool projection;
    int stride;
  };
  static constexpr Size kSizes[] = {{700, 200, 700, 5, 6, false, 1},
                                    {64, 16, 64, 17, 19, false, 1},
                                    {300, 150, 610, 9, 7, true, 2},
                                    {1300, 24, 40, 3, 3, true, 1},
                                    {100, 130, 100, 31, 30, false, 1}};
  for (const Size& size : kSizes) {
    for (const Masks masks : {Masks::kSpatial, Masks::kChannel, Masks::kBoth}) {
      BottleneckLayer layer;
      layer.inputs = size.inputs;
      layer.middle = size.middle;
      layer.outputs = size.outputs;
      layer.projection = size.projection;
      layer.stride = size.stride;
      check_problem(isa, make_problem(rng, layer, 1, size.height, size.width, masks, 0.6), 0.6, workspace,
                    tolerance_of(isa));
    }
  }
}

// Masks that keep no pixel, no channel, or neither, and masks of other numbers than 0 and 1: active where >
// 0.5.
void test_unusual_masks(const Isa& isa) {
  Rng rng(17);
  Workspace workspace;
  const float inf = std::numeric_limits<float>::infinity();
  const float values[] = {std::nanf(""), -1.0f, 0.0f, 0.3f, 0.5f, std::nextafter(0.5f, 1.0f),
                          0.7f,          1.0f,  2.0f, inf,  -inf};
  for (int i = 0; i < 60; ++i) {
    BottleneckLayer layer;
    layer.projection = i % 2;
    layer.middle = pick(rng, 1, 70);
    layer.inputs = pick(rng, 1, 70);
    layer.outputs = layer.projection ? pick(rng, 1, 70) : layer.inputs;
    layer.stride = layer.projection ? pick(rng, 1, 2) : 1;
    static constexpr Masks kMasks[] = {Masks::kSpatial, Masks::kLayer, Masks::kChannel, Masks::kBoth,
                                       Masks::kBoth};
    Problem p =
        make_problem(rng, layer, pick(rng, 1, 3), pick(rng, 1, 9), pick(rng, 1, 9), kMasks[i % 5], 1.0);
    if (i < 20) {
      // Of both masks, each in turn alone.
      if (i % 5 != 3) std::fill(p.spatial_mask.begin(), p.spatial_mask.end(), 0.0f);
      if (i % 5 != 4) std::fill(p.channel_mask.begin(), p.channel_mask.end(), 0.0f);
      check_problem(isa, p, 0.0, workspace, tolerance_of(isa));
      continue;
    }
    Problem exact = p;
    const auto draw = [&](std::vector<float>& odd, std::vector<float>& bits) {
      for (std::size_t k = 0; k < odd.size(); ++k) {
        odd[k] = values[pick(rng, 0, 10)];
        bits[k] = odd[k] > 0.5f ? 1.0f : 0.0f;
      }
    };
    draw(p.spatial_mask, exact.spatial_mask);
    draw(p.channel_mask, exact.channel_mask);
    const std::vector<float> y = run(isa, p, threads(1), false, workspace);
    const std::vector<float> expected = run(isa, exact, threads(1), false, workspace);
    CHECK(std::memcmp(y.data(), expected.data(), y.size() * sizeof(float)) == 0, "%s",
          describe(p, -1).c_str());
  }
}

// All that the caller hands over begins 4 bytes behind a cache line.
void test_unaligned(const Isa& isa) {
  Rng rng(23);
  for (int i = 0; i < 20; ++i) {
    BottleneckLayer layer;
    layer.projection = coin(rng);
    layer.groups = i % 3 ? 1 : 2;
    layer.middle = layer.groups * pick(rng, 1, 40);
    layer.inputs = pick(rng, 1, 70);
    layer.outputs = layer.projection ? pick(rng, 1, 70) : layer.inputs;
    static constexpr Masks kMasks[] = {Masks::kNone, Masks::kSpatial, Masks::kLayer, Masks::kChannel,
                                       Masks::kBoth};
    const Problem p = make_problem(rng, layer, 2, pick(rng, 1, 9), pick(rng, 1, 9), kMasks[i % 5], 0.5);
    Workspace workspace;
    const std::vector<float> expected = run(isa, p, threads(2), false, workspace);

    std::vector<std::vector<float>> kept;
    const auto moved = [&](const std::vector<float>& values) -> float* {
      if (values.empty()) return nullptr;
      kept.emplace_back(values.size() + 32);
      const auto at = reinterpret_cast<std::uintptr_t>(kept.back().data());
      float* to = kept.back().data() + (64 - at % 64) / sizeof(float) + 1;
      std::copy(values.begin(), values.end(), to);
      return to;
    };
    kept.reserve(16);  // so that none moves
    BottleneckWeights weights;
    weights.w1 = moved(p.w1);
    weights.b1 = moved(p.b1);
    weights.w2 = moved(p.w2);
    weights.b2 = moved(p.b2);
    weights.w3 = moved(p.w3);
    weights.b3 = moved(p.b3);
    weights.wd = moved(p.wd);
    weights.bd = moved(p.bd);
    Arena arena(0);
    const PackedBottleneck packed(isa, p.layer, weights, p.channel_groups > 0, BottleneckShape{}, arena);
    BottleneckCall call;
    call.weights = &packed;
    call.shape = p.shape;
    call.x = moved(p.x);
    call.y = moved(std::vector<float>(p.outputs(), std::nanf("")));
    call.spatial_mask = moved(p.spatial_mask);
    call.mask_height = p.mask_height;
    call.mask_width = p.mask_width;
    call.channel_mask = moved(p.channel_mask);
    call.channel_groups = p.channel_groups;
    CHECK(reinterpret_cast<std::uintptr_t>(call.x) % 64 == 4, "the test's own copies");
    workspace.reset();
    run_bottleneck(call, workspace, threads(2));
    CHECK(std::memcmp(call.y, expected.data(), expected.size() * sizeof(float)) == 0, "%s",
          describe(p, 0.5).c_str());
  }
}

void test_maskers(const Isa& isa) {
  Rng rng(13);
  Workspace workspace;
  for (int i = 0; i < 60; ++i) {
    const int batch = pick(rng, 1, 3), height = pick(rng, 1, 12), width = pick(rng, 1, 12),
              C = pick(rng, 1, 150);
    const int groups = pick(rng, 1, 3), mh = pick(rng, 1, height), mw = pick(rng, 1, width);
    const std::vector<float> x = normal(rng, product_of({batch, height, width, C}), 1.0);
    const std::vector<float> weight = normal(rng, product_of({groups, C}), 1.0),
                             bias = normal(rng, product_of({groups}), 0.1);
    const MaskerInput input{x.data(), batch, height, width, C};
    std::vector<float> mask(product_of({batch, groups, mh, mw}), -1.0f);
    run_spatial_masker(isa, input, weight.data(), bias.data(), groups, mh, mw, mask.data(), threads(3));
    for (std::size_t at = 0; at < mask.size(); ++at) {
      const int j = static_cast<int>(at) % mw, k = static_cast<int>(at) / mw % mh;
      const int g = static_cast<int>(at) / (mw * mh) % groups, n = static_cast<int>(at) / (mw * mh * groups);
      const int y0 = k * height / mh, y1 = ((k + 1) * height + mh - 1) / mh;
      const int x0 = j * width / mw, x1 = ((j + 1) * width + mw - 1) / mw;
      double sum = 0.0;
      for (int yy = y0; yy < y1; ++yy) {
        for (int xx = x0; xx < x1; ++xx) {
          for (int c = 0; c < C; ++c)
            sum += double{x[product_of({n, height, width, C}) +
                            static_cast<std::size_t>((yy * width + xx) * C + c)]} *
                   weight[static_cast<std::size_t>(g * C + c)];
        }
      }
      const double logit = sum / ((y1 - y0) * (x1 - x0)) + bias[static_cast<std::size_t>(g)];
      if (std::fabs(logit) > 1e-4)
        CHECK(mask[at] == (logit >= 0 ? 1.0f : 0.0f), "spatial masker, logit %g", logit);
    }

    const bool with_hidden = coin(rng);
    const int hidden = pick(rng, 1, 20), features = with_hidden ? hidden : C, G = pick(rng, 1, 40);
    const std::vector<float> hw = normal(rng, product_of({hidden, C}), 1.0),
                             hb = normal(rng, product_of({hidden}), 0.1);
    const std::vector<float> w = normal(rng, product_of({G, features}), 1.0),
                             b = normal(rng, product_of({G}), 0.1);
    ChannelMaskerWeights weights;
    weights.hidden_weight = with_hidden ? hw.data() : nullptr;
    weights.hidden_bias = hb.data();
    weights.hidden = hidden;
    weights.weight = w.data();
    weights.bias = b.data();
    weights.groups = G;
    std::vector<float> channel(product_of({batch, G}), -1.0f);
    workspace.reset();
    run_channel_masker(isa, input, weights, channel.data(), workspace, threads(2));
    for (int n = 0; n < batch; ++n) {
      std::vector<double> f(static_cast<std::size_t>(C));
      for (int q = 0; q < height * width; ++q) {
        for (int c = 0; c < C; ++c)
          f[static_cast<std::size_t>(c)] +=
              x[product_of({n, height, width, C}) + static_cast<std::size_t>(q * C + c)] /
              double(height * width);
      }
      if (with_hidden) {
        std::vector<double> h(static_cast<std::size_t>(hidden));
        for (int q = 0; q < hidden; ++q) {
          double sum = hb[static_cast<std::size_t>(q)];
          for (int c = 0; c < C; ++c)
            sum += hw[static_cast<std::size_t>(q * C + c)] * f[static_cast<std::size_t>(c)];
          h[static_cast<std::size_t>(q)] = std::max(0.0, sum);
        }
        f = h;
      }
      for (int g = 0; g < G; ++g) {
        double logit = b[static_cast<std::size_t>(g)];
        for (int q = 0; q < features; ++q)
          logit += w[static_cast<std::size_t>(g * features + q)] * f[static_cast<std::size_t>(q)];
        if (std::fabs(logit) > 1e-4) {
          CHECK(channel[static_cast<std::size_t>(n * G + g)] == (logit >= 0 ? 1.0f : 0.0f),
                "channel masker, logit %g", logit);
        }
      }
    }
  }
  // A tie keeps the patch.
  const std::vector<float> zero(16, 0.0f);
  float mask = 0.0f;
  run_spatial_masker(isa, {zero.data(), 1, 2, 2, 4}, zero.data(), zero.data(), 1, 1, 1, &mask, threads(1));
  CHECK(mask == 1.0f, "a logit of exactly zero");
}

// Sums of bytes are exact: also of more pixels than 16 bits hold.
void test_byte_sums(const Isa& isa) {
  Rng rng(29);
  for (int i = 0; i < 60; ++i) {
    const bool bright = coin(rng, 0.3);
    const int rows = pick(rng, 1, bright ? 40 : 7), columns = pick(rng, 1, bright ? 40 : 9),
              C = pick(rng, 1, 200);
    const std::ptrdiff_t pixel = C + pick(rng, 0, 5), row = columns * pixel + pick(rng, 0, 70);
    std::vector<std::uint8_t> x(static_cast<std::size_t>(rows * row));
    for (std::uint8_t& v : x) v = static_cast<std::uint8_t>(bright ? 255 : pick(rng, 0, 255));
    std::vector<float> sums(static_cast<std::size_t>(C) + 1, -7.0f),
        weight = normal(rng, static_cast<std::size_t>(C), 1.0);
    ByteSums s;
    s.x = x.data();
    s.row_stride = row;
    s.pixel_stride = pixel;
    s.rows = rows;
    s.columns = columns;
    s.channels = C;
    s.sums = sums.data();
    isa.byte_sums(s);
    double dot = 0.0, size = 0.0;
    for (int c = 0; c < C; ++c) {
      int expected = 0;
      for (int at = 0; at < rows * columns; ++at)
        expected += x[static_cast<std::size_t>(at / columns * row + at % columns * pixel + c)];
      CHECK(sums[static_cast<std::size_t>(c)] == static_cast<float>(expected), "channel %d of %d: %g, not %d",
            c, C, sums[static_cast<std::size_t>(c)], expected);
      dot += expected * double{weight[static_cast<std::size_t>(c)]};
      size += expected * std::fabs(double{weight[static_cast<std::size_t>(c)]});
    }
    CHECK(sums.back() == -7.0f, "nothing behind the last channel is written");
    const float found = isa.byte_dot({x.data(), row, pixel, rows, columns, weight.data(), C});
    CHECK(std::fabs(found - dot) <= 1e-5 * size + 1e-30, "%g, not %g", found, dot);
  }
}

// With small whole weights floats are exact as well: the same decisions, ties included.
void test_byte_maskers(const Isa& isa) {
  Rng rng(31);
  Workspace workspace;
  const auto whole = [&](std::size_t count, int low, int high) {
    std::vector<float> values(count);
    for (float& v : values) v = static_cast<float>(pick(rng, low, high));
    return values;
  };
  int kept = 0, all = 0;
  for (int i = 0; i < 60; ++i) {
    const int batch = pick(rng, 1, 3), height = pick(rng, 1, 12), width = pick(rng, 1, 12),
              C = pick(rng, 1, 150);
    const int groups = pick(rng, 1, 3), mh = pick(rng, 1, height), mw = pick(rng, 1, width);
    const std::vector<float> x = whole(product_of({batch, height, width, C}), 0, 255);
    const std::vector<std::uint8_t> bytes(x.begin(), x.end());
    const MaskerInput floats{x.data(), batch, height, width, C};
    const ByteMaskerInput input{bytes.data(), batch, height, width, C};
    const std::vector<float> weight = whole(product_of({groups, C}), -3, 3),
                             bias = whole(product_of({groups}), -200, 200);
    std::vector<float> expected(product_of({batch, groups, mh, mw}), -1.0f), found = expected;
    workspace.reset();
    run_spatial_masker(isa, floats, weight.data(), bias.data(), groups, mh, mw, expected.data(), threads(1));
    run_spatial_masker(isa, input, weight.data(), bias.data(), groups, mh, mw, found.data(), workspace,
                       threads(3));
    CHECK(found == expected, "spatial: %d x %d of %d x %d, %d channels", mh, mw, height, width, C);
    for (const float v : found) kept += v == 1.0f;
    all += static_cast<int>(found.size());

    const int hidden = pick(rng, 1, 20), G = pick(rng, 1, 40);
    const bool with_hidden = coin(rng);
    const std::size_t features = static_cast<std::size_t>(with_hidden ? hidden : C);
    const std::vector<float> hw = whole(product_of({hidden, C}), -3, 3),
                             hb = whole(product_of({hidden}), -9, 9);
    const std::vector<float> w = whole(static_cast<std::size_t>(G) * features, -3, 3),
                             b = whole(product_of({G}), -9, 9);
    ChannelMaskerWeights weights;
    weights.hidden_weight = with_hidden ? hw.data() : nullptr;
    weights.hidden_bias = hb.data();
    weights.hidden = hidden;
    weights.weight = w.data();
    weights.bias = b.data();
    weights.groups = G;
    std::vector<float> channel(product_of({batch, G}), -1.0f), channel_found = channel;
    workspace.reset();
    run_channel_masker(isa, floats, weights, channel.data(), workspace, threads(1));
    run_channel_masker(isa, input, weights, channel_found.data(), workspace, threads(2));
    CHECK(channel_found == channel, "channel: %d groups of %d x %d, %d channels", G, height, width, C);
  }
  CHECK(kept > all / 10 && kept < all - all / 10, "%d of %d patches are kept", kept, all);
}

// ----------------------------------------------------------------------------------------------------- parts

void test_lists() {
  Rng rng(3);
  Workspace workspace;
  for (int i = 0; i < 300; ++i) {
    BottleneckLayer layer;
    layer.stride = pick(rng, 1, 3);
    layer.dilation = pick(rng, 1, 3);
    const BottleneckShape s = bottleneck_shape(layer, pick(rng, 1, 3), pick(rng, 1, 14), pick(rng, 1, 14));
    const int mh = pick(rng, 1, s.out_height), mw = pick(rng, 1, s.out_width);
    std::vector<float> mask(product_of({s.batch, mh, mw}));
    for (float& v : mask) v = coin(rng, 0.4) ? 1.0f : 0.0f;
    workspace.reset();
    ListOptions options;
    options.inactive = true;
    options.tiles = layer.stride == 1 && layer.dilation == 1 && coin(rng);
    const PixelLists lists = make_lists(layer, s, mask.data(), mh, mw, options, workspace);
    for (int n = 0; n < s.batch; ++n) {
      std::set<int> active, dilated, inactive;
      for (int y = 0; y < s.out_height; ++y) {
        for (int x = 0; x < s.out_width; ++x) {
          const int out = (n * s.out_height + y) * s.out_width + x;
          if (mask[product_of({n, mh, mw}) +
                   static_cast<std::size_t>(y * mh / s.out_height * mw + x * mw / s.out_width)] <= 0.5f) {
            inactive.insert(out);
            continue;
          }
          active.insert(out);
          for (int t = 0; t < 9; ++t) {
            const int iy = y * layer.stride + (t / 3 - 1) * layer.dilation,
                      ix = x * layer.stride + (t % 3 - 1) * layer.dilation;
            if (iy >= 0 && iy < s.height && ix >= 0 && ix < s.width)
              dilated.insert((n * s.height + iy) * s.width + ix);
          }
        }
      }
      const auto equal = [&](const std::set<int>& expected, const std::int32_t* list,
                             const std::int32_t* begin) {
        std::vector<int> found(list + begin[n], list + begin[n + 1]);
        if (options.tiles) std::sort(found.begin(), found.end());
        return std::vector<int>(expected.begin(), expected.end()) == found;
      };
      CHECK(equal(active, lists.active, lists.active_begin), "active");
      CHECK(equal(dilated, lists.dilated, lists.dilated_begin), "dilated");
      CHECK(equal(inactive, lists.inactive, lists.inactive_begin), "inactive");
      for (int r = lists.active_begin[n]; r < lists.active_begin[n + 1]; ++r) {
        const int at = lists.active[r] % (s.out_height * s.out_width);
        const int y = at / s.out_width * layer.stride, x = at % s.out_width * layer.stride;
        CHECK(lists.centre[r] == (n * s.height + y) * s.width + x, "centre");
        unsigned valid = 0;
        for (int t = 0; t < 9; ++t) {
          const int iy = y + (t / 3 - 1) * layer.dilation, ix = x + (t % 3 - 1) * layer.dilation;
          if (iy >= 0 && iy < s.height && ix >= 0 && ix < s.width) valid |= 1u << t;
        }
        CHECK(lists.valid[r] == valid, "valid taps %x, expected %x", lists.valid[r], valid);
        CHECK(border_taps(lists.border[r]) == valid, "border class");
        if (!options.tiles) continue;
        const int t = lists.tiles.of[r];
        const int ty = y / kTileSide * kTileSide, tx = x / kTileSide * kTileSide;
        CHECK(lists.tiles.corner[t] == (n * s.height + ty) * s.width + tx, "tile");
        CHECK(lists.tiles.first[t] <= r && r < lists.tiles.first[t + 1], "its pixels");
        CHECK(lists.tiles.outputs[t] >> (y % kTileSide * kTileSide + x % kTileSide) & 1u, "active outputs");
        for (int i = 0; i < kTileInputs * kTileInputs; ++i) {
          const int iy = ty - 1 + i / kTileInputs, ix = tx - 1 + i % kTileInputs;
          const bool inside = iy >= 0 && iy < s.height && ix >= 0 && ix < s.width;
          CHECK((lists.tiles.valid[t] >> i & 1u) ==
                    (inside && dilated.count((n * s.height + iy) * s.width + ix)),
                "input %d of a tile", i);
        }
      }
    }
  }
}

void test_phases() {
  for (const ThreadPool& pool : {threads(1), threads(4), one_by_one(3)}) {
    for (int round = 0; round < 50; ++round) {
      std::atomic<int> first{0}, second{0}, early{0};
      const auto a = [&](int, int) { first.fetch_add(1); };
      const auto b = [&](int, int worker) {
        if (first.load() != 17) early.fetch_add(1);
        if (worker < 0 || worker >= pool.threads) early.fetch_add(1);
        second.fetch_add(1);
      };
      const Phase phases[3] = {Phase(17, a), Phase(0, b), Phase(9, b)};
      run_phases(pool, phases, 3);
      CHECK(first == 17 && second == 9, "every task runs once");
      CHECK(early == 0, "a phase waits for the one before");
    }
  }
}

void test_workspace() {
  Workspace workspace;
  for (int round = 0; round < 4; ++round) {
    workspace.reset();
    std::vector<std::pair<char*, std::size_t>> pieces;
    for (const std::size_t size : {100u, 5000u, 3u, 70000u}) {
      char* piece = workspace.take<char>(size);
      CHECK(reinterpret_cast<std::uintptr_t>(piece) % 64 == 0, "alignment");
      for (const auto& [other, length] : pieces)
        CHECK(piece + size <= other || other + length <= piece, "overlap");
      std::memset(piece, 1, size);
      pieces.emplace_back(piece, size);
    }
    const Workspace::Mark mark = workspace.mark();
    for (int i = 0; i < 5; ++i) {
      std::memset(workspace.take<char>(4000u << i), 2, 4000u << i);
      workspace.rewind(mark);
    }
    for (const auto& [piece, length] : pieces) {
      CHECK(std::all_of(piece, piece + length, [](char c) { return c == 1; }), "pieces survive a rewind");
    }
  }
}

void test_arena() {
  Arena arena(1000);
  std::vector<std::shared_ptr<void>> pieces;
  std::vector<std::size_t> sizes;
  for (const std::size_t size : {std::size_t{100}, std::size_t{700}, std::size_t{1}, std::size_t{200},
                                 std::size_t{5000}, std::size_t{0}, Arena::kBufferBytes / 8}) {
    pieces.push_back(arena.take(size));
    sizes.push_back(size);
    CHECK(reinterpret_cast<std::uintptr_t>(pieces.back().get()) % 64 == 0, "alignment");
    std::memset(pieces.back().get(), static_cast<int>(sizes.size()), size);
    if (sizes.size() == 4) pieces[1].reset();  // its buffer stays for the pieces beside it
  }
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const char* piece = static_cast<const char*>(pieces[i].get());
    CHECK(
        !piece || std::all_of(piece, piece + sizes[i], [=](char c) { return c == static_cast<char>(i + 1); }),
        "pieces are apart");
  }
  const char* first = static_cast<const char*>(pieces[0].get());
  const char* third = static_cast<const char*>(pieces[2].get());
  CHECK(third == first + 128 + 704, "what fits lies in the same buffer");
  const std::weak_ptr<void> watched = pieces[0];
  pieces.resize(3);
  CHECK(!watched.expired(), "a buffer lives as long as its pieces");
  pieces.clear();
  CHECK(watched.expired(), "and no longer");
}

void test_caches() {
  const Caches& found = caches();
  CHECK(found.l1_data >= 8 << 10 && found.l1_data <= 1 << 20, "L1 of %lld",
        static_cast<long long>(found.l1_data));
  CHECK(found.l2 >= found.l1_data && found.l2 <= 256 << 20, "L2 of %lld", static_cast<long long>(found.l2));
  const Blocks& b = blocks();
  CHECK(b.panel < found.l1_data, "a part of a panel stays in L1");
  CHECK(b.resident_weights < found.l2 && b.band <= found.l2 / 2 && b.planes <= found.l2 / 2,
        "blocks stay in L2");
  CHECK(b.slice <= kMaxSlice && b.widest_slice <= kMaxSlice, "slices fit their buffer");
}

// Products that give the sums of a 3x3: transformed by hand for a kernel of one weight, and all weights of
// one output.
void test_winograd_weights() {
  float kernel[18] = {};
  kernel[4] = 4;  // the middle tap
  for (int t = 0; t < 9; ++t) kernel[9 + t] = 1;
  float planes[2 * kWinogradPlanes];
  winograd_weights(kernel, 2, planes);
  static constexpr float kMiddle[4] = {0, 0.5f, -0.5f, 0}, kOnes[4] = {1, 1.5f, 0.5f, 1};
  for (int i = 0; i < kWinogradPlanes; ++i) {
    CHECK(planes[i] == 4 * kMiddle[i / 4] * kMiddle[i % 4], "middle tap, plane %d: %g", i, planes[i]);
    CHECK(planes[kWinogradPlanes + i] == kOnes[i / 4] * kOnes[i % 4], "ones, plane %d", i);
  }
}

// Folders as Linux describes the caches of a core.
void test_cache_folders() {
  namespace fs = std::filesystem;
  const fs::path folder =
      fs::temp_directory_path() / ("dyndeploy_caches_" + std::to_string(std::random_device()()));
  struct Level {
    const char *level, *type, *size, *sharers;  // size, sharers: nullptr for no such file
  };
  struct Case {
    const char* what;
    std::vector<Level> levels;
    std::int64_t l1_data, l2;
  };
  const Caches unknown;
  const Case cases[] = {
      {"Jetson Nano, A57",
       {{"1", "Data", "32K", "0"}, {"1", "Instruction", "48K", "0"}, {"2", "Unified", "2048K", "0-3"}},
       32 << 10,
       512 << 10},
      {"Jetson TX2, A57 beside two other cores",
       {{"1", "Data", "32K", "0"}, {"1", "Instruction", "48K", "0"}, {"2", "Unified", "2048K", "0,3-5"}},
       32 << 10,
       512 << 10},
      {"Jetson Orin, A78",
       {{"1", "Data", "64K", "0"},
        {"1", "Instruction", "64K", "0"},
        {"2", "Unified", "256K", "0"},
        {"3", "Unified", "2048K", "0-3"}},
       64 << 10,
       256 << 10},
      {"no sharers", {{"1", "Data", "64K", nullptr}, {"2", "Unified", "1024K", nullptr}}, 64 << 10, 1 << 20},
      {"no sizes",
       {{"1", "Data", nullptr, "0"}, {"2", "Unified", nullptr, "0-3"}},
       unknown.l1_data,
       unknown.l2},
      {"a size without meaning",
       {{"1", "Data", "many", "0"}, {"2", "Unified", "0K", "0"}},
       unknown.l1_data,
       unknown.l2},
      {"nothing", {}, unknown.l1_data, unknown.l2},
  };
  for (const Case& c : cases) {
    int index = 0;
    for (const Level& level : c.levels) {
      const fs::path at = folder / ("index" + std::to_string(index++));
      fs::create_directories(at);
      const std::pair<const char*, const char*> files[] = {{"level", level.level},
                                                           {"type", level.type},
                                                           {"size", level.size},
                                                           {"shared_cpu_list", level.sharers}};
      for (const auto& file : files) {
        if (file.second) std::ofstream(at / file.first) << file.second << "\n";
      }
    }
    const Caches found = read_caches(folder.c_str());
    CHECK(found.l1_data == c.l1_data, "%s: L1 %lld", c.what, static_cast<long long>(found.l1_data));
    CHECK(found.l2 == c.l2, "%s: L2 %lld", c.what, static_cast<long long>(found.l2));
    fs::remove_all(folder);
  }
  CHECK(read_caches(std::string(1000, 'x').c_str()).l2 == unknown.l2, "a long path");
}

void test_dispatch() {
  const Isa* all[8];
  const int count = available_isas(all, 8);
  CHECK(count >= 1, "no instruction set");
  unsetenv("DYNDEPLOY_CPU_ISA");
  CHECK(select_isa() == all[0], "the best one is chosen");
  setenv("DYNDEPLOY_CPU_ISA", "generic", 1);
  CHECK(select_isa() && std::string(select_isa()->name) == "generic", "the environment decides");
  const Isa* emulated = select_isa(Precision::kBfloat16);
  CHECK(emulated && std::string(emulated->name) == "generic_bf16", "for BF16, too");
  unsetenv("DYNDEPLOY_CPU_ISA");
  const Isa* best = find_isa("amx_bf16") ? find_isa("amx_bf16") : find_isa("avx512_bf16");
  CHECK(select_isa(Precision::kBfloat16) == best, "BF16 is not emulated unasked");
  setenv("DYNDEPLOY_CPU_ISA", "generic_bf16", 1);
  CHECK(select_isa() == nullptr, "a table for BF16 is not taken for floats");
  unsetenv("DYNDEPLOY_CPU_ISA");
  for (int i = 0; i < count; ++i) CHECK(all[i]->inputs_per_row == 1, "%s is not for floats", all[i]->name);
  setenv("DYNDEPLOY_CPU_ISA", "vax", 1);
  CHECK(select_isa() == nullptr, "an unknown name is refused");
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc == 2 ? argv[1] : "";
  if (what == "parts") {
    test_lists();
    test_phases();
    test_workspace();
    test_arena();
    test_caches();
    test_cache_folders();
    test_winograd_weights();
    test_dispatch();
  } else {
    const Isa* isa = find_isa(what.c_str());
    if (!isa) {
      std::printf("skipped: this build or machine has no '%s'\n", what.c_str());
      return 77;
    }
    test_pack(*isa);
    test_bottlenecks(*isa);
    test_exact(*isa);
    test_large(*isa);
    test_unusual_masks(*isa);
    test_unaligned(*isa);
    test_maskers(*isa);
    test_byte_sums(*isa);
    test_byte_maskers(*isa);
  }
  std::printf("%s: %d checks, %d failed\n", what.c_str(), checks, failures);
  return failures ? 1 : 0;
}
