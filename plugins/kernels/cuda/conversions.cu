// Where bytes begin and end: floats or halves to bytes of a scale, and back. Bound by memory.
#include "bytes.h"
#include "layout.h"

namespace dyndeploy {
namespace cuda {
namespace {

struct ConversionArguments {
  std::size_t count;
  const void* x;
  void* y;
  float scale;
};

// A quotient, not a product with the inverse: that would round some ties to another side.
DYN_DEVICE void convert(float v, float scale, Byte& out) {
  const float value = v / scale;
  out = static_cast<Byte>(round_within(value > 0.0f ? value : 0.0f, 0.0f, static_cast<float>(kMostByte)));
}
DYN_DEVICE void convert(Byte v, float scale, float& out) { out = to_float(v) * scale; }
DYN_DEVICE void convert(Byte v, float scale, Half& out) { from_float(to_float(v) * scale, out); }
DYN_DEVICE void convert(Half v, float scale, Byte& out) { convert(to_float(v), scale, out); }

template <class From, class To, int kWidth>
struct ConversionKernel {
  using Arguments = ConversionArguments;
  static constexpr int kThreads = 256;
  static constexpr int kBlocks = 4;

  static int blocks(std::size_t count) {
    return static_cast<int>((count / kWidth + kThreads - 1) / kThreads);
  }

  static DYN_DEVICE void run(const Arguments& a, Index block) {
    for_threads<kThreads>([&](int t) {
      const std::size_t at =
          (static_cast<std::size_t>(block.x) * kThreads + static_cast<unsigned>(t)) * kWidth;
      if (at >= a.count) return;
      const Vector<From, kWidth> from = load_vector<From, kWidth>(static_cast<const From*>(a.x) + at);
      Vector<To, kWidth> to;
      DYN_UNROLL
      for (int e = 0; e < kWidth; ++e) convert(from.v[e], a.scale, to.v[e]);
      store_vector(static_cast<To*>(a.y) + at, to);
    });
  }
};

// Four elements at a time are one access of 16, 8 or 4 bytes.
template <class From, class To>
int run_conversion(std::size_t count, const void* x, float scale, void* y, void* stream) {
  constexpr int kWidth = 4;
  const ConversionArguments a = {count, x, y, scale};
  const auto fits = [](const void* pointer, std::size_t element) {
    return reinterpret_cast<std::uintptr_t>(pointer) % (kWidth * element) == 0;
  };
  if (count % kWidth == 0 && fits(x, sizeof(From)) && fits(y, sizeof(To))) {
    using Kernel = ConversionKernel<From, To, kWidth>;
    return launch<Kernel>(Kernel::blocks(count), 1, a, stream);
  }
  using Kernel = ConversionKernel<From, To, 1>;
  return launch<Kernel>(Kernel::blocks(count), 1, a, stream);
}

}  // namespace

int run_quantize(std::size_t count, Type type, const void* x, float scale, std::uint8_t* y, void* stream) {
  return type == Type::kHalf ? run_conversion<Half, Byte>(count, x, scale, y, stream)
                             : run_conversion<float, Byte>(count, x, scale, y, stream);
}

int run_dequantize(std::size_t count, Type type, const std::uint8_t* x, float scale, void* y, void* stream) {
  return type == Type::kHalf ? run_conversion<Byte, Half>(count, x, scale, y, stream)
                             : run_conversion<Byte, float>(count, x, scale, y, stream);
}

}  // namespace cuda
}  // namespace dyndeploy
