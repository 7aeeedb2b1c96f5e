// SHA-256 (FIPS 180-4). Our own, because what Ubuntu 18.04 and Debian carry differs in its name
// (libcrypto.so.1.1 and .so.3), so that a prebuilt library could link neither.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace dyndeploy {
namespace runtime {

// The first 32 bits of the fractions of the cube roots of the first 64 primes.
extern const std::uint32_t kSha256Constants[64];

// Add blocks of 64 bytes to a state.
using Sha256Blocks = void (*)(std::uint32_t* state, const std::uint8_t* data, std::size_t count);
void portable_sha256(std::uint32_t* state, const std::uint8_t* data, std::size_t count);
// By this processor's own instructions; null where it has none.
Sha256Blocks hardware_sha256();

class Sha256 {
 public:
  Sha256() : Sha256(hardware_sha256() ? hardware_sha256() : portable_sha256) {}
  explicit Sha256(Sha256Blocks blocks) : blocks_(blocks) {}

  void update(const void* data, std::size_t size);
  // The digest in lower-case hex; ends the sum.
  std::string hex();

 private:
  Sha256Blocks blocks_;
  std::uint32_t state_[8] = {0x6a09e667u, 0xbb67ae85u, 0x3c6ef372u, 0xa54ff53au,
                             0x510e527fu, 0x9b05688cu, 0x1f83d9abu, 0x5be0cd19u};
  std::uint64_t size_ = 0;
  std::uint8_t rest_[64];
};

std::string sha256(const std::string& text);

}  // namespace runtime
}  // namespace dyndeploy
