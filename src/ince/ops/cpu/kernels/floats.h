// Floats of three types in and out of registers, and sums in a fixed order.
//
// The kernels of training are loops over registers of kWidth float32 numbers, as wide as those of
// the instruction set at hand and written with the compilers' vector types, so that one text
// serves every set. Each operation is rounded by itself (nothing is fused), and sums are taken in
// sixteen lanes however wide a register is: results do not depend on the set, to the bit.
//
// Included by each file of an instruction set and compiled there with its flags, hence the
// unnamed namespace.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "scalar.h"

namespace ince {
namespace {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float Vector __attribute__((vector_size(kWidth * 4)));
typedef uint32_t Words __attribute__((vector_size(kWidth * 4)));
typedef int32_t Ints __attribute__((vector_size(kWidth * 4)));
typedef uint16_t Halves __attribute__((vector_size(kWidth * 2)));

inline Vector all(float value) { return Vector{} + value; }
inline Vector floats_of(Words bits) { return reinterpret_cast<Vector>(bits); }
inline Words bits_of(Vector values) { return reinterpret_cast<Words>(values); }

// ------------------------------------------------------------------------------- conversions

template <DType dtype>
struct Format {
  using Stored = uint16_t;
};

template <>
struct Format<kFloat32> {
  using Stored = float;
};

// Compilers make long ways of these two where they are left to it.
inline Words widened(Halves halves) {
#if defined(__AVX512F__)
  return reinterpret_cast<Words>(_mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(halves)));
#elif defined(__AVX2__)
  return reinterpret_cast<Words>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(halves)));
#else
  return __builtin_convertvector(halves, Words);
#endif
}

inline Halves narrowed(Words words) {  // each below 2**16
#if defined(__AVX512F__)
  return reinterpret_cast<Halves>(_mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(words)));
#elif defined(__AVX2__)
  const __m256i both = reinterpret_cast<__m256i>(words);
  return reinterpret_cast<Halves>(
      _mm_packus_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1)));
#else
  return __builtin_convertvector(words, Halves);
#endif
}

inline Vector from_bfloat16(Halves halves) { return floats_of(widened(halves) << 16); }

// With sixteen bits of no meaning below.
inline Words rounded_to_bfloat16(Vector values) {
  const Words bits = bits_of(values);
  return values == values ? bits + 0x7fffu + (bits >> 16 & 1u) : Words{} + 0x7fc00000u;
}

inline Halves to_bfloat16(Vector values) { return narrowed(rounded_to_bfloat16(values) >> 16); }

inline Vector from_float16(Halves halves) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(reinterpret_cast<__m256i>(halves));
#elif defined(__AVX2__)
  return _mm256_cvtph_ps(reinterpret_cast<__m128i>(halves));
#else
  Vector values;
  for (int i = 0; i < kWidth; ++i) values[i] = from_float16(halves[i]);
  return values;
#endif
}

inline Halves to_float16(Vector values) {
#if defined(__AVX512F__)
  return reinterpret_cast<Halves>(
      _mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__AVX2__)
  return reinterpret_cast<Halves>(
      _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  Halves halves;
  for (int i = 0; i < kWidth; ++i) halves[i] = to_float16(values[i]);
  return halves;
#endif
}

// The first `count` numbers of a register, and zeros.
template <DType dtype>
inline Vector load(const typename Format<dtype>::Stored* data, int count = kWidth) {
  std::conditional_t<dtype == kFloat32, Vector, Halves> stored{};
  std::memcpy(&stored, data, std::size_t(count) * sizeof *data);
  if constexpr (dtype == kFloat32) {
    return stored;
  } else {
    return dtype == kBFloat16 ? from_bfloat16(stored) : from_float16(stored);
  }
}

// Rounds to nearest even, and writes the first `count`.
template <DType dtype>
inline void store(Vector values, typename Format<dtype>::Stored* data, int count = kWidth) {
  if constexpr (dtype == kFloat32) {
    std::memcpy(data, &values, std::size_t(count) * sizeof *data);
  } else {
    const Halves halves = dtype == kBFloat16 ? to_bfloat16(values) : to_float16(values);
    std::memcpy(data, &halves, std::size_t(count) * sizeof *data);
  }
}

template <DType dtype>
inline Vector rounded_to(Vector values) {
  if constexpr (dtype == kFloat32) return values;
  return dtype == kBFloat16 ? floats_of(rounded_to_bfloat16(values) & 0xffff0000u)
                            : from_float16(to_float16(values));
}

// `values` with `other` beyond the first `count`.
inline Vector padded(Vector values, int count, float other) {
  if (count == kWidth) return values;
  Ints position;
  for (int i = 0; i < kWidth; ++i) position[i] = i;
  return position < count ? values : all(other);
}

// body(position, count) for one register after the other; only the last has fewer than kWidth.
template <typename Body>
inline void for_each(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) body(i, kWidth);
  if (i < n) body(i, int(n - i));
}

// -------------------------------------------------------------------------------------- sums

constexpr int kLanes = 16;

// Numbers that are added in float32, before their sum is added to others in float64.
constexpr int64_t kPiece = 512;

// The second half of sixteen onto the first, until one is left.
template <typename Add>
inline float folded(const Vector (&parts)[kLanes / kWidth], const Add& add) {
  float lanes[kLanes];
  std::memcpy(lanes, parts, sizeof lanes);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] = add(lanes[i], lanes[i + half]);
  }
  return lanes[0];
}

// The sum of term(position, count) over n <= kPiece numbers. What is at i goes to lane i % 16;
// beyond `count` a term must be zero.
template <typename Term>
inline float sum_of_piece(int64_t start, int64_t n, const Term& term) {
  constexpr int kNum = kLanes / kWidth;
  Vector parts[kNum] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int k = 0; k < kNum; ++k) parts[k] += term(start + i + k * kWidth, kWidth);
  }
  for (int k = 0; k < kNum && i < n; ++k, i += kWidth) {
    parts[k] += term(start + i, n - i < kWidth ? int(n - i) : kWidth);
  }
  return folded(parts, [](float a, float b) { return a + b; });
}

// The largest of value(position, count), in the same lanes; numbers that are none are passed over.
// Beyond `count` a value must be no larger than the others.
template <typename Value>
inline float most_of_piece(int64_t start, int64_t n, const Value& value) {
  constexpr int kNum = kLanes / kWidth;
  Vector parts[kNum];
  for (Vector& part : parts) part = all(-INFINITY);
  const auto take = [](Vector& most, Vector values) { most = values > most ? values : most; };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int k = 0; k < kNum; ++k) take(parts[k], value(start + i + k * kWidth, kWidth));
  }
  for (int k = 0; k < kNum && i < n; ++k, i += kWidth) {
    take(parts[k], value(start + i, n - i < kWidth ? int(n - i) : kWidth));
  }
  return folded(parts, [](float a, float b) { return b > a ? b : a; });
}

template <typename Term>
inline double sum_of(int64_t n, const Term& term) {
  double sum = 0;
  for (int64_t start = 0; start < n; start += kPiece) {
    sum += double(sum_of_piece(start, n - start < kPiece ? n - start : kPiece, term));
  }
  return sum;
}

}  // namespace
}  // namespace ince
