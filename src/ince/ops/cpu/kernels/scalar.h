// One weight at a time: the whole portable backend, and the short last block of every other.
//
// Included by each file of an instruction set and compiled there with its flags, hence the
// unnamed namespace. Arithmetic is float32, each operation rounded to nearest even.

#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace ince {
namespace {

// Against division by zero, at the value of bitsandbytes.
constexpr float kLeastScale = 1e-38f;
constexpr uint32_t kInfinityBits = 0x7f800000u;

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float from_bfloat16(uint16_t half) { return float_of(uint32_t(half) << 16); }

inline uint16_t to_bfloat16(float value) {
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffffu) > kInfinityBits) return 0x7fc0;
  return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float from_float16(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_of(sign | kInfinityBits | (magnitude & 0x3ffu) << 13);
  if (magnitude >= 0x0400u) return float_of(sign | ((magnitude << 13) + 0x38000000u));
  // Subnormal: a multiple of 2**-24, exact in float32.
  return float_of(sign | bits_of(float(magnitude) * 5.9604644775390625e-08f));
}

inline uint16_t to_float16(float value) {
  const uint32_t bits = bits_of(value);
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > kInfinityBits) return uint16_t(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return uint16_t(sign | 0x7c00u);  // 65520 and more
  if (magnitude < 0x38800000u) {
    // Below 2**-14: the sum with 0.5 rounds to multiples of 2**-24 by itself.
    return uint16_t(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u));
  }
  return uint16_t(sign | ((magnitude - 0x38000000u + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13));
}

inline float load_weight(const void* weights, DType dtype, int64_t index) {
  switch (dtype) {
    case kFloat32:
      return static_cast<const float*>(weights)[index];
    case kBFloat16:
      return from_bfloat16(static_cast<const uint16_t*>(weights)[index]);
    default:
      return from_float16(static_cast<const uint16_t*>(weights)[index]);
  }
}

inline float scale_of(const Scales& scales, int64_t block) {
  block += scales.first;
  if (scales.absmax) return scales.absmax[block];
  const float product = scales.map[scales.codes[block]] * scales.nested[block >> 8];
  return product + *scales.offset;
}

inline uint32_t rank_of(const float* thresholds, float value) {
  uint32_t rank = value > thresholds[7] ? 8 : 0;
  rank += value > thresholds[rank + 3] ? 4 : 0;
  rank += value > thresholds[rank + 1] ? 2 : 0;
  rank += value > thresholds[rank] ? 1 : 0;
  return rank;
}

// ------------------------------------------------------------------------------ scale search

// Whether another scale is looked for; products with scales beyond could leave float32.
inline bool is_searched(const QuantizeArgs& args, float scale) {
  return args.factors && scale >= 0x1p-100f && scale <= 0x1p100f;
}

// Of u[i] * c[i] and of c[i] * c[i], where c[i] is the nearest value to u[i] * factor.
struct Sums {
  float products, squares;
};

// The second half onto the first, until one is left: the order in which the reference adds.
inline float sum_by_halves(float* values, int64_t length) {
  for (int64_t half = length / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) values[i] += values[i + half];
  }
  return values[0];
}

inline Sums sums_of(const Code& code, const float* normalized, int64_t length, float factor) {
  float products[kMaxBlocksize];
  float squares[kMaxBlocksize];
  for (int64_t i = 0; i < length; ++i) {
    const uint32_t rank = rank_of(code.thresholds, normalized[i] * factor);
    const float value = code.values[code.by_rank[rank]];
    products[i] = normalized[i] * value;
    squares[i] = value * value;
  }
  return {sum_by_halves(products, length), sum_by_halves(squares, length)};
}

