// Cuts one block of memory into pieces that begin on cache lines.
#pragma once

#include <cstddef>

namespace dyndeploy::cpu {

// Of nullptr it only adds up what the pieces take.
class Carver {
 public:
  explicit Carver(char* base) : base_(base) {}
  template <class T>
  T* take(std::size_t count) {
    const std::size_t at = used_;
    used_ += (count * sizeof(T) + kLine - 1) / kLine * kLine;
    return base_ ? reinterpret_cast<T*>(base_ + at) : nullptr;
  }
  std::size_t used() const { return used_; }

 private:
  static constexpr std::size_t kLine = 64;
  char* base_;
  std::size_t used_ = 0;
};

}  // namespace dyndeploy::cpu
