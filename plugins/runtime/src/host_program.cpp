#include "host_program.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <stdexcept>

#include "error.h"
#include "fields.h"
#include "files.h"
#include "host_operators.h"
#include "json.h"
#include "npz.h"

namespace dyndeploy {
namespace runtime {
namespace {

constexpr std::uint64_t kMostProgram = std::uint64_t{1} << 31;
constexpr std::int64_t kFormat = 1;
constexpr const char* kProgram = "program";
constexpr const char* kConstant = "constant/";

struct Operation {
  std::string type;
  Operator compute;
  Json attributes;
  std::vector<std::size_t> inputs, outputs;  // places of values; 0: none
  std::vector<std::size_t> ends;             // values that nothing reads later
};

struct Program {
  std::string file;
  Json text;
  std::vector<std::string> names;  // of the values, by place
  std::vector<Value> constants;    // by place, where there are some
  std::vector<Operation> operations;
  std::vector<std::size_t> inputs, outputs;
};

std::vector<std::string> texts(const Field& list) {
  std::vector<std::string> found;
  for (const Field& item : list.list()) found.push_back(item.label());
  return found;
}

class Parser {
 public:
  explicit Parser(const std::string& path) : path_(path) {
    program_.file = name_of(path);
    program_.names.push_back("");
    place_of_[""] = 0;
  }

  Program parse() {
    std::map<std::string, Array> arrays;
    try {
      arrays = parse_npz(read_file(path_, kMostProgram));
      const auto text = arrays.find(kProgram);
      if (text == arrays.end()) throw std::runtime_error("it holds no program");
      program_.text = parse_json(text->second.bytes);
    } catch (const std::runtime_error& error) {
      fail(DYNDEPLOY_BUNDLE, path_ + " is no host program: " + error.what() + ". Export the bundle again.");
    }
    const Field root(&program_.text, "", "A host program");
    const std::int64_t format = root["format"].count();
    if (format != kFormat)
      fail(DYNDEPLOY_BUNDLE, "The host program " + program_.file + " has format " + std::to_string(format) +
                                 ", this release reads " + std::to_string(kFormat) +
                                 ". Export the bundle again.");
    take_constants(root["constants"], arrays);
    program_.inputs = places(root["inputs"], true);
    for (const Field& entry : root["operators"].list()) take_operation(entry);
    program_.outputs = places(root["outputs"], false);
    find_ends();
    return std::move(program_);
  }

 private:
  std::size_t added(const std::string& name) {
    // A name that is given again is another value from there on.
    program_.names.push_back(name);
    return place_of_[name] = program_.names.size() - 1;
  }

  std::vector<std::size_t> places(const Field& list, bool fresh) {
    std::vector<std::size_t> found;
    for (const std::string& name : texts(list)) {
      const auto known = place_of_.find(name);
      list.require(fresh || known != place_of_.end(), "names of values that are there (" + name + " is not)");
      found.push_back(name.empty() ? 0 : fresh ? added(name) : known->second);
    }
    return found;
  }

  void take_constants(const Field& list, std::map<std::string, Array>& arrays) {
    const std::vector<std::string> names = texts(list);
    for (std::size_t i = 0; i < names.size(); ++i) {
      const auto found = arrays.find(kConstant + std::to_string(i));
      list.require(found != arrays.end(), "names of arrays in the file (" + names[i] + " has none)");
      const Array& array = found->second;
      Value value = new_value(array.type, array.shape);
      if (!array.bytes.empty()) std::memcpy(value.memory.get(), array.bytes.data(), array.bytes.size());
      const std::size_t place = added(names[i]);
      program_.constants.resize(place + 1);
      program_.constants[place] = value;
    }
  }

  void take_operation(const Field& entry) {
    Operation operation;
    operation.type = entry["type"].text();
    operation.compute = find_operator(operation.type);
    if (!operation.compute)
      fail(DYNDEPLOY_BUNDLE,
           program_.file + ": the host has no rule for " + operation.type + ". Use a newer release.");
    entry["attributes"].object();
    operation.attributes = entry["attributes"].value();
    operation.inputs = places(entry["inputs"], false);
    operation.outputs = places(entry["outputs"], true);
    program_.operations.push_back(std::move(operation));
  }

