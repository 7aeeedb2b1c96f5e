#include "ort_support.h"

#include <cstring>
#include <limits>

namespace dyndeploy::ort {
namespace {

class TypeInfo {
 public:
  TypeInfo(const Api& api, const OrtValue* value) : api_(api) {
    check(api, api.GetTensorTypeAndShape(value, &info_));
  }
  ~TypeInfo() { api_.ReleaseTensorTypeAndShapeInfo(info_); }
  TypeInfo(const TypeInfo&) = delete;
  TypeInfo& operator=(const TypeInfo&) = delete;

  abi::ElementType element_type() const {
    abi::ElementType type;
    check(api_, api_.GetTensorElementType(info_, &type));
    return type;
  }
  std::vector<std::int64_t> shape() const {
    std::size_t rank = 0;
    check(api_, api_.GetDimensionsCount(info_, &rank));
    std::vector<std::int64_t> shape(rank);
    check(api_, api_.GetDimensions(info_, shape.data(), rank));
    return shape;
  }

 private:
  const Api& api_;
  OrtTensorTypeAndShapeInfo* info_ = nullptr;
};

std::string describe(const tables::Operator& op, int input) {
  return std::string("dyndeploy.") + op.name + ": input " + std::to_string(input) + " (" +
         op.inputs[input].name + ")";
}

const char* name_of(abi::ElementType type) {
  switch (type) {
    case abi::ElementType::kUint8:
      return "uint8";
    case abi::ElementType::kInt8:
      return "int8";
    case abi::ElementType::kInt32:
      return "int32";
    case abi::ElementType::kInt64:
      return "int64";
    default:
      return "float32";
  }
}

bool succeeded(const Api& api, OrtStatus* status) {
  if (!status) return true;
  api.ReleaseStatus(status);
  return false;
}

}  // namespace

void check(const Api& api, OrtStatus* status) {
  if (!status) return;
  const ApiError error(api.GetErrorCode(status), api.GetErrorMessage(status));
  api.ReleaseStatus(status);
  throw error;
}

std::string to_string(const std::vector<std::int64_t>& shape) {
  std::string text = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    text += (i ? ", " : "") + (shape[i] < 0 ? std::string("?") : std::to_string(shape[i]));
  }
  return text + ")";
}

std::int64_t Tensor::elements() const {
  std::int64_t count = 1;
  for (const std::int64_t d : shape) count *= d;
  return count;
}

abi::ElementType element_type(tables::Element element) {
  switch (element) {
    case tables::Element::kIndex:
      return abi::ElementType::kInt64;
    case tables::Element::kUint8:
      return abi::ElementType::kUint8;
    case tables::Element::kInt8:
      return abi::ElementType::kInt8;
    case tables::Element::kInt32:
      return abi::ElementType::kInt32;
    default:
      return abi::ElementType::kFloat;
  }
}

Tensor read_tensor(const Api& api, const OrtValue* value, const tables::Operator& op, int input) {
  if (!value) throw InvalidArgument(describe(op, input) + " is missing");
  int is_tensor = 0;
  check(api, api.IsTensor(value, &is_tensor));
  if (!is_tensor) throw InvalidArgument(describe(op, input) + " is not a tensor");
  const TypeInfo info(api, value);
  Tensor tensor;
  tensor.type = element_type(op.inputs[input].element);
  if (info.element_type() != tensor.type) {
    throw InvalidArgument(describe(op, input) + " is not a tensor of " + name_of(tensor.type));
  }
  tensor.shape = info.shape();
  const std::size_t rank = std::strlen(op.inputs[input].axes);
  if (tensor.shape.size() != rank) {
    throw InvalidArgument(describe(op, input) + " has shape " + to_string(tensor.shape) + ", expected " +
                          std::to_string(rank) + " dimensions");
  }
  std::int64_t elements = 1;
  for (const std::int64_t d : tensor.shape) {
    if (d <= 0) throw InvalidArgument(describe(op, input) + " is empty: shape " + to_string(tensor.shape));
    if (d > std::numeric_limits<std::int32_t>::max() / elements) {
      throw InvalidArgument(describe(op, input) + " is too large: shape " + to_string(tensor.shape));
    }
    elements *= d;
  }
  void* data = nullptr;
  check(api, api.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  tensor.data = data;
  return tensor;
}

void expect_shape(const Tensor& tensor, const tables::Operator& op, int input,
                  const std::vector<std::int64_t>& shape) {
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] >= 0 && tensor.shape[i] != shape[i]) {
      throw InvalidArgument(describe(op, input) + " has shape " + to_string(tensor.shape) + ", expected " +
                            to_string(shape));
    }
  }
}

