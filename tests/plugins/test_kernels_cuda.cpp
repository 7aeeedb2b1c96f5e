// The CUDA kernels against a naive reference in double: for the sanitizers, which the Python tests cannot
// run. A C++ compiler builds it with the kernels for the host; nvcc builds it for a GPU, with
// DYN_PLAYED_DEVICE, so that every size of tile is taken. Usage: test_kernels_cuda bottlenecks | quantized |
// maskers | transformers | token_maskers | sampling | regions | shapes [ROUNDS]

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "checks.h"
#include "host/halves.h"
#include "kernels.h"
#if defined(DYN_PLAYED_DEVICE)
#include <cuda_runtime_api.h>

#include "traits.h"
#else
#include "byte_tiles.h"
#include "grid.h"
#include "wgmma_tile.h"
#endif

namespace {

using namespace dyndeploy::cuda;

using Floats = std::vector<float>;

float round_to_half(float v) { return host::half_to_float(host::float_to_half(v)); }

#if defined(DYN_PLAYED_DEVICE)
void require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(3);
}
void* allocate(std::size_t bytes) {
  void* data = nullptr;
  require(cudaMalloc(&data, bytes), "cudaMalloc");
  return data;
}
void release(void* data) { cudaFree(data); }
void transfer(void* to, const void* from, std::size_t bytes) {
  require(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), "cudaMemcpy");
}
void fill_bytes(void* data, unsigned char value, std::size_t bytes) {
  require(cudaMemset(data, value, bytes), "cudaMemset");
}
void finish() { require(cudaDeviceSynchronize(), "a kernel"); }

// Boards without tensor cores are played by a build that has no code for them.
#if defined(DYN_LANES_ONLY)
constexpr int kCapability = 62;
#else
constexpr int kCapability = 0;
#endif
// What a round takes, and whether its FP16 is that of tensor cores.
bool play(Rng& rng, int size) {
  played_device() = {kCapability, 0, static_cast<Size>(size >= 0 ? size : pick(rng, 0, 4))};
  return kCapability == 0;
}
#else
void* allocate(std::size_t bytes) { return ::operator new(bytes); }
void release(void* data) { ::operator delete(data); }
void transfer(void* to, const void* from, std::size_t bytes) {
  if (bytes) std::memcpy(to, from, bytes);  // an empty vector may have no address
}
void fill_bytes(void* data, unsigned char value, std::size_t bytes) { std::memset(data, value, bytes); }
void finish() {}

bool play(Rng& rng, int size) {
  const int capabilities[] = {62, 75, 87, 90};
  const int capability = capabilities[pick(rng, 0, 3)], processors = coin(rng) ? 1 : 400;
  DeviceTraits traits = traits_of(capability, processors);
  traits.tiles = static_cast<Size>(size >= 0 ? size : pick(rng, 0, 4));
  host::device() = {traits, false, 0, 0};
  return capability >= 70;
}
#endif

