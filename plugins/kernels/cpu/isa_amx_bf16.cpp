#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "isa_table.h"
#include "simd/amx_bf16.h"

namespace dyndeploy::cpu {
namespace {

bool supported() {
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & kAmxBf16) || !(d & kAmxTile)) return false;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl") ||
      !__builtin_cpu_supports("avx512bf16"))
    return false;
  // The kernel keeps the tiles' large state only for processes that ask for it.
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

extern const Isa kIsaAmxBf16;
const Isa kIsaAmxBf16 = make_isa<Avx512, AmxBf16>("amx_bf16", &supported);

}  // namespace dyndeploy::cpu
