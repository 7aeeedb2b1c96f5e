// The memory of one call: tensors, and the graphs bound to them. Sessions keep lanes for the calls to come.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend.h"
#include "detection.h"
#include "plan.h"
#include "preprocessing.h"

namespace dyndeploy {
namespace runtime {

// Where a row left: after which step, and in which row of that step's outputs its results lie.
struct Outcome {
  std::size_t step, row;
};

class Lane {
 public:
  Lane(const Plan& plan, const Manifest& manifest, std::shared_ptr<Backend> backend);

  // Make room for a run of so many rows, at most Plan::batch unless any number may run.
  void reserve(std::size_t rows);
  // The memory of a tensor to read; a row of it, where its first axis is the batch.
  const void* data(std::size_t tensor);
  const void* row(std::size_t tensor, std::size_t index);
  // The same to write, before the graphs read it.
  void* writable(std::size_t tensor);
  void* writable_row(std::size_t tensor, std::size_t index);

  // Run the first `rows` rows of the inputs, each as far as it needs: rows that leave are taken out between
  // the steps. Throws Error(DYNDEPLOY_NOT_FINITE) and what the backend throws.
  void run(std::size_t rows);
  const Outcome& outcome(std::size_t row) const { return outcomes_[row]; }

  // For whoever decides between the steps which rows go on: run a step on its first `rows` rows as they are,
  // whatever it computes; what of a row's results is not finite ("": nothing); whether it leaves there; and
  // one row in the place of another, in tensors.
  void run_step(std::size_t step, std::size_t rows);
  void bind(std::size_t step, std::size_t rows) { binding(step, plan_.any_batch ? rows : plan_.batch); }
  std::string row_fault(std::size_t step, std::size_t row);
  bool leaves(std::size_t step, std::size_t row);
  void move_row(const std::vector<std::size_t>& tensors, std::size_t from, std::size_t to);
  // Rows of tensors, one behind the other, out of the lane and into it.
  std::size_t row_bytes(const std::vector<std::size_t>& tensors) const;
  void take_row(const std::vector<std::size_t>& tensors, std::size_t row, void* memory);
  void put_row(const std::vector<std::size_t>& tensors, std::size_t row, const void* memory);

  Preprocessor* preprocessor() { return preprocessor_.get(); }
  DetectionTask* detection() { return detection_.get(); }
  std::vector<float>& rates() { return rates_; }

 private:
  std::size_t row_bytes(std::size_t tensor) const;
  Binding& binding(std::size_t step, std::size_t rows);
  void fill_up(const std::vector<std::size_t>& tensors, std::size_t rows);
  void require_finite(const Step& step, std::size_t rows);
  std::size_t leave(std::size_t step, std::size_t rows);

  const Plan& plan_;
  std::shared_ptr<Backend> backend_;
  std::size_t room_ = 0;
  std::vector<std::shared_ptr<void>> memory_;
  std::vector<std::vector<std::unique_ptr<Binding>>> bindings_;  // by step and rows
  std::vector<Outcome> outcomes_;
  std::vector<std::size_t> waiting_;  // which row of the call each row of the step is
  std::vector<float> rates_;
  std::unique_ptr<Preprocessor> preprocessor_;
  std::unique_ptr<DetectionTask> detection_;
};

// How many of the values are NaN, and how many infinite.
struct NotFinite {
  std::size_t nan, infinite;
};
NotFinite count_not_finite(const float* values, std::size_t count);
// "3 NaN and 2 infinite of 10 values"; "" where all are finite.
std::string not_finite(const float* values, std::size_t count);

}  // namespace runtime
}  // namespace dyndeploy