// What to multiply a block's scale with; see the rule in ince.ops.reference.scale_search.
// sums(factor) are the block's `Sums`.
template <typename SumsOf>
inline float best_factor(const QuantizeArgs& args, const SumsOf& sums) {
  float best = 1.0f;
  float best_gain = 0.0f;
  for (int32_t i = 0; i < args.num_factors; ++i) {
    const Sums found = sums(args.factors[i]);
    const float factor = found.products / found.squares;
    const float gain = found.products * factor;
    if (i == 0 || gain > best_gain) {
      best_gain = gain;
      best = factor;
    }
  }
  return best;
}

// ------------------------------------------------------------------------------------- blocks

// A block of any length, the short last one too; false when a weight is not finite.
inline bool quantize_block(const QuantizeArgs& args, int64_t block) {
  const int64_t start = block * args.blocksize;
  const int64_t left = args.num_weights - start;
  const int64_t length = left < args.blocksize ? left : args.blocksize;
  uint32_t largest = 0;
  for (int64_t i = 0; i < length; ++i) {
    const uint32_t bits = bits_of(load_weight(args.weight, args.dtype, start + i)) & 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  if (largest >= kInfinityBits) return false;
  const bool is_short = length < args.blocksize;
  const auto raised = [](float scale) { return scale < kLeastScale ? kLeastScale : scale; };
  float scale = is_short ? raised(float_of(largest)) : float_of(largest);
  alignas(64) float normalized[kMaxBlocksize];
  const auto normalize = [&] {
    const float inverse = 1.0f / raised(scale);
    for (int64_t i = 0; i < length; ++i) {
      const float weight = load_weight(args.weight, args.dtype, start + i);
      // bitsandbytes divides in a short block.
      const float value = is_short ? weight / scale : weight * inverse;
      normalized[i] = value > 1.0f ? 1.0f : value < -1.0f ? -1.0f : value;
    }
  };
  normalize();
  if (is_searched(args, scale)) {
    for (int64_t i = length; i < args.blocksize; ++i) normalized[i] = 0.0f;
    scale *= best_factor(args, [&](float factor) {
      return sums_of(*args.code, normalized, args.blocksize, factor);
    });
    normalize();
  }
  args.absmax[block] = scale;
  const Code& code = *args.code;
  uint8_t* packed = args.packed + start / 2;
  for (int64_t i = 0; i < length; i += 2) {
    const uint8_t earlier = code.by_rank[rank_of(code.thresholds, normalized[i])];
    const uint8_t later =
        i + 1 < length ? code.by_rank[rank_of(code.thresholds, normalized[i + 1])] : code.zero;
    packed[i / 2] = uint8_t(earlier << 4 | later);
  }
  return true;
}

inline void dequantize_block(const DequantizeArgs& args, int64_t block) {
  const int64_t start = block * args.blocksize;
  const int64_t left = args.num_weights - start;
  const int64_t length = left < args.blocksize ? left : args.blocksize;
  const uint8_t* packed = args.packed + start / 2;
  const float scale = scale_of(args.scales, block);
  float table[16];
  for (int i = 0; i < 16; ++i) table[i] = args.code->values[i] * scale;
  if (args.dtype == kFloat32) {
    float* out = static_cast<float*>(args.out) + start;
    for (int64_t i = 0; i + 1 < length; i += 2) {
      const uint8_t byte = packed[i / 2];
      out[i] = table[byte >> 4];
      out[i + 1] = table[byte & 15];
    }
    if (length % 2) out[length - 1] = table[packed[length / 2] >> 4];
    return;
  }
  uint16_t halves[16];
  for (int i = 0; i < 16; ++i) {
    halves[i] = args.dtype == kBFloat16 ? to_bfloat16(table[i]) : to_float16(table[i]);
  }
  uint16_t* out = static_cast<uint16_t*>(args.out) + start;
  for (int64_t i = 0; i + 1 < length; i += 2) {
    const uint8_t byte = packed[i / 2];
    out[i] = halves[byte >> 4];
    out[i + 1] = halves[byte & 15];
  }
  if (length % 2) out[length - 1] = halves[packed[length / 2] >> 4];
}

}  // namespace
}  // namespace ince