void KernelInfo::refuse_other_types(const char* name) const {
  std::int64_t integer;
  float real;
  std::size_t size = 0;
  const bool exists = succeeded(api_, api_.KernelInfoGetAttribute_int64(info_, name, &integer)) ||
                      succeeded(api_, api_.KernelInfoGetAttributeArray_int64(info_, name, nullptr, &size)) ||
                      succeeded(api_, api_.KernelInfoGetAttribute_float(info_, name, &real)) ||
                      succeeded(api_, api_.KernelInfoGetAttributeArray_float(info_, name, nullptr, &size)) ||
                      succeeded(api_, api_.KernelInfoGetAttribute_string(info_, name, nullptr, &size));
  if (exists)
    throw InvalidArgument(std::string("dyndeploy.") + op_ + ": attribute " + name + " has the wrong type");
}

std::int64_t KernelInfo::integer(const char* name, std::int64_t fallback) const {
  std::int64_t value = 0;
  if (succeeded(api_, api_.KernelInfoGetAttribute_int64(info_, name, &value))) return value;
  refuse_other_types(name);
  return fallback;
}

float KernelInfo::real(const char* name, float fallback) const {
  float value = 0.0f;
  if (succeeded(api_, api_.KernelInfoGetAttribute_float(info_, name, &value))) return value;
  refuse_other_types(name);
  return fallback;
}

std::vector<std::int64_t> KernelInfo::integers(const char* name) const {
  std::size_t size = 0;
  // An attribute of another type may read as an empty list.
  if (!succeeded(api_, api_.KernelInfoGetAttributeArray_int64(info_, name, nullptr, &size)) || !size) {
    refuse_other_types(name);
    return {};
  }
  std::vector<std::int64_t> values(size);
  check(api_, api_.KernelInfoGetAttributeArray_int64(info_, name, values.data(), &size));
  return values;
}

std::vector<std::int64_t> KernelInfo::input_shape(std::size_t index) const {
  OrtTypeInfo* type = nullptr;
  if (!succeeded(api_, api_.KernelInfo_GetInputTypeInfo(info_, index, &type))) return {};
  const auto release = [this](OrtTypeInfo* owned) { api_.ReleaseTypeInfo(owned); };
  const std::unique_ptr<OrtTypeInfo, decltype(release)> owner(type, release);
  const OrtTensorTypeAndShapeInfo* tensor = nullptr;  // owned by the type
  check(api_, api_.CastTypeInfoToTensorInfo(type, &tensor));
  std::size_t rank = 0;
  if (!tensor || !succeeded(api_, api_.GetDimensionsCount(tensor, &rank))) return {};
  std::vector<std::int64_t> sizes(rank);
  check(api_, api_.GetDimensions(tensor, sizes.data(), rank));
  return sizes;
}

std::size_t KernelInfo::input_count() const {
  std::size_t count = 0;
  check(api_, api_.KernelInfo_GetInputCount(info_, &count));
  return count;
}

const OrtValue* KernelInfo::constant_input(std::size_t index) const {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  check(api_, api_.KernelInfoGetConstantInput_tensor(info_, index, &is_constant, &value));
  return is_constant ? value : nullptr;
}

const OrtValue* KernelContext::input(std::size_t index) const {
  const OrtValue* value = nullptr;
  check(api_, api_.KernelContext_GetInput(context_, index, &value));
  return value;
}

void* KernelContext::allocate(std::size_t index, const std::vector<std::int64_t>& shape) const {
  OrtValue* value = nullptr;
  check(api_, api_.KernelContext_GetOutput(context_, index, shape.data(), shape.size(), &value));
  void* data = nullptr;
  check(api_, api_.GetTensorMutableData(value, &data));
  return data;
}

cpu::ThreadPool KernelContext::pool(int threads) {
  cpu::ThreadPool pool;
  pool.threads = threads;
  pool.context = this;
  pool.parallel_for = [](void* self, cpu::ThreadPool::Function function, void* state, std::size_t count) {
    auto& context = *static_cast<KernelContext*>(self);
    OrtStatus* status = context.api_.KernelContext_ParallelFor(context.context_, function, count, 0, state);
    if (!status) return;
    // The runtime has no pool to offer: the calling thread does the work.
    context.api_.ReleaseStatus(status);
    for (std::size_t i = 0; i < count; ++i) function(state, i);
  };
  return pool;
}

}  // namespace dyndeploy::ort
