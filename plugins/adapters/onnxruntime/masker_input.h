// What a masker reads, as the kernels take it.
#pragma once

#include <cstdint>
#include <string>

#include "masker.h"
#include "ort_support.h"

namespace dyndeploy::ort {

template <class T>
cpu::MaskerInputOf<T> masker_input(const Tensor& x) {
  return {x.as<T>(), static_cast<int>(x.shape[0]), static_cast<int>(x.shape[1]), static_cast<int>(x.shape[2]),
          static_cast<int>(x.shape[3])};
}

// Fails where the sums of an image could leave 32 bits.
inline cpu::ByteMaskerInput byte_masker_input(const Tensor& x, const tables::Operator& op) {
  if (x.shape[1] * x.shape[2] > cpu::kMaxSummedPixels) {
    throw InvalidArgument(std::string("dyndeploy.") + op.name + ": input 0 (x) has shape " +
                          to_string(x.shape) + ", more than " + std::to_string(cpu::kMaxSummedPixels) +
                          " pixels an image");
  }
  return masker_input<std::uint8_t>(x);
}

}  // namespace dyndeploy::ort
