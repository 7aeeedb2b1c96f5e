// The sizes of this machine's caches.
#pragma once

#include <cstdint>

namespace dyndeploy::cpu {

// Bytes that one core sees, a shared cache divided by the cores that share it.
struct Caches {
  std::int64_t l1_data = 32 << 10;
  std::int64_t l2 = 512 << 10;
};

// Read from the system once; what it does not tell keeps the values above.
const Caches& caches();

}  // namespace dyndeploy::cpu
