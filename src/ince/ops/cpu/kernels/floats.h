// Floats of three types in and out of float32, sums in a fixed order, and the exponential.
//
// The kernels of training work on pieces of at most kPiece numbers: a piece is read into float32
// in the first-level cache, computed there by plain loops that the compiler vectorizes for the
// instruction set at hand, rounded once and written. Each operation is rounded by itself (nothing
// is fused), and sums are taken in sixteen lanes whatever the width of a register: results do not
// depend on the instruction set, to the bit.
//
// Included by each file of an instruction set and compiled there with its flags, hence the
// unnamed namespace.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "scalar.h"

namespace ince {
namespace {

constexpr int kPiece = 512;
constexpr int kLanes = 16;

struct Piece {
  alignas(64) float values[kPiece];
};

// ------------------------------------------------------------------------------- conversions

inline float select(bool condition, float yes, float no) { return condition ? yes : no; }

// As from_float16 and to_float16, without branches, which is what can be vectorized.
inline float widen_float16(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  const uint32_t normal = (magnitude << 13) + 0x38000000u;
  const uint32_t special = (magnitude << 13) | kInfinityBits;
  const uint32_t small = bits_of(float(int32_t(magnitude)) * 0x1p-24f);
  return float_of(sign | (magnitude >= 0x7c00u ? special : magnitude >= 0x400u ? normal : small));
}

inline uint16_t narrow_float16(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t special = magnitude > kInfinityBits ? 0x7e00u : 0x7c00u;
  // Below 2**-14: the sum with 0.5 rounds to multiples of 2**-24 by itself.
  const uint32_t small = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (magnitude - 0x38000000u + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t rounded =
      magnitude >= 0x477ff000u ? special : magnitude >= 0x38800000u ? normal : small;
  return uint16_t((bits >> 16 & 0x8000u) | rounded);
}

inline uint16_t narrow_bfloat16(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return uint16_t((bits & 0x7fffffffu) > kInfinityBits ? 0x7fc0u : rounded);
}

inline void widen_float16s(const uint16_t* halves, int n, float* out) {
  int i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= n; i += 16) {
    const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves + i));
    _mm512_storeu_ps(out + i, _mm512_cvtph_ps(raw));
  }
#elif defined(__F16C__)
  for (; i + 8 <= n; i += 8) {
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(halves + i));
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(raw));
  }
#endif
  for (; i < n; ++i) out[i] = widen_float16(halves[i]);
}

inline void narrow_float16s(const float* values, int n, uint16_t* out) {
  int i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= n; i += 16) {
    const __m256i raw = _mm512_cvtps_ph(_mm512_loadu_ps(values + i),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), raw);
  }
#elif defined(__F16C__)
  for (; i + 8 <= n; i += 8) {
    const __m128i raw = _mm256_cvtps_ph(_mm256_loadu_ps(values + i),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), raw);
  }
#endif
  for (; i < n; ++i) out[i] = narrow_float16(values[i]);
}

// n <= kPiece numbers from `index` on: in `piece`, or where they lie when they are float32.
inline const float* load(const void* data, DType dtype, int64_t index, int n, Piece& piece) {
  switch (dtype) {
    case kFloat32:
      return static_cast<const float*>(data) + index;
    case kBFloat16: {
      const uint16_t* halves = static_cast<const uint16_t*>(data) + index;
      for (int i = 0; i < n; ++i) piece.values[i] = from_bfloat16(halves[i]);
      return piece.values;
    }
    default:
      widen_float16s(static_cast<const uint16_t*>(data) + index, n, piece.values);
      return piece.values;
  }
}

// Rounds n numbers to `dtype` and writes them from `index` on.
inline void store(const float* values, void* data, DType dtype, int64_t index, int n) {
  switch (dtype) {
    case kFloat32:
      std::memcpy(static_cast<float*>(data) + index, values, std::size_t(n) * sizeof(float));
      return;
    case kBFloat16: {
      uint16_t* halves = static_cast<uint16_t*>(data) + index;
      for (int i = 0; i < n; ++i) halves[i] = narrow_bfloat16(values[i]);
      return;
    }
    default:
      narrow_float16s(values, n, static_cast<uint16_t*>(data) + index);
  }
}

// Rounds n numbers to `dtype` and back.
inline void round_to(float* values, DType dtype, int n) {
  switch (dtype) {
    case kFloat32:
      return;
    case kBFloat16:
      for (int i = 0; i < n; ++i) values[i] = from_bfloat16(narrow_bfloat16(values[i]));
      return;
    default: {
      uint16_t halves[kPiece];
      narrow_float16s(values, n, halves);
      widen_float16s(halves, n, values);
    }
  }
}

// -------------------------------------------------------------------------------------- sums

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float Vector __attribute__((vector_size(kWidth * sizeof(float))));

// Sixteen sums side by side, in as many registers as that takes.
struct Lanes {
  static constexpr int kNum = kLanes / kWidth;
  Vector parts[kNum];

  Lanes() {
    for (int k = 0; k < kNum; ++k) parts[k] = Vector{};
  }

  static Vector at(const float* values) {
    Vector vector;
    std::memcpy(&vector, values, sizeof vector);
    return vector;
  }

  // The second half onto the first, until one is left.
  float sum() const {
    float lanes[kLanes];
    std::memcpy(lanes, parts, sizeof lanes);
    for (int half = kLanes / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    }
    return lanes[0];
  }
};

// Of a[i] * b[i]; number i goes to lane i % 16, and missing ones count as zero.
inline float sum_of_products(const float* a, const float* b, int n) {
  Lanes lanes;
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int k = 0; k < Lanes::kNum; ++k) {
      lanes.parts[k] += Lanes::at(a + i + k * kWidth) * Lanes::at(b + i + k * kWidth);
    }
  }
  if (i < n) {
    float left[2][kLanes] = {};
    std::memcpy(left[0], a + i, std::size_t(n - i) * sizeof(float));
    std::memcpy(left[1], b + i, std::size_t(n - i) * sizeof(float));
    for (int k = 0; k < Lanes::kNum; ++k) {
      lanes.parts[k] += Lanes::at(left[0] + k * kWidth) * Lanes::at(left[1] + k * kWidth);
    }
  }
  return lanes.sum();
}

}  // namespace
}  // namespace ince
