// The description of the TensorRT operators in words, and their shapes on request. First a line per operator:
//   name | attribute:length ... | input:axes ... | output:axes
// then, for each line "name values... sizes..." (values of real attributes as the bits of a float) (every
// size list led by its rank; -1 is an unknown size), a line "shape d d d" or "problem: ...".

#include <cstdio>
#include <iostream>
#include <map>
#include <sstream>

#include "operators.h"

namespace {

const char* word(const dyndeploy::tensorrt::Port& port) {
  using dyndeploy::tensorrt::Element;
  switch (port.element) {
    case Element::kData:
      return "data";
    case Element::kFloat:
      return "float";
    case Element::kIndex:
      return "index";
    case Element::kUint8:
      return "uint8";
    case Element::kInt8:
      return "int8";
    default:
      return "int32";
  }
}

}  // namespace

int main() {
  using namespace dyndeploy::tensorrt;
  std::map<std::string, const Operator*> operators;
#define ADD(NAME, KIND) operators[k##NAME.name] = &k##NAME;
  DYNDEPLOY_TENSORRT_OPERATORS(ADD)
  for (const auto& entry : operators) {
    const Operator& op = *entry.second;
    std::cout << op.name << " |";
    for (int i = 0; i < op.attribute_count; ++i) {
      std::cout << " " << op.attributes[i].name << ":" << op.attributes[i].length;
    }
    std::cout << " |";
    for (int i = 0; i < op.input_count; ++i) {
      std::cout << " " << op.inputs[i].name << ":" << op.inputs[i].axes << ":" << word(op.inputs[i]);
    }
    std::cout << " | " << op.output.name << ":" << op.output.axes << ":" << word(op.output) << "\n";
  }
  std::cout << std::endl;
  std::string line;
  while (std::getline(std::cin, line)) {
    std::istringstream words(line);
    std::string name;
    words >> name;
    const Operator& op = *operators.at(name);
    Attributes attributes = {};
    for (int i = 0; i < op.value_count(); ++i) words >> attributes.values[i];
    Shape inputs[kMaxInputs] = {};
    for (int i = 0; i < op.input_count; ++i) {
      words >> inputs[i].rank;
      for (int axis = 0; axis < inputs[i].rank; ++axis) words >> inputs[i].sizes[axis];
    }
    Sizes sizes;
    std::string problem = op.rules->check_attributes(op, attributes);
    if (problem.empty()) problem = bind_sizes(op, inputs, &sizes);
    if (problem.empty())
      problem = op.rules->check_sizes(op, attributes, sizes, dyndeploy::cuda::Type::kFloat);
    if (words.fail()) problem = "the line is too short";
    if (!problem.empty()) {
      std::cout << "problem: " << problem << std::endl;
      continue;
    }
    const Shape shape = output_shape(op, attributes, sizes);
    std::cout << "shape";
    for (int axis = 0; axis < shape.rank; ++axis) std::cout << " " << shape.sizes[axis];
    std::cout << std::endl;
  }
}
