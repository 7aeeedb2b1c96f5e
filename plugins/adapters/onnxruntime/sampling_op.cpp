#include "sampling_op.h"

#include <string>

namespace dyndeploy::ort {
namespace {

constexpr int kLocations = 1, kWeights = 2;

[[noreturn]] void refuse(const tables::Operator& op, const std::string& what) {
  throw InvalidArgument(std::string("dyndeploy.") + op.name + ": " + what);
}

}  // namespace

DeformableAttentionKernel::DeformableAttentionKernel(const tables::Operator& op, const KernelInfo& info,
                                                     const Registration& registration)
    : op_(op),
      isa_(registration.isa()),
      threads_(registration.threads()),
      sizes_(info.integers("sizes")),
      cells_(0) {
  const std::size_t expected = static_cast<std::size_t>(op.attributes[0].length);
  bool fits = sizes_.size() == expected;
  for (std::size_t i = 0; fits && i < expected; i += 2) {
    // Their product stays far from the ends of its type.
    fits = sizes_[i] > 0 && sizes_[i + 1] > 0 && sizes_[i] < INT32_MAX && sizes_[i + 1] < INT32_MAX;
    if (fits) cells_ += sizes_[i] * sizes_[i + 1];
    fits = fits && cells_ < INT32_MAX;
  }
  if (!fits) {
    refuse(op, "attribute sizes is " + to_string(sizes_) + ", expected " + std::to_string(expected) +
                   " positive integers, the height and width of every map");
  }
}

void DeformableAttentionKernel::compute(KernelContext& context) {
  const Tensor value = context.tensor(op_, 0), locations = context.tensor(op_, kLocations),
               weights = context.tensor(op_, kWeights);
  expect_shape(value, op_, 0, {-1, cells_, -1, -1});
  const std::int64_t batch = value.shape[0], heads = value.shape[2], channels = value.shape[3];
  const std::int64_t levels = static_cast<std::int64_t>(sizes_.size()) / 2;
  expect_shape(locations, op_, kLocations, {batch, -1, heads, levels, -1, 2});
  const std::int64_t queries = locations.shape[1], points = locations.shape[4];
  expect_shape(weights, op_, kWeights, {batch, queries, heads, levels, points});
  const std::int64_t most = INT32_MAX / 2;
  if (queries > most / batch || cells_ > most / (heads * channels) || levels * points > most) {
    refuse(op_, "the maps or the queries are too large");
  }
  cpu::Sampling call;
  call.batch = static_cast<int>(batch);
  call.cells = static_cast<int>(cells_);
  call.heads = static_cast<int>(heads);
  call.channels = static_cast<int>(channels);
  call.queries = static_cast<int>(queries);
  call.levels = static_cast<int>(levels);
  call.points = static_cast<int>(points);
  for (std::size_t i = 0; i < sizes_.size(); ++i) call.sizes[i] = static_cast<std::int32_t>(sizes_[i]);
  call.value = value.floats();
  call.locations = locations.floats();
  call.weights = weights.floats();
  call.out = context.output(0, {batch, queries, heads, channels});
  cpu::run_sampling(isa_, call, context.pool(threads_));
}

void DeformableAttentionKernel::infer(const tables::Operator&, const ShapeInference& inference) {
  const ShapeInference::Shape value = inference.input(0), locations = inference.input(kLocations);
  if (value.size() != 4 || locations.size() != 6) return;
  inference.set_output({value[0], locations[1], value[2], value[3]});
}

}  // namespace dyndeploy::ort
