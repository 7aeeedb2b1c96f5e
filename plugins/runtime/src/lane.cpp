#include "lane.h"

#include <cmath>
#include <cstring>
#include <string>

#include "error.h"

namespace dyndeploy {
namespace runtime {
namespace {

std::string unusable(const std::string& found) {
  return "The network computed no usable result: " + found +
         ". A weight is damaged: verify the bundle (dyndeploy-run --verify).";
}

}  // namespace

NotFinite count_not_finite(const float* values, std::size_t count) {
  constexpr std::uint32_t kExponent = 0x7f800000u;
  // Without a branch, so that the usual case, where all are finite, takes a few instructions for many of
  // them.
  std::uint32_t any = 0;
  for (std::size_t i = 0; i < count; ++i) {
    std::uint32_t bits;
    std::memcpy(&bits, values + i, sizeof bits);
    any |= (bits & kExponent) == kExponent;
  }
  NotFinite found{0, 0};
  for (std::size_t i = 0; any && i < count; ++i) {
    found.nan += std::isnan(values[i]);
    found.infinite += std::isinf(values[i]);
  }
  return found;
}

std::string not_finite(const float* values, std::size_t count) {
  const NotFinite found = count_not_finite(values, count);
  if (!found.nan && !found.infinite) return "";
  std::string text = found.nan ? std::to_string(found.nan) + " NaN" : "";
  if (found.infinite) text += (text.empty() ? "" : " and ") + std::to_string(found.infinite) + " infinite";
  return text + " of " + std::to_string(count) + " values";
}

Lane::Lane(const Plan& plan, const Manifest& manifest, std::shared_ptr<Backend> backend)
    : plan_(plan), backend_(std::move(backend)), rates_(plan.masks.size()) {
  if (manifest.takes_images())
    preprocessor_ = std::make_unique<Preprocessor>(manifest.preprocessing, manifest.height, manifest.width);
  if (manifest.has_detection) detection_ = std::make_unique<DetectionTask>(manifest);
  if (!plan.any_batch) reserve(plan.batch);
}

void Lane::reserve(std::size_t rows) {
  if (rows <= room_) return;
  bindings_.clear();
  memory_.clear();
  room_ = 0;
  for (std::size_t i = 0; i < plan_.tensors.size(); ++i) {
    const TensorInfo& info = plan_.tensors[i];
    const std::size_t count = plan_.any_batch ? rows * plan_.row_elements(i) : elements(info.shape);
    memory_.push_back(backend_->allocate(count * element_bytes(info.type)));
    std::memset(memory_.back().get(), 0, count * element_bytes(info.type));
  }
  bindings_.resize(plan_.steps.size());
  for (auto& of_step : bindings_) of_step.resize(rows + 1);
  outcomes_.resize(rows);
  waiting_.resize(rows);
  room_ = rows;
}

std::size_t Lane::row_bytes(std::size_t tensor) const {
  return plan_.row_elements(tensor) * element_bytes(plan_.tensors[tensor].type);
}

const void* Lane::data(std::size_t tensor) {
  backend_->to_host(memory_[tensor].get());
  return memory_[tensor].get();
}

const void* Lane::row(std::size_t tensor, std::size_t index) {
  return static_cast<const char*>(data(tensor)) + index * row_bytes(tensor);
}

void* Lane::writable(std::size_t tensor) {
  // What is not written over must be there.
  backend_->to_host(memory_[tensor].get());
  backend_->written(memory_[tensor].get());
  return memory_[tensor].get();
}

void* Lane::writable_row(std::size_t tensor, std::size_t index) {
  return static_cast<char*>(writable(tensor)) + index * row_bytes(tensor);
}

Binding& Lane::binding(std::size_t index, std::size_t rows) {
  std::unique_ptr<Binding>& found = bindings_[index][rows];
  if (found) return *found;
  const Step& step = plan_.steps[index];
  const auto slots = [&](const std::vector<std::size_t>& places) {
    std::vector<Slot> made;
    for (const std::size_t place : places) {
      const TensorInfo& info = plan_.tensors[place];
      Shape shape = info.shape;
      if (plan_.any_batch) shape[0] = static_cast<std::int64_t>(rows);
      made.push_back({info.name, info.type, std::move(shape), memory_[place].get()});
    }
    return made;
  };
  found = step.graph->bind(slots(step.inputs), slots(step.outputs));
  return *found;
}

void Lane::fill_up(const std::vector<std::size_t>& tensors, std::size_t rows) {
  for (const std::size_t tensor : tensors) {
    char* first = static_cast<char*>(writable(tensor));
    const std::size_t bytes = row_bytes(tensor);
    for (std::size_t i = rows; i < plan_.batch; ++i)
      std::memcpy(first + i * bytes, first + (rows - 1) * bytes, bytes);
  }
}

void Lane::require_finite(const Step& step, std::size_t rows) {
  std::string found;
  const auto look = [&](std::size_t tensor, std::size_t count) {
    const TensorInfo& info = plan_.tensors[tensor];
    if (info.type != DYNDEPLOY_FLOAT32) return;
    const std::string what = not_finite(static_cast<const float*>(data(tensor)), count);
    if (what.empty()) return;
    const std::string where = step.exit ? "exit " + std::to_string(step.exit) + ": " : "";
    found += (found.empty() ? "'" : ", '") + where + info.name + "' holds " + what;
  };
  if (step.exit) {
    // What is carried on is looked at where it ends: in the logits of a later exit.
    look(step.logits, rows * plan_.row_elements(step.logits));
    look(step.confidence, rows);
  } else if (step.last) {
    // Between parts values that nothing comes of may be anything.
    for (const std::size_t tensor : plan_.results) look(tensor, elements(plan_.tensors[tensor].shape));
  }
  if (!found.empty()) fail(DYNDEPLOY_NOT_FINITE, unusable(found));
}

std::size_t Lane::leave(std::size_t index, std::size_t rows) {
  const Step& step = plan_.steps[index];
  if (!step.last) return rows;
  const float* confidences = static_cast<const float*>(data(step.confidence));
  std::size_t kept = 0;
  for (std::size_t i = 0; i < rows; ++i) {
    if (!step.exit || confidences[i] >= step.threshold) {
      outcomes_[waiting_[i]] = {index, i};
      continue;
    }
    move_row(step.carried, i, kept);
    waiting_[kept++] = waiting_[i];
  }
  return kept;
}

void Lane::run_step(std::size_t index, std::size_t rows) {
  const Step& step = plan_.steps[index];
  if (!plan_.any_batch && rows < plan_.batch && (index == 0 || step.exit)) fill_up(step.inputs, rows);
  Binding& bound = binding(index, plan_.any_batch ? rows : plan_.batch);
  if (step.host)
    for (const std::size_t tensor : step.inputs) backend_->to_host(memory_[tensor].get());
  bound.run();
  if (step.host)
    for (const std::size_t tensor : step.outputs) backend_->written(memory_[tensor].get());
}

void Lane::run(std::size_t rows) {
  for (std::size_t i = 0; i < rows; ++i) waiting_[i] = i;
  for (std::size_t index = 0; rows; ++index) {
    run_step(index, rows);
    require_finite(plan_.steps[index], rows);
    rows = leave(index, rows);
  }
}

std::string Lane::row_fault(std::size_t index, std::size_t row) {
  const Step& step = plan_.steps[index];
  const auto fault = [&](std::size_t tensor) -> std::string {
    const TensorInfo& info = plan_.tensors[tensor];
    if (info.type != DYNDEPLOY_FLOAT32) return "";
    // What all rows share concerns all of them.
    const bool rows = plan_.any_batch || info.shape[0] == static_cast<std::int64_t>(plan_.batch);
    const std::size_t count = rows ? plan_.row_elements(tensor) : elements(info.shape);
    const std::string what =
        not_finite(static_cast<const float*>(data(tensor)) + (rows ? row * count : 0), count);
    if (what.empty()) return "";
    const std::string where = step.exit ? "exit " + std::to_string(step.exit) + ": " : "";
    return "'" + where + info.name + "' holds " + what;
  };
  std::string found;
  const auto look = [&](std::size_t tensor) {
    const std::string what = fault(tensor);
    if (!what.empty()) found += (found.empty() ? "" : ", ") + what;
  };
  if (step.exit) {
    look(step.logits);
    look(step.confidence);
  } else if (step.last) {
    for (const std::size_t tensor : plan_.results) look(tensor);
  }
  return found.empty() ? found : unusable(found);
}

bool Lane::leaves(std::size_t index, std::size_t row) {
  const Step& step = plan_.steps[index];
  return !step.exit || static_cast<const float*>(data(step.confidence))[row] >= step.threshold;
}

void Lane::move_row(const std::vector<std::size_t>& tensors, std::size_t from, std::size_t to) {
  if (from == to) return;  // it is in its place, and need not leave the device
  for (const std::size_t tensor : tensors) {
    char* first = static_cast<char*>(writable(tensor));
    std::memcpy(first + to * row_bytes(tensor), first + from * row_bytes(tensor), row_bytes(tensor));
  }
}

std::size_t Lane::row_bytes(const std::vector<std::size_t>& tensors) const {
  std::size_t bytes = 0;
  for (const std::size_t tensor : tensors) bytes += row_bytes(tensor);
  return bytes;
}

void Lane::take_row(const std::vector<std::size_t>& tensors, std::size_t index, void* memory) {
  char* to = static_cast<char*>(memory);
  for (const std::size_t tensor : tensors) {
    std::memcpy(to, row(tensor, index), row_bytes(tensor));
    to += row_bytes(tensor);
  }
}

void Lane::put_row(const std::vector<std::size_t>& tensors, std::size_t index, const void* memory) {
  const char* from = static_cast<const char*>(memory);
  for (const std::size_t tensor : tensors) {
    std::memcpy(writable_row(tensor, index), from, row_bytes(tensor));
    from += row_bytes(tensor);
  }
}

}  // namespace runtime
}  // namespace dyndeploy
