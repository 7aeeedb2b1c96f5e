// The sizes of this machine's caches.
#pragma once

#include <cstdint>

namespace dyndeploy::cpu {

// Bytes that one core sees, a shared cache divided by the cores that share it.
struct Caches {
  std::int64_t l1_data = 32 << 10;
  std::int64_t l2 = 512 << 10;
};

// From the folder of one core's caches, such as Linux's /sys/devices/system/cpu/cpu0/cache; what is missing
// there keeps the values above.
Caches read_caches(const char* folder);
// Read from the system once; what it does not tell keeps the values above.
const Caches& caches();

// What fits where, in bytes. One place for every size that depends on the machine; results do not.
struct Blocks {
  std::int64_t panel;             // the part of one panel that a pass uses, and a tile's rows: stay in L1
  std::int64_t resident_weights;  // stay in L2 while rows of A that are read in place pass by
  std::int64_t slice;            // of copied weights, read once per few rows, beside what the next copy reads
  std::int64_t widest_slice;     // ... where a slice is as narrow as it can be
  std::int64_t compact_weights;  // of active channels: worth copying before anything else
  std::int64_t band;             // what one convolution writes and the next one reads
  std::int64_t planes;           // transformed inputs of Winograd's convolution, beside its weights
  std::int64_t shared_weights;   // of active channels, where several threads read what was copied once
};
constexpr std::int64_t kMaxSlice = 384 << 10;  // what buffers for slices hold
const Blocks& blocks();

}  // namespace dyndeploy::cpu
