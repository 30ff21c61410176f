// Eight float32 in a register, as the attention kernels use them.

#pragma once

#include <immintrin.h>

#include "scalar.h"

namespace ince {
namespace {

struct Avx2 {
  using Vec = __m256;
  static constexpr int lanes = 8;
  // Of a block of sums in registers: rows, and registers of columns.
  static constexpr int tall_rows = 4, tall_columns = 2;  // sixteen columns
  static constexpr int wide_rows = 4, wide_columns = 2;  // any number of columns

  static Vec zero() { return _mm256_setzero_ps(); }
  static Vec all(float value) { return _mm256_set1_ps(value); }
  static Vec load(const float* from) { return _mm256_loadu_ps(from); }
  static void store(float* to, Vec a) { _mm256_storeu_ps(to, a); }
  static Vec broadcast(const float* word) { return _mm256_broadcast_ss(word); }
  static Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
  static Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
  static Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
  static Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
  static Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
  // b where either is no number.
  static Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
  static Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
  static Vec round(Vec a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  // a · 2ⁿ for whole n from -127 (which gives 0) to 127.
  static Vec scale(Vec a, Vec n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
  }
  // a where the mask has a 1, b where it has a 0.
  static Vec allowed(const uint8_t* mask, Vec a, Vec b) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(mask));
    const __m256i is_zero = _mm256_cmpeq_epi32(_mm256_cvtepu8_epi32(bytes),
                                               _mm256_setzero_si256());
    return _mm256_blendv_ps(a, b, _mm256_castsi256_ps(is_zero));
  }
  static float sum(Vec a) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  // The sum of each, side by side.
  static void four_sums(Vec a, Vec b, Vec c, Vec d, float* to) {
    const Vec ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    const Vec cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    const Vec all =
        _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
  }
  static float largest(Vec a) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }

  template <DType dtype>
  static Vec load_from(const void* data, int64_t index) {
    if constexpr (dtype == kFloat32) {
      return _mm256_loadu_ps(static_cast<const float*>(data) + index);
    } else {
      const uint16_t* halves = static_cast<const uint16_t*>(data) + index;
      const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(halves));
      if constexpr (dtype == kFloat16) return _mm256_cvtph_ps(raw);
      return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
    }
  }

  template <DType dtype>
  static void store_to(void* data, int64_t index, Vec a) {
    if constexpr (dtype == kFloat32) {
      _mm256_storeu_ps(static_cast<float*>(data) + index, a);
    } else {
      __m128i raw;
      if constexpr (dtype == kFloat16) {
        raw = _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      } else {
        const __m256i bits = _mm256_castps_si256(a);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const __m256i rounded =
            _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
        const __m256 is_nan = _mm256_cmp_ps(a, a, _CMP_UNORD_Q);
        const __m256i halves = _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16),
                                                  _mm256_set1_epi32(0x7fc0),
                                                  _mm256_castps_si256(is_nan));
        raw = _mm_packus_epi32(_mm256_castsi256_si128(halves),
                               _mm256_extracti128_si256(halves, 1));
      }
      uint16_t* halves = static_cast<uint16_t*>(data) + index;
      _mm_storeu_si128(reinterpret_cast<__m128i*>(halves), raw);
    }
  }

  // Sixteen rows of `words` numbers, a multiple of sixteen, become `words` rows of sixteen.
  static void transpose(const float* rows, int64_t words, float* out) {
    for (int64_t word = 0; word < words; word += 8) {
      for (int64_t half = 0; half < 16; half += 8) {
        const float* from = rows + half * words + word;
        __m256 t[8], u[8];
        for (int i = 0; i < 8; i += 2) {
          const __m256 a = _mm256_loadu_ps(from + i * words);
          const __m256 b = _mm256_loadu_ps(from + (i + 1) * words);
          t[i] = _mm256_unpacklo_ps(a, b);
          t[i + 1] = _mm256_unpackhi_ps(a, b);
        }
        for (int i = 0; i < 8; i += 4) {
          u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
          u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
          u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
          u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
        }
        float* to = out + word * 16 + half;
        for (int i = 0; i < 4; ++i) {
          _mm256_storeu_ps(to + i * 16, _mm256_permute2f128_ps(u[i], u[i + 4], 0x20));
          _mm256_storeu_ps(to + (i + 4) * 16, _mm256_permute2f128_ps(u[i], u[i + 4], 0x31));
        }
      }
    }
  }
};

}  // namespace
}  // namespace ince
