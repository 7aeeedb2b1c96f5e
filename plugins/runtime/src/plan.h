// How a bundle's graphs hang together: which tensor each reads and writes, and who may leave after it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend.h"
#include "bundle.h"

namespace dyndeploy {
namespace runtime {

// A graph. A network without exits is one step, after which everything leaves; or a chain of parts, in which
// everything goes on to the last one.
struct Step {
  std::unique_ptr<Graph> graph;
  std::vector<std::size_t> inputs, outputs;  // places in Plan::tensors
  std::size_t logits, confidence;    // also there; of a network without exits `confidence` is not used
  int exit;                          // from 1; 0: none
  float threshold;                   // least confidence of those that leave
  std::vector<std::size_t> carried;  // tensors that later steps read
  bool host = false;                 // a program of the host
  bool last = true;                  // of a chain of parts
};

struct Plan {
  std::vector<TensorInfo> tensors;
  std::vector<Step> steps;
  std::vector<std::size_t> inputs;   // of the network
  std::vector<std::size_t> outputs;  // of a network without exits, in the order of the manifest
  std::vector<std::size_t> masks;
  std::vector<std::size_t> results;  // outputs and masks; of a network with exits what its first step gives
  std::size_t batch;                 // rows of a run, where they are fixed
  bool any_batch;                    // any number of rows may run
  bool classifies;                   // there are logits

  std::size_t classes() const { return static_cast<std::size_t>(tensors[steps[0].logits].shape[1]); }
  // Elements of a row; the first axis of tensors between the steps is the batch.
  std::size_t row_elements(std::size_t tensor) const { return elements(tensors[tensor].shape, 1); }
};

// Open the graphs. `thresholds` has one number per stage. Throws Error(DYNDEPLOY_BUNDLE) where a graph is not
// what the manifest says.
Plan make_plan(const Bundle& bundle, Backend& backend, const std::vector<double>& thresholds);

}  // namespace runtime
}  // namespace dyndeploy
