// Unit tests of the CPU kernels of transformer blocks against a naive reference in double. Usage:
// test_transformer_cpu ISA

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "checks.h"
#include "pools.h"
#include "shape.h"
#include "token_masker.h"
#include "transformer.h"

namespace {

using namespace dyndeploy::cpu;

using Numbers = std::vector<float>;

Numbers bits(Rng& rng, std::size_t count, double rate) {
  Numbers values(count);
  for (float& v : values) v = coin(rng, rate) ? 1.0f : 0.0f;
  return values;
}

struct Problem {
  TransformerLayer layer;
  int batch = 1, tokens = 1;
  Numbers norm1, norm1_bias, qkv, qkv_bias, proj, proj_bias, norm2, norm2_bias, fc1, fc1_bias, fc2, fc2_bias,
      x;
  Numbers token, head, attention, mlp;  // masks; empty: none

  TransformerWeights weights() const {
    TransformerWeights w;
    w.norm1 = norm1.data();
    w.norm1_bias = norm1_bias.data();
    w.qkv = qkv.data();
    w.qkv_bias = qkv_bias.data();
    w.proj = proj.data();
    w.proj_bias = proj_bias.data();
    w.norm2 = norm2.data();
    w.norm2_bias = norm2_bias.data();
    w.fc1 = fc1.data();
    w.fc1_bias = fc1_bias.data();
    w.fc2 = fc2.data();
    w.fc2_bias = fc2_bias.data();
    return w;
  }
};

struct Masks {
  bool token, head, sublayers;
};
constexpr Masks kMasks[] = {{true, false, false}, {false, true, false}, {false, false, true},
                            {true, true, false},  {true, false, true},  {false, true, true},
                            {true, true, true},   {false, false, false}};

Problem make_problem(Rng& rng, const TransformerLayer& layer, int batch, int tokens, const Masks& masks,
                     double rate) {
  Problem p;
  p.layer = layer;
  p.layer.skips_heads = masks.head;
  p.batch = batch;
  p.tokens = tokens;
  const auto D = static_cast<std::size_t>(layer.width), F = static_cast<std::size_t>(layer.hidden);
  const std::size_t A = static_cast<std::size_t>(layer.heads), C = A * static_cast<std::size_t>(layer.depth);
  const double width = 1.0 / std::sqrt(static_cast<double>(layer.width));
  p.norm1 = normal(rng, D, 0.3, 1.0);
  p.norm1_bias = normal(rng, D, 0.3);
  p.qkv = normal(rng, 3 * C * D, 1.5 * width);
  p.qkv_bias = normal(rng, 3 * C, 0.3);
  p.proj = normal(rng, D * C, 1.0 / std::sqrt(static_cast<double>(C)));
  p.proj_bias = normal(rng, D, 0.3);
  p.norm2 = normal(rng, D, 0.3, 1.0);
  p.norm2_bias = normal(rng, D, 0.3);
  p.fc1 = normal(rng, F * D, 2.0 * width);
  p.fc1_bias = normal(rng, F, 0.5);
  p.fc2 = normal(rng, D * F, 1.0 / std::sqrt(static_cast<double>(layer.hidden)));
  p.fc2_bias = normal(rng, D, 0.3);
  const auto N = static_cast<std::size_t>(batch), T = static_cast<std::size_t>(tokens);
  p.x = normal(rng, N * T * D, 1.0, 0.2);
  if (masks.token) p.token = bits(rng, N * T, rate);
  if (masks.head) p.head = bits(rng, N * A, rate);
  if (masks.sublayers) {
    p.attention = bits(rng, N, rate);
    p.mlp = bits(rng, N, rate);
  }
  return p;
}

double rounded_to_bf16(double value) {
  int exponent = 0;
  const double fraction = std::frexp(value, &exponent);
  return std::ldexp(std::nearbyint(std::ldexp(fraction, 8)), exponent - 8);
}

bool on(const Numbers& mask, std::size_t i) { return mask.empty() || mask[i] > 0.5f; }

// bf16: weights, and what each product with weights reads, are rounded to BF16; attention is not.
std::vector<double> reference(const Problem& p, bool bf16) {
  const TransformerLayer& l = p.layer;
  const int D = l.width, A = l.heads, d = l.depth, F = l.hidden, T = p.tokens;
  const auto round = [bf16](double v) { return bf16 ? rounded_to_bf16(v) : v; };
  const auto norm = [&](const double* x, const Numbers& weight, const Numbers& bias,
                        std::vector<double>& to) {
    double mean = 0.0, variance = 0.0;
    for (int c = 0; c < D; ++c) mean += x[c] / D;
    for (int c = 0; c < D; ++c) variance += (x[c] - mean) * (x[c] - mean) / D;
    for (int c = 0; c < D; ++c)
      to[c] = round((x[c] - mean) / std::sqrt(variance + l.epsilon) * weight[c] + bias[c]);
  };
  std::vector<double> y(p.x.begin(), p.x.end());
  for (int n = 0; n < p.batch; ++n) {
    double* const rows = y.data() + static_cast<std::ptrdiff_t>(n) * T * D;
    std::vector<int> kept;
    for (int t = 0; t < T; ++t) {
      if (on(p.token, static_cast<std::size_t>(n) * T + t)) kept.push_back(t);
    }
    std::vector<bool> head(A);
    for (int a = 0; a < A; ++a) head[a] = on(p.head, static_cast<std::size_t>(n) * A + a);
    std::vector<double> normal(D);
    if (on(p.attention, n)) {
      const std::size_t count = kept.size();
      std::vector<double> qkv(3 * count * A * d), mixed(count * A * d);
      const auto at = [&](int which, std::size_t i, int a) {
        return &qkv[((which * count + i) * A + a) * d];
      };
      for (std::size_t i = 0; i < count; ++i) {
        norm(rows + kept[i] * D, p.norm1, p.norm1_bias, normal);
        for (int o = 0; o < 3 * A * d; ++o) {
          double sum = p.qkv_bias[o];
          for (int c = 0; c < D; ++c) sum += round(p.qkv[static_cast<std::size_t>(o) * D + c]) * normal[c];
          at(o / (A * d), i, o / d % A)[o % d] = sum;
        }
      }
      for (int a = 0; a < A; ++a) {
        for (std::size_t i = 0; i < count; ++i) {
          double* const to = &mixed[(i * A + a) * d];
          if (!head[a]) {
            if (l.head_mode == HeadMode::kAttention)
              for (int c = 0; c < d; ++c) to[c] = round(at(2, i, a)[c]);
            continue;
          }
          std::vector<double> scores(count);
          double most = -1e300, total = 0.0;
          for (std::size_t j = 0; j < count; ++j) {
            for (int c = 0; c < d; ++c) scores[j] += at(0, i, a)[c] * at(1, j, a)[c];
            scores[j] *= l.scale;
            most = std::max(most, scores[j]);
          }
          for (double& s : scores) total += s = std::exp(s - most);
          for (int c = 0; c < d; ++c) {
            double sum = 0.0;
            for (std::size_t j = 0; j < count; ++j) sum += scores[j] / total * at(2, j, a)[c];
            to[c] = round(sum);
          }
        }
      }
      for (std::size_t i = 0; i < count; ++i) {
        for (int o = 0; o < D; ++o) {
          double sum = p.proj_bias[o];
          for (int c = 0; c < A * d; ++c)
            sum += round(p.proj[static_cast<std::size_t>(o) * A * d + c]) * mixed[i * A * d + c];
          rows[kept[i] * D + o] += sum;
        }
      }
    }
    if (!on(p.mlp, n)) continue;
    if (!l.token_mlp) {
      kept.resize(static_cast<std::size_t>(T));
      for (int t = 0; t < T; ++t) kept[t] = t;
    }
    const bool some = std::find(head.begin(), head.end(), true) != head.end();
    for (const int t : kept) {
      norm(rows + t * D, p.norm2, p.norm2_bias, normal);
      // What no kernel computes is not rounded either.
      const bool constant = l.skips_heads && !some && l.head_mode != HeadMode::kAttention;
      const auto r = [&](double v) { return constant ? v : round(v); };
      std::vector<double> out(p.fc2_bias.begin(), p.fc2_bias.end());
      for (int f = 0; f < F; ++f) {
        if (l.head_mode == HeadMode::kHidden && !head[f / (F / A)]) continue;
        double sum = p.fc1_bias[f];
        for (int c = 0; c < D; ++c) {
          if (l.head_mode == HeadMode::kInputs && l.skips_heads && !head[c / d]) continue;
          sum += round(p.fc1[static_cast<std::size_t>(f) * D + c]) * normal[c];
        }
        const double hidden = r(0.5 * sum * (1.0 + std::erf(sum * std::sqrt(0.5))));
        for (int o = 0; o < D; ++o) out[o] += r(p.fc2[static_cast<std::size_t>(o) * F + f]) * hidden;
      }
      for (int o = 0; o < D; ++o) rows[t * D + o] += out[o];
    }
  }
  return y;
}

// A value beside the middle of two BF16 numbers may be rounded to the other one than in the reference.
double tolerance_of(const Isa& isa) { return isa.inputs_per_row == 2 ? 0.01 : 4e-6; }

void check_problem(const Isa& isa, const Problem& p, Workspace& workspace) {
  Arena arena(1 << 16);
  const PackedTransformer packed(isa, p.layer, p.weights(), arena);
  const std::vector<double> expected = reference(p, isa.inputs_per_row == 2);
  const std::size_t size = p.x.size();
  double scale = 1.0;
  for (const double v : expected) scale = std::max(scale, std::fabs(v));
  const auto mask = [](const Numbers& m) { return m.empty() ? nullptr : m.data(); };
  Numbers first;
  for (int variant = 0; variant < 4; ++variant) {
    const bool in_place = variant % 2;
    Numbers x = p.x, y(size, std::numeric_limits<float>::quiet_NaN());
    workspace.reset();
    TransformerCall call;
    call.weights = &packed;
    call.batch = p.batch;
    call.tokens = p.tokens;
    call.x = x.data();
    call.y = in_place ? x.data() : y.data();
    call.token_mask = mask(p.token);
    call.head_mask = mask(p.head);
    call.attention_mask = mask(p.attention);
    call.mlp_mask = mask(p.mlp);
    run_transformer(call, workspace, variant == 2 ? threads(3) : one_by_one(variant == 3 ? 2 : 1));
    const Numbers& result = in_place ? x : y;
    double worst = 0.0;
    for (std::size_t i = 0; i < size; ++i) {
      const double error = std::fabs(result[i] - expected[i]);
      worst = error <= worst ? worst : error;
      if (std::isnan(error)) worst = 1e9;
    }
    CHECK(worst <= tolerance_of(isa) * scale,
          "variant %d: error %g of %g; N %d T %d D %d A %d d %d F %d, mode %d, token_mlp %d, masks %d%d%d",
          variant, worst, scale, p.batch, p.tokens, p.layer.width, p.layer.heads, p.layer.depth,
          p.layer.hidden, static_cast<int>(p.layer.head_mode), p.layer.token_mlp, !p.token.empty(),
          !p.head.empty(), !p.attention.empty());
    // What is skipped keeps its bits.
    for (int n = 0; n < p.batch; ++n) {
      for (int t = 0; t < p.tokens; ++t) {
        const bool kept = on(p.token, static_cast<std::size_t>(n) * p.tokens + t);
        const bool computed = (on(p.attention, n) && kept) || (on(p.mlp, n) && (kept || !p.layer.token_mlp));
        if (computed) continue;
        const auto at = (static_cast<std::ptrdiff_t>(n) * p.tokens + t) * p.layer.width;
        CHECK(std::equal(result.begin() + at, result.begin() + at + p.layer.width, p.x.begin() + at),
              "image %d, token %d is skipped", n, t);
      }
    }
    if (variant == 0)
      first = result;
    else
      CHECK(first == result, "variant %d: threads and places do not change a bit", variant);
  }
}

TransformerLayer make_layer(int heads, int depth, int width, int hidden, HeadMode mode, bool token_mlp) {
  TransformerLayer l;
  l.width = width;
  l.heads = heads;
  l.depth = depth;
  l.hidden = hidden;
  l.epsilon = 1e-6f;
  l.scale = 1.0f / std::sqrt(static_cast<float>(depth));
  l.head_mode = mode;
  l.token_mlp = token_mlp;
  return l;
}

void test_blocks(const Isa& isa) {
  Rng rng(5);
  Workspace workspace;
  for (int i = 0; i < 240; ++i) {
    const auto mode = static_cast<HeadMode>(i / 8 % 3);
    const int heads = pick(rng, 1, 5);
    // Fewer channels may be so near to each other that a normalisation magnifies the rounding of its input.
    constexpr int kLeastWidth = 8;
    const int depth = pick(rng, mode == HeadMode::kInputs ? ceil_to_int(kLeastWidth, heads) : 1, 40);
    const int width = mode == HeadMode::kInputs ? heads * depth : pick(rng, kLeastWidth, 120);
    const int hidden = mode == HeadMode::kHidden ? heads * pick(rng, 1, 40) : pick(rng, 1, 150);
    static constexpr double kRates[] = {0.0, 0.3, 0.7, 1.0};
    check_problem(isa,
                  make_problem(rng, make_layer(heads, depth, width, hidden, mode, coin(rng)), pick(rng, 1, 3),
                               pick(rng, 1, 40), kMasks[i % 8], kRates[pick(rng, 0, 3)]),
                  workspace);
  }
}

// Sizes of published networks, of which the last has more tokens than scores are kept at a time.
void test_large(const Isa& isa) {
  Rng rng(6);
  Workspace workspace;
  struct Size {
    int heads, depth, hidden, tokens;
  };
  static constexpr Size kSizes[] = {{3, 64, 768, 197}, {2, 64, 384, 50}, {2, 32, 128, 1030}};
  for (const Size& s : kSizes) {
    for (const HeadMode mode : {HeadMode::kInputs, HeadMode::kHidden, HeadMode::kAttention}) {
      check_problem(isa,
                    make_problem(rng, make_layer(s.heads, s.depth, s.heads * s.depth, s.hidden, mode, true),
                                 1, s.tokens, {true, true, false}, s.tokens > 1000 ? 0.9 : 0.6),
                    workspace);
    }
  }
}

// One token is left, no head is, images of a batch differ, more images than threads.
void test_edges(const Isa& isa) {
  Rng rng(7);
  Workspace workspace;
  for (const HeadMode mode : {HeadMode::kInputs, HeadMode::kHidden, HeadMode::kAttention}) {
    for (const bool token_mlp : {false, true}) {
      Problem p =
          make_problem(rng, make_layer(4, 12, 48, 96, mode, token_mlp), 13, 21, {true, true, true}, 0.5);
      std::fill(p.token.begin(), p.token.begin() + 21, 0.0f);
      p.token[0] = 1.0f;
      std::fill(p.token.begin() + 21, p.token.begin() + 42, 1.0f);
      std::fill(p.token.begin() + 42, p.token.begin() + 63, 0.0f);  // not even one
      std::fill(p.head.begin() + 12, p.head.begin() + 20, 0.0f);
      std::fill(p.attention.begin(), p.attention.begin() + 6, 1.0f);
      std::fill(p.mlp.begin(), p.mlp.begin() + 6, 1.0f);
      p.attention[5] = p.mlp[5] = p.attention[6] = p.mlp[7] = 0.0f;
      p.token[100] = std::numeric_limits<float>::quiet_NaN();  // not on
      check_problem(isa, p, workspace);
    }
  }
  // Scores so far apart that all but one vanish, and a negative scale.
  for (const float scale : {200.0f, -1.0f}) {
    Problem p = make_problem(rng, make_layer(2, 16, 32, 32, HeadMode::kInputs, true), 1, 30,
                             {true, false, false}, 0.8);
    p.layer.scale = scale;
    if (isa.inputs_per_row == 1) check_problem(isa, p, workspace);
  }
}

void test_gelu(const Isa& isa) {
  if (isa.inputs_per_row == 2) return;
  // One token whose normalised row is (-1, 1), and a hidden unit for every value: y - x = gelu(value).
  constexpr int kUnits = 4096;
  TransformerLayer layer = make_layer(1, 2, 2, kUnits, HeadMode::kInputs, false);
  layer.epsilon = 1e-30f;
  const Numbers zeros(3 * kUnits), ones(2, 1.0f);
  Numbers fc1(2 * kUnits), fc2(2 * kUnits), bias(kUnits);
  Workspace workspace;
  double worst = 0.0;
  for (int unit = 0; unit < kUnits; unit += 7) {
    const float value = (static_cast<float>(unit) / kUnits - 0.5f) * 24.0f;
    std::fill(bias.begin(), bias.end(), 0.0f);
    std::fill(fc2.begin(), fc2.end(), 0.0f);
    bias[unit] = value;
    fc2[unit] = 1.0f;
    TransformerWeights w;
    w.norm1 = w.norm2 = ones.data();
    w.norm1_bias = w.norm2_bias = w.qkv = w.qkv_bias = w.proj = w.proj_bias = w.fc2_bias = zeros.data();
    w.fc1 = fc1.data();
    w.fc1_bias = bias.data();
    w.fc2 = fc2.data();
    Arena arena(1 << 16);
    const PackedTransformer packed(isa, layer, w, arena);
    const float x[2] = {0.0f, 1e-3f};
    float y[2];
    workspace.reset();
    TransformerCall call;
    call.weights = &packed;
    call.batch = call.tokens = 1;
    call.x = x;
    call.y = y;
    run_transformer(call, workspace, one_by_one(1));
    const double exact = 0.5 * value * (1.0 + std::erf(value * std::sqrt(0.5)));
    worst = std::max(worst, std::fabs(y[0] - exact) / std::max(1.0, std::fabs(exact)));
  }
  CHECK(worst <= 3e-7, "GELU is off by %g", worst);
}

void test_maskers(const Isa& isa) {
  Rng rng(8);
  for (int i = 0; i < 60; ++i) {
    TokenInput input;
    input.batch = pick(rng, 1, 3);
    input.tokens = i % 10 ? pick(rng, 1, 40) : 197;
    input.channels = i % 10 ? pick(rng, 2, 90) : 384;
    input.normalise = coin(rng);
    input.epsilon = 1e-6f;
    const int D = input.channels, T = input.tokens, A = pick(rng, 1, 7), kept = pick(rng, 0, std::min(2, T));
    // A mean far from zero, which a variance from sums of squares would not survive.
    const Numbers x = normal(rng, static_cast<std::size_t>(input.batch) * T * D, 1.0, i % 3 ? 0.0 : 300.0);
    const Numbers weight = normal(rng, static_cast<std::size_t>(A) * D, 1.0);
    const Numbers bias = normal(rng, static_cast<std::size_t>(A), 1.0);
    input.x = x.data();
    const auto logit = [&](int row, int decision, double& size) {
      const float* const from = x.data() + static_cast<std::ptrdiff_t>(row) * D;
      double mean = 0.0, variance = 0.0, sum = bias[decision];
      for (int c = 0; c < D; ++c) mean += static_cast<double>(from[c]) / D;
      for (int c = 0; c < D; ++c) variance += (from[c] - mean) * (from[c] - mean) / D;
      size = 1.0;
      for (int c = 0; c < D; ++c) {
        const double v = input.normalise ? (from[c] - mean) / std::sqrt(variance + 1e-6) : from[c];
        sum += v * weight[decision * D + c];
        size += std::fabs(v * weight[decision * D + c]) + (input.normalise ? std::fabs(mean) : 0.0);
      }
      return sum;
    };
    Numbers mask(static_cast<std::size_t>(input.batch) * T, -1.0f), two = mask;
    run_token_masker(isa, input, weight.data(), bias.data(), kept, mask.data(), one_by_one(1));
    run_token_masker(isa, input, weight.data(), bias.data(), kept, two.data(), threads(2));
    CHECK(mask == two, "threads change a mask");
    for (int r = 0; r < input.batch * T; ++r) {
      double size;
      const double expected = logit(r, 0, size);
      const bool stays = r % T < kept;
      CHECK(stays ? mask[r] == 1.0f : mask[r] == (expected >= 0.0) || std::fabs(expected) < 1e-6 * size,
            "token %d of %d: %g at %g", r, T, static_cast<double>(mask[r]), expected);
    }
    Numbers decisions(static_cast<std::size_t>(input.batch) * A, -1.0f);
    run_class_token_masker(isa, input, weight.data(), bias.data(), A, decisions.data());
    for (int n = 0; n < input.batch; ++n) {
      for (int a = 0; a < A; ++a) {
        double size;
        const double expected = logit(n * T, a, size);
        CHECK(decisions[n * A + a] == (expected >= 0.0) || std::fabs(expected) < 1e-6 * size,
              "decision %d: %g at %g", a, static_cast<double>(decisions[n * A + a]), expected);
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc == 2 ? argv[1] : "";
  const Isa* isa = find_isa(what.c_str());
  if (!isa) {
    std::printf("skipped: this build or machine has no '%s'\n", what.c_str());
    return 77;
  }
  test_blocks(*isa);
  test_edges(*isa);
  test_large(*isa);
  test_gelu(*isa);
  test_maskers(*isa);
  std::printf("%s: %d checks, %d failed\n", what.c_str(), checks, failures);
  return failures ? 1 : 0;
}
