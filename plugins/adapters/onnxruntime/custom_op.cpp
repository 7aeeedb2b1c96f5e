#include "custom_op.h"

namespace dyndeploy::ort {

std::shared_ptr<cpu::WorkspacePool> Registration::workspaces() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::shared_ptr<cpu::WorkspacePool> pool = workspaces_.lock();
  if (!pool) {
    pool = std::make_shared<cpu::WorkspacePool>();
    workspaces_ = pool;
  }
  return pool;
}

ShapeInference::Shape ShapeInference::input(std::size_t index) const {
  OrtTensorTypeAndShapeInfo* info = nullptr;  // owned by the context
  if (OrtStatus* status = api_.ShapeInferContext_GetInputTypeShape(context_, index, &info)) {
    api_.ReleaseStatus(status);
    return {};
  }
  std::size_t rank = 0;
  check(api_, api_.GetDimensionsCount(info, &rank));
  std::vector<std::int64_t> sizes(rank);
  std::vector<const char*> names(rank, nullptr);
  check(api_, api_.GetDimensions(info, sizes.data(), rank));
  check(api_, api_.GetSymbolicDimensions(info, names.data(), rank));
  Shape shape(rank);
  for (std::size_t i = 0; i < rank; ++i) {
    shape[i].size = sizes[i];
    if (names[i]) shape[i].name = names[i];
  }
  return shape;
}

std::int64_t ShapeInference::integer(const char* name, std::int64_t fallback) const {
  const OrtOpAttr* attribute = nullptr;
  if (OrtStatus* status = api_.ShapeInferContext_GetAttribute(context_, name, &attribute)) {
    api_.ReleaseStatus(status);
    return fallback;
  }
  std::int64_t value = fallback;
  std::size_t bytes = 0;
  check(api_, api_.ReadOpAttr(attribute, abi::AttributeType::kInt, &value, sizeof(value), &bytes));
  return value;
}

std::vector<std::int64_t> ShapeInference::integers(const char* name) const {
  const OrtOpAttr* attribute = nullptr;
  if (OrtStatus* status = api_.ShapeInferContext_GetAttribute(context_, name, &attribute)) {
    api_.ReleaseStatus(status);
    return {};
  }
  std::size_t bytes = 0;
  // Asking without room fails, and tells the size.
  if (OrtStatus* status = api_.ReadOpAttr(attribute, abi::AttributeType::kInts, nullptr, 0, &bytes))
    api_.ReleaseStatus(status);
  std::vector<std::int64_t> values(bytes / sizeof(std::int64_t));
  if (!values.empty()) {
    check(api_, api_.ReadOpAttr(attribute, abi::AttributeType::kInts, values.data(), bytes, &bytes));
  }
  return values;
}

void ShapeInference::set_output(const Shape& shape) const {
  std::vector<std::int64_t> sizes;
  std::vector<const char*> names;
  for (const Dim& dim : shape) {
    sizes.push_back(dim.size);
    names.push_back(dim.name.c_str());
  }
  OrtTensorTypeAndShapeInfo* created = nullptr;
  check(api_, api_.CreateTensorTypeAndShapeInfo(&created));
  const auto release = [this](OrtTensorTypeAndShapeInfo* info) { api_.ReleaseTensorTypeAndShapeInfo(info); };
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(release)> info(created, release);
  check(api_, api_.SetTensorElementType(created, output_));
  check(api_, api_.SetDimensions(created, sizes.data(), sizes.size()));
  check(api_, api_.SetSymbolicDimensions(created, names.data(), names.size()));
  check(api_, api_.ShapeInferContext_SetOutputTypeShape(context_, 0, created));
}

}  // namespace dyndeploy::ort
