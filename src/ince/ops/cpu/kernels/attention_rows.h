// Rows of an operand in and out of float32, and the exponential.

#pragma once

#include <limits>

#include "scalar.h"

namespace ince {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

template <class V, DType dtype>
inline void read_row_of(const void* data, int64_t index, int64_t width, float* out) {
  int64_t i = 0;
  for (; i + V::lanes <= width; i += V::lanes) {
    V::store(out + i, V::template load_from<dtype>(data, index + i));
  }
  for (; i < width; ++i) out[i] = load_weight(data, dtype, index + i);
}

// `width` numbers from `index` on, and zeros up to `padded`.
template <class V>
inline void read_row(const void* data, DType dtype, int64_t index, int64_t width, int64_t padded,
                     float* out) {
  switch (dtype) {
    case kFloat32:
      read_row_of<V, kFloat32>(data, index, width, out);
      break;
    case kBFloat16:
      read_row_of<V, kBFloat16>(data, index, width, out);
      break;
    default:
      read_row_of<V, kFloat16>(data, index, width, out);
  }
  for (int64_t i = width; i < padded; ++i) out[i] = 0;
}

template <class V, DType dtype>
inline void write_row_of(const float* row, float factor, void* data, int64_t index,
                         int64_t width) {
  int64_t i = 0;
  for (; i + V::lanes <= width; i += V::lanes) {
    V::template store_to<dtype>(data, index + i, V::mul(V::load(row + i), V::all(factor)));
  }
  for (; i < width; ++i) {
    const float value = row[i] * factor;
    if constexpr (dtype == kFloat32) {
      static_cast<float*>(data)[index + i] = value;
    } else {
      static_cast<uint16_t*>(data)[index + i] =
          dtype == kBFloat16 ? to_bfloat16(value) : to_float16(value);
    }
  }
}

// Writes `width` numbers times `factor` from `index` on, rounded to `dtype`.
template <class V>
inline void write_row(const float* row, float factor, void* data, DType dtype, int64_t index,
                      int64_t width) {
  switch (dtype) {
    case kFloat32:
      return write_row_of<V, kFloat32>(row, factor, data, index, width);
    case kBFloat16:
      return write_row_of<V, kBFloat16>(row, factor, data, index, width);
    default:
      return write_row_of<V, kFloat16>(row, factor, data, index, width);
  }
}

template <class V>
inline float dot_rows(const float* a, const float* b, int64_t padded) {
  typename V::Vec sums = V::zero();
  for (int64_t i = 0; i < padded; i += V::lanes) {
    sums = V::fma(V::load(a + i), V::load(b + i), sums);
  }
  return V::sum(sums);
}

// 2ˣ to about a rounding error, for x up to 127; 0 below -126.5, NaN for NaN. The polynomial is
// the one of degree 6 without the constant whose largest relative error on [-½, ½] is least,
// 2e-9.
template <class V>
inline typename V::Vec exp2(typename V::Vec x) {
  x = V::min(V::all(127.0f), V::max(V::all(-127.0f), x));
  const typename V::Vec whole = V::round(x);
  const typename V::Vec rest = V::sub(x, whole);
  typename V::Vec power = V::all(0x1.41fbbcp-13f);
  power = V::fma(power, rest, V::all(0x1.5f3e54p-10f));
  power = V::fma(power, rest, V::all(0x1.3b2d4cp-7f));
  power = V::fma(power, rest, V::all(0x1.c6aee8p-5f));
  power = V::fma(power, rest, V::all(0x1.ebfbdcp-3f));
  power = V::fma(power, rest, V::all(0x1.62e43p-1f));
  power = V::fma(power, rest, V::all(1.0f));
  return V::scale(power, whole);
}

}  // namespace
}  // namespace ince
