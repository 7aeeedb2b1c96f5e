// Products of warpgroups on sm_90a: four warps multiply 64 x 16 by 16 x kColumns halves that stand in shared
// memory, and go on before that is done. Descriptors tell where the operands stand (PTX manual, "Asynchronous
// Warpgroup Level Matrix Instructions", 9.7.15.5); the host takes them apart again.
#pragma once

#include "platform.h"

namespace dyndeploy {
namespace cuda {

// Rows of both operands are 128 bytes, of which eight make a pattern of 1024 that begins at a multiple of its
// size: the number of a run of 16 bytes is turned by that of its row. Fields are in units of 16 bytes.
// stride: between patterns along the rows of a left operand, or along the inputs of a right one whose rows
// are inputs. leading: between patterns along the columns of the latter; a left operand has no use for it.
DYN_BOTH constexpr std::uint64_t operand_descriptor(std::uint32_t address, int leading, int stride) {
  return static_cast<std::uint64_t>((address & 0x3ffffu) >> 4) |
         static_cast<std::uint64_t>(static_cast<std::uint32_t>(leading) >> 4) << 16 |
         static_cast<std::uint64_t>(static_cast<std::uint32_t>(stride) >> 4) << 32 | std::uint64_t{1} << 62;
}
// The same operand so many bytes further on.
DYN_BOTH constexpr std::uint64_t moved(std::uint64_t descriptor, int bytes) {
  return descriptor + static_cast<std::uint64_t>(bytes >> 4);
}

#if defined(__CUDACC__)

#if DYN_WARPGROUPS && defined(__CUDA_ARCH__)
// What this thread has written to shared memory, for the tensor cores to see behind the next barrier.
DYN_DEVICE void show_tensor_cores() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#define DYN_SUM(c) "+f"((c).v[0]), "+f"((c).v[1]), "+f"((c).v[2]), "+f"((c).v[3])
#define DYN_SUMS(c, i)                                                                       \
  DYN_SUM(c[i]), DYN_SUM(c[i + 1]), DYN_SUM(c[i + 2]), DYN_SUM(c[i + 3]), DYN_SUM(c[i + 4]), \
      DYN_SUM(c[i + 5]), DYN_SUM(c[i + 6]), DYN_SUM(c[i + 7])
#define DYN_NAMES_64                                                                                     \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define DYN_NAMES_128                                                                                      \
  DYN_NAMES_64                                                                                             \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, " \
  "%52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define DYN_NAMES_256                                                                                      \
  DYN_NAMES_128                                                                                            \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, " \
  "%84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, "     \
  "%103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, " \
  "%120, %121, %122, %123, %124, %125, %126, %127"
// Adds to the sums; neither operand is negated, the left one's rows are inputs' (K-major), those of the right
// one are columns' (N-major).
#define DYN_WGMMA(columns, a, b)                                                                      \
  "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32.f16.f16 {" DYN_NAMES_##columns "}, " a ", " b \
                                                                                       ", 1, 1, 1, 0, 1;"

// The products of this thread's warpgroup, in groups as those of Copies.
class WarpgroupProducts {
 public:
  // Before the first product behind anything else that touches the sums.
  DYN_DEVICE void begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
  DYN_DEVICE void add(MmaC (&c)[8], const void*, int, std::uint64_t a, std::uint64_t b) {
    asm volatile(DYN_WGMMA(64, "%32", "%33") : DYN_SUMS(c, 0) : "l"(a), "l"(b));
  }
  DYN_DEVICE void add(MmaC (&c)[16], const void*, int, std::uint64_t a, std::uint64_t b) {
    asm volatile(DYN_WGMMA(128, "%64", "%65") : DYN_SUMS(c, 0), DYN_SUMS(c, 8) : "l"(a), "l"(b));
  }
  DYN_DEVICE void add(MmaC (&c)[32], const void*, int, std::uint64_t a, std::uint64_t b) {
    asm volatile(DYN_WGMMA(256, "%128", "%129")
                 : DYN_SUMS(c, 0), DYN_SUMS(c, 8), DYN_SUMS(c, 16), DYN_SUMS(c, 24)
                 : "l"(a), "l"(b));
  }
  DYN_DEVICE void close_group() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
  template <int kLeft>
  DYN_DEVICE void wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
  }
  // After the last wait: else the compiler may read sums before it, and then has to end each product at once.
  template <int kCount>
  DYN_DEVICE void take(MmaC (&c)[kCount]) {
    DYN_UNROLL
    for (int i = 0; i < kCount; ++i) asm volatile("" : DYN_SUM(c[i])::"memory");
  }
};
#undef DYN_SUM
#undef DYN_SUMS
#undef DYN_NAMES_64
#undef DYN_NAMES_128
#undef DYN_NAMES_256
#undef DYN_WGMMA
#else
// Kernels of this kind are empty here.
DYN_DEVICE void show_tensor_cores() {}
class WarpgroupProducts {
 public:
  DYN_DEVICE void begin() {}
  template <int kCount>
  DYN_DEVICE void add(MmaC (&)[kCount], const void*, int, std::uint64_t, std::uint64_t) {}
  DYN_DEVICE void close_group() {}
  template <int kLeft>
  DYN_DEVICE void wait() {}
  template <int kCount>
  DYN_DEVICE void take(MmaC (&)[kCount]) {}
};
#endif

#else  // the host

inline void show_tensor_cores() {}

// Of a descriptor, an operand's elements: the manual's canonical layouts for a swizzle of 128 bytes. Of its
// address the low 18 bits are known, so it lies in the 256 KB from `shared` on.
class DescribedOperand {
 public:
  DescribedOperand(const void* shared, std::uint64_t descriptor) : descriptor_(descriptor) {
    const std::uintptr_t base = reinterpret_cast<std::uintptr_t>(shared);
    const std::uintptr_t low = (descriptor & 0x3fffu) << 4;
    begin_ = base + ((low - base) & 0x3ffffu);
    if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0) {
      std::fprintf(stderr, "no operand with a swizzle of 128 bytes: descriptor %016llx\n",
                   static_cast<unsigned long long>(descriptor));
      std::abort();
    }
  }
  // Of a left operand: rows of inputs.
  Half left(int row, int k) const {
    return at(begin_ + static_cast<std::uintptr_t>(row / 8 * stride() + row % 8 * 128 + 2 * k));
  }
  // Of a right one: rows of columns.
  Half right(int k, int column) const {
    return at(begin_ + static_cast<std::uintptr_t>(column / 64 * leading() + column % 64 * 2 +
                                                   k / 8 * stride() + k % 8 * 128));
  }

