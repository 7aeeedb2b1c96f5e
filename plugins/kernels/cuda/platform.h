// One source, two platforms. nvcc compiles the kernels for the GPU; any C++14 compiler compiles the same
// bodies for the host, where CI runs them without a GPU.
//
// A kernel body is a sequence of phases: for_threads() runs a function for every thread of the block, sync()
// stands between phases that exchange data, and what a thread keeps from phase to phase lives in PerThread.
// On the GPU for_threads() is a plain call with the thread's index; on the host it is a loop, and its
// direction can be turned round (host::Device::reverse): a result that depends on the order of threads within
// a phase is a race.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "traits.h"

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <mma.h>
#define DYN_DEVICE __device__ __forceinline__
#define DYN_BOTH __host__ __device__ __forceinline__
#define DYN_SHARED(type, name) __shared__ type name
#define DYN_SHARED_ARRAY(type, name, count) __shared__ type name[count]
// Of a launch that asks for kDynamicBytes, which leave room to begin at a multiple of what the type demands.
#define DYN_DYNAMIC_SHARED(type, name) type& name = ::dyndeploy::cuda::dynamic_shared<type>()
#define DYN_UNROLL _Pragma("unroll")
#define DYN_UNROLL4 _Pragma("unroll 4")
#define DYN_NO_UNROLL _Pragma("unroll 1")
// Which arithmetic serves FP16 in this pass of the compiler; kernels of the other are empty. Tests define
// DYN_LANES_ONLY, so that a GPU with tensor cores runs what boards without them run.
#if !defined(__CUDA_ARCH__)
#define DYN_TENSOR_CORES 1
#define DYN_ASYNC_TENSOR_CORES 1
#define DYN_HALF_LANES 1
#elif __CUDA_ARCH__ >= 800 && !defined(DYN_LANES_ONLY)
#define DYN_TENSOR_CORES 0
#define DYN_ASYNC_TENSOR_CORES 1
#define DYN_HALF_LANES 0
#elif __CUDA_ARCH__ >= 700 && !defined(DYN_LANES_ONLY)
#define DYN_TENSOR_CORES 1
#define DYN_ASYNC_TENSOR_CORES 0
#define DYN_HALF_LANES 0
#else
#define DYN_TENSOR_CORES 0
#define DYN_ASYNC_TENSOR_CORES 0
#define DYN_HALF_LANES 1
#endif
// As choose.h tells by a device's capability; a kernel that is never launched is empty.
#if !defined(__CUDA_ARCH__)
#define DYN_MATRIX_LOADS 1
#define DYN_BYTE_PRODUCTS 1
#define DYN_BYTE_LANES 1
#define DYN_BYTE_WMMA 1
#else
// ldmatrix, and tensor cores that multiply bytes of both signs.
#if __CUDA_ARCH__ >= 750
#define DYN_MATRIX_LOADS 1
#else
#define DYN_MATRIX_LOADS 0
#endif
// dp4a: sm_62 has none.
#if __CUDA_ARCH__ >= 610 && __CUDA_ARCH__ != 620
#define DYN_BYTE_PRODUCTS 1
#else
#define DYN_BYTE_PRODUCTS 0
#endif
// Tensor cores that multiply bytes through wmma alone.
#if __CUDA_ARCH__ == 720 && !defined(DYN_LANES_ONLY)
#define DYN_BYTE_WMMA 1
#else
#define DYN_BYTE_WMMA 0
#endif
// Whether dp4a serves whole runs of bytes, too.
#if DYN_BYTE_PRODUCTS && !DYN_BYTE_WMMA && (__CUDA_ARCH__ < 750 || defined(DYN_LANES_ONLY))
#define DYN_BYTE_LANES 1
#else
#define DYN_BYTE_LANES 0
#endif
#endif
// wgmma is there where the compiler was asked for sm_90a, which runs on sm_90 alone.
#if !defined(__CUDA_ARCH__) || (defined(__CUDA_ARCH_FEAT_SM90_ALL) && !defined(DYN_LANES_ONLY))
#define DYN_WARPGROUPS 1
#else
#define DYN_WARPGROUPS 0
#endif
#if !defined(__CUDA_ARCH__)
#define DYN_FAST_MMA 1
#define DYN_SLOW_MMA 1
#elif __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200
#define DYN_FAST_MMA 1
#define DYN_SLOW_MMA 0
#else
#define DYN_FAST_MMA 0
#define DYN_SLOW_MMA 1
#endif
#else
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <utility>
#include <vector>

#include "host/halves.h"
#define DYN_DEVICE inline
#define DYN_BOTH inline
#if defined(DYN_HOST_THREADS)
#include "host/threads.h"
#define DYN_SHARED(type, name) type& name = ::dyndeploy::cuda::host::shared<type>()
#define DYN_SHARED_ARRAY(type, name, count) \
  type(&name)[count] = ::dyndeploy::cuda::host::shared<type[count]>()
#define DYN_DYNAMIC_SHARED(type, name) DYN_SHARED(type, name)
#else
#define DYN_SHARED(type, name) \
  type name;                   \
  ::dyndeploy::cuda::host::poison(&name, sizeof name)
#define DYN_SHARED_ARRAY(type, name, count) \
  type name[count];                         \
  ::dyndeploy::cuda::host::poison(name, sizeof name)
#define DYN_DYNAMIC_SHARED(type, name) DYN_SHARED(type, name)
#endif
#define DYN_UNROLL
#define DYN_UNROLL4
#define DYN_NO_UNROLL
#define DYN_TENSOR_CORES 1
#define DYN_ASYNC_TENSOR_CORES 1
#define DYN_FAST_MMA 1
#define DYN_SLOW_MMA 1
#define DYN_WARPGROUPS 1
#define DYN_HALF_LANES 1
#define DYN_MATRIX_LOADS 1
#define DYN_BYTE_PRODUCTS 1
#define DYN_BYTE_LANES 1
#define DYN_BYTE_WMMA 1
#endif

