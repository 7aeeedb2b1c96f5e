// What the adapters look up in the operators' tables. C++14: GCC 7.5 on a board builds this.
#pragma once

#include "operator_tables.h"

namespace dyndeploy {
namespace tables {

constexpr bool same_text(const char* a, const char* b) {
  while (*a && *a == *b) {
    ++a;
    ++b;
  }
  return *a == *b;
}

// Index of a port, -1 when there is none of that name.
constexpr int find_port(const Port* ports, int count, const char* name) {
  for (int i = 0; i < count; ++i) {
    if (same_text(ports[i].name, name)) return i;
  }
  return -1;
}

// Index of the first mask of that kind, -1 when there is none.
constexpr int find_gate(const Port* ports, int count, Gate gate) {
  for (int i = 0; i < count; ++i) {
    if (ports[i].gate == gate) return i;
  }
  return -1;
}

constexpr bool has_attribute(const Attribute* attributes, int count, const char* name) {
  for (int i = 0; i < count; ++i) {
    if (same_text(attributes[i].name, name)) return true;
  }
  return false;
}
constexpr bool has_attribute(const Operator& op, const char* name) {
  return has_attribute(op.attributes, op.attribute_count, name);
}

// Index of an attribute. A name that the operator lacks is no constant expression, and an exception
// elsewhere.
constexpr int find_attribute(const Operator& op, const char* name, int from = 0) {
  // One expression: older compilers take a throw in a constant function only so.
  return from == op.attribute_count                  ? throw "no such attribute"
         : same_text(op.attributes[from].name, name) ? from
                                                     : find_attribute(op, name, from + 1);
}

// Position of an attribute's first value among the values of all attributes, one after the other.
constexpr int value_offset(const Operator& op, const char* name) {
  int offset = 0;
  for (int i = 0; i < find_attribute(op, name); ++i) offset += op.attributes[i].length;
  return offset;
}

// What a bottleneck skips. Indices of inputs, -1 for what it lacks.
struct Skipping {
  int spatial_mask;  // that of a whole block is one, of a single patch
  bool whole_blocks;
  int channel_mask;
  bool projection;
  bool excites;  // a squeeze-and-excitation follows the 3x3; channels that are skipped are zero
};

constexpr Skipping bottleneck_skipping(const Port* ports, int count) {
  const int layer = find_gate(ports, count, Gate::kLayer);
  return {layer >= 0 ? layer : find_gate(ports, count, Gate::kSpatial), layer >= 0,
          find_gate(ports, count, Gate::kChannel), find_port(ports, count, "wd") >= 0,
          find_port(ports, count, "ws") >= 0};
}

}  // namespace tables
}  // namespace dyndeploy
