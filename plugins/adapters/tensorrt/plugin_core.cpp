#include "plugin_core.h"

#include <cstring>
#include <mutex>
#include <set>
#include <string>

#include "log.h"
#include "tuning.h"

namespace dyndeploy {
namespace tensorrt {
namespace {

using nvinfer1::DataType;
using nvinfer1::PluginTensorDesc;

Shape shape_of(const nvinfer1::Dims& dims) {
  Shape shape = {};
  shape.rank = static_cast<int>(dims.nbDims);
  for (int i = 0; i < shape.rank && i < kMaxRank; ++i) shape.sizes[i] = dims.d[i] < 0 ? -1 : dims.d[i];
  return shape;
}

// The size of an axis of an input that has the letter, or null; `words`: it is one of words.
const nvinfer1::IDimensionExpr* find_axis(const Operator& op, const nvinfer1::DimsExprs* inputs, char letter,
                                          bool* words) {
  for (int i = 0; i < op.input_count; ++i) {
    const char* axis = std::strchr(op.inputs[i].axes, letter);
    if (!axis) continue;
    *words = in_words(op.inputs[i]) && !axis[1];
    return inputs[i].d[axis - op.inputs[i].axes];
  }
  return nullptr;
}

const Port& port_at(const Operator& op, int position) {
  return position < op.input_count ? op.inputs[position] : op.output;
}

// The type of a tensor that does not have that of the data.
DataType fixed_type(const Port& port) {
  return port.element == Element::kFloat ? DataType::kFLOAT : DataType::kINT32;
}

const char* type_text(const Operator& op, int position, bool half_only) {
  const Port& port = port_at(op, position);
  if (in_words(port)) return "32-bit integers, each of 4 bytes";
  if (port.element == Element::kFloat) return "float";
  if (port.element != Element::kData) return "32-bit integers";
  if (position > 0 && op.inputs[0].element == Element::kData) return "the type of x";
  return half_only ? "half" : "float or half";
}

// Once in a process for each operator: it would be said with every run.
void tell_misaligned(const Operator& op, const char* tensor) {
  static std::mutex mutex;
  static std::set<std::string> told;
  const std::lock_guard<std::mutex> lock(mutex);
  if (!told.insert(op.name).second) return;
  log_warning(op.name, std::string(tensor) +
                           " does not begin at a multiple of 16 bytes: slower kernels run, which move single "
                           "elements (said once)");
}

}  // namespace

bool PluginCore::infer_shape(const nvinfer1::DimsExprs* inputs, int count, nvinfer1::IExprBuilder& builder,
                             nvinfer1::DimsExprs* output) const {
  if (!check_count(count, 1)) return false;
  for (int i = 0; i < count; ++i) {
    const int rank = static_cast<int>(std::strlen(op_.inputs[i].axes));
    if (inputs[i].nbDims != rank) {
      log_error(op_.name, std::string(op_.inputs[i].name) + " has " + std::to_string(inputs[i].nbDims) +
                              " dimensions, expected " + std::to_string(rank));
      return false;
    }
  }
  output->nbDims = static_cast<int>(std::strlen(op_.output.axes));
  for (int axis = 0; axis < output->nbDims; ++axis) {
    const DerivedSize derived = op_.rules->derive(op_, attributes_, op_.output.axes[axis]);
    const std::int64_t fixed = fixed_size(derived.letter);
    if (!derived.letter || fixed >= 0) {
      output->d[axis] = builder.constant(fixed >= 0 ? static_cast<std::int32_t>(fixed) : derived.value);
      continue;
    }
    bool words = false;
    const nvinfer1::IDimensionExpr* base = find_axis(op_, inputs, derived.letter, &words);
    if (base && derived.value != 1) {
      base =
          builder.operation(nvinfer1::DimensionOperation::kCEIL_DIV, *base, *builder.constant(derived.value));
    }
    const bool writes_words = in_words(op_.output) && axis == output->nbDims - 1;
    if (base && words != writes_words) {
      using nvinfer1::DimensionOperation;
      base = builder.operation(words ? DimensionOperation::kPROD : DimensionOperation::kCEIL_DIV, *base,
                               *builder.constant(static_cast<std::int32_t>(kWordBytes)));
    }
    if (!base) return false;
    output->d[axis] = base;
  }
  return true;
}

DataType PluginCore::output_type(DataType x) const {
  if (op_.output.element != Element::kData) return fixed_type(op_.output);
  if (op_.inputs[0].element == Element::kData) return x;
  return attributes_.half_only ? DataType::kHALF : DataType::kFLOAT;
}

bool PluginCore::supports(int position, const PluginTensorDesc& tensor, const PluginTensorDesc& x) const {
  if (position < 0 || position > op_.input_count || tensor.format != nvinfer1::TensorFormat::kLINEAR)
    return false;
  const Port& port = port_at(op_, position);
  if (port.element != Element::kData) return tensor.type == fixed_type(port);
  if (position > 0 && op_.inputs[0].element == Element::kData) return tensor.type == x.type;
  return tensor.type == DataType::kHALF || (tensor.type == DataType::kFLOAT && !attributes_.half_only);
}

bool PluginCore::check_count(int input_count, int output_count) const {
  if (input_count == op_.input_count && output_count == 1) return true;
  log_error(op_.name, "the node has " + std::to_string(input_count) + " inputs and " +
                          std::to_string(output_count) + " outputs, expected " +
                          std::to_string(op_.input_count) + " and 1");
  return false;
}

bool PluginCore::check_tensors(const PluginTensorDesc* tensors, Sizes* sizes, cuda::Type* type) const {
  Shape shapes[kMaxInputs + 1];
  for (int i = 0; i <= op_.input_count; ++i) {
    if (!supports(i, tensors[i], tensors[0])) {
      log_error(op_.name, std::string(port_at(op_, i).name) + " has type " +
                              std::to_string(static_cast<int>(tensors[i].type)) + " and format " +
                              std::to_string(static_cast<int>(tensors[i].format)) +
                              ", expected a linear tensor of " +
                              type_text(op_, i, attributes_.half_only != 0));
      return false;
    }
    shapes[i] = shape_of(tensors[i].dims);
  }
  // Of operators without data of their own it says nothing.
  *type = cuda::Type::kFloat;
  for (int i = 0; i <= op_.input_count; ++i) {
    if (port_at(op_, i).element != Element::kData) continue;
    if (tensors[i].type == DataType::kHALF) *type = cuda::Type::kHalf;
    break;
  }
  const std::string problem = check_shapes(op_, attributes_, shapes, shapes[op_.input_count], *type, sizes);
  if (problem.empty()) return true;
  log_error(op_.name, problem);
  return false;
}

bool PluginCore::set_tactic(std::int32_t tactic) {
  cuda::Tiles tiles;
  if (!tiles_of(tactic, &tiles) || (tactic > 0 && !op_.rules->candidates)) {
    log_error(op_.name, "tactic " + std::to_string(tactic) + " is none of this plugin's");
    return false;
  }
  if (tactic > 0 || attributes_.tuning) attributes_.tactic = tactic;
  return true;
}

void PluginCore::tune(const Sizes& sizes, cuda::Type type) {
  if (attributes_.tuning) attributes_.tactic = timed_tactic(op_, attributes_, sizes, type);
}

std::size_t PluginCore::workspace(const Sizes& sizes, cuda::Type type) const {
  return sizes['N'] > 0 ? op_.rules->workspace(op_, attributes_, sizes, type) : 0;
}

int PluginCore::enqueue(const PluginTensorDesc* inputs, const PluginTensorDesc* outputs,
                        const Buffers& buffers) const {
  Sizes sizes;
  cuda::Type type = cuda::Type::kFloat;
  const auto input = [&](int i) -> const PluginTensorDesc& { return inputs[i]; };
  const auto output = [&](int i) -> const PluginTensorDesc& { return outputs[i]; };
  if (!check(op_.input_count, 1, input, output, &sizes, &type)) return 1;
  if (sizes['N'] == 0) return 0;
  const char* misaligned = nullptr;
  const int error = op_.rules->run(op_, attributes_, sizes, type, buffers, &misaligned);
  if (misaligned) tell_misaligned(op_, misaligned);
  if (error) log_error(op_.name, "the kernels failed with CUDA error " + std::to_string(error));
  return error;
}

}  // namespace tensorrt
}  // namespace dyndeploy