// A copy in memory of exactly its size and of a vector's alignment, in the kernels' element type. Sanitizers
// see the first byte outside.
class Memory {
 public:
  Memory(std::size_t bytes, unsigned char value) : bytes_(bytes), data_(allocate(bytes == 0 ? 16 : bytes)) {
    fill_bytes(data_, value, bytes == 0 ? 16 : bytes);
  }
  Memory(const Floats& values, Type type) : Memory(values.size() * (type == Type::kHalf ? 2 : 4), 0) {
    if (type == Type::kFloat) {
      transfer(data_, values.data(), bytes_);
      return;
    }
    std::vector<std::uint16_t> halves;
    for (const float v : values) halves.push_back(host::float_to_half(v));
    transfer(data_, halves.data(), bytes_);
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { release(data_); }

  void* get() { return data_; }
  const float* floats() const { return static_cast<const float*>(data_); }
  Floats read(Type type) const {
    Floats values(bytes_ / (type == Type::kHalf ? 2 : 4));
    if (type == Type::kFloat) {
      transfer(values.data(), data_, bytes_);
      return values;
    }
    std::vector<std::uint16_t> halves(values.size());
    transfer(halves.data(), data_, bytes_);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = host::half_to_float(halves[i]);
    return values;
  }

 private:
  std::size_t bytes_;
  void* data_;
};

struct Weights {
  Floats w1, w2, w3, wd, b1, b2, b3, bd, border_bias, skipped_output, ws, we, bs, be;
};

double positive(double v) { return v > 0 ? v : 0; }

// What Winograd's algorithm makes of a 3x3, behind it.
void add_transformed(int middle, Floats& w2) {
  const double g[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
  const std::size_t each = product_of({middle, middle});
  for (int place = 0; place < 16; ++place) {
    for (std::size_t i = 0; i < each; ++i) {
      double sum = 0;
      for (int tap = 0; tap < 9; ++tap) {
        sum += g[place / 4][tap / 3] * g[place % 4][tap % 3] * w2[static_cast<std::size_t>(tap) * each + i];
      }
      w2.push_back(static_cast<float>(sum));
    }
  }
}

Weights random_weights(Rng& rng, const BottleneckShape& s, Type type) {
  const int width = s.middle / s.groups;
  Weights w;
  w.w1 = normal(rng, product_of({s.inputs, s.middle}), 1 / std::sqrt(s.inputs));
  w.w2 = normal(rng, product_of({s.middle, 9, width}), 1 / std::sqrt(9.0 * width));
  w.w3 = normal(rng, product_of({s.middle, s.outputs}), 1 / std::sqrt(s.middle));
  if (s.projection) w.wd = normal(rng, product_of({s.inputs, s.outputs}), 1 / std::sqrt(s.inputs));
  w.ws = normal(rng, product_of({s.middle, s.squeeze}), 1 / std::sqrt(s.middle));
  w.we = normal(rng, product_of({s.squeeze, s.middle}), 1 / std::sqrt(s.squeeze + 1));
  w.bs = normal(rng, product_of({s.squeeze}), 0.5);
  w.be = normal(rng, product_of({s.middle}), 1);
  if (type == Type::kHalf) {
    for (Floats* values : {&w.w1, &w.w2, &w.w3, &w.wd, &w.ws, &w.we}) {
      for (float& v : *values) v = round_to_half(v);
    }
  }
  if (s.winograd) add_transformed(s.middle, w.w2);
  w.b1 = normal(rng, product_of({s.middle}), 0.5);
  w.b2 = normal(rng, product_of({s.middle}), 0.5);
  w.b3 = normal(rng, product_of({s.outputs}), 0.5);
  w.bd = normal(rng, product_of({s.outputs}), 0.5);
  w.border_bias.resize(product_of({16, s.middle}));
  for (int bits = 0; bits < 16; ++bits) {
    for (int c = 0; c < s.middle; ++c) {
      const int group = c / width;
      double sum = w.b2[c];
      for (int tap = 0; tap < 9; ++tap) {
        const int y = tap / 3, x = tap % 3;
        if ((y == 0 && (bits & 1)) || (y == 2 && (bits & 2)) || (x == 0 && (bits & 4)) ||
            (x == 2 && (bits & 8)))
          continue;
        for (int i = 0; i < width; ++i) {
          sum +=
              positive(w.b1[group * width + i]) * w.w2[((group * 9 + tap) * width + i) * width + c % width];
        }
      }
      w.border_bias[bits * s.middle + c] = static_cast<float>(sum);
    }
  }
  for (int o = 0; o < s.outputs; ++o) {
    double sum = w.b3[o];
    for (int c = 0; c < s.middle; ++c) sum += positive(w.b2[c]) * w.w3[c * s.outputs + o];
    w.skipped_output.push_back(static_cast<float>(sum));
  }
  return w;
}

// Dense arithmetic and masks, as the operators are defined.
std::vector<double> reference(const BottleneckShape& s, const Weights& w, const Floats& x,
                              const Floats& spatial, const Floats& channel) {
  const int width = s.middle / s.groups;
  const int ho = (s.height - 1) / s.stride + 1, wo = (s.width - 1) / s.stride + 1;
  const auto keep = [&](int n, int c) {
    if (s.channel_groups == 0) return 1.0;
    return channel[n * s.channel_groups + c / (s.middle / s.channel_groups)] > 0.5f ? 1.0 : 0.0;
  };
  std::vector<double> y(product_of({s.batch, ho, wo, s.outputs}));
  std::vector<double> h1(product_of({s.height, s.width, s.middle}));
  std::vector<double> h2s(product_of({ho, wo, s.middle}));
  // Behind its ReLU with a squeeze-and-excitation, before the bias without.
  const auto hidden = [&](double sum, double bias, double kept) {
    return s.squeeze > 0 ? kept * positive(sum + bias) : positive(kept * sum + bias);
  };
  for (int n = 0; n < s.batch; ++n) {
    const float* sample = x.data() + product_of({n, s.height, s.width, s.inputs});
    for (int p = 0; p < s.height * s.width; ++p) {
      for (int c = 0; c < s.middle; ++c) {
        double sum = 0;
        for (int i = 0; i < s.inputs; ++i)
          sum += static_cast<double>(sample[p * s.inputs + i]) * w.w1[i * s.middle + c];
        h1[p * s.middle + c] = hidden(sum, w.b1[c], keep(n, c));
      }
    }
    for (int oy = 0; oy < ho; ++oy) {
      for (int ox = 0; ox < wo; ++ox) {
        for (int c = 0; c < s.middle; ++c) {
          double sum = 0;
          for (int tap = 0; tap < 9; ++tap) {
            const int iy = oy * s.stride + (tap / 3 - 1) * s.dilation,
                      ix = ox * s.stride + (tap % 3 - 1) * s.dilation;
            if (iy < 0 || iy >= s.height || ix < 0 || ix >= s.width) continue;
            const int group = c / width;
            for (int i = 0; i < width; ++i) {
              sum += h1[(iy * s.width + ix) * s.middle + group * width + i] *
                     w.w2[((group * 9 + tap) * width + i) * width + c % width];
            }
          }
          h2s[(oy * wo + ox) * s.middle + c] = hidden(sum, w.b2[c], keep(n, c));
        }
      }
    }
    const auto is_active = [&](int oy, int ox) {
      if (s.mask_height == 0) return true;
      return spatial[(n * s.mask_height + oy * s.mask_height / ho) * s.mask_width + ox * s.mask_width / wo] >
             0.5f;
    };
    if (s.squeeze > 0) {
      std::vector<double> mean(static_cast<std::size_t>(s.middle)), squeezed;
      int pooled = 0;
      for (int p = 0; p < ho * wo; ++p) {
        if (s.pool_active && !is_active(p / wo, p % wo)) continue;
        ++pooled;
        for (int c = 0; c < s.middle; ++c) mean[c] += h2s[p * s.middle + c];
      }
      for (int u = 0; u < s.squeeze; ++u) {
        double sum = w.bs[u];
        for (int c = 0; c < s.middle; ++c) sum += mean[c] / std::max(pooled, 1) * w.ws[c * s.squeeze + u];
        squeezed.push_back(positive(sum));
      }
      for (int c = 0; c < s.middle; ++c) {
        double sum = w.be[c];
        for (int u = 0; u < s.squeeze; ++u) sum += squeezed[u] * w.we[u * s.middle + c];
        for (int p = 0; p < ho * wo; ++p) h2s[p * s.middle + c] /= 1 + std::exp(-sum);
      }
    }
    for (int oy = 0; oy < ho; ++oy) {
      for (int ox = 0; ox < wo; ++ox) {
        const bool active = is_active(oy, ox);
        const double* h2 = &h2s[(oy * wo + ox) * s.middle];
        const float* in = sample + product_of({oy * s.stride * s.width + ox * s.stride, s.inputs});
        for (int o = 0; o < s.outputs; ++o) {
          double sum = 0;
          if (s.projection) {
            sum = w.bd[o];
            for (int i = 0; i < s.inputs; ++i) sum += static_cast<double>(in[i]) * w.wd[i * s.outputs + o];
          } else {
            sum = in[o];
          }
          if (active) {
            sum += w.b3[o];
            for (int c = 0; c < s.middle; ++c) sum += h2[c] * w.w3[c * s.outputs + o];
          }
          y[product_of({(n * ho + oy) * wo + ox, s.outputs}) + o] = positive(sum);
        }
      }
    }
  }
  return y;
}

Floats run(const BottleneckShape& s, Type type, const Weights& w, const Floats& x, const Floats& spatial,
           const Floats& channel) {
  const std::size_t size = type == Type::kHalf ? 2 : 4;
  const int ho = (s.height - 1) / s.stride + 1, wo = (s.width - 1) / s.stride + 1;
  Memory mx(x, type), w1(w.w1, type), w2(w.w2, type), w3(w.w3, type), wd(w.wd, type);
  Memory b1(w.b1, Type::kFloat), b2(w.b2, Type::kFloat), b3(w.b3, Type::kFloat), bd(w.bd, Type::kFloat);
  Memory border(w.border_bias, Type::kFloat), skipped(w.skipped_output, Type::kFloat);
  Memory ws(w.ws, type), we(w.we, type), bs(w.bs, Type::kFloat), be(w.be, Type::kFloat);
  Memory spatial_mask(spatial, Type::kFloat), channel_mask(channel, Type::kFloat);
  Memory y(product_of({s.batch, ho, wo, s.outputs}) * size, 0xff),
      workspace(bottleneck_workspace(s, type), 0xff);
  BottleneckTensors t = {};
  t.x = mx.get();
  t.w1 = w1.get();
  t.w2 = w2.get();
  t.w3 = w3.get();
  t.b1 = b1.floats();
  t.b2 = b2.floats();
  t.b3 = b3.floats();
  if (s.projection) {
    t.wd = wd.get();
    t.bd = bd.floats();
  }
  if (s.mask_height > 0) t.spatial_mask = spatial_mask.floats();
  if (s.channel_groups > 0) {
    t.channel_mask = channel_mask.floats();
    if (s.squeeze == 0) {
      t.border_bias = border.floats();
      t.skipped_output = skipped.floats();
    }
  }
  if (s.squeeze > 0) {
    t.ws = ws.get();
    t.we = we.get();
    t.bs = bs.floats();
    t.be = be.floats();
  }
  t.y = y.get();
  const char* message = check_bottleneck(s, type);
  CHECK(message == nullptr, "%s", message);
  CHECK(run_bottleneck(s, type, t, workspace.get(), nullptr) == 0, "no error");
  finish();
  return y.read(type);
}

// Blocks of real threads are slow: fewer and smaller rounds.
#if defined(DYN_HOST_THREADS)
constexpr bool kThreaded = true;
#else
constexpr bool kThreaded = false;
#endif

void test_bottlenecks(int rounds) {
  Rng rng(1);
  for (int round = 0; round < rounds; ++round) {
    const Type type = coin(rng) ? Type::kHalf : Type::kFloat;
    const int unit = pick(rng, 0, 2) == 0 ? 1 : 8;
    const int groups = coin(rng) ? pick(rng, 2, 5) : 1;
    BottleneckShape s = {};
    s.batch = pick(rng, 1, 3);
    s.height = pick(rng, 1, 8);
    s.width = pick(rng, 1, 8);
    s.projection = coin(rng);
    s.inputs = unit * pick(rng, 1, 40 / unit);
    s.middle = groups * unit * pick(rng, 1, 48 / unit / groups);
    s.outputs = s.projection ? unit * pick(rng, 1, 40 / unit) : s.inputs;
    s.groups = groups;
    s.stride = s.projection ? pick(rng, 1, 2) : 1;
    s.dilation = pick(rng, 1, 2);
    const int mode = pick(rng, 0, 3);  // bit 0: spatial, bit 1: channel
    if (mode & 1) {
      s.mask_height = pick(rng, 1, (s.height - 1) / s.stride + 1);
      s.mask_width = pick(rng, 1, (s.width - 1) / s.stride + 1);
    }
    if (mode & 2) {
      do s.channel_groups = pick(rng, 1, s.middle);
      while (s.middle % s.channel_groups != 0);
    }
    s.squeeze = coin(rng) ? pick(rng, 1, 40) : 0;
    s.pool_active = coin(rng);
    s.largest_batch = coin(rng) ? 10000 : 0;
    if (round % 3 == 2) {  // by Winograd's algorithm, on boards
      const int side = 2 * pick(rng, 1, 2);
      s.winograd = true;
      s.height = side * pick(rng, 1, 3);
      s.width = side * pick(rng, 1, 3);
      s.mask_height = mode & 1 ? s.height / side : 0;
      s.mask_width = mode & 1 ? s.width / side : 0;
      s.groups = s.stride = s.dilation = 1;
      s.middle = 8 * pick(rng, 1, 6);
      s.squeeze = s.channel_groups = 0;
    }
    const double rate = 0.25 * pick(rng, 0, 4);
    Floats spatial(product_of({s.batch, s.mask_height, s.mask_width}));
    Floats channel(product_of({s.batch, s.channel_groups}));
    for (float& v : spatial) v = coin(rng, rate) ? 1.0f : 0.0f;
    for (float& v : channel) v = coin(rng, rate) ? 1.0f : 0.0f;
    Floats x = normal(rng, product_of({s.batch, s.height, s.width, s.inputs}), 1);
    for (float& v : x) v = round_to_half(std::fabs(v));
    const Weights w = random_weights(rng, s, type);
    const std::vector<double> expected = reference(s, w, x, spatial, channel);
    double scale = 1;
    for (const double v : expected) scale = std::max(scale, v);

    const bool tensor_cores = play(rng, round % 5 - 1);
    const double tolerance = type == Type::kFloat ? 2e-5 : tensor_cores ? 3e-3 : 6e-3;
    const Floats y = run(s, type, w, x, spatial, channel);
    double worst = 0;
    for (std::size_t i = 0; i < y.size(); ++i) {
      const double error = std::fabs(y[i] - expected[i]);
      if (!(error <= worst)) worst = error;
    }
    CHECK(worst <= tolerance * scale, "round %d: error %g of %g", round, worst, scale);
    if (kThreaded) continue;
#if !defined(DYN_PLAYED_DEVICE)
    host::device().reverse = true;
#endif
    const Floats again = run(s, type, w, x, spatial, channel);
    CHECK(std::memcmp(y.data(), again.data(), y.size() * sizeof(float)) == 0,
          "round %d: the order of threads shows in the result", round);
  }
}

// ------------------------------------------------------------------------------------------ in integers

template <class T>
class Numbers {
 public:
  explicit Numbers(const std::vector<T>& values)
      : count_(values.size()), data_(allocate(count_ ? count_ * sizeof(T) : 16)) {
    transfer(data_, values.data(), count_ * sizeof(T));
  }
  Numbers(const Numbers&) = delete;
  Numbers& operator=(const Numbers&) = delete;
  ~Numbers() { release(data_); }
  T* get() const { return static_cast<T*>(data_); }
  std::vector<T> read() const {
    std::vector<T> values(count_);
    transfer(values.data(), data_, count_ * sizeof(T));
    return values;
  }

 private:
  std::size_t count_;
  void* data_;
};

using Bytes = std::vector<std::uint8_t>;

// Weights, biases and multipliers of a convolution; the sums of `depth` products come to the range of a byte.
struct QuantizedWeights {
  std::vector<std::int8_t> w;
  std::vector<std::int32_t> b;
  Floats m;
  QuantizedWeights(Rng& rng, int outputs, int depth) {
    for (std::size_t i = 0; i < product_of({outputs, depth}); ++i) {
      w.push_back(static_cast<std::int8_t>(pick(rng, -127, 127)));
    }
    for (int i = 0; i < outputs; ++i) {
      b.push_back(pick(rng, -20000, 20000));
      m.push_back(static_cast<float>((0.3 + 0.01 * pick(rng, 0, 100)) / (50 * std::sqrt(depth))));
    }
  }
  int requantise(int sum, int output) const {
    const float scaled =
        static_cast<float>(sum + b[static_cast<std::size_t>(output)]) * m[static_cast<std::size_t>(output)];
    return static_cast<int>(std::max(-32768.0f, std::min(32767.0f, std::nearbyint(scaled))));
  }
  int sum(const std::uint8_t* x, int output, int from, int count, int depth) const {
    int total = 0;
    for (int i = 0; i < count; ++i) total += x[i] * w[product_of({output, depth}) + from + i];
    return total;
  }
};
int to_bytes(int v) { return std::max(0, std::min(255, v)); }

// As the operators are defined: skipped channels have sums of 0.
Bytes quantized_reference(const BottleneckShape& s, const QuantizedWeights& l1, const QuantizedWeights& l2,
                          const QuantizedWeights& l3, const QuantizedWeights& ld, const Bytes& x,
                          const Floats& spatial, const Floats& channel) {
  const int width = s.middle / s.groups, ho = (s.height - 1) / s.stride + 1,
            wo = (s.width - 1) / s.stride + 1;
  const auto kept = [&](int n, int c) {
    return s.channel_groups == 0 || channel[n * s.channel_groups + c / (s.middle / s.channel_groups)] > 0.5f;
  };
  Bytes y(product_of({s.batch, ho, wo, s.outputs})), h1(product_of({s.height, s.width, s.middle}));
  Bytes h2(static_cast<std::size_t>(s.middle));
  for (int n = 0; n < s.batch; ++n) {
    const std::uint8_t* sample = x.data() + product_of({n, s.height, s.width, s.inputs});
    for (int p = 0; p < s.height * s.width; ++p) {
      for (int c = 0; c < s.middle; ++c) {
        const int sum = kept(n, c) ? l1.sum(sample + p * s.inputs, c, 0, s.inputs, s.inputs) : 0;
        h1[p * s.middle + c] = static_cast<std::uint8_t>(to_bytes(l1.requantise(sum, c)));
      }
    }
    for (int p = 0; p < ho * wo; ++p) {
      const int oy = p / wo, ox = p % wo;
      for (int c = 0; c < s.middle; ++c) {
        int sum = 0;
        for (int tap = 0; tap < 9 && kept(n, c); ++tap) {
          const int iy = oy * s.stride + (tap / 3 - 1) * s.dilation,
                    ix = ox * s.stride + (tap % 3 - 1) * s.dilation;
          if (iy < 0 || iy >= s.height || ix < 0 || ix >= s.width) continue;
          sum += l2.sum(&h1[(iy * s.width + ix) * s.middle + c / width * width], c, tap * width, width,
                        9 * width);
        }
        h2[c] = static_cast<std::uint8_t>(to_bytes(l2.requantise(sum, c)));
      }
      const bool active =
          s.mask_height == 0 ||
          spatial[(n * s.mask_height + oy * s.mask_height / ho) * s.mask_width + ox * s.mask_width / wo] >
              0.5f;
      const std::uint8_t* in = sample + product_of({oy * s.stride * s.width + ox * s.stride, s.inputs});
      for (int o = 0; o < s.outputs; ++o) {
        int v = s.projection ? ld.requantise(ld.sum(in, o, 0, s.inputs, s.inputs), o) : in[o];
        if (active) v += l3.requantise(l3.sum(h2.data(), o, 0, s.middle, s.middle), o);
        y[product_of({n * ho * wo + p, s.outputs}) + o] = static_cast<std::uint8_t>(to_bytes(v));
      }
    }
  }
  return y;
}

void test_quantized(int rounds) {
  Rng rng(7);
  for (int round = 0; round < rounds; ++round) {
    const int unit = pick(rng, 0, 2) == 0 ? 1 : 16;
    BottleneckShape s = {};
    s.groups = coin(rng) ? pick(rng, 2, 3) : 1;
    s.batch = pick(rng, 1, 3);
    s.height = pick(rng, 1, 8);
    s.width = pick(rng, 1, 8);
    s.projection = coin(rng);
    s.inputs = unit * pick(rng, 1, 80 / unit);
    s.middle = s.groups * unit * pick(rng, 1, std::max(1, 96 / unit / s.groups));
    s.outputs = s.projection ? unit * pick(rng, 1, 80 / unit) : s.inputs;
    s.stride = s.projection ? pick(rng, 1, 2) : 1;
    s.dilation = pick(rng, 1, 2);
    const int mode = pick(rng, 0, 3);  // bit 0: spatial, bit 1: channel
    if (mode & 1) {
      s.mask_height = pick(rng, 1, (s.height - 1) / s.stride + 1);
      s.mask_width = pick(rng, 1, (s.width - 1) / s.stride + 1);
    }
    if (mode & 2) {
      do s.channel_groups = pick(rng, 1, s.middle);
      while (s.middle % s.channel_groups != 0);
    }
    const double rate = 0.25 * pick(rng, 0, 4);
    Floats spatial(product_of({s.batch, s.mask_height, s.mask_width}));
    Floats channel(product_of({s.batch, s.channel_groups}));
    for (float& v : spatial) v = coin(rng, rate) ? 1.0f : 0.0f;
    for (float& v : channel) v = coin(rng, rate) ? 1.0f : 0.0f;
    Bytes x(product_of({s.batch, s.height, s.width, s.inputs}));
    for (std::uint8_t& v : x) v = static_cast<std::uint8_t>(pick(rng, 0, 255));
    const QuantizedWeights l1(rng, s.middle, s.inputs), l2(rng, s.middle, 9 * (s.middle / s.groups)),
        l3(rng, s.outputs, s.middle), ld(rng, s.projection ? s.outputs : 0, s.inputs);
    const Bytes expected = quantized_reference(s, l1, l2, l3, ld, x, spatial, channel);

    play(rng, round % 5 - 1);
#if defined(DYN_PLAYED_DEVICE)
    if (kCapability != 0) played_device().capability = 61;  // lanes that multiply bytes
#else
    if (host::device().traits.capability == 62) host::device().traits.capability = 61;
    if (coin(rng)) host::device().traits.capability = coin(rng) ? 72 : 90;
#endif
    const Numbers<std::uint8_t> mx(x), my(Bytes(expected.size(), 0xff));
    const Numbers<float> ms(spatial), mc(channel), m1(l1.m), m2(l2.m), m3(l3.m), md(ld.m);
    const Numbers<std::int8_t> w1(l1.w), w2(l2.w), w3(l3.w), wd(ld.w);
    const Numbers<std::int32_t> b1(l1.b), b2(l2.b), b3(l3.b), bd(ld.b);
    const QuantizedBottleneckTensors t = {mx.get(),
                                          mode & 1 ? ms.get() : nullptr,
                                          mode & 2 ? mc.get() : nullptr,
                                          w1.get(),
                                          w2.get(),
                                          w3.get(),
                                          wd.get(),
                                          b1.get(),
                                          b2.get(),
                                          b3.get(),
                                          bd.get(),
                                          m1.get(),
                                          m2.get(),
                                          m3.get(),
                                          md.get(),
                                          my.get()};
    CHECK(check_quantized_bottleneck(s) == nullptr, "round %d", round);
    for (int reverse = 0; reverse < (kThreaded ? 1 : 2); ++reverse) {
#if !defined(DYN_PLAYED_DEVICE)
      host::device().reverse = reverse == 1;
#endif
      const std::unique_ptr<Memory> workspace(new Memory(quantized_bottleneck_workspace(s), 0xff));
      fill_bytes(my.get(), 0xff, expected.size());
      CHECK(run_quantized_bottleneck(s, t, workspace->get(), nullptr) == 0, "no error");
      finish();
      CHECK(my.read() == expected, "round %d: another result than that of the reference", round);
    }
  }
}

void test_maskers(int rounds) {
  Rng rng(2);
  for (int round = 0; round < rounds; ++round) {
    const Type type = coin(rng) ? Type::kHalf : Type::kFloat;
    const int batch = pick(rng, 1, 3), height = pick(rng, 1, 12), width = pick(rng, 1, 12);
    const int channels = coin(rng) ? 8 * pick(rng, 1, 40) : pick(rng, 1, 300);
    const int groups = pick(rng, 1, 40), hidden = coin(rng) ? pick(rng, 1, 20) : 0;
    play(rng, 0);
#if !defined(DYN_PLAYED_DEVICE)
    host::device().reverse = coin(rng);
#endif
    Floats x = normal(rng, product_of({batch, height, width, channels}), 1);
    for (float& v : x) v = round_to_half(v);
    Memory mx(x, type);

    const int mh = pick(rng, 1, height), mw = pick(rng, 1, width), kinds = pick(rng, 1, 3);
    const Floats weight = normal(rng, product_of({kinds, channels}), 1),
                 bias = normal(rng, product_of({kinds}), 1);
    Memory mask(product_of({batch, kinds, mh, mw}) * 4, 0xff);
    const SpatialMaskerShape spatial = {batch, height, width, channels, kinds, mh, mw};
    Memory given_weight(weight, Type::kFloat), given_bias(bias, Type::kFloat);
    CHECK(run_spatial_masker(spatial, type, mx.get(), given_weight.floats(), given_bias.floats(),
                             static_cast<float*>(mask.get()), nullptr) == 0,
          "no error");
    finish();
    Floats bits = mask.read(Type::kFloat);
    for (std::size_t i = 0; i < bits.size(); ++i) {
      const int column = static_cast<int>(i) % mw, row = static_cast<int>(i) / mw % mh;
      const int kind = static_cast<int>(i) / (mw * mh) % kinds, n = static_cast<int>(i) / (mw * mh * kinds);
      double sum = 0;
      int count = 0;
      for (int y = row * height / mh; y < ((row + 1) * height + mh - 1) / mh; ++y) {
        for (int z = column * width / mw; z < ((column + 1) * width + mw - 1) / mw; ++z, ++count) {
          for (int c = 0; c < channels; ++c) {
            sum += static_cast<double>(x[product_of({(n * height + y) * width + z, channels}) + c]) *
                   weight[kind * channels + c];
          }
        }
      }
      const double logit = sum / count + bias[kind];
      if (std::fabs(logit) > 1e-4)
        CHECK(bits[i] == (logit >= 0 ? 1.0f : 0.0f), "round %d: logit %g", round, logit);
    }

    const int inputs = hidden > 0 ? hidden : channels;
    const Floats hw = normal(rng, product_of({hidden, channels}), 1),
                 hb = normal(rng, product_of({hidden}), 1);
    const Floats lw = normal(rng, product_of({groups, inputs}), 1), lb = normal(rng, product_of({groups}), 1);
    const ChannelMaskerShape shape = {batch, height, width, channels, hidden, groups};
    Memory keep(product_of({batch, groups}) * 4, 0xff), workspace(channel_masker_workspace(shape), 0xff);
    Memory given_hw(hw, Type::kFloat), given_hb(hb, Type::kFloat);
    Memory given_lw(lw, Type::kFloat), given_lb(lb, Type::kFloat);
    CHECK(run_channel_masker(shape, type, mx.get(), hidden > 0 ? given_hw.floats() : nullptr,
                             hidden > 0 ? given_hb.floats() : nullptr, given_lw.floats(), given_lb.floats(),
                             static_cast<float*>(keep.get()), workspace.get(), nullptr) == 0,
          "no error");
    finish();
    bits = keep.read(Type::kFloat);
    for (int n = 0; n < batch; ++n) {
      std::vector<double> features(static_cast<std::size_t>(channels)), units;
      for (int p = 0; p < height * width; ++p) {
        for (int c = 0; c < channels; ++c)
          features[c] += x[product_of({n * height * width + p, channels}) + c];
      }
      for (double& v : features) v /= height * width;
      for (int u = 0; u < hidden; ++u) {
        double sum = hb[u];
        for (int c = 0; c < channels; ++c) sum += features[c] * hw[u * channels + c];
        units.push_back(positive(sum));
      }
      for (int g = 0; g < groups; ++g) {
        double sum = lb[g];
        for (int i = 0; i < inputs; ++i) sum += (hidden > 0 ? units[i] : features[i]) * lw[g * inputs + i];
        if (std::fabs(sum) > 1e-4) {
          CHECK(bits[n * groups + g] == (sum >= 0 ? 1.0f : 0.0f), "round %d: logit %g", round, sum);
        }
      }
    }
  }
}

using Doubles = std::vector<double>;

struct BlockWeights {
  Floats norm1_weight, norm1_bias, w_qkv, b_qkv, w_proj, b_proj, norm2_weight, norm2_bias, w_fc1, b_fc1,
      w_fc2, b_fc2;
};
struct BlockMasks {
  Floats token, head, attention, mlp;
};

BlockWeights random_weights(Rng& rng, const TransformerShape& s, Type type) {
  const int channels = s.heads * s.head_width;
  BlockWeights w;
  for (Floats* values : {&w.norm1_weight, &w.norm1_bias, &w.norm2_weight, &w.norm2_bias}) {
    *values = normal(rng, product_of({s.width}), 1);
  }
  w.w_qkv = normal(rng, product_of({s.width, 3, channels}), 1 / std::sqrt(s.width));
  w.w_proj = normal(rng, product_of({channels, s.width}), 1 / std::sqrt(channels));
  w.w_fc1 = normal(rng, product_of({s.width, s.hidden}), 1 / std::sqrt(s.width));
  w.w_fc2 = normal(rng, product_of({s.hidden, s.width}), 1 / std::sqrt(s.hidden));
  if (type == Type::kHalf) {
    for (Floats* values : {&w.w_qkv, &w.w_proj, &w.w_fc1, &w.w_fc2}) {
      for (float& v : *values) v = round_to_half(v);
    }
  }
  w.b_qkv = normal(rng, product_of({3, channels}), 0.5);
  w.b_proj = normal(rng, product_of({s.width}), 0.5);
  w.b_fc1 = normal(rng, product_of({s.hidden}), 0.5);
  w.b_fc2 = normal(rng, product_of({s.width}), 0.5);
  return w;
}

Doubles normalised(const Doubles& rows, int width, double epsilon, const Floats& weight, const Floats& bias) {
  Doubles result(rows.size());
  for (std::size_t first = 0; first < rows.size(); first += static_cast<std::size_t>(width)) {
    double mean = 0, variance = 0;
    for (int c = 0; c < width; ++c) mean += rows[first + c] / width;
    for (int c = 0; c < width; ++c) variance += (rows[first + c] - mean) * (rows[first + c] - mean) / width;
    for (int c = 0; c < width; ++c) {
      result[first + c] = (rows[first + c] - mean) / std::sqrt(variance + epsilon) * weight[c] + bias[c];
    }
  }
  return result;
}

// Rows times a matrix (inputs, outputs) plus a bias.
Doubles linear(const Doubles& rows, int inputs, int outputs, const Floats& weight, const Floats& bias) {
  const std::size_t count = rows.size() / static_cast<std::size_t>(inputs);
  Doubles result(count * static_cast<std::size_t>(outputs));
  for (std::size_t r = 0; r < count; ++r) {
    for (int o = 0; o < outputs; ++o) {
      double sum = bias[o];
      for (int i = 0; i < inputs; ++i) sum += rows[r * inputs + i] * weight[i * outputs + o];
      result[r * outputs + o] = sum;
    }
  }
  return result;
}

// Every row and head is computed, then what the masks drop is left out.
Doubles reference(const TransformerShape& s, const BlockWeights& w, const Floats& x,
                  const BlockMasks& masks) {
  const int T = s.tokens, D = s.width, d = s.head_width, channels = s.heads * d;
  const auto on = [](const Floats& mask, int at) { return mask.empty() || mask[at] > 0.5f; };
  Doubles y(x.begin(), x.end());
  for (int n = 0; n < s.batch; ++n) {
    const std::size_t first = product_of({n, T, D});
    const auto begin = y.begin() + static_cast<std::ptrdiff_t>(first);
    Doubles rows(begin, begin + static_cast<std::ptrdiff_t>(product_of({T, D})));
    const auto kept = [&](int t) { return on(masks.token, n * T + t); };
    const auto head = [&](int a) { return on(masks.head, n * s.heads + a); };
    if (on(masks.attention, n)) {
      const Doubles u = normalised(rows, D, s.epsilon, w.norm1_weight, w.norm1_bias);
      const Doubles qkv = linear(u, D, 3 * channels, w.w_qkv, w.b_qkv);
      Doubles out(product_of({T, channels}));
      for (int a = 0; a < s.heads; ++a) {
        for (int i = 0; i < T; ++i) {
          if (!kept(i)) continue;
          const auto value = [&](int part, int row, int c) {
            return qkv[(row * 3 + part) * channels + a * d + c];
          };
          if (!head(a)) {
            if (s.head_mode == 2) {
              for (int c = 0; c < d; ++c) out[i * channels + a * d + c] = value(2, i, c);
            }
            continue;
          }
          Doubles weight(static_cast<std::size_t>(T));
          double most = -1e300, total = 0;
          for (int j = 0; j < T; ++j) {
            for (int c = 0; c < d; ++c) weight[j] += value(0, i, c) * value(1, j, c) * s.scale;
            if (kept(j)) most = std::max(most, weight[j]);
          }
          for (int j = 0; j < T; ++j) {
            weight[j] = kept(j) ? std::exp(weight[j] - most) : 0;
            total += weight[j];
          }
          for (int j = 0; j < T; ++j) {
            for (int c = 0; c < d; ++c) out[i * channels + a * d + c] += weight[j] / total * value(2, j, c);
          }
        }
      }
      const Doubles branch = linear(out, channels, D, w.w_proj, w.b_proj);
      for (int i = 0; i < T * D; ++i) rows[i] += kept(i / D) ? branch[i] : 0;
    }
    if (on(masks.mlp, n)) {
      Doubles u = normalised(rows, D, s.epsilon, w.norm2_weight, w.norm2_bias);
      if (s.head_mask && s.head_mode == 0) {
        for (int i = 0; i < T * D; ++i) u[i] = head(i % D / d) ? u[i] : 0;
      }
      Doubles hidden = linear(u, D, s.hidden, w.w_fc1, w.b_fc1);
      for (int i = 0; i < T * s.hidden; ++i) {
        const bool unit = !s.head_mask || s.head_mode != 1 || head(i % s.hidden / (s.hidden / s.heads));
        hidden[i] = unit ? 0.5 * hidden[i] * (1 + std::erf(hidden[i] / std::sqrt(2.0))) : 0;
      }
      const Doubles branch = linear(hidden, s.hidden, D, w.w_fc2, w.b_fc2);
      for (int i = 0; i < T * D; ++i) rows[i] += kept(i / D) || !s.token_mlp ? branch[i] : 0;
    }
    std::copy(rows.begin(), rows.end(), y.begin() + static_cast<std::ptrdiff_t>(first));
  }
  return y;
}

Floats run(const TransformerShape& s, Type type, const BlockWeights& w, const Floats& x,
           const BlockMasks& masks) {
  Memory mx(x, type), w_qkv(w.w_qkv, type), w_proj(w.w_proj, type), w_fc1(w.w_fc1, type),
      w_fc2(w.w_fc2, type);
  Memory norm1_weight(w.norm1_weight, Type::kFloat), norm1_bias(w.norm1_bias, Type::kFloat);
  Memory norm2_weight(w.norm2_weight, Type::kFloat), norm2_bias(w.norm2_bias, Type::kFloat);
  Memory b_qkv(w.b_qkv, Type::kFloat), b_proj(w.b_proj, Type::kFloat);
  Memory b_fc1(w.b_fc1, Type::kFloat), b_fc2(w.b_fc2, Type::kFloat);
  Memory token(masks.token, Type::kFloat), head(masks.head, Type::kFloat);
  Memory attention(masks.attention, Type::kFloat), mlp(masks.mlp, Type::kFloat);
  Memory y(x.size() * (type == Type::kHalf ? 2 : 4), 0xff), workspace(transformer_workspace(s, type), 0xff);
  TransformerTensors t = {};
  t.x = mx.get();
  if (s.token_mask) t.token_mask = token.floats();
  if (s.head_mask) t.head_mask = head.floats();
  if (s.sublayer_masks) {
    t.attention_mask = attention.floats();
    t.mlp_mask = mlp.floats();
  }
  t.norm1_weight = norm1_weight.floats();
  t.norm1_bias = norm1_bias.floats();
  t.w_qkv = w_qkv.get();
  t.b_qkv = b_qkv.floats();
  t.w_proj = w_proj.get();
  t.b_proj = b_proj.floats();
  t.norm2_weight = norm2_weight.floats();
  t.norm2_bias = norm2_bias.floats();
  t.w_fc1 = w_fc1.get();
  t.b_fc1 = b_fc1.floats();
  t.w_fc2 = w_fc2.get();
  t.b_fc2 = b_fc2.floats();
  t.y = y.get();
  const char* message = check_transformer(s, type);
  CHECK(message == nullptr, "%s", message);
  CHECK(run_transformer(s, type, t, workspace.get(), nullptr) == 0, "no error");
  finish();
  return y.read(type);
}

void test_transformers(int rounds) {
  Rng rng(3);
  for (int round = 0; round < rounds; ++round) {
    // Few rounds of real threads: both types, and most of everything kept.
    const Type type = (kThreaded ? round % 2 == 1 : coin(rng)) ? Type::kHalf : Type::kFloat;
    const int unit = pick(rng, 0, 2) == 0 ? 1 : 8;
    TransformerShape s = {};
    s.batch = pick(rng, 1, 3);
    s.tokens = kThreaded ? pick(rng, 1, 9) : coin(rng, 0.2) ? pick(rng, 60, 140) : pick(rng, 1, 20);
    s.heads = pick(rng, 1, 4);
    s.head_width = unit * pick(rng, 1, (coin(rng, 0.2) ? 80 : 24) / unit);
    s.head_mode = pick(rng, 0, 2);
    s.width = s.head_mode == 0 || coin(rng) ? s.heads * s.head_width : unit * pick(rng, 1, 48 / unit);
    s.hidden = s.heads * unit * pick(rng, 1, std::max(1, 80 / unit / s.heads));
    const int masked = pick(rng, 1, 7);
    s.token_mask = masked & 1;
    s.head_mask = masked & 2;
    s.sublayer_masks = masked & 4;
    s.token_mlp = coin(rng);
    s.largest_batch = coin(rng) ? 10000 : 0;
    s.epsilon = coin(rng) ? 1e-5f : 1e-6f;
    s.scale = static_cast<float>(1 / std::sqrt(s.head_width));
    const double rate = 0.25 * pick(rng, kThreaded ? 3 : 0, 4);
    const auto bits = [&](bool used, int count) {
      Floats mask(used ? product_of({count}) : 0);
      for (float& v : mask) v = coin(rng, rate) ? 1.0f : 0.0f;
      return mask;
    };
    BlockMasks masks;
    masks.token = bits(s.token_mask, s.batch * s.tokens);
    masks.head = bits(s.head_mask, s.batch * s.heads);
    masks.attention = bits(s.sublayer_masks, s.batch);
    masks.mlp = bits(s.sublayer_masks, s.batch);
    Floats x = normal(rng, product_of({s.batch, s.tokens, s.width}), 1);
    for (float& v : x) v = round_to_half(v);
    const BlockWeights w = random_weights(rng, s, type);
    const Doubles expected = reference(s, w, x, masks);
    double scale = 1;
    for (const double v : expected) scale = std::max(scale, std::fabs(v));

    const bool tensor_cores = play(rng, round % 5 - 1);
    const double tolerance = type == Type::kFloat ? 3e-5 : tensor_cores ? 4e-3 : 8e-3;
    const Floats y = run(s, type, w, x, masks);
    double worst = 0;
    for (std::size_t i = 0; i < y.size(); ++i) {
      const double error = std::fabs(y[i] - expected[i]);
      if (!(error <= worst)) worst = error;
    }
    CHECK(worst <= tolerance * scale, "round %d: error %g of %g", round, worst, scale);
    if (kThreaded) continue;
#if !defined(DYN_PLAYED_DEVICE)
    host::device().reverse = true;
#endif
    const Floats again = run(s, type, w, x, masks);
    CHECK(std::memcmp(y.data(), again.data(), y.size() * sizeof(float)) == 0,
          "round %d: the order of threads shows in the result", round);
  }
}

void test_token_maskers(int rounds) {
  Rng rng(4);
  for (int round = 0; round < rounds; ++round) {
    const Type type = coin(rng) ? Type::kHalf : Type::kFloat;
    const int batch = pick(rng, 1, 3), tokens = pick(rng, 1, 20), outputs = pick(rng, 1, 9);
    const int width = coin(rng) ? 8 * pick(rng, 1, 40) : pick(rng, 1, 300), kept = pick(rng, 0, tokens);
    const bool normalise = coin(rng);
    play(rng, 0);
#if !defined(DYN_PLAYED_DEVICE)
    host::device().reverse = coin(rng);
#endif
    Floats x = normal(rng, product_of({batch, tokens, width}), 1);
    for (float& v : x) v = round_to_half(v);
    const Floats weight = normal(rng, product_of({outputs, width}), 1),
                 bias = normal(rng, product_of({outputs}), 1);
    const Doubles rows = normalise ? normalised(Doubles(x.begin(), x.end()), width, 1e-6,
                                                Floats(static_cast<std::size_t>(width), 1.0f),
                                                Floats(static_cast<std::size_t>(width), 0.0f))
                                   : Doubles(x.begin(), x.end());
    const auto check = [&](float bit, int row, int output, const char* what) {
      double logit = bias[output];
      for (int c = 0; c < width; ++c) {
        logit += rows[product_of({row, width}) + c] * weight[product_of({output, width}) + c];
      }
      if (std::fabs(logit) > 1e-4) {
        CHECK(bit == (logit >= 0 ? 1.0f : 0.0f), "round %d: %s, logit %g", round, what, logit);
      }
    };
    Memory mx(x, type), mw(weight, Type::kFloat), mb(bias, Type::kFloat);
    Memory mask(product_of({batch, tokens}) * 4, 0xff), decisions(product_of({batch, outputs}) * 4, 0xff);
    CHECK(run_token_masker({batch, tokens, width, kept, normalise, 1e-6f}, type, mx.get(), mw.floats(),
                           mb.floats(), static_cast<float*>(mask.get()), nullptr) == 0,
          "no error");
    CHECK(
        run_class_token_masker({batch, tokens, width, outputs, normalise, 1e-6f}, type, mx.get(), mw.floats(),
                               mb.floats(), static_cast<float*>(decisions.get()), nullptr) == 0,
        "no error");
    finish();
    const Floats bits = mask.read(Type::kFloat), decided = decisions.read(Type::kFloat);
    for (int i = 0; i < batch * tokens; ++i) {
      if (i % tokens < kept) {
        CHECK(bits[i] == 1.0f, "round %d: token %d stays", round, i);
      } else {
        check(bits[i], i, 0, "a token");
      }
    }
    for (int i = 0; i < batch * outputs; ++i)
      check(decided[i], i / outputs * tokens, i % outputs, "a decision");
  }
}

// The share of a cell in a bilinear sample along one axis.
double tent(double at, int cell) { return std::max(0.0, 1.0 - std::fabs(at - cell)); }

void test_sampling(int rounds) {
  Rng rng(5);
  for (int round = 0; round < rounds; ++round) {
    const Type type = coin(rng) ? Type::kHalf : Type::kFloat;
    DeformableAttentionShape s = {pick(rng, 1, 2), 0,
                                  pick(rng, 1, 3), coin(rng) ? 8 * pick(rng, 1, 3) : pick(rng, 1, 140),
                                  pick(rng, 1, 9), pick(rng, 1, 4),
                                  pick(rng, 1, 5), {}};
    for (int level = 0; level < s.levels; ++level) {
      s.sizes[2 * level] = pick(rng, 1, 6);
      s.sizes[2 * level + 1] = pick(rng, 1, 6);
      s.cells += s.sizes[2 * level] * s.sizes[2 * level + 1];
    }
    CHECK(check_deformable_attention(s) == nullptr, "round %d: right", round);
    play(rng, 0);
#if !defined(DYN_PLAYED_DEVICE)
    host::device().reverse = coin(rng);
#endif
    Floats value = normal(rng, product_of({s.batch, s.cells, s.heads, s.channels}), 1);
    for (float& v : value) v = round_to_half(v);
    const std::size_t samples = product_of({s.batch, s.queries, s.heads, s.levels, s.points});
    Floats locations = normal(rng, 2 * samples, 0.5f), weights = normal(rng, samples, 1);
    for (float& v : locations) v += 0.5f;
    locations[0] = std::numeric_limits<float>::quiet_NaN();
    locations[locations.size() - 1] = std::numeric_limits<float>::infinity();
    const std::size_t outputs = product_of({s.batch, s.queries, s.heads, s.channels});
    Memory mv(value, type), ml(locations, Type::kFloat), mw(weights, Type::kFloat),
        my(outputs * (type == Type::kHalf ? 2 : 4), 0xff);
    CHECK(run_deformable_attention(s, type, mv.get(), ml.floats(), mw.floats(), my.get(), nullptr) == 0,
          "no error");
    finish();
    const Floats y = my.read(type);
    for (std::size_t i = 0; i < outputs; ++i) {
      const int channel = static_cast<int>(i) % s.channels, pair = static_cast<int>(i) / s.channels;
      const int head = pair % s.heads, sample = pair / s.heads / s.queries;
      double expected = 0;
      for (int level = 0, first = 0; level < s.levels; ++level) {
        const int height = s.sizes[2 * level], width = s.sizes[2 * level + 1];
        for (int point = 0; point < s.points; ++point) {
          const std::size_t at = product_of({pair, s.levels, s.points}) + level * s.points + point;
          const double column = locations[2 * at] * width - 0.5, row = locations[2 * at + 1] * height - 0.5;
          for (int cell = 0; cell < height * width; ++cell) {
            const double share = tent(row, cell / width) * tent(column, cell % width);
            if (!(share > 0)) continue;
            expected += weights[at] * share *
                        value[product_of({sample * s.cells + first + cell, s.heads, s.channels}) +
                              head * s.channels + channel];
          }
        }
        first += height * width;
      }
      CHECK(std::fabs(y[i] - expected) <= (type == Type::kHalf ? 2e-2 : 1e-4), "round %d: %g, expected %g",
            round, static_cast<double>(y[i]), expected);
    }
  }
  DeformableAttentionShape large = {1, 4, 8, 32, 1 << 30, 1, 4, {2, 2}};
  CHECK(check_deformable_attention(large) != nullptr, "too many queries");
  large.queries = 4;
  large.levels = kMostSampledMaps + 1;
  CHECK(check_deformable_attention(large) != nullptr, "too many maps");
}

void test_regions(int rounds) {
  Rng rng(6);
  for (int round = 0; round < rounds; ++round) {
    const Type type = coin(rng) ? Type::kHalf : Type::kFloat;
    RegionsShape s = {pick(rng, 1, 40), pick(rng, 1, 6), coin(rng) ? 7 : pick(rng, 1, 20), {}, {}, {}};
    std::vector<Floats> maps;
    for (int level = 0; level < kPyramidLevels; ++level) {
      s.heights[level] = pick(rng, 1, 12);
      s.widths[level] = pick(rng, 1, 12);
      s.strides[level] = 4 << level;
      maps.push_back(normal(rng, product_of({s.channels, s.heights[level], s.widths[level]}), 1));
      for (float& v : maps.back()) v = round_to_half(v);
    }
    CHECK(check_regions(s) == nullptr, "round %d: right", round);
    play(rng, 0);
#if !defined(DYN_PLAYED_DEVICE)
    host::device().reverse = coin(rng);
#endif
    // Whole pixels, some boxes far larger than the map and some empty: as many samples as bins have cells.
    Floats boxes;
    Floats levels;
    for (int i = 0; i < s.count; ++i) {
      const int reach = coin(rng) ? 60 : 3000;
      for (int k = 0; k < 4; ++k)
        boxes.push_back(static_cast<float>(k < 2 ? pick(rng, -20, 60) : pick(rng, 0, reach)));
      const std::int32_t level = pick(rng, -1, 5);
      float bits;
      std::memcpy(&bits, &level, sizeof bits);
      levels.push_back(bits);
    }
    boxes[0] = coin(rng) ? std::numeric_limits<float>::quiet_NaN() : boxes[0];
    std::vector<std::unique_ptr<Memory>> memory;
    const void* pointers[kPyramidLevels];
    for (int level = 0; level < kPyramidLevels; ++level) {
      memory.emplace_back(new Memory(maps[static_cast<std::size_t>(level)], type));
      pointers[level] = memory.back()->get();
    }
    const int square = s.size * s.size;
    const std::size_t outputs = product_of({s.count, s.channels, square});
    Memory mb(boxes, Type::kFloat), ml(levels, Type::kFloat),
        my(outputs * (type == Type::kHalf ? 2 : 4), 0xff);
    CHECK(run_regions(s, type, pointers, mb.floats(), reinterpret_cast<const std::int32_t*>(ml.get()),
                      my.get(), nullptr) == 0,
          "no error");
    finish();
    const Floats y = my.read(type);
    for (int box = 0; box < s.count; ++box) {
      std::int32_t level;
      std::memcpy(&level, &levels[static_cast<std::size_t>(box)], sizeof level);
      level = std::min(std::max(level, 0), kPyramidLevels - 1);
      const float* corner = &boxes[static_cast<std::size_t>(4 * box)];
      // Weights of every cell in every bin, along either axis: [bin][cell].
      std::vector<Doubles> weights[2];
      bool empty = false;
      for (int axis = 0; axis < 2; ++axis) {
        const int cells = axis ? s.heights[level] : s.widths[level];
        const float begin = corner[axis] / static_cast<float>(s.strides[level]) - 0.5f;
        const float end = corner[axis + 2] / static_cast<float>(s.strides[level]) - 0.5f;
        const float length = (end - begin) / static_cast<float>(s.size);
        const bool there = length > 0;
        empty = empty || !there;
        const int samples = there ? static_cast<int>(std::ceil(length)) : 0;
        for (int bin = 0; bin < s.size; ++bin) {
          Doubles of_bin(static_cast<std::size_t>(cells), 0.0);
          for (int i = 0; i < samples; ++i) {
            double at = begin + (bin + (i + 0.5) / samples) * static_cast<double>(length);
            if (at < -1 || at > cells) continue;
            at = std::min(std::max(at, 0.0), cells - 1.0);
            for (int cell = 0; cell < cells; ++cell)
              of_bin[static_cast<std::size_t>(cell)] += tent(at, cell) / samples;
          }
          weights[axis].push_back(of_bin);
        }
      }
      for (int i = 0; i < s.channels * square; ++i) {
        double expected = 0;
        const int width = s.widths[level], channel = i / square;
        const Doubles &down = weights[1][static_cast<std::size_t>(i % square / s.size)],
                      &across = weights[0][static_cast<std::size_t>(i % s.size)];
        for (int cell = 0; !empty && cell < s.heights[level] * width; ++cell) {
          expected += down[static_cast<std::size_t>(cell / width)] *
                      across[static_cast<std::size_t>(cell % width)] *
                      maps[static_cast<std::size_t>(level)]
                          [product_of({channel, s.heights[level], width}) + static_cast<std::size_t>(cell)];
        }
        const double found = y[product_of({box, s.channels, square}) + static_cast<std::size_t>(i)];
        CHECK(std::fabs(found - expected) <= (type == Type::kHalf ? 5e-3 : 1e-3),
              "round %d, box %d: %g, expected %g", round, box, found, expected);
      }
    }
  }
}

void test_shapes() {
  const BottleneckShape good = {2, 8, 8, 16, 8, 16, 1, 1, 1, false, 4, 4, 8, 4, true, false, 0};
  CHECK(check_bottleneck(good, Type::kFloat) == nullptr, "right");
  CHECK(bottleneck_workspace(good, Type::kHalf) < bottleneck_workspace(good, Type::kFloat),
        "halves are smaller");
  struct {
    int BottleneckShape::* field;
    int value;
  } const bad[] = {{&BottleneckShape::batch, 0},          {&BottleneckShape::height, -1},
                   {&BottleneckShape::inputs, 0},         {&BottleneckShape::outputs, 24},
                   {&BottleneckShape::groups, 3},         {&BottleneckShape::groups, 0},
                   {&BottleneckShape::stride, 2},         {&BottleneckShape::stride, 3},
                   {&BottleneckShape::dilation, 0},       {&BottleneckShape::mask_height, 0},
                   {&BottleneckShape::mask_height, 9},    {&BottleneckShape::mask_width, -1},
                   {&BottleneckShape::channel_groups, 3}, {&BottleneckShape::channel_groups, -8},
                   {&BottleneckShape::batch, 100000},     {&BottleneckShape::height, 1 << 30},
                   {&BottleneckShape::middle, 1 << 28},   {&BottleneckShape::squeeze, -1}};
  for (const auto& change : bad) {
    BottleneckShape shape = good;
    shape.*change.field = change.value;
    CHECK(check_bottleneck(shape, Type::kFloat) != nullptr, "%d is refused", change.value);
  }
  // Every half survives the way through float and back; ties go to even.
  for (int bits = 0; bits < 65536; ++bits) {
    const float value = host::half_to_float(static_cast<std::uint16_t>(bits));
    const bool nan = value != value;
    CHECK(nan ? (bits & 0x7c00) == 0x7c00 : host::float_to_half(value) == bits, "half %x", bits);
  }
  CHECK(host::float_to_half(2049.0f) == host::float_to_half(2048.0f), "a tie goes to even, down");
  CHECK(host::float_to_half(2051.0f) == host::float_to_half(2052.0f), "a tie goes to even, up");
  CHECK(host::float_to_half(65519.0f) == 0x7bff && host::float_to_half(65520.0f) == 0x7c00, "overflow");
  CHECK(host::float_to_half(std::ldexp(1.0f, -25)) == 0 && host::float_to_half(std::ldexp(1.5f, -25)) == 1,
        "underflow");
  // A sum that a float rounds to a tie between two halves: rounded twice, each of these goes the wrong way.
  const auto fused = [](float x, float y, float z) {
    return host::half_to_float(
        host::fused_multiply_add(host::float_to_half(x), host::float_to_half(y), host::float_to_half(z)));
  };
  const float above = 1 + std::ldexp(1.0f, -7), below = 1 - std::ldexp(1.0f, -7);
  const float step = std::ldexp(1.0f, -10);
  CHECK(fused(above, below * step / 2, 1 + step) == 1 + step, "just below a tie");
  CHECK(fused(-above, below * step / 2, -1 - step) == -1 - step, "just below a tie, negative");
  CHECK(fused(-above, below * step / 2, 1 + step) == 1 + step, "just above a tie");
  CHECK(fused(1.0f, step / 2, 1 + step) == 1 + 2 * step && fused(1.0f, step / 2, 1.0f) == 1.0f,
        "ties to even");
  CHECK(std::isinf(fused(65504.0f, 65504.0f, 0.0f)) && fused(0.0f, 1.0f, 2.5f) == 2.5f, "the ends");
  // Against a sum of integers, which is exact: halves of 11 bits that stand up to 20 bits apart.
  Rng rng(11);
  for (int turn = 0; turn < 20000; ++turn) {
    const int a = pick(rng, 1024, 2047), b = pick(rng, 1024, 2047), shift = pick(rng, 0, 20);
    const long long c = pick(rng, -2047, 2047) * (1LL << shift);
    const long long exact = static_cast<long long>(a) * b + c, size = exact < 0 ? -exact : exact;
    int unit = 0;
    while ((size >> unit) >= 2048) ++unit;
    long long kept = size >> unit;
    const long long rest = 2 * (size - (kept << unit)), whole = 1LL << unit;
    if (rest > whole || (rest == whole && kept % 2 == 1)) ++kept;
    const float expected = std::ldexp(static_cast<float>(exact < 0 ? -kept : kept), unit - 20);
    const float got = fused(std::ldexp(static_cast<float>(a), -10), std::ldexp(static_cast<float>(b), -10),
                            std::ldexp(static_cast<float>(c), -20));
    CHECK(got == expected, "%d %d %lld: %a, not %a", a, b, c, static_cast<double>(got),
          static_cast<double>(expected));
  }
}

// A launch asks a device once for what does not change, and a failed question again.
void test_traits() {
  int asked = 0;
  const auto query = [&](int device) {
    ++asked;
    return DeviceTraits{device == 3 ? 0 : 80 + device, 100 + device, Size::kBest, device == 7};
  };
  for (int turn = 0; turn < 3; ++turn) {
    for (const int device : {0, 7}) {
      const DeviceTraits traits = cached_traits(device, query);
      CHECK(traits.capability == 80 + device && traits.processors == 100 + device, "device %d", device);
      CHECK(traits.warpgroups == (device == 7), "device %d", device);
    }
  }
  CHECK(asked == 2, "%d questions", asked);
  cached_traits(3, query);
  cached_traits(3, query);
  CHECK(asked == 4, "a device that did not answer was not asked again");
  for (const int device : {-1, 64, 64}) cached_traits(device, query);
  CHECK(asked == 7, "a device beyond those that are kept");
}

#if !defined(DYN_PLAYED_DEVICE) && !defined(DYN_HOST_THREADS)
// What the PTX manual says of the fragments of mma.m16n8k16, against one tile's product done plainly.
// columns: the right operand stands with its columns as rows.
void test_fragments(bool columns) {
  using Tile = MmaTile<32, 64, 16, 32, 64, 3, 1>;
  Rng rng(3);
  std::vector<float> a(32 * 64), b(64 * 64);
  Tile::Stage stage;
  const auto word = [](float value) {
    Half half;
    from_float(value, half);
    Word<Half, 1> made;
    copy<2>(&made, &half);
    return made;
  };
  for (int i = 0; i < 32 * 64; ++i) {
    a[static_cast<std::size_t>(i)] = static_cast<float>(pick(rng, -8, 8));
    Tile::put_a<1>(stage, i / 64, i % 64, word(a[static_cast<std::size_t>(i)]));
  }
  for (int i = 0; i < 64 * 64; ++i) {
    b[static_cast<std::size_t>(i)] = static_cast<float>(pick(rng, -8, 8));
    if (columns) {
      Tile::put_column<1>(stage, i / 64, i % 64, word(b[static_cast<std::size_t>(i)]));
    } else {
      Tile::put_b<1>(stage, i / 64, i % 64, word(b[static_cast<std::size_t>(i)]));
    }
  }
  Tile::State state;
  Tile::clear(state);
  if (columns) {
    Tile::accumulate_columns(stage, state, true);
  } else {
    Tile::accumulate(stage, state, true);
  }
  std::vector<float> factors(16 * 32), sums(32 * 64, -1.0f);
  for (int i = 0; i < 16 * 32; ++i) factors[static_cast<std::size_t>(i)] = static_cast<float>(1 + i % 32);
  Tile::scale_rows(state, factors.data(), 32);
  Tile::leave(state, sums.data(), 64);
  for (int row = 0; row < 32; ++row) {
    for (int column = 0; column < 64; ++column) {
      float expected = 0.0f;
      for (int k = 0; k < 64; ++k) {
        expected += a[static_cast<std::size_t>(row * 64 + k)] * b[static_cast<std::size_t>(k * 64 + column)];
      }
      const float found = sums[static_cast<std::size_t>(row * 64 + column)];
      CHECK(found == expected * static_cast<float>(1 + row), "row %d, column %d: %g, not %g", row, column,
            found, expected);
    }
  }
}

// The eight rows of a matrix that ldmatrix reads at once must lie on different banks: 16 bytes each of 128.
template <int kWidth>
void check_banks() {
  using Tile = MmaTile<32, 64, 16, 32, 32, 3, 1>;
  for (int row = 0; row < 64; row += 8) {
    for (int run = 0; run < kWidth / 8; ++run) {
      int banks = 0;
      for (int i = 0; i < 8; ++i) banks |= 1 << (Tile::place<kWidth>(row + i, run) / 8 % 8);
      CHECK(banks == 255, "width %d, row %d, run %d", kWidth, row, run);
    }
  }
}

template <class Tile>
void check_byte_banks() {
  for (int row = 0; row < Tile::kRows; row += 8) {
    for (int run = 0; run < ByteRuns<Tile>::kRuns; ++run) {
      int banks = 0;
      for (int i = 0; i < 8; ++i) banks |= 1 << (Tile::place(row + i, run) / kByteRun % 8);
      CHECK(banks == 255, "depth %d, row %d, run %d", Tile::kDepth, row, run);
    }
  }
}

// A copy is there when its group was waited for, not before; what it leaves out is zero.
void test_copies() {
  struct alignas(16) Words {
    std::uint16_t at[16];
  };
  Words from, to;
  for (int i = 0; i < 16; ++i) {
    from.at[i] = static_cast<std::uint16_t>(i + 1);
    to.at[i] = 99;
  }
  Copies copies;
  copies.add(to.at, from.at, 16);
  copies.close_group();
  copies.add(to.at + 8, from.at + 8, 6);
  copies.close_group();
  CHECK(to.at[0] == 99, "nobody has waited");
  copies.wait<1>();
  CHECK(to.at[0] == 1 && to.at[7] == 8 && to.at[8] == 99, "one group is under way");
  copies.wait<0>();
  CHECK(to.at[10] == 11 && to.at[11] == 0 && to.at[15] == 0, "three of eight numbers");
  copies.add(to.at, nullptr, 0);
  copies.close_group();
  copies.wait<0>();
  host::device().reverse = true;
  copies.add(to.at + 8, from.at, 2);
  CHECK(to.at[8] == 1 && to.at[9] == 0, "made at once");
  host::device().reverse = false;
  to.at[8] = 9;
  CHECK(to.at[0] == 0 && to.at[7] == 0 && to.at[8] == 9, "none of eight");
}

// Blocks find their tiles as by division, wherever the reciprocal would fail too.
void test_tile_grids() {
  const int counts[] = {1, 2, 3, 7, 13, 64, 511, 4099, 46337};
  int divided = 0;
  for (const int rows : counts) {
    for (const int columns : counts) {
      for (const bool columns_first : {false, true}) {
        const TileGrid grid = tile_grid(rows, columns, columns_first);
        CHECK(grid.blocks == rows * columns, "%d x %d", rows, columns);
        divided += grid.reciprocal == 0 ? 1 : 0;
        const int inner = columns_first ? columns : rows;
        for (int i = 0; i < 2000; ++i) {
          // The first and last blocks, and some between them.
          const int block = i < 500    ? i
                            : i < 1000 ? grid.blocks - 1 - (i - 500)
                                       : static_cast<int>(1.0 * grid.blocks * (i - 1000) / 1000);
          if (block < 0 || block >= grid.blocks) continue;
          const TileGrid::Tile tile = grid.of(block);
          const int outer = block / inner, rest = block % inner;
          CHECK(tile.row == (columns_first ? outer : rest) && tile.column == (columns_first ? rest : outer),
                "block %d of %d x %d: %d, %d", block, rows, columns, tile.row, tile.column);
        }
      }
    }
  }
  CHECK(divided > 0, "no grid is too large for a reciprocal");
}

// Descriptors and places of operands of warpgroups, worked out by hand from the PTX manual (9.7.15.5.1.2):
// fields of 14 bits in units of 16 bytes from bits 0, 16 and 32 on, 1 in bits 62 and 63 for patterns of 128
// bytes by 8 rows, in which bits 4 to 6 of an address are turned by bits 7 to 9.
void test_descriptors() {
  const std::uint64_t described = operand_descriptor(0x8400, 8192, 1024);
  CHECK(described == 0x4000004002000840ull, "descriptor %llx", static_cast<unsigned long long>(described));
  CHECK(operand_descriptor(0x7ff88400u, 8192, 1024) == described, "18 bits of an address");
  CHECK(moved(described, 32) == 0x4000004002000842ull && moved(described, 2048) == 0x40000040020008c0ull,
        "two steps of inputs");

  using Tile = WgmmaTile<128, 128, 3, 2>;
  static Tile::Shared shared;
  CHECK(reinterpret_cast<std::uintptr_t>(&shared) % 1024 == 0, "patterns begin at multiples of their size");
  Tile::Stage& stage = shared.stages[1];
  const auto bytes = [](const Half* from, const Half* to) { return 2 * static_cast<int>(to - from); };
  // Input 17 of row 9: the second pattern's second row, whose runs 2 and 3 change places.
  CHECK(bytes(stage.a, Tile::run_a(stage, 9, 2)) + 2 == 1024 + 128 + 3 * 16 + 2, "left operand");
  // Column 77 of input 10: the second 64 columns, the second pattern's third row, run 1 in the place of 3.
  CHECK(bytes(stage.b, Tile::run_b(stage, 10, 9)) + 10 == 8192 + 1024 + 256 + 3 * 16 + 10, "right operand");

  // What the tile writes where, its descriptors find.
  for (int row = 0; row < 128; ++row) {
    for (int k = 0; k < 64; ++k) {
      from_float(static_cast<float>(row + 128 * (k % 16)), Tile::run_a(stage, row, k / 8)[k % 8]);
      from_float(static_cast<float>(row + 128 * (k % 16)), Tile::run_b(stage, k, row / 8)[row % 8]);
    }
  }
  for (int step = 0; step < 4; ++step) {
    const DescribedOperand right(&stage, moved(Tile::describe_b(stage), 2048 * step));
    for (int group = 0; group < 2; ++group) {
      const DescribedOperand left(&stage, moved(Tile::describe_a(stage, group), 32 * step));
      for (int row = 0; row < 64; ++row) {
        for (int k = 0; k < 16; ++k) {
          const float expected = static_cast<float>(64 * group + row + 128 * k);
          CHECK(to_float(left.left(row, k)) == expected, "row %d, input %d of step %d", row, k, step);
          CHECK(to_float(right.right(k, 64 * group + row)) == expected, "column %d, input %d of step %d",
                64 * group + row, k, step);
        }
      }
    }
  }

  // A product is made when its group was waited for, of what stands there then.
  Tile::State state;
  Tile::clear(state);
  Tile::multiply(stage, state);
  for (Half& value : stage.b) from_float(1.0f, value);
  CHECK(state[0].c[0][0].v[0][0] == 0.0f, "nobody has waited");
  Tile::wait<0>(state);
  // 4 steps of the sum of row + 128 k over 16 inputs; lane 5 of warp 6 holds row 64 + 2 * 16 + 1.
  CHECK(state[6].c[0][3].v[5][0] == 4 * (16 * 97 + 128 * 120), "sum %g", state[6].c[0][3].v[5][0]);
}

void test_mma_tiles() {
  test_descriptors();
  test_fragments(false);
  test_fragments(true);
  check_banks<16>();
  check_banks<32>();
  check_banks<64>();
  check_banks<128>();
  test_copies();
  check_byte_banks<AsyncByteTensors::Medium>();
  check_byte_banks<AsyncByteTensors::Small>();
}
#else
void test_tile_grids() {}
void test_mma_tiles() {}
#endif

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc >= 2 ? argv[1] : "";
  const int rounds = argc == 3 ? std::atoi(argv[2]) : 0;
  if (argc > 3 || (argc == 3 && rounds < 1)) {
    std::printf("ROUNDS must be a whole number of at least 1\n");
    return 2;
  }
  if (what == "bottlenecks") {
    test_bottlenecks(rounds > 0 ? rounds : kThreaded ? 5 : 120);
  } else if (what == "quantized") {
    test_quantized(rounds > 0 ? rounds : kThreaded ? 5 : 120);
  } else if (what == "maskers") {
    test_maskers(rounds > 0 ? rounds : kThreaded ? 2 : 40);
  } else if (what == "transformers") {
    test_transformers(rounds > 0 ? rounds : kThreaded ? 5 : 120);
  } else if (what == "token_maskers") {
    test_token_maskers(rounds > 0 ? rounds : kThreaded ? 2 : 40);
  } else if (what == "sampling") {
    test_sampling(rounds > 0 ? rounds : kThreaded ? 2 : 60);
  } else if (what == "regions") {
    test_regions(rounds > 0 ? rounds : kThreaded ? 2 : 60);
  } else if (what == "shapes") {
    test_shapes();
    test_traits();
    test_tile_grids();
    test_mma_tiles();
  } else {
    std::printf(
        "usage: test_kernels_cuda bottlenecks | quantized | maskers | transformers | token_maskers | "
        "sampling | "
        "regions | shapes [ROUNDS]\n");
    return 2;
  }
  std::printf("%s: %d checks, %d failed\n", what.c_str(), checks, failures);
  return failures ? 1 : 0;
}
