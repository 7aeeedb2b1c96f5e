// How a workspace is divided, and what keeps accesses of 16 bytes from fitting.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace dyndeploy {
namespace cuda {

inline std::size_t element_size(Type type) { return type == Type::kByte ? 1 : type == Type::kHalf ? 2 : 4; }

inline bool aligned(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0; }

// Parts of the workspace, one behind the other; with no memory it only counts.
struct Layout {
  std::uintptr_t at;

  template <class T>
  T* take(std::size_t bytes) {
    T* part = reinterpret_cast<T*>(at);
    at += (bytes + 255) / 256 * 256;
    return part;
  }
};

}  // namespace cuda
}  // namespace dyndeploy