namespace dyndeploy {
namespace cuda {

struct Index {
  int x, y;
};

DYN_BOTH constexpr int divide_up(int value, int by) { return (value + by - 1) / by; }
DYN_BOTH constexpr int smaller(int a, int b) { return a < b ? a : b; }
// Of numbers that are not negative: a thread's division by a power of two is a shift, and where a row begins
// a product of 32 bits by 32.
DYN_BOTH constexpr int quotient(int value, int by) {
  return static_cast<int>(static_cast<std::uint32_t>(value) / static_cast<std::uint32_t>(by));
}
DYN_BOTH constexpr int rest(int value, int by) {
  return static_cast<int>(static_cast<std::uint32_t>(value) % static_cast<std::uint32_t>(by));
}
DYN_BOTH constexpr std::size_t row_start(int row, int width) {
  return static_cast<std::size_t>(static_cast<std::uint32_t>(row)) * static_cast<std::uint32_t>(width);
}

// The launches of one run of an operator. Its first kernel must not begin early: the one before it belongs to
// somebody else (TensorRT), may itself have begun early, and may end without having waited; then what was
// before that one could still be reading the workspace, or writing x.
class Sequence {
 public:
  explicit Sequence(void* stream) : stream_(stream) {}
  void* stream() const { return stream_; }
  // Whether the next launch is not the first; from now on it is not.
  bool goes_on() {
    const bool begun = begun_;
    begun_ = true;
    return begun;
  }

 private:
  void* stream_;
  bool begun_ = false;
};

#if defined(__CUDACC__)

using Half = __half;
using HalfPair = __half2;

template <int kThreads, class F>
DYN_DEVICE void for_threads(const F& f) {
  f(static_cast<int>(threadIdx.x));
}
template <int kWarps, class F>
DYN_DEVICE void for_warps(const F& f) {
  f(static_cast<int>(threadIdx.x / 32));
}
// The lanes of a warp, within for_warps().
template <class F>
DYN_DEVICE void for_lanes(const F& f) {
  f(static_cast<int>(threadIdx.x % 32));
}
DYN_DEVICE void sync() { __syncthreads(); }
template <class T>
DYN_DEVICE T& dynamic_shared() {
  extern __shared__ unsigned char dyndeploy_dynamic_shared[];
  const std::uintptr_t begin = reinterpret_cast<std::uintptr_t>(dyndeploy_dynamic_shared);
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(dyndeploy_dynamic_shared));
  return *reinterpret_cast<T*>(begin + (0u - at) % alignof(T));
}
DYN_DEVICE void sync_warp() { __syncwarp(); }

template <class T, int kCount>
struct PerThread {
  T value;
  DYN_DEVICE T& operator[](int) { return value; }
};

DYN_DEVICE float to_float(float v) { return v; }
DYN_DEVICE float to_float(Half v) { return __half2float(v); }
DYN_DEVICE void from_float(float v, float& out) { out = v; }
DYN_DEVICE void from_float(float v, Half& out) { out = __float2half_rn(v); }

DYN_DEVICE float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
DYN_DEVICE float exponential(float v) { return expf(v); }
DYN_DEVICE float error_function(float v) { return erff(v); }
DYN_DEVICE float square_root(float v) { return sqrtf(v); }

DYN_DEVICE HalfPair zero_pair() { return __float2half2_rn(0.0f); }
DYN_DEVICE HalfPair both_low(HalfPair v) { return __low2half2(v); }
DYN_DEVICE HalfPair both_high(HalfPair v) { return __high2half2(v); }
DYN_DEVICE HalfPair both_first(HalfPair a, HalfPair b) { return __lows2half2(a, b); }
DYN_DEVICE HalfPair both_second(HalfPair a, HalfPair b) { return __highs2half2(a, b); }
DYN_DEVICE HalfPair multiply_add(HalfPair a, HalfPair b, HalfPair c) { return __hfma2(a, b, c); }
DYN_DEVICE float low(HalfPair v) { return __low2float(v); }
DYN_DEVICE float high(HalfPair v) { return __high2float(v); }

// Copies between memory and registers in one access of kBytes.
template <int kBytes>
struct Access;
template <>
struct Access<16> {
  using Word = uint4;
};
template <>
struct Access<8> {
  using Word = uint2;
};
template <>
struct Access<4> {
  using Word = unsigned int;
};
template <>
struct Access<2> {
  using Word = unsigned short;
};
template <>
struct Access<1> {
  using Word = unsigned char;
};

// Loads that take what they read for constant (__ldg, ld.global.nc) may be moved before whatever does not
// write it in this kernel, so before wait_for_earlier(), too: a kernel that may begin early has none of them.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define DYN_BEGINS_EARLY 1
#else
#define DYN_BEGINS_EARLY 0
#endif

template <int kBytes>
DYN_DEVICE void load_global(void* to, const void* from) {
  using Word = typename Access<kBytes>::Word;
#if DYN_BEGINS_EARLY
  *static_cast<Word*>(to) = *static_cast<const Word*>(from);
#else
  *static_cast<Word*>(to) = __ldg(static_cast<const Word*>(from));
#endif
}
// Zeros where there is nothing to load. A branch around the load would cost more than the load.
template <int kBytes>
DYN_DEVICE void load_or_clear(void* to, const void* from, bool inside) {
  using Word = typename Access<kBytes>::Word;
  *static_cast<Word*>(to) = Word();
  if (inside) load_global<kBytes>(to, from);
}
template <>
DYN_DEVICE void load_or_clear<16>(void* to, const void* from, bool inside) {
  uint4 v = make_uint4(0, 0, 0, 0);
#if DYN_BEGINS_EARLY
  asm volatile(
      "{\n"
      " .reg .pred p;\n"
      " setp.ne.s32 p, %5, 0;\n"
      " @p ld.global.v4.u32 {%0, %1, %2, %3}, [%4];\n"
      "}"
      : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)
      : "l"(from), "r"(static_cast<int>(inside))
      : "memory");
#else
  asm("{\n"
      " .reg .pred p;\n"
      " setp.ne.s32 p, %5, 0;\n"
      " @p ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];\n"
      "}"
      : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)
      : "l"(from), "r"(static_cast<int>(inside)));
