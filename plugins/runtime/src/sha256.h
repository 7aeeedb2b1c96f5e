// SHA-256 (FIPS 180-4). Our own, because what Ubuntu 18.04 and Debian carry differs in its name
// (libcrypto.so.1.1 and .so.3), so that a prebuilt library could link neither.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace dyndeploy {
namespace runtime {

class Sha256 {
 public:
  void update(const void* data, std::size_t size);
  // The digest in lower-case hex; ends the sum.
  std::string hex();

 private:
  void block(const std::uint8_t* data);

  std::uint32_t state_[8] = {0x6a09e667u, 0xbb67ae85u, 0x3c6ef372u, 0xa54ff53au,
                             0x510e527fu, 0x9b05688cu, 0x1f83d9abu, 0x5be0cd19u};
  std::uint64_t size_ = 0;
  std::uint8_t rest_[64];
};

std::string sha256(const std::string& text);

}  // namespace runtime
}  // namespace dyndeploy
