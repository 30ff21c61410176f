// Quantization and dequantization with AVX-512, with or without its bfloat16 instructions.
//
// Quantization finds the rank of sixteen weights at once by bisection, each step a permutation
// of the thresholds and one comparison. Dequantization computes the sixteen products of a block
// once, rounds them once, and then only looks up: a permutation moves 16 or 32 weights, and
// nothing is multiplied or rounded twice.

#pragma once

#include <immintrin.h>

#include "scalar.h"

namespace ince {
namespace {

constexpr int kDecoded = 64;  // scales decoded at a time

// ------------------------------------------------------------------------------- conversions

template <DType dtype>
inline __m512 load_weights(const void* weights, int64_t index) {
  if constexpr (dtype == kFloat32) {
    return _mm512_loadu_ps(static_cast<const float*>(weights) + index);
  } else {
    const uint16_t* halves = static_cast<const uint16_t*>(weights) + index;
    const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves));
    if constexpr (dtype == kBFloat16) {
      return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
    } else {
      return _mm512_cvtph_ps(raw);
    }
  }
}

// Sixteen bfloat16, rounded to nearest even; subnormal numbers kept, NaN as PyTorch writes it.
inline __m256i to_bfloat16s(__m512 values) {
  const __m512i bits = _mm512_castps_si512(values);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 is_nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
  const __m512i halves = _mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), is_nan,
                                               _mm512_set1_epi32(0x7fc0));
  return _mm512_cvtepi32_epi16(halves);
}

// ------------------------------------------------------------------------------ quantization

struct Ranks {
  __m512 middle, quarters, eighths, all, ascending;
  __m512i by_rank;

  explicit Ranks(const Code& code) {
    float at[4][16];
    float values[16];
    int32_t order[16];
    for (int rank = 0; rank < 16; ++rank) {
      at[0][rank] = code.thresholds[7];
      at[1][rank] = code.thresholds[rank + 3 < 15 ? rank + 3 : 14];
      at[2][rank] = code.thresholds[rank + 1 < 15 ? rank + 1 : 14];
      at[3][rank] = code.thresholds[rank < 15 ? rank : 14];
      order[rank] = code.by_rank[rank];
      values[rank] = code.values[order[rank]];
    }
    middle = _mm512_loadu_ps(at[0]);
    quarters = _mm512_loadu_ps(at[1]);
    eighths = _mm512_loadu_ps(at[2]);
    all = _mm512_loadu_ps(at[3]);
    ascending = _mm512_loadu_ps(values);
    by_rank = _mm512_loadu_si512(order);
  }

  // Codes of sixteen values, one in 32 bits.
  __m512i codes(__m512 values) const { return _mm512_permutexvar_epi32(of(values), by_rank); }

  // What they stand for.
  __m512 nearest(__m512 values) const { return _mm512_permutexvar_ps(of(values), ascending); }

  __m512i of(__m512 values) const {
    const auto step = [&](__m512i rank, __m512 thresholds, int size) {
      const __mmask16 above = _mm512_cmp_ps_mask(values, thresholds, _CMP_GT_OQ);
      return _mm512_mask_add_epi32(rank, above, rank, _mm512_set1_epi32(size));
    };
    const __mmask16 upper = _mm512_cmp_ps_mask(values, middle, _CMP_GT_OQ);
    __m512i rank = _mm512_maskz_mov_epi32(upper, _mm512_set1_epi32(8));
    rank = step(rank, _mm512_permutexvar_ps(rank, quarters), 4);
    rank = step(rank, _mm512_permutexvar_ps(rank, eighths), 2);
    rank = step(rank, _mm512_permutexvar_ps(rank, all), 1);
    return rank;
  }
};

// Sixteen codes in 32 bits each to eight bytes, the earlier of two in the high nibble.
inline __m128i packed_pairs(__m512i codes) {
  const __m512i pairs =
      _mm512_or_si512(_mm512_slli_epi64(codes, 4), _mm512_srli_epi64(codes, 32));
  return _mm512_cvtepi64_epi8(pairs);
}

// By halves, as the reference adds: the last four steps within a register.
inline float sum_of_lanes(__m512 values) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(values),
                                     _mm512_extractf32x8_ps(values, 1));
  const __m128 four =
      _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// Of `fixed` registers of weights, or, where that is 0, of `count`.
template <int fixed>
Sums sums_of(const Ranks& ranks, const float* normalized, int64_t count, float factor) {
  constexpr int64_t room = fixed ? fixed : kMaxBlocksize / 16;
  if (fixed) count = fixed;
  __m512 products[room];
  __m512 squares[room];
  for (int64_t i = 0; i < count; ++i) {
    const __m512 value = _mm512_load_ps(normalized + i * 16);
    const __m512 nearest = ranks.nearest(_mm512_mul_ps(value, _mm512_set1_ps(factor)));
    products[i] = _mm512_mul_ps(value, nearest);
    squares[i] = _mm512_mul_ps(nearest, nearest);
  }
  for (int64_t half = count / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) {
      products[i] = _mm512_add_ps(products[i], products[i + half]);
      squares[i] = _mm512_add_ps(squares[i], squares[i + half]);
    }
  }
  return {sum_of_lanes(products[0]), sum_of_lanes(squares[0])};
}

