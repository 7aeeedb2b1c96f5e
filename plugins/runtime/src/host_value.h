// Arrays of host programs: immutable once they are made, so that they can share memory.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "tensor.h"

namespace dyndeploy {
namespace runtime {

// What a program that somebody may have edited cannot do.
class ProgramError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Value {
  int type = 0;  // DYNDEPLOY_FLOAT32 ...; 0: an input that is left out
  Shape shape;
  std::shared_ptr<char> memory;  // in C order

  std::size_t count() const { return elements(shape); }
  std::size_t rank() const { return shape.size(); }
  template <class T>
  const T* data() const {
    return reinterpret_cast<const T*>(memory.get());
  }
  template <class T>
  T* writable() {
    return reinterpret_cast<T*>(memory.get());
  }
};

// Memory of an own.
Value new_value(int type, const Shape& shape);
// The same elements in another shape.
Value with_shape(const Value& value, const Shape& shape);

// NumPy's bool is a byte.
template <class T>
struct TypeOf;
template <>
struct TypeOf<float> {
  static constexpr int value = DYNDEPLOY_FLOAT32;
};
template <>
struct TypeOf<double> {
  static constexpr int value = DYNDEPLOY_FLOAT64;
};
template <>
struct TypeOf<std::int32_t> {
  static constexpr int value = DYNDEPLOY_INT32;
};
template <>
struct TypeOf<std::int64_t> {
  static constexpr int value = DYNDEPLOY_INT64;
};
template <>
struct TypeOf<std::uint8_t> {
  static constexpr int value = DYNDEPLOY_BOOL;
};

// Call `work` with a zero of the type's own kind: numbers, floats, or anything with bool.
template <class Work>
void with_float(int type, Work work) {
  if (type == DYNDEPLOY_FLOAT32) return work(0.0f);
  if (type == DYNDEPLOY_FLOAT64) return work(0.0);
  throw ProgramError("it computes with " + std::string(type_name(type)) + " where floats belong");
}
template <class Work>
void with_number(int type, Work work) {
  if (type == DYNDEPLOY_INT32) return work(std::int32_t{0});
  if (type == DYNDEPLOY_INT64) return work(std::int64_t{0});
  with_float(type, work);
}
template <class Work>
void with_any(int type, Work work) {
  if (type == DYNDEPLOY_BOOL) return work(std::uint8_t{0});
  with_number(type, work);
}

// Whole numbers of a value, of 32 or 64 bits.
std::vector<std::int64_t> whole_numbers(const Value& value);

}  // namespace runtime
}  // namespace dyndeploy