  // What nothing reads later is dropped, so that maps do not pile up.
  void find_ends() {
    std::map<std::size_t, std::size_t> last;
    for (std::size_t i = 0; i < program_.operations.size(); ++i)
      for (const std::size_t place : program_.operations[i].inputs) last[place] = i;
    for (const std::size_t place : program_.outputs) last.erase(place);
    for (const auto& end : last)
      if (end.first) program_.operations[end.second].ends.push_back(end.first);
  }

  std::string path_;
  Program program_;
  std::map<std::string, std::size_t> place_of_;
};

class HostBinding : public Binding {
 public:
  HostBinding(const Program& program, const std::vector<Slot>& inputs, const std::vector<Slot>& outputs)
      : program_(program), inputs_(inputs), outputs_(outputs) {}

  void run() override {
    std::vector<Value> values = program_.constants;
    values.resize(program_.names.size());
    for (std::size_t i = 0; i < inputs_.size(); ++i) {
      const Slot& slot = inputs_[i];
      // The tensor's own memory, which outlives the run.
      values[program_.inputs[i]] = {slot.type, slot.shape,
                                    std::shared_ptr<char>(static_cast<char*>(slot.data), [](char*) {})};
    }
    for (const Operation& operation : program_.operations) compute(operation, values);
    for (std::size_t i = 0; i < outputs_.size(); ++i) give(values[program_.outputs[i]], outputs_[i]);
  }

 private:
  [[noreturn]] void broken(const std::string& what) const {
    fail(DYNDEPLOY_BUNDLE,
         "The host program " + program_.file + " cannot run: " + what + ". Export the bundle again.");
  }

  void compute(const Operation& operation, std::vector<Value>& values) const {
    std::vector<Value> inputs;
    for (const std::size_t place : operation.inputs) inputs.push_back(values[place]);
    try {
      const std::vector<Value> results = operation.compute(Attributes(operation.attributes), inputs);
      for (std::size_t i = 0; i < std::min(results.size(), operation.outputs.size()); ++i)
        if (operation.outputs[i]) values[operation.outputs[i]] = results[i];
    } catch (const ProgramError& error) {
      broken(operation.type + ": " + error.what());
    } catch (const std::overflow_error&) {
      broken(operation.type + ": it makes too large an array");
    }
    for (const std::size_t place : operation.ends) values[place] = Value();
  }

  void give(const Value& value, const Slot& slot) const {
    if (value.type != slot.type || value.shape != slot.shape)
      broken("it gives '" + slot.name + "' as " + described(value.type, value.shape) +
             ", and bundle.json says " + described(slot.type, slot.shape));
    if (value.count()) std::memcpy(slot.data, value.memory.get(), value.count() * element_bytes(value.type));
  }

  const Program& program_;
  const std::vector<Slot> inputs_, outputs_;
};

class HostGraph : public Graph {
 public:
  HostGraph(Program program, std::vector<TensorInfo> inputs, std::vector<TensorInfo> outputs)
      : program_(std::move(program)), inputs_(std::move(inputs)), outputs_(std::move(outputs)) {}

  const std::vector<TensorInfo>& inputs() const override { return inputs_; }
  const std::vector<TensorInfo>& outputs() const override { return outputs_; }
  std::unique_ptr<Binding> bind(const std::vector<Slot>& inputs, const std::vector<Slot>& outputs) override {
    return std::make_unique<HostBinding>(program_, inputs, outputs);
  }

 private:
  const Program program_;
  const std::vector<TensorInfo> inputs_, outputs_;
};

void check_names(const Program& program, const char* does, const std::vector<std::size_t>& places,
                 const std::vector<TensorInfo>& infos) {
  bool same = places.size() == infos.size();
  for (std::size_t i = 0; same && i < infos.size(); ++i) same = program.names[places[i]] == infos[i].name;
  if (!same)
    fail(DYNDEPLOY_BUNDLE,
         program.file + " " + does + " other tensors than bundle.json says. Export the bundle again.");
}

}  // namespace

std::unique_ptr<Graph> open_host_program(const std::string& path, const std::vector<TensorInfo>& inputs,
                                         const std::vector<TensorInfo>& outputs) {
  Program program = Parser(path).parse();
  check_names(program, "reads", program.inputs, inputs);
  check_names(program, "gives", program.outputs, outputs);
  return std::make_unique<HostGraph>(std::move(program), inputs, outputs);
}

}  // namespace runtime
}  // namespace dyndeploy
