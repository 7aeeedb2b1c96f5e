// Times the integer bottlenecks of ResNet-50 or -101 alone, weights and masks drawn at random: where the time
// of the kernels goes, and how far they are from what the arithmetic allows. Usage:
//   quantized [ISA] [threads] [rounds] [depth] [batch]
// Every line: milliseconds of the stages and of all bottlenecks (the least of every block over the rounds,
// all modes in turn; at last its median), 10^9 multiply-adds a second, and the share of ideal: the time that
// the full network's pace would take for what the masks leave, over the time taken.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "lists.h"
#include "quantized_bottleneck.h"

namespace {

using namespace dyndeploy::cpu;

struct Block {
  BottleneckLayer layer;
  BottleneckShape shape;
  std::unique_ptr<PackedQuantizedBottleneck> plain, skipping;
  int stage = 0;
};

std::mt19937 rng(5);

template <class T>
std::vector<T> draw(std::size_t count, int low, int high) {
  std::vector<T> values(count);
  for (T& v : values) v = static_cast<T>(std::uniform_int_distribution<>(low, high)(rng));
  return values;
}

Block make_block(const QuantizedIsa& isa, int stage, int inputs, int middle, int outputs, int stride,
                 int side, int batch, Arena& arena) {
  Block block;
  BottleneckLayer& l = block.layer;
  l.inputs = inputs, l.middle = middle, l.outputs = outputs, l.stride = stride;
  l.projection = inputs != outputs;
  block.shape = bottleneck_shape(l, batch, side, side);
  block.stage = stage;
  const auto count = [](int a, int b) { return static_cast<std::size_t>(a) * static_cast<std::size_t>(b); };
  const auto w1 = draw<std::int8_t>(count(middle, inputs), -64, 64);
  const auto w2 = draw<std::int8_t>(count(middle, middle * 9), -64, 64);
  const auto w3 = draw<std::int8_t>(count(outputs, middle), -64, 64);
  const auto wd = draw<std::int8_t>(count(outputs, inputs), -64, 64);
  const auto bias = draw<std::int32_t>(static_cast<std::size_t>(std::max(outputs, middle)), -5000, 20000);
  const std::vector<float> multiplier(bias.size(), 0.001f);
  QuantizedWeights w;
  w.w1 = w1.data(), w.w2 = w2.data(), w.w3 = w3.data(), w.wd = wd.data();
  w.b1 = w.b2 = w.b3 = w.bd = bias.data();
  w.m1 = w.m2 = w.m3 = w.md = multiplier.data();
  block.plain = std::make_unique<PackedQuantizedBottleneck>(isa, l, w, false, arena);
  block.skipping = std::make_unique<PackedQuantizedBottleneck>(isa, l, w, true, arena);
  return block;
}

// Threads that wait for work without sleeping, as a runtime's do between the nodes of a graph.
class SpinningPool {
 public:
  explicit SpinningPool(int threads) : threads_(threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([=] { work(static_cast<std::size_t>(i)); });
  }
  ~SpinningPool() {
    stop_ = true;
    for (std::thread& t : workers_) t.join();
  }
  ThreadPool pool() {
    return {threads_, this, [](void* self, ThreadPool::Function function, void* state, std::size_t count) {
              static_cast<SpinningPool*>(self)->run(function, state, count);
            }};
  }

 private:
  void run(ThreadPool::Function function, void* state, std::size_t count) {
    function_ = function, state_ = state, count_ = count;
    done_ = 0;
    generation_.fetch_add(1, std::memory_order_release);
    function(state, 0);
    while (done_.load(std::memory_order_acquire) + 1 < threads_) {
    }
  }
  void work(std::size_t index) {
    for (unsigned seen = 0; !stop_;) {
      if (generation_.load(std::memory_order_acquire) == seen) continue;
      ++seen;
      if (index < count_) function_(state_, index);
      done_.fetch_add(1, std::memory_order_release);
    }
  }