#endif
  *static_cast<uint4*>(to) = v;
}
template <int kBytes>
DYN_DEVICE void copy(void* to, const void* from) {
  using Word = typename Access<kBytes>::Word;
  *static_cast<Word*>(to) = *static_cast<const Word*>(from);
}

// 16 x 16 x 16 products of a warp; all of its threads call these together.
#if DYN_TENSOR_CORES
using FragmentA = nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, 16, 16, 16, __half, nvcuda::wmma::row_major>;
using FragmentB = nvcuda::wmma::fragment<nvcuda::wmma::matrix_b, 16, 16, 16, __half, nvcuda::wmma::row_major>;
using FragmentC = nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float>;
DYN_DEVICE void fill(FragmentC& c, float value) { nvcuda::wmma::fill_fragment(c, value); }
template <class Fragment>
DYN_DEVICE void load(Fragment& f, const Half* from, int stride) {
  nvcuda::wmma::load_matrix_sync(f, from, stride);
}
DYN_DEVICE void multiply_add(FragmentC& c, const FragmentA& a, const FragmentB& b) {
  nvcuda::wmma::mma_sync(c, a, b, c);
}
DYN_DEVICE void store(float* to, const FragmentC& c, int stride) {
  nvcuda::wmma::store_matrix_sync(to, c, stride, nvcuda::wmma::mem_row_major);
}
// Columns that stand one behind the other.
DYN_DEVICE void load_columns(FragmentC& c, const float* from, int stride) {
  nvcuda::wmma::load_matrix_sync(c, from, stride, nvcuda::wmma::mem_col_major);
}
// Element by element.
DYN_DEVICE void multiply(FragmentC& c, const FragmentC& factor) {
  DYN_UNROLL
  for (int i = 0; i < c.num_elements; ++i) c.x[i] *= factor.x[i];
}
#else
// Kernels of tensor cores are empty here, but their types must exist in every pass of the compiler.
struct FragmentA {};
struct FragmentB {};
struct FragmentC {};
DYN_DEVICE void fill(FragmentC&, float) {}
template <class Fragment>
DYN_DEVICE void load(Fragment&, const Half*, int) {}
DYN_DEVICE void multiply_add(FragmentC&, const FragmentA&, const FragmentB&) {}
DYN_DEVICE void store(float*, const FragmentC&, int) {}
DYN_DEVICE void load_columns(FragmentC&, const float*, int) {}
DYN_DEVICE void multiply(FragmentC&, const FragmentC&) {}
#endif

// The same of bytes with signs; the columns of a right operand stand one behind the other.
#if DYN_BYTE_WMMA
using SignedA =
    nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, 16, 16, 16, signed char, nvcuda::wmma::row_major>;
using SignedB =
    nvcuda::wmma::fragment<nvcuda::wmma::matrix_b, 16, 16, 16, signed char, nvcuda::wmma::col_major>;
using SignedC = nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, int>;
DYN_DEVICE void fill(SignedA& a, int value) {
  nvcuda::wmma::fill_fragment(a, static_cast<signed char>(value));
}
DYN_DEVICE void fill(SignedC& c, int value) { nvcuda::wmma::fill_fragment(c, value); }
template <class Fragment>
DYN_DEVICE void load(Fragment& f, const std::uint8_t* from, int stride) {
  nvcuda::wmma::load_matrix_sync(f, reinterpret_cast<const signed char*>(from), stride);
}
DYN_DEVICE void multiply_add(SignedC& c, const SignedA& a, const SignedB& b) {
  nvcuda::wmma::mma_sync(c, a, b, c);
}
DYN_DEVICE void add(SignedC& c, const SignedC& other, int factor) {
  DYN_UNROLL
  for (int i = 0; i < c.num_elements; ++i) c.x[i] += factor * other.x[i];
}
DYN_DEVICE void store(int* to, const SignedC& c, int stride) {
  nvcuda::wmma::store_matrix_sync(to, c, stride, nvcuda::wmma::mem_row_major);
}
#else
struct SignedA {};
struct SignedB {};
struct SignedC {};
DYN_DEVICE void fill(SignedA&, int) {}
DYN_DEVICE void fill(SignedC&, int) {}
template <class Fragment>
DYN_DEVICE void load(Fragment&, const std::uint8_t*, int) {}
DYN_DEVICE void multiply_add(SignedC&, const SignedA&, const SignedB&) {}
DYN_DEVICE void add(SignedC&, const SignedC&, int) {}
DYN_DEVICE void store(int*, const SignedC&, int) {}
#endif

// An address `count` elements further on.
template <class T>
DYN_DEVICE const T* further(std::uintptr_t address, int count) {
  return reinterpret_cast<const T*>(address) + count;
}

