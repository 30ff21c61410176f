// Four float32 side by side, as the attention kernels use them: whatever the compiler makes of
// that, on any processor.

#pragma once

#include "scalar.h"

namespace ince {
namespace {

struct Portable {
  typedef float Vec __attribute__((vector_size(16)));
  typedef int32_t Ints __attribute__((vector_size(16)));
  static constexpr int lanes = 4;
  static constexpr int tall_rows = 4, tall_columns = 2;
  static constexpr int wide_rows = 4, wide_columns = 2;

  static Vec zero() { return Vec{}; }
  static Vec all(float value) { return Vec{value, value, value, value}; }
  static Vec load(const float* from) {
    Vec a;
    std::memcpy(&a, from, sizeof a);
    return a;
  }
  static void store(float* to, Vec a) { std::memcpy(to, &a, sizeof a); }
  static Vec broadcast(const float* word) { return all(*word); }
  static Vec add(Vec a, Vec b) { return a + b; }
  static Vec sub(Vec a, Vec b) { return a - b; }
  static Vec mul(Vec a, Vec b) { return a * b; }
  static Vec div(Vec a, Vec b) { return a / b; }
  static Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
  static Vec select(Ints yes, Vec a, Vec b) { return Vec((Ints(a) & yes) | (Ints(b) & ~yes)); }
  // b where either is no number.
  static Vec max(Vec a, Vec b) { return select(a > b, a, b); }
  static Vec min(Vec a, Vec b) { return select(a < b, a, b); }
  // To a whole number, for numbers below 2²² in magnitude: there is no finer float beside 1.5 · 2²³.
  static Vec round(Vec a) {
    const Vec large = all(12582912.0f);
    return a + large - large;
  }
  static Vec scale(Vec a, Vec n) {
    const Ints whole = Ints(n + all(12582912.0f)) - Ints(all(12582912.0f));
    return a * Vec((whole + 127) << 23);
  }
  static Vec allowed(const uint8_t* mask, Vec a, Vec b) {
    const Ints bytes = {mask[0], mask[1], mask[2], mask[3]};
    return select(bytes != 0, a, b);
  }
  static float sum(Vec a) { return (a[0] + a[2]) + (a[1] + a[3]); }
  // The sum of each, side by side.
  static void four_sums(Vec a, Vec b, Vec c, Vec d, float* to) {
    to[0] = sum(a), to[1] = sum(b), to[2] = sum(c), to[3] = sum(d);
  }
  static float largest(Vec a) {
    float found = a[0];
    for (int i = 1; i < 4; ++i) found = a[i] > found ? a[i] : found;
    return found;
  }

  template <DType dtype>
  static Vec load_from(const void* data, int64_t index) {
    Vec a;
    for (int i = 0; i < 4; ++i) a[i] = load_weight(data, dtype, index + i);
    return a;
  }

  template <DType dtype>
  static void store_to(void* data, int64_t index, Vec a) {
    for (int i = 0; i < 4; ++i) {
      if constexpr (dtype == kFloat32) {
        static_cast<float*>(data)[index + i] = a[i];
      } else {
        static_cast<uint16_t*>(data)[index + i] =
            dtype == kBFloat16 ? to_bfloat16(a[i]) : to_float16(a[i]);
      }
    }
  }

  static void transpose(const float* rows, int64_t words, float* out) {
    for (int64_t word = 0; word < words; ++word) {
      for (int64_t row = 0; row < 16; ++row) out[word * 16 + row] = rows[row * words + word];
    }
  }
};

}  // namespace
}  // namespace ince