// The factor of a full block's scale.
template <DType dtype>
float searched_factor(const QuantizeArgs& args, const Ranks& ranks, int64_t start, float scale) {
  const __m512 inverse = _mm512_set1_ps(1.0f / scale);
  const __m512 one = _mm512_set1_ps(1.0f);
  alignas(64) float normalized[kMaxBlocksize];
  for (int64_t i = 0; i < args.blocksize; i += 16) {
    const __m512 value = _mm512_mul_ps(load_weights<dtype>(args.weight, start + i), inverse);
    _mm512_store_ps(normalized + i, _mm512_max_ps(_mm512_min_ps(value, one),
                                                  _mm512_set1_ps(-1.0f)));
  }
  return best_factor(args, [&](float factor) {
    switch (args.blocksize) {
      case 32:
        return sums_of<2>(ranks, normalized, 2, factor);
      case 64:
        return sums_of<4>(ranks, normalized, 4, factor);
      case 128:
        return sums_of<8>(ranks, normalized, 8, factor);
      default:
        return sums_of<0>(ranks, normalized, args.blocksize / 16, factor);
    }
  });
}

template <DType dtype>
bool quantize_blocks(const QuantizeArgs& args, int64_t first, int64_t last) {
  const Ranks ranks(*args.code);
  const __m512i magnitude_bits = _mm512_set1_epi32(0x7fffffff);
  const int64_t size = args.blocksize;
  for (int64_t block = first; block < last; ++block) {
    const int64_t start = block * size;
    if (start + size > args.num_weights) return quantize_block(args, block);
    // Magnitudes are compared as integers: these order NaN above infinity.
    __m512i largest0 = _mm512_setzero_si512();
    __m512i largest1 = largest0;
    for (int64_t i = 0; i < size; i += 32) {
      const __m512 low = load_weights<dtype>(args.weight, start + i);
      const __m512 high = load_weights<dtype>(args.weight, start + i + 16);
      largest0 = _mm512_max_epi32(
          largest0, _mm512_and_si512(_mm512_castps_si512(low), magnitude_bits));
      largest1 = _mm512_max_epi32(
          largest1, _mm512_and_si512(_mm512_castps_si512(high), magnitude_bits));
    }
    const uint32_t largest =
        uint32_t(_mm512_reduce_max_epi32(_mm512_max_epi32(largest0, largest1)));
    if (largest >= kInfinityBits) return false;
    float scale = float_of(largest);
    if (is_searched(args, scale)) scale *= searched_factor<dtype>(args, ranks, start, scale);
    args.absmax[block] = scale;
    const __m512 inverse = _mm512_set1_ps(1.0f / (scale < kLeastScale ? kLeastScale : scale));
    uint8_t* packed = args.packed + start / 2;
    for (int64_t i = 0; i < size; i += 32) {
      const __m512 low = load_weights<dtype>(args.weight, start + i);
      const __m512 high = load_weights<dtype>(args.weight, start + i + 16);
      const __m128i first_bytes = packed_pairs(ranks.codes(_mm512_mul_ps(low, inverse)));
      const __m128i last_bytes = packed_pairs(ranks.codes(_mm512_mul_ps(high, inverse)));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(packed + i / 2),
                       _mm_unpacklo_epi64(first_bytes, last_bytes));
    }
  }
  return true;
}

bool quantize(const QuantizeArgs& args, int64_t first, int64_t last) {
  switch (args.dtype) {
    case kFloat32:
      return quantize_blocks<kFloat32>(args, first, last);
    case kBFloat16:
      return quantize_blocks<kBFloat16>(args, first, last);
    default:
      return quantize_blocks<kFloat16>(args, first, last);
  }
}

// ---------------------------------------------------------------------------- dequantization