// 16 x 8 x 16 products of a warp by the layout of fragments in the PTX manual ("Matrix fragments for
// mma.m16n8k16"): lane l holds rows l / 4 and l / 4 + 8, and columns 2 (l % 4) and 2 (l % 4) + 1. A right
// operand here holds two of them side by side.
struct MmaA {
  unsigned v[4];
};
struct MmaB {
  unsigned v[4];
};
struct alignas(16) MmaC {
  float v[4];
  DYN_DEVICE float* at(int) { return v; }
};
DYN_DEVICE void fill(MmaC& c, float value) {
  DYN_UNROLL
  for (int i = 0; i < 4; ++i) c.v[i] = value;
}
DYN_DEVICE unsigned shared_address(const void* memory) {
  return static_cast<unsigned>(__cvta_generic_to_shared(memory));
}
// Of two fragments side by side, an even lane takes the columns of the first that it shares with the next
// lane, an odd one those of the second: then `left` holds four columns of row l / 4, `right` of row l / 4
// + 8.
template <class Sums>
DYN_DEVICE void exchange(Sums& left, Sums& right) {
  const bool odd = threadIdx.x % 2 != 0;
  Sums upper, lower;
  DYN_UNROLL
  for (int e = 0; e < 2; ++e) {
    const auto up = __shfl_xor_sync(0xffffffffu, odd ? left.v[e] : right.v[e], 1);
    const auto low = __shfl_xor_sync(0xffffffffu, odd ? left.v[e + 2] : right.v[e + 2], 1);
    upper.v[e] = odd ? up : left.v[e];
    upper.v[e + 2] = odd ? right.v[e] : up;
    lower.v[e] = odd ? low : left.v[e + 2];
    lower.v[e + 2] = odd ? right.v[e + 2] : low;
  }
  left = upper;
  right = lower;
}
#if defined(__CUDA_ARCH__) && DYN_MATRIX_LOADS
// address(lane) gives a row of 8 halves of four matrices of 8 x 8.
template <class Fragment, class F>
DYN_DEVICE void load(Fragment& a, const F& address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a.v[0]), "=r"(a.v[1]), "=r"(a.v[2]), "=r"(a.v[3])
               : "r"(shared_address(address(static_cast<int>(threadIdx.x % 32)))));
}
template <class F>
DYN_DEVICE void load_transposed(MmaB& b, const F& address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(b.v[0]), "=r"(b.v[1]), "=r"(b.v[2]), "=r"(b.v[3])
               : "r"(shared_address(address(static_cast<int>(threadIdx.x % 32)))));
}
#else
template <class Fragment, class F>
DYN_DEVICE void load(Fragment&, const F&) {}
template <class F>
DYN_DEVICE void load_transposed(MmaB&, const F&) {}
#endif
#if defined(__CUDA_ARCH__) && DYN_ASYNC_TENSOR_CORES
// Copies into shared memory that go on while the thread does other things, in groups.
struct Copies {
  // Of 16 bytes the first `bytes`, and zeros.
  DYN_DEVICE void add(void* to, const void* from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(bytes));
  }
  DYN_DEVICE void close_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
  // Waits until all but the last kLeft groups are there.
  template <int kLeft>
  DYN_DEVICE void wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
  }
};
// With one of the two right operands.
DYN_DEVICE void multiply_add(MmaC& c, const MmaA& a, const MmaB& b, int which) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c.v[0]), "+f"(c.v[1]), "+f"(c.v[2]), "+f"(c.v[3])
      : "r"(a.v[0]), "r"(a.v[1]), "r"(a.v[2]), "r"(a.v[3]), "r"(b.v[2 * which]), "r"(b.v[2 * which + 1]));
}
#else
// Kernels of this kind are empty here.
struct Copies {
  DYN_DEVICE void add(void*, const void*, int) {}
  DYN_DEVICE void close_group() {}
  template <int kLeft>
  DYN_DEVICE void wait() {}
};
DYN_DEVICE void multiply_add(MmaC&, const MmaA&, const MmaB&, int) {}
#endif

// The same of bytes, 16 x 8 x 32: where halves hold two inputs, these hold four ("Matrix fragments for
// mma.m16n8k32"). A right operand stands in shared memory by its columns.
using ByteA = MmaA;
using ByteB = MmaB;
struct ByteC {
  int v[4];
  DYN_DEVICE int* at(int) { return v; }
};
DYN_DEVICE void fill(ByteC& c, int value) {
  DYN_UNROLL
  for (int i = 0; i < 4; ++i) c.v[i] = value;
}
#if defined(__CUDA_ARCH__) && DYN_MATRIX_LOADS
DYN_DEVICE void multiply_add(ByteC& c, const ByteA& a, const ByteB& b, int which) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+r"(c.v[0]), "+r"(c.v[1]), "+r"(c.v[2]), "+r"(c.v[3])
      : "r"(a.v[0]), "r"(a.v[1]), "r"(a.v[2]), "r"(a.v[3]), "r"(b.v[2 * which]), "r"(b.v[2 * which + 1]));
#else
  // The quarters of a fragment are those of mma.m8n8k16.
  DYN_UNROLL
  for (int i = 0; i < 4; ++i) {
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.u8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
                 : "+r"(c.v[i % 2 * 2]), "+r"(c.v[i % 2 * 2 + 1])
                 : "r"(a.v[i]), "r"(b.v[2 * which + i / 2]));
  }
#endif
}
#else
DYN_DEVICE void multiply_add(ByteC&, const ByteA&, const ByteB&, int) {}
#endif

// Four inputs of a row or column, bytes of a left operand without a sign and of a right one with it.
struct Quad {
  unsigned bits;
};
DYN_DEVICE int multiply_add(Quad a, Quad b, int c) {
#if defined(__CUDA_ARCH__) && DYN_BYTE_PRODUCTS
  asm("dp4a.u32.s32 %0, %1, %2, %0;" : "+r"(c) : "r"(a.bits), "r"(b.bits));
#endif
  return c;
}
DYN_DEVICE int bits_of(float v) { return __float_as_int(v); }
DYN_DEVICE int ones_of(std::uint32_t word) { return __popc(word); }

// Programmatic dependent launch (PTX: griddepcontrol): a kernel may be put onto the GPU while the one before
// it still runs, once all blocks of that one have begun. wait_for_earlier() returns when that one is complete
// and what it wrote is visible.
DYN_DEVICE void wait_for_earlier() {
#if DYN_BEGINS_EARLY
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
DYN_DEVICE void let_next_begin() {
#if DYN_BEGINS_EARLY
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// Asks for memory that no kernel writes, into the second-level cache; from a multiple of 16 bytes on.
DYN_DEVICE void prefetch(const void* from, std::uint32_t bytes) {
#if DYN_BEGINS_EARLY && __CUDACC_VER_MAJOR__ >= 12
  bytes &= ~15u;
  if (bytes > 0)
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
#else
  (void)from;
  (void)bytes;
#endif
}

template <class Kernel>
DYN_DEVICE auto begin_early(const typename Kernel::Arguments& a, Index block, Index blocks, int)
    -> decltype(Kernel::prefetches(a, block, blocks)) {
  if (DYN_BEGINS_EARLY && threadIdx.x == 0) Kernel::prefetches(a, block, blocks);
}
template <class Kernel>
DYN_DEVICE void begin_early(const typename Kernel::Arguments&, Index, Index, long) {}

// Every kernel is a type with `Arguments`, `kThreads`, `kBlocks` (that must fit on one SM: 32768 registers or
// fewer for a block of them) and `run(arguments, block)`. `prefetches(arguments, block, blocks)`, if it has
// it, may only ask for weights: what it does may happen while earlier kernels run.
//
// Every thread waits before it reads or writes anything else, also of a block that has nothing to do. So a
// kernel ends after its wait has returned, and that is after the kernel before it has ended: whoever waits
// for the last kernel waits for all, back to the first of the operator, which is launched as ever and begins
// when everything before it in the stream has ended (see Sequence). No two kernels ever work at the same
// time, and what one reads of the workspace the next may overwrite.
template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocks)
    entry(const typename Kernel::Arguments arguments) {
  const Index block = {static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y)};
  begin_early<Kernel>(arguments, block, Index{static_cast<int>(gridDim.x), static_cast<int>(gridDim.y)}, 0);
  wait_for_earlier();
  let_next_begin();
  Kernel::run(arguments, block);
}

