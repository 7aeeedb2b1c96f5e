// What computes a graph. The session above knows nothing else of it: ONNX Runtime is one, TensorRT another.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "tensor.h"

namespace dyndeploy {
namespace runtime {

// A tensor in memory of Backend::allocate.
struct Slot {
  std::string name;
  int type;
  Shape shape;
  void* data;
};

// A graph with its tensors in place. `run` reads and writes them, and returns when the results can be read;
// it throws Error(DYNDEPLOY_RUN). It is called by one thread at a time.
class Binding {
 public:
  virtual ~Binding() = default;
  virtual void run() = 0;
};

// An opened graph. Bindings of one graph may run at once.
class Graph {
 public:
  virtual ~Graph() = default;
  virtual const std::vector<TensorInfo>& inputs() const = 0;
  virtual const std::vector<TensorInfo>& outputs() const = 0;
  // Outputs may be a choice. The slots' memory must outlive the binding.
  virtual std::unique_ptr<Binding> bind(const std::vector<Slot>& inputs,
                                        const std::vector<Slot>& outputs) = 0;
};

// What runs, for people and for dyndeploy_info().
struct BackendInfo {
  std::string name, version, path;
  std::string native_path;      // the operator library; "": function bodies run, or the graphs need none
  std::string instruction_set;  // that it computes with; "" where it does not say
  int threads;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual const BackendInfo& info() const = 0;
  // Whether it runs the parts of a network, where there are some, in the place of its one graph.
  virtual bool runs_parts() const { return false; }
  // Open the graph in a file. Throws Error(DYNDEPLOY_BUNDLE) for what is no graph that it can run.
  virtual std::unique_ptr<Graph> open(const std::string& path) = 0;
  // Memory that both the host and the graphs reach.
  virtual std::shared_ptr<void> allocate(std::size_t bytes) = 0;
  // Where a device has a copy of its own of such memory: called before the host reads what a graph may have
  // written, and after the host wrote what a graph may read.
  virtual void to_host(void* /*memory*/) {}
  virtual void written(void* /*memory*/) {}
};

}  // namespace runtime
}  // namespace dyndeploy
