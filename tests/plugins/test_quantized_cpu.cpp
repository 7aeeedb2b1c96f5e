// Unit tests of the CPU kernels in integers against a naive reference, to the bit. Usage: test_quantized_cpu
// ISA

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "checks.h"
#include "gemm.h"
#include "pools.h"
#include "quantized_bottleneck.h"

namespace {

using namespace dyndeploy::cpu;

// ------------------------------------------------------------------------------------------------- reference

// One convolution's weights, bias and multiplier.
struct Convolution {
  std::vector<std::int8_t> w;
  std::vector<std::int32_t> b;
  std::vector<float> m;
};

struct Problem {
  BottleneckLayer layer;
  BottleneckShape shape;
  Convolution c1, c2, c3, cd;
  std::vector<std::uint8_t> x;
  std::vector<float> spatial_mask, channel_mask;  // empty: none
  int mask_height = 0, mask_width = 0, channel_groups = 0;

  QuantizedWeights weights() const {
    QuantizedWeights w;
    w.w1 = c1.w.data(), w.b1 = c1.b.data(), w.m1 = c1.m.data();
    w.w2 = c2.w.data(), w.b2 = c2.b.data(), w.m2 = c2.m.data();
    w.w3 = c3.w.data(), w.b3 = c3.b.data(), w.m3 = c3.m.data();
    if (layer.projection) w.wd = cd.w.data(), w.bd = cd.b.data(), w.md = cd.m.data();
    return w;
  }
  std::size_t outputs() const {
    return product_of({shape.batch, shape.out_height, shape.out_width, layer.outputs});
  }
};

int requantise(std::int64_t sum, const Convolution& c, int n) {
  // In doubles both conversions and the product are exact before they are rounded.
  const double total = static_cast<float>(sum + c.b[static_cast<std::size_t>(n)]);
  const double product = static_cast<float>(total * c.m[static_cast<std::size_t>(n)]);
  return static_cast<int>(std::min(32767.0, std::max(-32768.0, std::nearbyint(product))));
}

int clamp(int v) { return std::min(255, std::max(0, v)); }

std::vector<std::uint8_t> reference(const Problem& p) {
  const BottleneckLayer& l = p.layer;
  const BottleneckShape& s = p.shape;
  const int C = l.inputs, M = l.middle, Co = l.outputs, width = M / l.groups;
  std::vector<std::uint8_t> y(p.outputs());
  for (int n = 0; n < s.batch; ++n) {
    const auto kept = [&](int m) {
      return !p.channel_groups || p.channel_mask[product_of({n, p.channel_groups}) +
                                                 static_cast<std::size_t>(m / (M / p.channel_groups))] > 0.5f;
    };
    const std::uint8_t* const x = p.x.data() + product_of({n, s.height, s.width, C});
    std::vector<int> h1(product_of({s.height, s.width, M}));
    for (int i = 0; i < s.height * s.width; ++i) {
      for (int m = 0; m < M; ++m) {
        std::int64_t sum = 0;
        for (int k = 0; k < C && kept(m); ++k) sum += x[i * C + k] * p.c1.w[product_of({m, C}) + k];
        h1[static_cast<std::size_t>(i) * M + m] = clamp(requantise(sum, p.c1, m));
      }
    }
    for (int oy = 0; oy < s.out_height; ++oy) {
      for (int ox = 0; ox < s.out_width; ++ox) {
        bool active = true;
        if (!p.spatial_mask.empty()) {
          const int i = oy * p.mask_height / s.out_height, j = ox * p.mask_width / s.out_width;
          active = p.spatial_mask[product_of({n, p.mask_height, p.mask_width}) + i * p.mask_width + j] > 0.5f;
        }
        std::vector<int> h2(static_cast<std::size_t>(M));
        for (int m = 0; m < M && active; ++m) {
          std::int64_t sum = 0;
          for (int t = 0; t < 9 && kept(m); ++t) {
            const int iy = oy * l.stride + (t / 3 - 1) * l.dilation;
            const int ix = ox * l.stride + (t % 3 - 1) * l.dilation;
            if (iy < 0 || iy >= s.height || ix < 0 || ix >= s.width) continue;
            const int* const pixel = h1.data() + product_of({iy * s.width + ix, M}) + m / width * width;
            for (int k = 0; k < width; ++k) sum += pixel[k] * p.c2.w[product_of({m * width + k, 9}) + t];
          }
          h2[static_cast<std::size_t>(m)] = clamp(requantise(sum, p.c2, m));
        }
        const std::uint8_t* const centre = x + (oy * l.stride * s.width + ox * l.stride) * C;
        for (int o = 0; o < Co; ++o) {
          int v = l.projection ? 0 : centre[o];
          if (l.projection) {
            std::int64_t sum = 0;
            for (int k = 0; k < C; ++k) sum += centre[k] * p.cd.w[product_of({o, C}) + k];
            v = requantise(sum, p.cd, o);
          }
          if (active) {
            std::int64_t sum = 0;
            for (int m = 0; m < M; ++m)
              sum += h2[static_cast<std::size_t>(m)] * p.c3.w[product_of({o, M}) + m];
            v += requantise(sum, p.c3, o);
          }
          y[product_of({(n * s.out_height + oy) * s.out_width + ox, Co}) + o] =
              static_cast<std::uint8_t>(clamp(v));
        }
      }
    }
  }
  return y;
}

// -------------------------------------------------------------------------------------------------- problems

enum class Masks { kNone, kSpatial, kLayer, kChannel, kBoth };

// Values: what numbers are drawn. Extreme ones are the ends of their ranges, which no sum may overflow or
// saturate; ties are multipliers that leave halves to be rounded.
enum class Values { kRandom, kExtreme, kTies };

Convolution make_convolution(Rng& rng, int outputs, int inputs, int limit, Values values) {
  Convolution c;
  c.w.resize(product_of({outputs, inputs}));
  const bool same = values == Values::kExtreme && coin(rng);
  for (std::int8_t& w : c.w) {
    const int end = coin(rng) || same ? limit : (limit == 127 ? -128 : -limit);
    w = static_cast<std::int8_t>(values == Values::kExtreme ? end : pick(rng, -limit, limit));
  }
  // What keeps most results within 8 bits.
  const double typical = 0.5 * limit * 128 * std::sqrt(static_cast<double>(inputs));
  for (int n = 0; n < outputs; ++n) {
    c.b.push_back(pick(rng, -static_cast<int>(typical), static_cast<int>(2 * typical)));
    double m = 100 / typical * std::uniform_real_distribution<>(0.3, 2.0)(rng);
    if (values == Values::kTies) m = std::exp2(std::floor(std::log2(m)));
    if (values == Values::kExtreme) m *= same ? 1 / std::sqrt(static_cast<double>(inputs)) : 20;
    c.m.push_back(static_cast<float>(m));
  }
  return c;
}

Problem make_problem(Rng& rng, BottleneckLayer layer, int batch, int height, int width, Masks masks,
                     double rate, int limit, Values values) {
  Problem p;
  p.layer = layer;
  p.shape = bottleneck_shape(layer, batch, height, width);
  const int C = layer.inputs, M = layer.middle, Co = layer.outputs;
  p.c1 = make_convolution(rng, M, C, limit, values);
  p.c2 = make_convolution(rng, M, M / layer.groups * 9, limit, values);
  p.c3 = make_convolution(rng, Co, M, limit, values);
  if (layer.projection) p.cd = make_convolution(rng, Co, C, limit, values);
  p.x.resize(product_of({batch, height, width, C}));
  for (std::uint8_t& v : p.x)
    v = static_cast<std::uint8_t>(values == Values::kExtreme ? 255 * coin(rng, 0.9) : pick(rng, 0, 255));
  if (masks == Masks::kSpatial || masks == Masks::kLayer || masks == Masks::kBoth) {
    p.mask_height = masks == Masks::kLayer ? 1 : pick(rng, 1, p.shape.out_height);
    p.mask_width = masks == Masks::kLayer ? 1 : pick(rng, 1, p.shape.out_width);
    p.spatial_mask.resize(product_of({batch, p.mask_height, p.mask_width}));
    for (float& v : p.spatial_mask) v = coin(rng, rate) ? 1.0f : 0.0f;
  }
  if (masks == Masks::kChannel || masks == Masks::kBoth) {
    std::vector<int> divisors;
    for (int d = 1; d <= M; ++d) {
      if (M % d == 0) divisors.push_back(d);
    }
    // Often groups of two channels, whose weights lie together.
    p.channel_groups =
        M % 2 == 0 && coin(rng)
            ? M / 2
            : divisors[static_cast<std::size_t>(pick(rng, 0, static_cast<int>(divisors.size()) - 1))];
    p.channel_mask.resize(product_of({batch, p.channel_groups}));
    for (float& v : p.channel_mask) v = coin(rng, rate) ? 1.0f : 0.0f;
  }
  return p;
}

// All that the caller hands over begins `offset` elements into its buffer.
std::vector<std::uint8_t> run(const QuantizedIsa& isa, const Problem& p, const ThreadPool& pool,
                              bool in_place, Workspace& workspace, std::size_t offset = 0) {
  Arena arena(0);  // exact buffers, so that the sanitizers see what is read beyond them
  const PackedQuantizedBottleneck packed(isa, p.layer, p.weights(), p.channel_groups > 0, arena);
  std::vector<std::uint8_t> x(offset + p.x.size()), y(offset + p.outputs(), 77);
  std::memcpy(x.data() + offset, p.x.data(), p.x.size());
  QuantizedBottleneckCall call;
  call.weights = &packed;
  call.shape = p.shape;
  call.x = x.data() + offset;
  call.y = in_place ? x.data() + offset : y.data() + offset;
  call.spatial_mask = p.spatial_mask.empty() ? nullptr : p.spatial_mask.data();
  call.mask_height = p.mask_height;
  call.mask_width = p.mask_width;
  call.channel_mask = p.channel_groups ? p.channel_mask.data() : nullptr;
  call.channel_groups = p.channel_groups;
  workspace.reset();
  run_quantized_bottleneck(call, workspace, pool);
  return {call.y, call.y + p.outputs()};
}

std::string describe(const Problem& p, double rate) {
  char text[256];
  std::snprintf(text, sizeof text,
                "C %d M %d Co %d stride %d dilation %d groups %d projection %d, %dx%dx%d, masks %dx%d, %d "
                "groups, rate %.2f",
                p.layer.inputs, p.layer.middle, p.layer.outputs, p.layer.stride, p.layer.dilation,
                p.layer.groups, p.layer.projection, p.shape.batch, p.shape.height, p.shape.width,
                p.mask_height, p.mask_width, p.channel_groups, rate);
  return text;
}

void check_problem(const QuantizedIsa& isa, const Problem& p, double rate, Workspace& workspace) {
  const std::vector<std::uint8_t> expected = reference(p);
  // A workspace that has seen nothing yet keeps every piece in a buffer of its own, where AddressSanitizer
  // watches it.
  Workspace fresh, other_fresh;
  const std::vector<std::uint8_t> single = run(isa, p, threads(1), false, fresh);
  std::size_t wrong = 0, first = 0;
  for (std::size_t i = expected.size(); i-- > 0;) {
    if (single[i] == expected[i]) continue;
    ++wrong;
    first = i;
  }
  CHECK(wrong == 0, "%zu of %zu differ, the first is %zu: %d, not %d; %s", wrong, expected.size(), first,
        single[first], expected[first], describe(p, rate).c_str());
  CHECK(run(isa, p, threads(3), false, other_fresh) == expected, "3 threads: %s", describe(p, rate).c_str());
  CHECK(run(isa, p, one_by_one(4), false, workspace, 1) == expected, "4 workers, one thread, unaligned: %s",
        describe(p, rate).c_str());
  if (!p.layer.projection) {
    CHECK(run(isa, p, threads(2), true, workspace) == expected, "in place: %s", describe(p, rate).c_str());
  }
}

BottleneckLayer draw_layer(Rng& rng, int most) {
  BottleneckLayer layer;
  layer.projection = coin(rng);
  layer.groups = coin(rng, 0.7) ? 1 : pick(rng, 2, 4);
  layer.middle = layer.groups * pick(rng, 1, layer.groups > 1 ? 20 : most);
  layer.inputs = pick(rng, 1, most);
  layer.outputs = layer.projection ? pick(rng, 1, most) : layer.inputs;
  layer.stride = layer.projection ? pick(rng, 1, 2) : 1;
  layer.dilation = pick(rng, 1, 3);
  return layer;
}

constexpr Masks kMasks[] = {Masks::kNone, Masks::kSpatial, Masks::kLayer, Masks::kChannel, Masks::kBoth};
constexpr double kRates[] = {0.0, 0.1, 0.5, 0.9, 1.0};

void test_bottlenecks(const QuantizedIsa& isa) {
  Rng rng(7);
  Workspace workspace;
  for (int i = 0; i < 300; ++i) {
    static constexpr Values kValues[] = {Values::kRandom, Values::kExtreme, Values::kTies};
    const double rate = kRates[pick(rng, 0, 4)];
    const Problem p = make_problem(rng, draw_layer(rng, 90), pick(rng, 1, 3), pick(rng, 1, 11),
                                   pick(rng, 1, 11), kMasks[i % 5], rate, i % 2 ? 64 : 127, kValues[i % 3]);
    check_problem(isa, p, rate, workspace);
  }
}

// Sizes of real networks: several panels and slices of weights, more rows than a block.
void test_large(const QuantizedIsa& isa) {
  Rng rng(11);
  Workspace workspace;
  struct Size {
    int inputs, middle, outputs, height, width;
    bool projection;
    int stride;
  };
  static constexpr Size kSizes[] = {
      {256, 64, 256, 20, 15, false, 1}, {512, 256, 1024, 6, 6, true, 2}, {1028, 130, 1028, 3, 4, false, 1}};
  for (const Size& size : kSizes) {
    for (const Masks masks : {Masks::kSpatial, Masks::kChannel, Masks::kBoth}) {
      BottleneckLayer layer;
      layer.inputs = size.inputs;
      layer.middle = size.middle;
      layer.outputs = size.outputs;
      layer.projection = size.projection;
      layer.stride = size.stride;
      check_problem(isa,
                    make_problem(rng, layer, 1, size.height, size.width, masks, 0.6, 64, Values::kRandom),
                    0.6, workspace);
    }
  }
}

// Sums as long as networks have them, of products as large as there are.
void test_extremes(const QuantizedIsa& isa) {
  Workspace workspace;
  for (const int limit : {64, 127, -64, -128}) {
    BottleneckLayer layer;
    layer.inputs = layer.outputs = 8;
    layer.middle = 512;
    Rng rng(3);
    Problem p = make_problem(rng, layer, 1, 3, 3, Masks::kNone, 1.0, 64, Values::kRandom);
    // h1 is 255 everywhere, so that a sum of conv2 in the middle is 9 * 512 * 255 * limit.
    std::fill(p.c1.b.begin(), p.c1.b.end(), 1 << 24);
    std::fill(p.c1.m.begin(), p.c1.m.end(), 1.0f);
    std::fill(p.c2.w.begin(), p.c2.w.end(), static_cast<std::int8_t>(limit));
    for (std::size_t n = 0; n < p.c2.b.size(); ++n) {
      p.c2.b[n] = -9 * 512 * 255 * limit + static_cast<int>(n);
      p.c2.m[n] = 0.5f;
    }
    check_problem(isa, p, 1.0, workspace);
    const std::vector<std::uint8_t> y = run(isa, p, threads(1), false, workspace);
    CHECK(y.size() == 72, "%zu outputs", y.size());
  }
}

// Masks of other numbers than 0 and 1: active where > 0.5.
void test_unusual_masks(const QuantizedIsa& isa) {
  Rng rng(17);
  Workspace workspace;
  const float values[] = {std::nanf(""), -1.0f, 0.0f, 0.5f, std::nextafter(0.5f, 1.0f), 0.7f, 2.0f, INFINITY};
  for (int i = 0; i < 20; ++i) {
    Problem p = make_problem(rng, draw_layer(rng, 40), 2, pick(rng, 1, 7), pick(rng, 1, 7), kMasks[1 + i % 4],
                             1.0, 64, Values::kRandom);
    for (std::vector<float>* mask : {&p.spatial_mask, &p.channel_mask}) {
      for (float& v : *mask) v = values[pick(rng, 0, 7)];
    }
    check_problem(isa, p, -1.0, workspace);
  }
}

void test_dispatch() {
  const QuantizedIsa* all[8];
  const int count = available_quantized_isas(all, 8);
  CHECK(count >= 1 && std::string(all[count - 1]->name) == "generic", "plain C++ is always there");
  unsetenv("DYNDEPLOY_CPU_ISA");
  CHECK(select_quantized_isa() == all[0], "the best one is chosen");
  for (int i = 0; i < count; ++i) {
    setenv("DYNDEPLOY_CPU_ISA", all[i]->name, 1);
    CHECK(select_quantized_isa() == all[i], "%s is asked for by name", all[i]->name);
    CHECK(find_quantized_isa(all[i]->name) == all[i], "%s is found", all[i]->name);
  }
  setenv("DYNDEPLOY_CPU_ISA", "generic", 1);
  CHECK(std::string(select_quantized_isa()->name) == "generic", "the environment decides");
#if defined(__x86_64__)
  setenv("DYNDEPLOY_CPU_ISA", "avx512", 1);
  CHECK(select_quantized_isa() == all[0], "AVX-512 allows its extensions");
  setenv("DYNDEPLOY_CPU_ISA", "avx2", 1);
  if (find_quantized_isa("avx2")) {
    CHECK(std::string(select_quantized_isa()->name) == "avx2", "AVX2 holds integers to AVX2");
    CHECK(std::string(select_isa()->name) == "avx2", "and floats");
  }
  if (find_quantized_isa("avx_vnni")) {
    setenv("DYNDEPLOY_CPU_ISA", "avx_vnni", 1);
    CHECK(std::string(select_isa()->name) == "avx2", "floats take what integers need");
  }
#endif
  setenv("DYNDEPLOY_CPU_ISA", "vax", 1);
  CHECK(select_quantized_isa() == nullptr, "an unknown name is refused");
  unsetenv("DYNDEPLOY_CPU_ISA");
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc == 2 ? argv[1] : "";
  if (what == "dispatch") {
    test_dispatch();
  } else {
    const QuantizedIsa* isa = find_quantized_isa(what.c_str());
    if (!isa) {
      std::printf("skipped: this build or machine has no '%s'\n", what.c_str());
      return 77;
    }
    test_bottlenecks(*isa);
    test_large(*isa);
    test_extremes(*isa);
    test_unusual_masks(*isa);
  }
  std::printf("%s: %d checks, %d failed\n", what.c_str(), checks, failures);
  return failures ? 1 : 0;
}
