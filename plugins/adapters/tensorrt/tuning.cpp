#include "tuning.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <mutex>
#include <sstream>

#include "log.h"
#include "rules.h"
#include "timing.h"

namespace dyndeploy {
namespace tensorrt {
namespace {

const char* const kFormat = "dyndeploy tactics 1";

// Guards the table, and keeps plugins of several networks from timing side by side.
std::mutex& mutex() {
  static std::mutex instance;
  return instance;
}
std::map<std::string, std::int32_t>& known() {
  static std::map<std::string, std::int32_t> instance;
  return instance;
}

// All but the rates, which stand behind: "SpatialBottleneck 1,1,1,1 N1 H56 W56 C64 ... half sm87x16 rates ".
std::string place_of(const Operator& op, const Attributes& attributes, const Sizes& sizes, cuda::Type type,
                     int capability, int processors) {
  std::string text = std::string(op.name) + " ";
  for (int i = 0; i < op.value_count(); ++i) text += (i ? "," : "") + std::to_string(attributes.values[i]);
  std::string letters;
  for (int i = 0; i < op.input_count; ++i) {
    for (const char* axis = op.inputs[i].axes; *axis; ++axis) {
      if (fixed_size(*axis) >= 0 || letters.find(*axis) != std::string::npos) continue;
      letters += *axis;
      text += std::string(" ") + *axis + std::to_string(sizes[*axis]);
    }
  }
  // Of an operator without data of its own, one in integers, the type says nothing.
  const bool typed = op.output.element == Element::kData || op.inputs[0].element == Element::kData;
  text += !typed ? " integers" : type == cuda::Type::kHalf ? " half" : " float";
  return text + " sm" + std::to_string(capability) + "x" + std::to_string(processors) + " rates ";
}

std::string rates_of(const Attributes& attributes) {
  std::string text;
  for (int i = 0; i < kTimedMasks; ++i) text += (i ? "," : "") + std::to_string(attributes.timing_rates[i]);
  return text;
}

std::size_t bytes_of(const Shape& shape, Element element, cuda::Type type) {
  std::size_t bytes = element == Element::kData && type == cuda::Type::kHalf ? 2 : 4;
  for (int i = 0; i < shape.rank; ++i) bytes *= static_cast<std::size_t>(shape.sizes[i]);
  return bytes;
}

Shape shape_of(const Port& port, const Sizes& sizes) {
  Shape shape = {};
  for (const char* axis = port.axes; *axis; ++axis) {
    const std::int64_t fixed = fixed_size(*axis);
    shape.sizes[shape.rank++] = fixed >= 0 ? fixed : sizes[*axis];
  }
  return shape;
}

std::string milliseconds(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4g ms", value);
  return text;
}

// Times of the tactics; what is wrong, in words.
std::string time_all(const Operator& op, const Attributes& attributes, const Sizes& sizes, cuda::Type type,
                     const std::int32_t* tactics, int count, double* times) {
  constexpr std::size_t kAligned = 256;
  const auto place = [](std::size_t bytes) { return (bytes + kAligned - 1) / kAligned * kAligned; };
  std::size_t starts[kMaxInputs + 2], total = 0;
  for (int i = 0; i < op.input_count; ++i) {
    starts[i] = total;
    total += place(bytes_of(shape_of(op.inputs[i], sizes), op.inputs[i].element, type));
  }
  starts[op.input_count] = total;
  total += place(bytes_of(output_shape(op, attributes, sizes), op.output.element, type));
  starts[op.input_count + 1] = total;
  total += place(op.rules->workspace(op, attributes, sizes, type));
  const cuda::Scratch memory(total);
  if (!memory.get()) return std::to_string(total) + " bytes of device memory are not to be had";

  char* const base = static_cast<char*>(memory.get());
  const void* inputs[kMaxInputs];
  for (int i = 0; i < op.input_count; ++i) inputs[i] = base + starts[i];
  void* const output = base + starts[op.input_count];
  void* const workspace = base + starts[op.input_count + 1];
  const auto run = [&](int index, void* stream) {
    Attributes tried = attributes;
    tried.tactic = tactics[index];
    const char* misaligned = nullptr;
    return op.rules->run(op, tried, sizes, type, Buffers{inputs, output, workspace, stream}, &misaligned);
  };
  const int error = cuda::time_in_turn(count, run, times);
  return error ? "CUDA error " + std::to_string(error) : std::string();
}

// Once in a process: it would be said of every plugin.
void tell_untimed(const Operator& op, const std::string& why) {
  static bool told = false;
  if (!told)
    log_warning(op.name, "tiles are chosen by formula, nothing can be timed: " + why + " (said once)");
  told = true;
}

}  // namespace

std::int32_t timed_tactic(const Operator& op, const Attributes& attributes, const Sizes& sizes,
                          cuda::Type type) {
  if (!op.rules->candidates || !attributes.tuning) return 0;
  const std::lock_guard<std::mutex> lock(mutex());
  int processors = 0;
  const int capability = cuda::current_device(&processors);
  if (capability <= 0) {
    tell_untimed(op, "there is no CUDA device");
    return 0;
  }
  std::int32_t tactics[cuda::kMostCandidates];
  const int count = list_tactics(op, attributes, sizes, type, tactics);
  if (count == 0) return 0;
  const std::string key =
      place_of(op, attributes, sizes, type, capability, processors) + rates_of(attributes);
  const auto found = known().find(key);
  // A tactic of another library may be no candidate of this one.
  if (found != known().end() && std::count(tactics, tactics + count, found->second)) return found->second;
  double times[cuda::kMostCandidates];
  const std::string problem = time_all(op, attributes, sizes, type, tactics, count, times);
  if (!problem.empty()) {
    tell_untimed(op, problem);
    return 0;
  }
  const int best = static_cast<int>(std::min_element(times, times + count) - times);
  known()[key] = tactics[best];
  Attributes chosen = attributes;
  chosen.tactic = tactics[best];
  log_info(op.name, describe_choice(op, chosen, sizes, type, capability, processors) + ": " +
                        milliseconds(times[best]) + ", by formula " + milliseconds(times[0]) + ", of " +
                        std::to_string(count) + " tactics");
  return chosen.tactic;
}

std::int32_t timed_tactic(const Operator& op, const Attributes& attributes, const Sizes& sizes,
                          cuda::Type type, int capability, int processors) {
  if (capability == 0) capability = cuda::current_device(&processors);
  const std::string place = place_of(op, attributes, sizes, type, capability, processors);
  const std::lock_guard<std::mutex> lock(mutex());
  const auto next = known().lower_bound(place);
  return next != known().end() && next->first.compare(0, place.size(), place) == 0 ? next->second : 0;
}

std::string timed_tactics() {
  const std::lock_guard<std::mutex> lock(mutex());
  if (known().empty()) return std::string();
  std::string text = std::string(kFormat) + "\n";
  for (const auto& entry : known()) text += entry.first + " = " + std::to_string(entry.second) + "\n";
  return text;
}

int read_timed_tactics(const std::string& text) {
  std::istringstream lines(text);
  std::string line;
  if (!std::getline(lines, line) || line != kFormat) return -1;
  const std::lock_guard<std::mutex> lock(mutex());
  int taken = 0;
  while (std::getline(lines, line)) {
    const std::size_t split = line.rfind(" = ");
    if (split == std::string::npos) continue;
    std::istringstream number(line.substr(split + 3));
    std::int32_t tactic = 0;
    cuda::Tiles tiles;
    if (!(number >> tactic) || !number.eof() || tactic < 1 || !tiles_of(tactic, &tiles)) continue;
    known()[line.substr(0, split)] = tactic;
    ++taken;
  }
  return taken;
}

std::string describe_kernels(const std::string& name, const std::int32_t* attributes, int attribute_count,
                             const std::int64_t* shapes, int shape_count, bool half, int capability,
                             int processors, std::int32_t tactic, bool has_tactics) {
  const Operator* op = nullptr;
#define DYNDEPLOY_FIND_OPERATOR(NAME, KIND) \
  if (name == k##NAME.name) op = &k##NAME;
  DYNDEPLOY_TENSORRT_OPERATORS(DYNDEPLOY_FIND_OPERATOR)
#undef DYNDEPLOY_FIND_OPERATOR
  if (!op || attribute_count != op->value_count()) return std::string();
  Attributes given = {};
  for (int i = 0; i < attribute_count; ++i) given.values[i] = attributes[i];
  Shape inputs[kMaxInputs] = {};
  int at = 0;
  for (int i = 0; i < op->input_count; ++i) {
    const std::int64_t rank = at < shape_count ? shapes[at++] : -1;
    if (rank < 0 || rank > kMaxRank || rank > shape_count - at) return std::string();
    inputs[i].rank = static_cast<int>(rank);
    for (int axis = 0; axis < inputs[i].rank; ++axis) inputs[i].sizes[axis] = shapes[at++];
  }
  const cuda::Type type = half ? cuda::Type::kHalf : cuda::Type::kFloat;
  Sizes sizes;
  if (at != shape_count || !op->rules->check_attributes(*op, given).empty() ||
      !bind_sizes(*op, inputs, &sizes).empty() || !op->rules->check_sizes(*op, given, sizes, type).empty() ||
      !all_known(*op, sizes) || sizes['N'] < 1) {
    return std::string();
  }
  // As the largest batch of an engine.
  given.largest_batch = static_cast<std::int32_t>(sizes['N']);
  cuda::Tiles tiles;
  given.tactic = tiles_of(tactic, &tiles) && op->rules->candidates ? tactic : 0;
  if (tactic < 0) given.tactic = timed_tactic(*op, given, sizes, type, capability, processors);
  const std::string text = describe_choice(*op, given, sizes, type, capability, processors);
  const bool untold = tactic < 0 && given.tactic == 0 && has_tactics && op->rules->candidates;
  return untold && !text.empty() ? text + " unless tuned" : text;
}

}  // namespace tensorrt
}  // namespace dyndeploy