// Scales of `count` blocks, decoded; the pointer is to them or to where they already are.
// `decoded` has room for `count` and up to fifteen more.
inline const float* decode_scales(const Scales& scales, int64_t first, int64_t count,
                                  float* decoded) {
  first += scales.first;
  if (scales.absmax) return scales.absmax + first;
  for (int64_t i = 0; i < count; i += 16) {
    const int64_t left = count - i;
    const __mmask16 mask = left < 16 ? __mmask16((1u << left) - 1) : __mmask16(0xffff);
    const __m128i codes = _mm_maskz_loadu_epi8(mask, scales.codes + first + i);
    const __m512 values = _mm512_i32gather_ps(_mm512_cvtepu8_epi32(codes), scales.map, 4);
    // Sixteen scales have at most two scales of their own.
    const int64_t group = (first + i) >> 8;
    const int64_t in_first = ((group + 1) << 8) - (first + i);
    __m512 nested = _mm512_set1_ps(scales.nested[group]);
    if (in_first < 16 && in_first < left) {
      nested = _mm512_mask_mov_ps(nested, __mmask16(0xffffu << in_first),
                                  _mm512_set1_ps(scales.nested[group + 1]));
    }
    const __m512 absmax =
        _mm512_add_ps(_mm512_mul_ps(values, nested), _mm512_set1_ps(*scales.offset));
    _mm512_mask_storeu_ps(decoded + i, mask, absmax);
  }
  return decoded;
}

// The products of a block, in the type of the result, ready for a permutation.
template <DType dtype>
inline __m512i product_table(__m512 code, float scale) {
  const __m512 products = _mm512_mul_ps(code, _mm512_set1_ps(scale));
  if constexpr (dtype == kFloat32) {
    return _mm512_castps_si512(products);
  } else {
    __m256i halves;
    if constexpr (dtype == kFloat16) {
      halves = _mm512_cvtps_ph(products, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    } else {
#if defined(__AVX512BF16__)
      // The instruction takes subnormal numbers for zero; no product is one here.
      if (scale > 1e-30f && scale < 1e38f) {
        halves = __m256i(_mm512_cvtneps_pbh(products));
      } else {
        halves = to_bfloat16s(products);
      }
#else
      halves = to_bfloat16s(products);
#endif
    }
    // An index into 32 entries has five bits, a code four: whatever the fifth is, it is there.
    return _mm512_broadcast_i64x4(halves);
  }
}

// 64 bytes of weights: 16 of float32 out of 8 bytes, 32 of 16 bits out of 16 bytes.
template <DType dtype>
inline __m512i look_up(__m512i table, const uint8_t* packed) {
  if constexpr (dtype == kFloat32) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(packed));
    const __m512i spread = _mm512_cvtepu8_epi64(bytes);
#if defined(__AVX512VBMI__)
    const __m512i index = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(4), spread);
#else
    const __m512i index =
        _mm512_or_si512(_mm512_srli_epi64(spread, 4), _mm512_slli_epi64(spread, 32));
#endif
    return _mm512_permutexvar_epi32(index, table);
  } else {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(packed));
#if defined(__AVX512VBMI__)
    // Two bytes in 64 bits, of which each nibble goes to the low end of 16.
    const __m512i at = _mm512_set1_epi64(0x0008000c00000004);
    const __m512i index = _mm512_multishift_epi64_epi8(at, _mm512_cvtepu16_epi64(bytes));
#else
    const __m512i spread = _mm512_cvtepu8_epi32(bytes);
    const __m512i index =
        _mm512_or_si512(_mm512_srli_epi32(spread, 4), _mm512_slli_epi32(spread, 16));
#endif
    return _mm512_permutexvar_epi16(index, table);
  }
}

template <DType dtype>
void dequantize_blocks(const DequantizeArgs& args, int64_t first, int64_t last) {
  constexpr int64_t step = dtype == kFloat32 ? 16 : 32;  // weights in 64 bytes
  constexpr int64_t weight_bytes = 64 / step;
  const __m512 code = _mm512_loadu_ps(args.code->values);
  const int64_t size = args.blocksize;
  const int64_t num_full = args.num_weights / size;
  const int64_t last_full = last < num_full ? last : num_full;
  float decoded[kDecoded];
  for (int64_t group = first; group < last_full; group += kDecoded) {
    const int64_t left = last_full - group;
    const int64_t count = left < kDecoded ? left : kDecoded;
    const float* scales = decode_scales(args.scales, group, count, decoded);
    const uint8_t* packed = args.packed + group * size / 2;
    uint8_t* out = static_cast<uint8_t*>(args.out) + group * size * weight_bytes;
    for (int64_t i = 0; i < count; ++i) {
      const __m512i table = product_table<dtype>(code, scales[i]);
      for (int64_t j = 0; j < size; j += step) {
        _mm512_storeu_si512(out, look_up<dtype>(table, packed));
        packed += step / 2;
        out += 64;
      }
    }
  }
  if (last > num_full) dequantize_block(args, num_full);
}

void dequantize(const DequantizeArgs& args, int64_t first, int64_t last) {
  switch (args.dtype) {
    case kFloat32:
      return dequantize_blocks<kFloat32>(args, first, last);
    case kBFloat16:
      return dequantize_blocks<kBFloat16>(args, first, last);
    default:
      return dequantize_blocks<kFloat16>(args, first, last);
  }
}

}  // namespace
}  // namespace ince