// Shared memory of a kernel whose tile takes more than the 48 KB that need no permission; 0 of all others.
template <class Kernel>
constexpr auto dynamic_bytes(int) -> decltype(Kernel::Tile::kDynamicBytes) {
  return Kernel::Tile::kDynamicBytes;
}
template <class Kernel>
constexpr int dynamic_bytes(long) {
  return 0;
}

// Asks for them once on each device. Legal while a stream is captured.
template <class Kernel>
int allow_dynamic(std::integral_constant<int, 0>) {
  return 0;
}
template <class Kernel, int kBytes>
int allow_dynamic(std::integral_constant<int, kBytes>) {
  static std::atomic<std::uint64_t> allowed(0);
  int device = 0;
  cudaGetDevice(&device);
  const std::uint64_t bit = device < 64 ? std::uint64_t{1} << device : 0;
  if ((allowed.load(std::memory_order_relaxed) & bit) != 0) return 0;
  const cudaError_t error =
      cudaFuncSetAttribute(entry<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error == cudaSuccess) allowed.fetch_or(bit, std::memory_order_relaxed);
  return static_cast<int>(error);
}

template <class Kernel>
int allow_dynamic() {
  return allow_dynamic<Kernel>(std::integral_constant<int, dynamic_bytes<Kernel>(0)>());
}

template <class Kernel>
int launch(int blocks_x, int blocks_y, const typename Kernel::Arguments& arguments, void* stream) {
  const int refused = allow_dynamic<Kernel>();
  if (refused != 0) return refused;
  entry<Kernel><<<dim3(blocks_x, blocks_y), dim3(Kernel::kThreads), dynamic_bytes<Kernel>(0),
                  static_cast<cudaStream_t>(stream)>>>(arguments);
  return static_cast<int>(cudaGetLastError());
}

// Tells for which architecture a launch would run the kernels: a driver that compiles PTX for a newer GPU
// keeps what the compiler saw of __CUDA_ARCH__. Its bounds tell whether it was compiled for sm_90a.
constexpr int kProbeThreads = 128, kProbeThreadsWithWarpgroups = 256;
#if defined(__CUDA_ARCH__) && DYN_WARPGROUPS
#define DYN_PROBE_THREADS kProbeThreadsWithWarpgroups
#else
#define DYN_PROBE_THREADS kProbeThreads
#endif
template <int kUnused>
__global__ void __launch_bounds__(DYN_PROBE_THREADS) probe() {}

// The queries are legal while a stream is captured.
inline DeviceTraits query_traits(int device) {
  int major = 0, minor = 0, processors = 1;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  cudaFuncAttributes code = {};
  const bool known = cudaFuncGetAttributes(&code, probe<0>) == cudaSuccess && code.ptxVersion > 0;
  cudaGetLastError();  // of a device that no kernel was compiled for, the launch will say so
  const int capability = 10 * major + minor;
  const bool warpgroups = known && code.maxThreadsPerBlock == kProbeThreadsWithWarpgroups;
  return {known ? smaller(code.ptxVersion, capability) : capability, processors, Size::kBest, warpgroups};
}

// Whether kernels may begin early: from sm_90 on. Both toolkit and driver must capture such launches in a
// graph, which they do from 12.3 on.
inline bool begins_early(const DeviceTraits& device) {
#if CUDART_VERSION >= 12030
  static const bool driver_captures = [] {
    int version = 0;
    return cudaDriverGetVersion(&version) == cudaSuccess && version >= 12030;
  }();
  return driver_captures && device.capability >= 90;
#else
  (void)device;
  return false;
#endif
}
inline DeviceTraits device_traits() {
  int device = 0;
  cudaGetDevice(&device);
  const DeviceTraits traits = cached_traits(device, query_traits);
#if defined(DYN_PLAYED_DEVICE)
  return played(traits);
#else
  return traits;
#endif
}

template <class Kernel>
int launch(int blocks_x, int blocks_y, const typename Kernel::Arguments& arguments, Sequence& sequence) {
#if CUDART_VERSION >= 12030
  if (sequence.goes_on() && begins_early(device_traits())) {
    const int refused = allow_dynamic<Kernel>();
    if (refused != 0) return refused;
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(blocks_x, blocks_y);
    config.blockDim = dim3(Kernel::kThreads);
    config.dynamicSmemBytes = dynamic_bytes<Kernel>(0);
    config.stream = static_cast<cudaStream_t>(sequence.stream());
    config.attrs = &attribute;
    config.numAttrs = 1;
    return static_cast<int>(cudaLaunchKernelEx(&config, entry<Kernel>, arguments));
  }
#endif
  return launch<Kernel>(blocks_x, blocks_y, arguments, sequence.stream());
}

#else  // the host

namespace host {
// The device that the host plays.
struct Device {
  DeviceTraits traits;
  bool reverse;  // run threads and blocks from the last to the first
  int launches;  // counts
  int early;     // of these, those that may begin before the one before has ended
};
Device& device();  // one per thread

// Shared memory starts as NaN, so that a read before the first write shows.
inline void poison(void* memory, std::size_t bytes) { std::memset(memory, 0xff, bytes); }

inline void require_aligned(const void* memory, std::uintptr_t bytes) {
  if (reinterpret_cast<std::uintptr_t>(memory) % bytes == 0) return;
  std::fprintf(stderr, "an access of %d bytes is not aligned\n", static_cast<int>(bytes));
  std::abort();
}

}  // namespace host

