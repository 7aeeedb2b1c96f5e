// What the compiler must be told so that accumulators stay in registers. First, full unrolling of loops whose
// trip count is a template argument: neither compiler keeps an indexed array in registers unless every index
// is a constant.
#pragma once

// Anything that the inner loops touch has to be inlined: a call would spill every accumulator.
#define DYNDEPLOY_INLINE inline __attribute__((always_inline))
#define DYNDEPLOY_NOINLINE __attribute__((noinline))

#if defined(__clang__)
#define DYNDEPLOY_UNROLL _Pragma("clang loop unroll(full)")
#define DYNDEPLOY_UNROLL_BY_4 _Pragma("clang loop unroll_count(4)")
#else
#define DYNDEPLOY_UNROLL _Pragma("GCC unroll 16")
#define DYNDEPLOY_UNROLL_BY_4 _Pragma("GCC unroll 4")
#endif

// c += a * b by the named x86 instruction, in c's own register. Left to itself GCC also writes sums over
// their factors, runs out of registers and spills accumulators: a sixth of the speed. Clang is right by
// itself.
#if defined(__clang__) || !defined(__x86_64__)
#define DYNDEPLOY_ACCUMULATE(instruction, intrinsic, a, b, c) (intrinsic)
#else
#define DYNDEPLOY_ACCUMULATE(instruction, intrinsic, a, b, c)      \
  ({                                                               \
    __asm__(instruction " %2, %1, %0" : "+v"(c) : "v"(a), "v"(b)); \
    (c);                                                           \
  })
#endif
