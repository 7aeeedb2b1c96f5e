// The archives that numpy.savez writes.
#pragma once

#include <map>
#include <string>

#include "tensor.h"

namespace dyndeploy {
namespace runtime {

struct Array {
  int type;
  Shape shape;
  std::string bytes;  // in C order

  const float* floats() const { return reinterpret_cast<const float*>(bytes.data()); }
  std::size_t count() const { return elements(shape); }
};

// Arrays by name. Throws std::runtime_error on what is no such archive, or holds other than little-endian
// numbers.
std::map<std::string, Array> parse_npz(const std::string& bytes);

}  // namespace runtime
}  // namespace dyndeploy