 private:
  int leading() const { return static_cast<int>((descriptor_ >> 16 & 0x3fffu) << 4); }
  int stride() const { return static_cast<int>((descriptor_ >> 32 & 0x3fffu) << 4); }
  static Half at(std::uintptr_t address) {
    Half value;
    const std::uintptr_t turned = address ^ (address >> 7 & 7u) << 4;
    std::memcpy(&value, reinterpret_cast<const void*>(turned), sizeof value);
    return value;
  }

  std::uint64_t descriptor_;
  std::uintptr_t begin_;
};

// Products are made when somebody waits for them: who overwrites an operand too early finds what he wrote.
class WarpgroupProducts {
 public:
  void begin() {}
  // Of a warpgroup's 64 rows, those of its quarter-th warp.
  template <int kCount>
  void add(MmaC (&c)[kCount], const void* shared, int quarter, std::uint64_t a, std::uint64_t b) {
    open_.push_back({c, kCount, shared, quarter, a, b});
  }
  void close_group() {
    groups_.push_back(std::move(open_));
    open_.clear();
  }
  template <int kLeft>
  void wait() {
    while (groups_.size() > static_cast<std::size_t>(kLeft)) {
      for (const Product& product : groups_.front()) multiply(product);
      groups_.pop_front();
    }
  }
  template <int kCount>
  void take(MmaC (&)[kCount]) {}

 private:
  struct Product {
    MmaC* c;
    int count;
    const void* shared;
    int quarter;
    std::uint64_t a, b;
  };
  static void multiply(const Product& p) {
    const DescribedOperand a(p.shared, p.a), b(p.shared, p.b);
    float left[16][16], right[16][256];
    for (int k = 0; k < 16; ++k) {
      for (int row = 0; row < 16; ++row) left[row][k] = to_float(a.left(16 * p.quarter + row, k));
      for (int column = 0; column < 8 * p.count; ++column) right[k][column] = to_float(b.right(k, column));
    }
    for (int j = 0; j < p.count; ++j) {
      for (int lane = 0; lane < 32; ++lane) {
        for (int e = 0; e < 4; ++e) {
          const int row = lane / 4 + e / 2 * 8, column = 8 * j + lane % 4 * 2 + e % 2;
          float sum = p.c[j].v[lane][e];
          for (int k = 0; k < 16; ++k) sum += left[row][k] * right[k][column];
          p.c[j].v[lane][e] = sum;
        }
      }
    }
  }

  std::vector<Product> open_;
  std::deque<std::vector<Product> > groups_;
};

#endif

}  // namespace cuda
}  // namespace dyndeploy
