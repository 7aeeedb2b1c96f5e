#include "tensor.h"

#include <stdexcept>

namespace dyndeploy {
namespace runtime {
namespace {

struct Type {
  int type;
  const char* name;
  std::size_t bytes;
};
const Type kTypes[] = {{DYNDEPLOY_FLOAT32, "float32", 4}, {DYNDEPLOY_UINT8, "uint8", 1},
                       {DYNDEPLOY_INT8, "int8", 1},       {DYNDEPLOY_INT32, "int32", 4},
                       {DYNDEPLOY_INT64, "int64", 8},     {DYNDEPLOY_BOOL, "bool", 1},
                       {DYNDEPLOY_FLOAT16, "float16", 2}, {DYNDEPLOY_FLOAT64, "float64", 8}};

}  // namespace

std::size_t element_bytes(int type) {
  for (const Type& known : kTypes)
    if (known.type == type) return known.bytes;
  return 0;
}

const char* type_name(int type) {
  for (const Type& known : kTypes)
    if (known.type == type) return known.name;
  return "";
}

int type_of(const std::string& name) {
  for (const Type& known : kTypes)
    if (name == known.name) return known.type;
  return 0;
}

std::size_t elements(const Shape& shape, std::size_t from) {
  constexpr std::int64_t kMost = std::int64_t{1} << 40;
  std::int64_t product = 1;
  for (std::size_t i = from; i < shape.size(); ++i) {
    if (shape[i] < 0 || (shape[i] && product > kMost / shape[i]))
      throw std::overflow_error("too large a tensor");
    product *= shape[i];
  }
  return static_cast<std::size_t>(product);
}

std::string described(int type, const Shape& shape) {
  std::string text = std::string(type_name(type)) + " (";
  for (std::size_t i = 0; i < shape.size(); ++i)
    text += (i ? ", " : "") + (shape[i] == kAnySize ? std::string("any") : std::to_string(shape[i]));
  return text + ")";
}

}  // namespace runtime
}  // namespace dyndeploy
