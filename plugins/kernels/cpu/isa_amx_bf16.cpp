#include <sys/syscall.h>
#include <unistd.h>

#include "features_x86.h"
#include "isa_table.h"
#include "simd/amx_bf16.h"

namespace dyndeploy::cpu {
namespace {

bool supported() {
  if (!features_x86().amx_bf16) return false;
  // The kernel keeps the tiles' large state only for processes that ask for it.
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

extern const Isa kIsaAmxBf16;
const Isa kIsaAmxBf16 = make_isa<Avx512, AmxBf16>("amx_bf16", &supported);

}  // namespace dyndeploy::cpu
