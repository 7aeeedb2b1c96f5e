// What an operator is to TensorRT: its table (ports, attributes, types) and the rules of its kind (checks,
// sizes, kernel). The plugin interfaces (plugin_v2.h, plugin_v3.h) are made from it. Knows nothing of
// TensorRT.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "../common/tables.h"
#include "kernels.h"

namespace dyndeploy {
namespace tensorrt {

using tables::Element;
using tables::kMaxInputs;
using tables::kMaxRank;
using tables::kMaxValues;
using tables::Port;

constexpr int kTimedMasks = 4;

// The values of all attributes of an operator, one after the other, and what the build plan adds: whether
// data may be half only (else the builder may choose float by timing), the largest batch of the engine (0:
// not stated), and at which rates kernels are timed.
struct Attributes {
  std::int32_t values[kMaxValues];  // those of real attributes as bits, see real_value()
  std::int32_t half_only;
  std::int32_t largest_batch;
  std::int32_t tactic;  // which tiles, see tiles_of(); kept in engines
  std::int32_t tuning;  // whether a builder may choose another tactic by timing; not kept in engines
  // Of a thousand, while a builder times: active bits of each mask, in the order of the inputs; 0 reads the
  // mask. Not kept in engines.
  std::int32_t timing_rates[kTimedMasks];
};

// Tiles as one number, for a builder's tactics and for engines: 0 is the formula's choice, untimed; positive
// numbers were chosen by timing, be it the formula's own choice. Any other number is refused with false.
bool tiles_of(std::int32_t tactic, cuda::Tiles* tiles);
std::int32_t tactic_of(const cuda::Tiles& tiles);  // a positive one

float real_value(std::int32_t bits);
std::int32_t real_bits(float value);
// The rate of the mask that is input `index`; x is the only input before the masks.
inline std::int32_t timing_rate(const Attributes& attributes, int index) {
  return index > 0 ? attributes.timing_rates[index - 1] : 0;
}

struct Shape {
  int rank;
  std::int64_t sizes[kMaxRank];  // -1: not known yet
};

// The size of an axis that no input decides, a digit or the border classes, or -1.
inline std::int64_t fixed_size(char letter) {
  return letter >= '0' && letter <= '9' ? letter - '0' : letter == '#' ? 16 : -1;
}

// Bytes travel by words: what stands side by side on the last axis, in one 32-bit integer each.
constexpr std::int64_t kWordBytes = 4;
inline bool in_words(const Port& port) {
  return port.element == Element::kUint8 || port.element == Element::kInt8;
}

// Sizes by letter, -1 where not known.
class Sizes {
 public:
  Sizes() {
    for (auto& value : values_) value = -1;
  }
  std::int64_t& operator[](char letter) { return values_[static_cast<unsigned char>(letter) & 127]; }
  std::int64_t operator[](char letter) const { return values_[static_cast<unsigned char>(letter) & 127]; }

 private:
  std::int64_t values_[128];
};

// An axis of the output that no input has: the axis `letter` divided by `value` and rounded up, or, without a
// letter, `value` itself.
struct DerivedSize {
  char letter;
  std::int32_t value;
};

struct Buffers {
  const void* const* inputs;
  void* output;
  void* workspace;
  void* stream;  // cudaStream_t
};

struct Operator;

// What the operators of one kind share. Problems are told in words; an empty string is none.
struct Rules {
  std::string (*check_attributes)(const Operator&, const Attributes&);
  DerivedSize (*derive)(const Operator&, const Attributes&, char letter);
  // `sizes` may hold unknown ones.
  std::string (*check_sizes)(const Operator&, const Attributes&, const Sizes& sizes, cuda::Type type);
  std::size_t (*workspace)(const Operator&, const Attributes&, const Sizes& sizes, cuda::Type type);
  // Which kernels would run, in words; capability 0: on the current device. All sizes are known.
  std::string (*describe)(const Operator&, const Attributes&, const Sizes& sizes, cuda::Type type,
                          int capability, int processors);
  // 0 or a cudaError_t. `misaligned`: the tensor whose address keeps fast kernels from running, or null.
  int (*run)(const Operator&, const Attributes&, const Sizes& sizes, cuda::Type type, const Buffers& buffers,
             const char** misaligned);
  // Which tiles are worth timing on the current device, as cuda::bottleneck_candidates(); null where kernels
  // have no tiles to choose. All sizes are known.
  int (*candidates)(const Operator&, const Attributes&, const Sizes& sizes, cuda::Type type,
                    cuda::Tiles* candidates) = nullptr;
};

struct Operator {
  const char* name;
  const char* version;
  const Rules* rules;
  const Port* inputs;
  int input_count;
  Port output;
  const tables::Attribute* attributes;
  int attribute_count;

  int value_count() const;
  // Index of an input, -1 when there is none of that name.
  int find_input(const char* port) const;
  // Whether x is bytes, of whatever type other data are.
  bool reads_bytes() const { return inputs[0].element == Element::kUint8; }
};

#define DYNDEPLOY_DECLARE_OPERATOR(NAME, KIND) extern const Operator k##NAME;
DYNDEPLOY_TENSORRT_OPERATORS(DYNDEPLOY_DECLARE_OPERATOR)
#undef DYNDEPLOY_DECLARE_OPERATOR

// Reads the sizes of `op.input_count` shapes, in elements, and checks them against the axes of the ports.
std::string bind_sizes(const Operator& op, const Shape* inputs, Sizes* sizes);

// The output's shape, -1 where a size it needs is not known.
Shape output_shape(const Operator& op, const Attributes& attributes, const Sizes& sizes);

// bind_sizes(), the rules' own checks, and the shape of the output where it is known.
std::string check_shapes(const Operator& op, const Attributes& attributes, const Shape* inputs,
                         const Shape& output, cuda::Type type, Sizes* sizes);

// The tactics that a builder may time, at most cuda::kMostCandidates, the formula's choice first; returns how
// many. None where there is nothing to choose or to time: no device, sizes that are not known, masks without
// a rate, or a node that rules it out.
int list_tactics(const Operator& op, const Attributes& attributes, const Sizes& sizes, cuda::Type type,
                 std::int32_t* tactics);

// Which kernels run (Rules::describe), and whether their tiles were tuned.
std::string describe_choice(const Operator& op, const Attributes& attributes, const Sizes& sizes,
                            cuda::Type type, int capability, int processors);

std::string to_text(const Shape& shape);

}  // namespace tensorrt
}  // namespace dyndeploy
