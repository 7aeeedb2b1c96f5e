// The operators of host programs: those of ONNX at opset 18, as NumPy computes them in
// dyndeploy/runtimes/host_program.py, and two of boxes.
#pragma once

#include <string>
#include <vector>

#include "host_value.h"
#include "json.h"

namespace dyndeploy {
namespace runtime {

// Attributes of an operator, from JSON. Those that are wanted throw ProgramError where they are missing.
class Attributes {
 public:
  explicit Attributes(const Json& value) : value_(&value) {}

  std::int64_t whole(const char* name, std::int64_t otherwise) const;
  std::int64_t whole(const char* name) const;
  double real(const char* name) const;
  std::vector<double> reals(const char* name) const;
  // Empty where it is missing.
  std::vector<std::int64_t> wholes(const char* name) const;
  std::string text(const char* name, const char* otherwise) const;

 private:
  const Json* value_;
};

using Operator = std::vector<Value> (*)(const Attributes& attributes, const std::vector<Value>& inputs);

// Null where there is no rule.
Operator find_operator(const std::string& type);

}  // namespace runtime
}  // namespace dyndeploy
