// A thin layer over ONNX Runtime's C API: errors as exceptions inside the library, statuses at its border.
#pragma once

#include <cassert>
#include <cstdint>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "../common/tables.h"
#include "abi.h"
#include "parallel.h"
#include "workspace.h"

namespace dyndeploy::ort {

using abi::Api;

// The model or its inputs are wrong.
class InvalidArgument : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// An API call failed; carries its status.
class ApiError : public std::runtime_error {
 public:
  ApiError(abi::ErrorCode code, const char* message) : std::runtime_error(message), code_(code) {}
  abi::ErrorCode code() const { return code_; }

 private:
  abi::ErrorCode code_;
};

void check(const Api& api, OrtStatus* status);

// Calls body() and turns whatever it throws into a status.
template <class Body>
OrtStatus* guarded(const Api& api, Body body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const InvalidArgument& error) {
    return api.CreateStatus(abi::ErrorCode::kInvalidArgument, error.what());
  } catch (const ApiError& error) {
    return api.CreateStatus(error.code(), error.what());
  } catch (const std::bad_alloc&) {
    return api.CreateStatus(abi::ErrorCode::kFail, "dyndeploy: out of memory");
  } catch (const std::exception& error) {
    return api.CreateStatus(abi::ErrorCode::kRuntimeException, error.what());
  }
}

std::string to_string(const std::vector<std::int64_t>& shape);

template <class T>
struct ElementTypeOf;
template <>
struct ElementTypeOf<float> {
  static constexpr abi::ElementType value = abi::ElementType::kFloat;
};
template <>
struct ElementTypeOf<std::uint8_t> {
  static constexpr abi::ElementType value = abi::ElementType::kUint8;
};
template <>
struct ElementTypeOf<std::int8_t> {
  static constexpr abi::ElementType value = abi::ElementType::kInt8;
};
template <>
struct ElementTypeOf<std::int32_t> {
  static constexpr abi::ElementType value = abi::ElementType::kInt32;
};
template <>
struct ElementTypeOf<std::int64_t> {
  static constexpr abi::ElementType value = abi::ElementType::kInt64;
};

// A tensor that this library only looks at.
struct Tensor {
  std::vector<std::int64_t> shape;
  abi::ElementType type = abi::ElementType::kFloat;
  const void* data = nullptr;

  std::int64_t elements() const;
  // The elements; T is what `type` says.
  template <class T>
  const T* as() const {
    assert(type == ElementTypeOf<T>::value);
    return static_cast<const T*>(data);
  }
  const float* floats() const { return as<float>(); }
};

// What a port's tensors hold: the type that operators compute in is float here.
abi::ElementType element_type(tables::Element element);

// Fails unless the value is a tensor of the input's element type and rank.
Tensor read_tensor(const Api& api, const OrtValue* value, const tables::Operator& op, int input);

// Fails unless the tensor has this shape; -1 stands for any size.
void expect_shape(const Tensor& tensor, const tables::Operator& op, int input,
                  const std::vector<std::int64_t>& shape);

class KernelInfo {
 public:
  KernelInfo(const Api& api, const OrtKernelInfo* info, const char* op) : api_(api), info_(info), op_(op) {}
  // The attribute, or the default when the node lacks it. Fails on an attribute of another type.
  std::int64_t integer(const char* name, std::int64_t fallback) const;
  float real(const char* name, float fallback) const;
  // An empty vector when the node lacks it.
  std::vector<std::int64_t> integers(const char* name) const;
  std::size_t input_count() const;
  // The sizes of an input as far as the graph tells them, -1 for others; empty where it tells nothing.
  std::vector<std::int64_t> input_shape(std::size_t index) const;
  // nullptr unless the input is a constant of the graph
  const OrtValue* constant_input(std::size_t index) const;
  const Api& api() const { return api_; }

 private:
  void refuse_other_types(const char* name) const;
  const Api& api_;
  const OrtKernelInfo* info_;
  const char* op_;
};

class KernelContext {
 public:
  KernelContext(const Api& api, OrtKernelContext* context) : api_(api), context_(context) {}
  const OrtValue* input(std::size_t index) const;
  Tensor tensor(const tables::Operator& op, int index) const {
    return read_tensor(api_, input(static_cast<std::size_t>(index)), op, index);
  }
  // The output, allocated by the runtime; T is the element type of the operator's port.
  template <class T = float>
  T* output(std::size_t index, const std::vector<std::int64_t>& shape) const {
    return static_cast<T*>(allocate(index, shape));
  }
  // The session's own threads.
  cpu::ThreadPool pool(int threads);
  const Api& api() const { return api_; }

 private:
  void* allocate(std::size_t index, const std::vector<std::int64_t>& shape) const;
  const Api& api_;
  OrtKernelContext* context_;
};

}  // namespace dyndeploy::ort