  const int threads_;
  std::vector<std::thread> workers_;
  std::atomic<unsigned> generation_{0};
  std::atomic<int> done_{0};
  std::atomic<bool> stop_{false};
  ThreadPool::Function function_ = nullptr;
  void* state_ = nullptr;
  std::size_t count_ = 0;
};

struct Mode {
  const char* name;
  double rate;
  bool spatial, layer, channel;
};

struct Masks {
  std::vector<float> spatial, channel;
  int side = 0, groups = 0;
};

constexpr int kGranularity[] = {4, 4, 2, 1};

Masks draw_masks(const Block& b, const Mode& mode) {
  // As many are on as the rate says.
  const auto bits = [&](int count, double rate) {
    std::vector<float> mask(static_cast<std::size_t>(count));
    const auto on = static_cast<std::size_t>(count * rate + 0.5);
    for (std::size_t i = 0; i < on; ++i) mask[i] = 1;
    std::shuffle(mask.begin(), mask.end(), rng);
    return mask;
  };
  const auto append = [](std::vector<float>& all, const std::vector<float>& mask) {
    all.insert(all.end(), mask.begin(), mask.end());
  };
  Masks m;
  for (int n = 0; n < b.shape.batch; ++n) {
    if (mode.layer) {
      m.side = 1;
      append(m.spatial, {std::bernoulli_distribution(mode.rate)(rng) ? 1.0f : 0.0f});
    } else if (mode.spatial) {
      m.side = b.shape.out_height / kGranularity[b.stage];
      append(m.spatial, bits(m.side * m.side, mode.rate));
    }
    if (mode.channel) {
      m.groups = b.layer.middle / 2;
      append(m.channel, bits(m.groups, mode.rate));
    }
  }
  return m;
}

// Multiply-adds that the masks leave, dilated pixels included.
double macs(const Block& b, const Masks& m) {
  const double C = b.layer.inputs, Co = b.layer.outputs;
  double M = b.layer.middle, active = b.shape.batch * b.shape.out_height * b.shape.out_width;
  double dilated = b.shape.batch * b.shape.height * b.shape.width;
  const double projection = b.layer.projection ? active * C * Co : 0;
  if (m.groups)
    M = 2.0 * static_cast<double>(std::count(m.channel.begin(), m.channel.end(), 1.0f)) / b.shape.batch;
  if (m.side) {
    Workspace workspace;
    const PixelLists lists = make_lists(b.layer, b.shape, m.spatial.data(), m.side, m.side, {}, workspace);
    active = lists.active_begin[b.shape.batch];
    dilated = lists.dilated_begin[b.shape.batch];
  }
  return projection + dilated * C * M + active * (9 * M * M + M * Co);
}

double run(const Block& b, const Masks& m, const std::vector<std::uint8_t>& x, std::vector<std::uint8_t>& y,
           Workspace& workspace, const ThreadPool& pool) {
  QuantizedBottleneckCall call;
  call.weights = m.groups ? b.skipping.get() : b.plain.get();
  call.shape = b.shape;
  call.x = x.data();
  // An identity block may write over its input, as ONNX Runtime lets it.
  call.y = b.layer.projection ? y.data() : const_cast<std::uint8_t*>(x.data());
  call.spatial_mask = m.side ? m.spatial.data() : nullptr;
  call.mask_height = call.mask_width = m.side;
  call.channel_mask = m.groups ? m.channel.data() : nullptr;
  call.channel_groups = m.groups;
  workspace.reset();
  const auto start = std::chrono::steady_clock::now();
  run_quantized_bottleneck(call, workspace, pool);
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

// One convolution of a whole map, its weights in the caches.
void time_product(const QuantizedIsa& isa, const char* what, int side, int inputs, int outputs, bool taps) {
  BottleneckLayer layer;
  layer.inputs = layer.middle = inputs;
  const BottleneckShape shape = bottleneck_shape(layer, 1, side, side);
  Workspace workspace;
  const PixelLists lists = make_full_lists(layer, shape, {}, workspace);
  const int rows = side * side, count = taps ? 9 : 1, quads = (inputs + kQuad - 1) / kQuad;
  const int panels = (outputs + isa.panel_width - 1) / isa.panel_width;
  const std::size_t panel = quantized_copy_bytes(isa, count, quads);
  const std::ptrdiff_t in_stride = round_up(inputs, 64), out_stride = round_up(outputs, 64);
  Buffer w(panel * static_cast<std::size_t>(panels)), x(static_cast<std::size_t>(rows * in_stride)),
      y(static_cast<std::size_t>(rows * out_stride));
  std::memset(w.get(), 1, w.size());
  std::memset(x.get(), 1, x.size());
  std::memset(y.get(), 1, y.size());
  const std::vector<std::int32_t> bias(static_cast<std::size_t>(panels * isa.panel_width), 5);
  const std::vector<float> multiplier(bias.size(), 0.01f);
  const std::vector<std::uint8_t> zeros(static_cast<std::size_t>(in_stride), 0);
  QuantizedGemm g;
  QuantizedRows& a = g.product.a;
  a.base = static_cast<const std::uint8_t*>(x.get());
  a.stride = in_stride;
  a.index = lists.centre;
  a.taps = count;
  a.inputs = inputs;
  a.valid = taps ? lists.valid : nullptr;
  for (int t = 0; t < 9; ++t) a.tap_offset[t] = taps ? ((t / 3 - 1) * side + t % 3 - 1) * in_stride : 0;
  g.product.b.base = static_cast<const std::int8_t*>(w.get());
  g.product.b.panel_stride = static_cast<std::ptrdiff_t>(panel);
  g.product.b.bias = bias.data();
  g.product.b.multiplier = multiplier.data();
  g.columns = outputs;
  g.out = static_cast<std::uint8_t*>(y.get());
  g.residual = outputs > 2 * inputs ? g.out : nullptr;
  g.stride = out_stride;
  QuantizedScratch scratch;
  scratch.zeros = zeros.data();
  const double macs = double(rows) * count * inputs * outputs;
  const int repeats = std::max(1, static_cast<int>(2e8 / macs));
  double best = 1e9;
  for (int round = 0; round < 30; ++round) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < repeats; ++i) isa.gemm(g, 0, rows, 0, panels, scratch);
    best = std::min(
        best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / repeats);
  }
  std::printf("%-12s %2dx%2d %4d -> %4d %s: %7.1f us, %3.0f G/s\n", what, side, side, inputs, outputs,
              taps ? "3x3" : "1x1", best * 1e6, macs / best / 1e9);
}