struct Half {
  std::uint16_t bits;
};
struct HalfPair {
  Half first, second;
};

#if defined(DYN_HOST_THREADS)
template <int kThreads, class F>
void for_threads(const F& f) {
  f(host::self().index);
}
// One thread acts for its warp, and holds what the warp keeps.
template <int kWarps, class F>
void for_warps(const F& f) {
  if (host::self().index % 32 == 0) f(host::self().index / 32);
}
template <class F>
void for_lanes(const F& f) {
  for (int i = 0; i < 32; ++i) f(i);
}
inline void sync() { host::self().block->barrier.wait(); }
inline void sync_warp() {
  host::self().block->warps[static_cast<std::size_t>(host::self().index / 32)]->wait();
}
#else
template <int kThreads, class F>
void for_threads(const F& f) {
  const bool reverse = host::device().reverse;
  for (int i = 0; i < kThreads; ++i) f(reverse ? kThreads - 1 - i : i);
}
template <int kWarps, class F>
void for_warps(const F& f) {
  for_threads<kWarps>(f);
}
template <class F>
void for_lanes(const F& f) {
  for_threads<32>(f);
}
inline void sync() {}
inline void sync_warp() {}
#endif

template <class T, int kCount>
struct PerThread {
  std::vector<T> values = std::vector<T>(kCount);
  T& operator[](int i) { return values[static_cast<std::size_t>(i)]; }
};

inline float to_float(float v) { return v; }
inline float to_float(Half v) { return host::half_to_float(v.bits); }
inline void from_float(float v, float& out) { out = v; }
inline void from_float(float v, Half& out) { out.bits = host::float_to_half(v); }

inline float multiply_add(float a, float b, float c) { return std::fma(a, b, c); }
inline float exponential(float v) { return std::exp(v); }
inline float error_function(float v) { return std::erf(v); }
inline float square_root(float v) { return std::sqrt(v); }
inline HalfPair zero_pair() { return {{0}, {0}}; }
inline HalfPair both_low(HalfPair v) { return {v.first, v.first}; }
inline HalfPair both_high(HalfPair v) { return {v.second, v.second}; }
inline HalfPair both_first(HalfPair a, HalfPair b) { return {a.first, b.first}; }
inline HalfPair both_second(HalfPair a, HalfPair b) { return {a.second, b.second}; }
inline float low(HalfPair v) { return to_float(v.first); }
inline float high(HalfPair v) { return to_float(v.second); }
inline HalfPair multiply_add(HalfPair a, HalfPair b, HalfPair c) {
  return {{host::fused_multiply_add(a.first.bits, b.first.bits, c.first.bits)},
          {host::fused_multiply_add(a.second.bits, b.second.bits, c.second.bits)}};
}

struct Quad {
  std::uint8_t bytes[4];
};
inline int multiply_add(Quad a, Quad b, int c) {
  for (int i = 0; i < 4; ++i) c += a.bytes[i] * static_cast<std::int8_t>(b.bytes[i]);
  return c;
}
inline int ones_of(std::uint32_t word) { return __builtin_popcount(word); }
inline int bits_of(float v) {
  int bits;
  std::memcpy(&bits, &v, sizeof bits);
  return bits;
}

template <int kBytes>
struct Access {
  struct alignas(kBytes) Word {
    unsigned char bytes[kBytes];
  };
};

// A GPU faults where an access is not aligned to its size; so does the host.
template <int kBytes>
void copy(void* to, const void* from) {
  host::require_aligned(to, kBytes);
  host::require_aligned(from, kBytes);
  std::memcpy(to, from, kBytes);
}
template <int kBytes>
void load_global(void* to, const void* from) {
  host::require_aligned(from, kBytes);
  std::memcpy(to, from, kBytes);
}

template <int kBytes>
void load_or_clear(void* to, const void* from, bool inside) {
  if (inside) {
    load_global<kBytes>(to, from);
  } else {
    std::memset(to, 0, kBytes);
  }
}

struct FragmentA {
  float v[16][16];
};
struct FragmentB {
  float v[16][16];
};
struct FragmentC {
  float v[16][16];
};
inline void fill(FragmentC& c, float value) {
  for (auto& row : c.v) {
    for (float& v : row) v = value;
  }
}
template <class Fragment>
void load(Fragment& f, const Half* from, int stride) {
  host::require_aligned(from, 32);
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) f.v[i][j] = to_float(from[i * stride + j]);
  }
}
inline void multiply_add(FragmentC& c, const FragmentA& a, const FragmentB& b) {
  for (int i = 0; i < 16; ++i) {
    for (int k = 0; k < 16; ++k) {
      for (int j = 0; j < 16; ++j) c.v[i][j] += a.v[i][k] * b.v[k][j];
    }
  }
}
inline void store(float* to, const FragmentC& c, int stride) {
  host::require_aligned(to, 32);
  for (int i = 0; i < 16; ++i) std::memcpy(to + i * stride, c.v[i], sizeof c.v[i]);
}

inline void load_columns(FragmentC& c, const float* from, int stride) {
  host::require_aligned(from, 32);
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) c.v[i][j] = from[j * stride + i];
  }
}
inline void multiply(FragmentC& c, const FragmentC& factor) {
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) c.v[i][j] *= factor.v[i][j];
  }
}

