#include "regions_op.h"

#include <string>

namespace dyndeploy::ort {
namespace {

constexpr int kBoxes = cpu::kPyramidLevels, kLevels = kBoxes + 1;
constexpr std::int64_t kLargest = 1 << 15;  // attributes are smaller

[[noreturn]] void refuse(const tables::Operator& op, const std::string& what) {
  throw InvalidArgument(std::string("dyndeploy.") + op.name + ": " + what);
}

}  // namespace

RegionsKernel::RegionsKernel(const tables::Operator& op, const KernelInfo& info,
                             const Registration& registration)
    : op_(op),
      isa_(registration.isa()),
      threads_(registration.threads()),
      workspaces_(registration.workspaces()),
      strides_(info.integers("strides")),
      size_(info.integer("size", 0)) {
  bool fits = strides_.size() == cpu::kPyramidLevels;
  for (const std::int64_t stride : strides_) fits = fits && stride > 0 && stride < kLargest;
  if (!fits) {
    refuse(op, "attribute strides is " + to_string(strides_) + ", expected " +
                   std::to_string(cpu::kPyramidLevels) + " positive integers");
  }
  if (size_ < 1 || size_ >= kLargest)
    refuse(op, "attribute size is " + std::to_string(size_) + ", expected a positive integer");
}

void RegionsKernel::compute(KernelContext& context) {
  cpu::RegionsCall call;
  std::int64_t channels = -1;
  for (int i = 0; i < cpu::kPyramidLevels; ++i) {
    const Tensor cells = context.tensor(op_, i);
    expect_shape(cells, op_, i, {1, channels, -1, -1});
    channels = cells.shape[1];
    cpu::PyramidLevel& level = call.levels[i];
    level.cells = cells.floats();
    level.height = static_cast<int>(cells.shape[2]);
    level.width = static_cast<int>(cells.shape[3]);
    level.stride = static_cast<int>(strides_[static_cast<std::size_t>(i)]);
  }
  const Tensor boxes = context.tensor(op_, kBoxes), levels = context.tensor(op_, kLevels);
  expect_shape(boxes, op_, kBoxes, {-1, 4});
  const std::int64_t count = boxes.shape[0];
  expect_shape(levels, op_, kLevels, {count});
  if (count > INT32_MAX / (channels * size_) / size_) {
    refuse(op_, std::to_string(count) + " boxes of " + std::to_string(channels) + " channels and " +
                    std::to_string(size_) + " x " + std::to_string(size_) + " cells are too many");
  }
  call.channels = static_cast<int>(channels);
  call.count = static_cast<int>(count);
  call.boxes = boxes.floats();
  call.level = levels.as<std::int64_t>();
  call.size = static_cast<int>(size_);
  call.out = context.output(0, {count, channels, size_, size_});
  const cpu::WorkspacePool::Lease workspace(*workspaces_);
  cpu::run_regions(isa_, call, *workspace, context.pool(threads_));
}

void RegionsKernel::infer(const tables::Operator&, const ShapeInference& inference) {
  const ShapeInference::Shape cells = inference.input(0), boxes = inference.input(kBoxes);
  if (cells.size() != 4 || boxes.size() != 2) return;
  ShapeInference::Dim side;
  side.size = inference.integer("size", -1);
  inference.set_output({boxes[0], cells[1], side, side});
}

}  // namespace dyndeploy::ort
