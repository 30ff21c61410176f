// Numbers in the 256 values of a dynamic map, in blocks that share a scale.
//
// A number's code is how many of 255 thresholds lie strictly below it. Its upper sixteen bits say
// so but for one: between two neighboring ones there is at most one threshold, since seven bits of
// mantissa are finer than any decade of a map. So a code is two reads and one comparison.

#pragma once

#include "floats.h"
#include "training.h"

namespace ince {
namespace {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// out[i] = map[codes[i]] * scale; `out` has room for a whole block.
inline void expand_codes(const uint8_t* codes, float scale, const ByteMap& map, int64_t n,
                         float* out) {
  int64_t i = 0;
#if defined(__AVX2__)
  const __m256 scales = _mm256_set1_ps(scale);
  for (; i + 8 <= n; i += 8) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + i));
    const __m256 values = _mm256_i32gather_ps(map.values, _mm256_cvtepu8_epi32(bytes), 4);
    _mm256_storeu_ps(out + i, _mm256_mul_ps(values, scales));
  }
#endif
  for (; i < n; ++i) out[i] = map.values[codes[i]] * scale;
}

// The largest magnitude as bits, which order as the numbers do, infinity and NaN above them all.
inline uint32_t largest_bits(const float* values, int64_t n) {
  Words most{};
  for_each(n, [&](int64_t i, int count) {
    const Words bits = bits_of(load<kFloat32>(values + i, count)) & 0x7fffffffu;
    most = bits > most ? bits : most;
  });
  uint32_t found = 0;
  for (int i = 0; i < kWidth; ++i) found = most[i] > found ? most[i] : found;
  return found;
}

inline uint8_t code_of(float value, const ByteMap& map) {
  const uint32_t bits = bits_of(value);
  const int32_t place = int32_t((bits & 0x7fffffffu) >> 16) - kFirstPlace;
  const uint8_t rank = map.ranks[bits >> 31][place > 0 ? place : 0];
  return uint8_t(rank + (value > map.thresholds[rank]));
}

// Codes of n <= 256 numbers, and their scale; false where one is not finite: then the scale is
// NaN, and codes are 0, as those of a block of zeros are.
inline bool code_block(const float* values, int64_t n, const ByteMap& map, uint8_t* codes,
                       float* absmax) {
  const uint32_t most = largest_bits(values, n);
  const bool is_finite = most < kInfinityBits;
  *absmax = is_finite ? float_of(most) : NAN;
  if (most == 0 || !is_finite) {
    std::memset(codes, 0, std::size_t(n));
    return is_finite;
  }
  int64_t i = 0;
#if defined(__AVX2__)
  const __m256 scale = _mm256_set1_ps(float_of(most));
  const __m256i first = _mm256_set1_epi32(kFirstPlace);
  const __m256i of_sign = _mm256_set1_epi32(kNumPlaces);
  for (; i + 8 <= n; i += 8) {
    const __m256 value = _mm256_div_ps(_mm256_loadu_ps(values + i), scale);
    const __m256i bits = _mm256_castps_si256(value);
    const __m256i upper = _mm256_srli_epi32(_mm256_slli_epi32(bits, 1), 17);
    const __m256i place =
        _mm256_add_epi32(_mm256_max_epi32(_mm256_sub_epi32(upper, first), _mm256_setzero_si256()),
                         _mm256_and_si256(_mm256_srai_epi32(bits, 31), of_sign));
    const int* ranks = reinterpret_cast<const int*>(map.ranks);
    const __m256i rank =
        _mm256_and_si256(_mm256_i32gather_epi32(ranks, place, 1), _mm256_set1_epi32(0xff));
    const __m256 threshold = _mm256_i32gather_ps(map.thresholds, rank, 4);
    // -1 where it holds
    const __m256i above = _mm256_castps_si256(_mm256_cmp_ps(value, threshold, _CMP_GT_OQ));
    const __m256i code = _mm256_sub_epi32(rank, above);
    const __m128i halves =
        _mm_packus_epi32(_mm256_castsi256_si128(code), _mm256_extracti128_si256(code, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(codes + i), _mm_packus_epi16(halves, halves));
  }
#endif
  for (; i < n; ++i) codes[i] = code_of(values[i] / float_of(most), map);
  return true;
}

template <DType dtype>
bool quantize_8bit_blocks(const EightBitArgs& args, int64_t first, int64_t last) {
  using Stored = typename Format<dtype>::Stored;
  float values[kStateBlock];
  for (int64_t block = first; block < last; ++block) {
    const int64_t start = block * kStateBlock;
    const int64_t n = smaller(kStateBlock, args.count - start);
    const Stored* from = static_cast<const Stored*>(args.values) + start;
    for_each(n, [&](int64_t i, int count) {
      store<kFloat32>(load<dtype>(from + i, count), values + i, count);
    });
    if (!code_block(values, n, *args.map, args.codes + start, args.absmax + block)) return false;
  }
  return true;
}

bool quantize_8bit(const EightBitArgs& args, int64_t first, int64_t last) {
  switch (args.dtype) {
    case kFloat32:
      return quantize_8bit_blocks<kFloat32>(args, first, last);
    case kBFloat16:
      return quantize_8bit_blocks<kBFloat16>(args, first, last);
    default:
      return quantize_8bit_blocks<kFloat16>(args, first, last);
  }
}

// `values` are float32.
void dequantize_8bit(const EightBitArgs& args, int64_t first, int64_t last) {
  for (int64_t block = first; block < last; ++block) {
    const int64_t start = block * kStateBlock;
    expand_codes(args.codes + start, args.absmax[block], *args.map,
                 smaller(kStateBlock, args.count - start),
                 static_cast<float*>(args.values) + start);
  }
}

}  // namespace
}  // namespace ince