struct SignedA {
  int v[16][16];
};
struct SignedB {
  int v[16][16];
};
struct SignedC {
  int v[16][16];
};
template <class Fragment>
void fill_signed(Fragment& f, int value) {
  for (auto& row : f.v) {
    for (int& v : row) v = value;
  }
}
inline void fill(SignedA& a, int value) { fill_signed(a, value); }
inline void fill(SignedC& c, int value) { fill_signed(c, value); }
inline void load(SignedA& a, const std::uint8_t* from, int stride) {
  host::require_aligned(from, 16);
  for (int i = 0; i < 16; ++i) {
    for (int k = 0; k < 16; ++k) a.v[i][k] = static_cast<std::int8_t>(from[i * stride + k]);
  }
}
inline void load(SignedB& b, const std::uint8_t* from, int stride) {
  host::require_aligned(from, 16);
  for (int j = 0; j < 16; ++j) {
    for (int k = 0; k < 16; ++k) b.v[k][j] = static_cast<std::int8_t>(from[j * stride + k]);
  }
}
inline void multiply_add(SignedC& c, const SignedA& a, const SignedB& b) {
  for (int i = 0; i < 16; ++i) {
    for (int k = 0; k < 16; ++k) {
      for (int j = 0; j < 16; ++j) c.v[i][j] += a.v[i][k] * b.v[k][j];
    }
  }
}
inline void add(SignedC& c, const SignedC& other, int factor) {
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) c.v[i][j] += factor * other.v[i][j];
  }
}
inline void store(int* to, const SignedC& c, int stride) {
  host::require_aligned(to, 16);
  for (int i = 0; i < 16; ++i) std::memcpy(to + i * stride, c.v[i], sizeof c.v[i]);
}

// Of any number, though pointers to nothing must not move.
template <class T>
const T* further(std::uintptr_t address, int count) {
  return reinterpret_cast<const T*>(address + static_cast<std::uintptr_t>(count) * sizeof(T));
}

// What the lanes of a warp hold, as the GPU's fragments say.
struct MmaA {
  float v[32][4][2];
};
// The low bits, by which descriptors tell an address.
inline std::uint32_t shared_address(const void* memory) {
  return static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(memory));
}
struct MmaB {
  float v[32][4][2];
};
struct MmaC {
  float v[32][4];
  float* at(int lane) { return v[lane]; }
};
inline void fill(MmaC& c, float value) {
  for (auto& lane : c.v) {
    for (float& v : lane) v = value;
  }
}
struct ByteA {
  std::uint8_t v[32][4][4];
};
struct ByteB {
  std::uint8_t v[32][4][4];
};
struct ByteC {
  int v[32][4];
  int* at(int lane) { return v[lane]; }
};
inline void fill(ByteC& c, int value) {
  for (auto& lane : c.v) {
    for (int& v : lane) v = value;
  }
}

// A copy is made when somebody waits for it: who reads too early finds what was there before. Where the host
// runs threads backwards it is made at once: who copies over what others still read finds what he copied.
class Copies {
 public:
  void add(void* to, const void* from, int bytes) {
    host::require_aligned(to, 16);
    if (bytes > 0) host::require_aligned(from, 16);
    const Copy copy = {to, from, bytes};
    if (host::device().reverse) return make(copy);
    open_.push_back(copy);
  }
  void close_group() {
    groups_.push_back(std::move(open_));
    open_.clear();
  }
  template <int kLeft>
  void wait() {
    while (groups_.size() > static_cast<std::size_t>(kLeft)) {
      for (const Copy& copy : groups_.front()) make(copy);
      groups_.pop_front();
    }
  }

 private:
  struct Copy {
    void* to;
    const void* from;
    int bytes;
  };
  static void make(const Copy& copy) {
    std::memset(copy.to, 0, 16);
    if (copy.bytes > 0) std::memcpy(copy.to, copy.from, static_cast<std::size_t>(copy.bytes));
  }
  std::vector<Copy> open_;
  std::deque<std::vector<Copy>> groups_;
};

// Matrix m of 8 x 8 has its rows at the addresses of lanes 8 m to 8 m + 7.
template <class F>
void load_matrices(float (&v)[32][4][2], const F& address, bool transposed) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    for (int row = 0; row < 8; ++row) {
      const Half* from = address(8 * matrix + row);
      host::require_aligned(from, 16);
      for (int column = 0; column < 8; ++column) {
        const int r = transposed ? column : row, c = transposed ? row : column;
        v[4 * r + c / 2][matrix][c % 2] = to_float(from[column]);
      }
    }
  }
}
template <class Fragment, class F>
void load(Fragment& a, const F& address) {
  load_matrices(a.v, address, false);
}
// Of bytes, whose rows are as long in memory.
template <class F>
void load_matrices(std::uint8_t (&v)[32][4][4], const F& address, bool) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    for (int row = 0; row < 8; ++row) {
      const std::uint8_t* from = address(8 * matrix + row);
      host::require_aligned(from, 16);
      for (int k = 0; k < 16; ++k) v[4 * row + k / 4][matrix][k % 4] = from[k];
    }
  }
}
template <class F>
void load_transposed(MmaB& b, const F& address) {
  load_matrices(b.v, address, true);
}
inline void multiply_add(MmaC& c, const MmaA& a, const MmaB& b, int which) {
  float left[16][16], right[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int at = lane / 4, pair = lane % 4 * 2;
    for (int e = 0; e < 2; ++e) {
      for (int m = 0; m < 4; ++m) left[at + m % 2 * 8][pair + m / 2 * 8 + e] = a.v[lane][m][e];
      for (int m = 0; m < 2; ++m) right[pair + m * 8 + e][at] = b.v[lane][2 * which + m][e];
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int e = 0; e < 4; ++e) {
      const int row = lane / 4 + e / 2 * 8, column = lane % 4 * 2 + e % 2;
      float sum = c.v[lane][e];
      for (int k = 0; k < 16; ++k) sum += left[row][k] * right[k][column];
      c.v[lane][e] = sum;
    }
  }
}
inline void multiply_add(ByteC& c, const ByteA& a, const ByteB& b, int which) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int e = 0; e < 4; ++e) {
      const int row = lane / 4, column = lane % 4 * 2 + e % 2;
      int sum = 0;
      for (int k = 0; k < 32; ++k) {
        const int left = a.v[4 * row + k % 16 / 4][e / 2 + k / 16 * 2][k % 4];
        sum += left * static_cast<std::int8_t>(b.v[4 * column + k % 16 / 4][2 * which + k / 16][k % 4]);
      }
      c.v[lane][e] += sum;
    }
  }
}
template <class Sums>
void exchange(Sums& left, Sums& right) {
  const Sums first = left, second = right;
  for (int lane = 0; lane < 32; ++lane) {
    const bool odd = lane % 2 != 0;
    const Sums& from = odd ? second : first;
    for (int e = 0; e < 4; ++e) {
      const int holder = lane - lane % 2 + e / 2;
      left.v[lane][e] = from.v[holder][e % 2];
      right.v[lane][e] = from.v[holder][e % 2 + 2];
    }
  }
}

