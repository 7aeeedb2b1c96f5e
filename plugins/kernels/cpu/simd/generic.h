// Vectors of 4 floats in plain C++: what any machine can run. The fixed-count loops let the compiler use the
// baseline instructions of its target (SSE2 on x86-64).
#pragma once

#include <cstdint>
#include <cstring>

namespace dyndeploy::cpu {
namespace {

struct Generic {
  using Half = Generic;  // no narrower vectors pay
  struct Reg {
    float lane[4];
  };
  static constexpr int kWidth = 4;
  static constexpr int kInputsPerRow = 1;
  static constexpr int kPanelVectors = 2;
  static constexpr int kTileRows = 4;
  static constexpr int kDirectRows = 4;
  static constexpr int kDirectVectors = 2;
  static constexpr bool kHasMerge = false;
  static constexpr bool kHasMatrix = false;
  static constexpr bool kHasLanes = false;
  static constexpr bool kFinishesFromMemory = false;
  static constexpr int kRegisters = 16;
  static constexpr bool kPanelInL1 = false;

  template <class F>
  static Reg make(F f) {
    Reg r;
    for (int i = 0; i < kWidth; ++i) r.lane[i] = f(i);
    return r;
  }
  static Reg zero() { return Reg{}; }
  static Reg load(const float* p) {
    return make([=](int i) { return p[i]; });
  }
  static Reg load_bytes(const std::uint8_t* p) {
    return make([&](int i) { return static_cast<float>(p[i]); });
  }
  static Reg load_first(const float* p, int n) {
    return make([=](int i) { return i < n ? p[i] : 0.0f; });
  }
  static void store(float* p, Reg v) { store_first(p, v, kWidth); }
  static void store_first(float* p, Reg v, int n) {
    for (int i = 0; i < n; ++i) p[i] = v.lane[i];
  }
  static Reg broadcast(const float* p) {
    return make([x = *p](int) { return x; });
  }
  static Reg fma(Reg a, Reg b, Reg c) {
    return make([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
  }
  static Reg add(Reg a, Reg b) {
    return make([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static Reg mul(Reg a, Reg b) {
    return make([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  static Reg sub(Reg a, Reg b) {
    return make([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  static Reg multiply_add(Reg a, Reg b, Reg c) {
    return make([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
  }
  static Reg max(Reg a, Reg b) {
    return make([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static Reg min(Reg a, Reg b) {
    return make([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  // a * 2^n of a whole n that leaves the exponent in its range
  static Reg scale2(Reg a, Reg n) {
    return make([&](int i) {
      std::uint32_t bits;
      std::memcpy(&bits, &a.lane[i], sizeof bits);
      bits += static_cast<std::uint32_t>(static_cast<std::int32_t>(n.lane[i])) << 23;
      float value;
      std::memcpy(&value, &bits, sizeof value);
      return value;
    });
  }
  static Reg relu(Reg a) {
    return make([&](int i) { return a.lane[i] < 0.0f ? 0.0f : a.lane[i]; });
  }
  static void transpose(Reg (&rows)[kWidth]) {
    for (int i = 0; i < kWidth; ++i) {
      for (int j = 0; j < i; ++j) {
        const float lower = rows[i].lane[j];
        rows[i].lane[j] = rows[j].lane[i];
        rows[j].lane[i] = lower;
      }
    }
  }
  // As transpose(), of pairs of floats.
  static void transpose_pairs(Reg (&rows)[kWidth / 2]) {
    for (int j = 0; j < 2; ++j) {
      const float upper = rows[0].lane[2 + j];
      rows[0].lane[2 + j] = rows[1].lane[j];
      rows[1].lane[j] = upper;
    }
  }
  static float sum(Reg a) { return (a.lane[0] + a.lane[2]) + (a.lane[1] + a.lane[3]); }
  // Lane i takes lane from[i].
  static Reg permute(Reg a, const std::int32_t* from) {
    return make([&](int i) { return a.lane[from[i]]; });
  }
};

}  // namespace
}  // namespace dyndeploy::cpu
