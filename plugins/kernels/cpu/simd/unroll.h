// Full unrolling of loops whose trip count is a template argument: accumulators must live in registers, which
// neither compiler grants to an indexed array unless every index is a constant.
#pragma once

#if defined(__clang__)
#define DYNDEPLOY_UNROLL _Pragma("clang loop unroll(full)")
#define DYNDEPLOY_UNROLL_BY_4 _Pragma("clang loop unroll_count(4)")
#else
#define DYNDEPLOY_UNROLL _Pragma("GCC unroll 16")
#define DYNDEPLOY_UNROLL_BY_4 _Pragma("GCC unroll 4")
#endif
