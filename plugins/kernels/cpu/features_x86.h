// Instruction sets that the processor has and the system keeps the registers of. Read from CPUID: the
// compilers' own __builtin_cpu_supports() answers no to everything under some of them (zig).
#pragma once

namespace dyndeploy::cpu {

struct FeaturesX86 {
  bool avx2 = false;    // with FMA
  bool avx512 = false;  // F, BW, DQ and VL
  bool avx512_bf16 = false;
  bool avx512_vnni = false;
  bool avx_vnni = false;  // of 256 bits, which needs no AVX-512
  bool amx_bf16 = false;  // that a process may use it has to be asked for
};

const FeaturesX86& features_x86();

}  // namespace dyndeploy::cpu
