// What a tensor is: name, type, shape.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "dyndeploy.h"

namespace dyndeploy {
namespace runtime {

using Shape = std::vector<std::int64_t>;

// Stands in a shape for a size that a graph leaves open.
constexpr std::int64_t kAnySize = -1;

struct TensorInfo {
  std::string name;
  Shape shape;
  int type;  // DYNDEPLOY_FLOAT32 ...
};

// Bytes of an element; 0 for a type that is not known.
std::size_t element_bytes(int type);
// NumPy's name of a type; "" for one that is not known. And back: 0 for a name that is not known.
const char* type_name(int type);
int type_of(const std::string& name);

// Elements of a shape from an axis on. Throws std::overflow_error beyond 2^40, which no device here holds.
std::size_t elements(const Shape& shape, std::size_t from = 0);
// "float32 (1, 3, 8, 8)", "any" for sizes left open.
std::string described(int type, const Shape& shape);

}  // namespace runtime
}  // namespace dyndeploy