void time_products(const QuantizedIsa& isa) {
  for (int stage = 0; stage < 4; ++stage) {
    const int side = 56 >> stage, M = 64 << stage;
    for (const int middle : {M, M / 2}) {
      time_product(isa, "conv1", side, 4 * M, middle, false);
      time_product(isa, "conv2", side, middle, middle, true);
      time_product(isa, "conv3", side, middle, 4 * M, false);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const bool products = argc > 1 && std::string(argv[1]) == "products";
  if (products) --argc, ++argv;
  const QuantizedIsa* isa = argc > 1 ? find_quantized_isa(argv[1]) : select_quantized_isa();
  const int threads = argc > 2 ? std::atoi(argv[2]) : 1, rounds = argc > 3 ? std::atoi(argv[3]) : 40;
  const int depth = argc > 4 ? std::atoi(argv[4]) : 50, batch = argc > 5 ? std::atoi(argv[5]) : 1;
  if (!isa) return std::puts("no such instruction set here"), 1;
  if (products) return time_products(*isa), 0;
  const int counts[] = {3, 4, depth == 101 ? 23 : 6, 3};
  Arena arena;
  std::vector<Block> blocks;
  for (int stage = 0, inputs = 64, side = 56; stage < 4; ++stage) {
    const int middle = 64 << stage;
    for (int i = 0; i < counts[stage]; ++i) {
      const int stride = stage && !i ? 2 : 1;
      blocks.push_back(make_block(*isa, stage, inputs, middle, 4 * middle, stride, side, batch, arena));
      inputs = 4 * middle;
      side = (side - 1) / stride + 1;
    }
  }
  static constexpr Mode kModes[] = {
      {"full", 1, false, false, false},           {"spatial 1.0", 1, true, false, false},
      {"spatial 0.5", 0.5, true, false, false},   {"spatial 0.25", 0.25, true, false, false},
      {"spatial 0.1", 0.1, true, false, false},   {"layer 0.5", 0.5, false, true, false},
      {"channel 1.0", 1, false, false, true},     {"channel 0.5", 0.5, false, false, true},
      {"channel 0.25", 0.25, false, false, true}, {"both 0.7", 0.7, true, false, true}};
  constexpr int kCount = sizeof kModes / sizeof *kModes;
  std::vector<Masks> masks[kCount];
  double work[kCount][5] = {};
  for (int i = 0; i < kCount; ++i) {
    for (const Block& b : blocks) {
      masks[i].push_back(draw_masks(b, kModes[i]));
      const double done = macs(b, masks[i].back());
      work[i][b.stage] += done;
      work[i][4] += done;
    }
  }
  SpinningPool spinning(threads);
  const ThreadPool pool = spinning.pool();
  Workspace workspace;
  std::vector<std::uint8_t> maps[2];
  for (auto& map : maps) map = draw<std::uint8_t>(static_cast<std::size_t>(batch) * 56 * 56 * 256, 0, 255);
  std::vector<std::vector<double>> times[kCount];
  for (auto& mode : times) mode.resize(blocks.size());
  for (int round = 0; round < rounds; ++round) {
    for (int i = 0; i < kCount; ++i) {
      int at = 0;
      for (std::size_t n = 0; n < blocks.size(); ++n) {
        times[i][n].push_back(run(blocks[n], masks[i][n], maps[at], maps[1 - at], workspace, pool));
        if (blocks[n].layer.projection) at = 1 - at;
      }
    }
  }
  // Sums over blocks, of a stage or of all (4), so that other work on the machine falls out of the least
  // times.
  const auto sum = [&](int mode, int stage, auto statistic) {
    double total = 0;
    for (std::size_t n = 0; n < blocks.size(); ++n) {
      if (stage == 4 || blocks[n].stage == stage) total += statistic(times[mode][n]);
    }
    return total;
  };
  const auto least = [](const std::vector<double>& t) { return *std::min_element(t.begin(), t.end()); };
  const auto median = [](std::vector<double> t) {
    std::nth_element(t.begin(), t.begin() + static_cast<std::ptrdiff_t>(t.size() / 2), t.end());
    return t[t.size() / 2];
  };
  std::printf("%s, %d threads, ResNet-%d's bottlenecks, batch %d\n", isa->name, threads, depth, batch);
  for (int i = 0; i < kCount; ++i) {
    std::printf("%-12s", kModes[i].name);
    for (int s = 0; s < 5; ++s) {
      const double t = sum(i, s, least), ideal = sum(0, s, least) * work[i][s] / work[0][s];
      std::printf(" | %6.3f ms %4.0f G/s %.3f", t, work[i][s] / t / 1e6, ideal / t);
    }
    const double t = sum(i, 4, median);
    std::printf(" | median %6.3f ms %.3f\n", t, sum(0, 4, median) * work[i][4] / work[0][4] / t);
  }
  return 0;
}