inline DeviceTraits device_traits() { return host::device().traits; }
inline bool begins_early(const DeviceTraits& device) { return device.capability >= 90; }
// Reads what it asks for, so that a sanitizer sees where that ends.
inline void prefetch(const void* from, std::uint32_t bytes) {
  volatile unsigned char last = 0;
  for (std::uint32_t i = 0; i + 16 <= bytes; i += 16) last = static_cast<const unsigned char*>(from)[i + 15];
  (void)last;
}

template <class Kernel>
auto begin_early(const typename Kernel::Arguments& a, Index block, Index blocks, int)
    -> decltype(Kernel::prefetches(a, block, blocks)) {
  Kernel::prefetches(a, block, blocks);
}
template <class Kernel>
void begin_early(const typename Kernel::Arguments&, Index, Index, long) {}

template <class Kernel>
int launch(int blocks_x, int blocks_y, const typename Kernel::Arguments& arguments, void*) {
  host::Device& device = host::device();
  ++device.launches;
  const int blocks = blocks_x * blocks_y;
  for (int i = 0; i < blocks; ++i) {
    const int at = device.reverse ? blocks - 1 - i : i;
    const Index block = {at % blocks_x, at / blocks_x};
    if (begins_early(device.traits)) begin_early<Kernel>(arguments, block, Index{blocks_x, blocks_y}, 0);
#if defined(DYN_HOST_THREADS)
    host::run_block(Kernel::kThreads, [&] { Kernel::run(arguments, block); });
#else
    Kernel::run(arguments, block);
#endif
  }
  return 0;
}
template <class Kernel>
int launch(int blocks_x, int blocks_y, const typename Kernel::Arguments& arguments, Sequence& sequence) {
  if (sequence.goes_on() && begins_early(device_traits())) ++host::device().early;
  return launch<Kernel>(blocks_x, blocks_y, arguments, sequence.stream());
}

#endif

DYN_DEVICE int ones_of(std::uint64_t word) {
  return ones_of(static_cast<std::uint32_t>(word)) + ones_of(static_cast<std::uint32_t>(word >> 32));
}
// Where the n-th one of a word that has so many stands, n from 0.
DYN_DEVICE int nth_one(std::uint64_t word, int n) {
  const std::uint32_t low = static_cast<std::uint32_t>(word);
  const int in_low = ones_of(low);
  const bool upper = n >= in_low;
  const std::uint32_t half = upper ? static_cast<std::uint32_t>(word >> 32) : low;
  int left = upper ? n - in_low : n, at = 0;
  DYN_UNROLL
  for (int step = 16; step > 0; step /= 2) {
    const int below = ones_of(half >> at & ((1u << step) - 1u));
    at += left >= below ? step : 0;
    left -= left >= below ? below : 0;
  }
  return upper ? at + 32 : at;
}

// What one block asks for of memory that all blocks read, in whole runs of 16 bytes.
struct Share {
  std::size_t begin;
  std::uint32_t bytes;

  DYN_DEVICE Share(Index block, Index blocks, std::size_t all) {
    // A division of 64 bits is a function.
    const std::uint32_t runs = static_cast<std::uint32_t>(all / 16);
    const std::uint32_t count = static_cast<std::uint32_t>(blocks.x * blocks.y);
    const std::uint32_t each = (runs + count - 1) / count;
    const std::uint32_t before = static_cast<std::uint32_t>(block.y * blocks.x + block.x) * each;
    begin = static_cast<std::size_t>(before) * 16;
    bytes = before >= runs ? 0 : (runs - before < each ? runs - before : each) * 16;
  }
  DYN_DEVICE void prefetch(const void* from) const {
    cuda::prefetch(static_cast<const char*>(from) + begin, bytes);
  }
};

// kWidth elements that move in one access.
template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth) Vector {
  T v[kWidth];
};

template <class T, int kWidth>
DYN_DEVICE Vector<T, kWidth> load_vector(const T* from) {
  Vector<T, kWidth> out;
  load_global<static_cast<int>(sizeof(T)) * kWidth>(&out, from);
  return out;
}
// The same while it is on its way. Numbers would become registers of their own, and taking one apart waits
// for the load: nothing looks into a word before it is there.
template <class T, int kWidth>
using Word = typename Access<static_cast<int>(sizeof(T)) * kWidth>::Word;

// Zeros behind the first `count` numbers.
template <class T, int kWidth>
DYN_DEVICE void clear_behind(Word<T, kWidth>& word, int count) {
  constexpr int kBytes = static_cast<int>(sizeof(T)) * kWidth;
  constexpr int kPieces = kBytes / 4 > 0 ? kBytes / 4 : 1;
  constexpr int kEach = 4 / static_cast<int>(sizeof(T));
  alignas(16) std::uint32_t pieces[kPieces];
  copy<kBytes>(pieces, &word);
  DYN_UNROLL
  for (int i = 0; i < kPieces; ++i) {
    const int left = count - i * kEach;
    // Shifts by less than 0 or by 32 mean nothing.
    const std::uint32_t kept = left <= 0      ? 0u
                               : left < kEach ? (1u << 8 * static_cast<int>(sizeof(T)) * left) - 1u
                                              : ~0u;
    pieces[i] &= kept;
  }
  copy<kBytes>(&word, pieces);
}
template <class T, int kWidth>
DYN_DEVICE void store_vector(T* to, const Vector<T, kWidth>& vector) {
  copy<static_cast<int>(sizeof(T)) * kWidth>(to, &vector);
}

// NaN passes, as in PyTorch.
DYN_DEVICE float relu(float v) { return v < 0.0f ? 0.0f : v; }

}  // namespace cuda
}  // namespace dyndeploy
