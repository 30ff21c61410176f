// Sixteen float32 in a register, as the attention kernels use them.

#pragma once

#include <immintrin.h>

#include "scalar.h"

namespace ince {
namespace {

struct Avx512 {
  using Vec = __m512;
  static constexpr int lanes = 16;
  static constexpr int tall_rows = 16, tall_columns = 1;
  static constexpr int wide_rows = 4, wide_columns = 4;

  static Vec zero() { return _mm512_setzero_ps(); }
  static Vec all(float value) { return _mm512_set1_ps(value); }
  static Vec load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(float* to, Vec a) { _mm512_storeu_ps(to, a); }
  static Vec broadcast(const float* word) { return _mm512_set1_ps(*word); }
  static Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
  static Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
  static Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
  static Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
  static Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
  // b where either is no number.
  static Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
  static Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
  static Vec round(Vec a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  // a · 2ⁿ for whole n from -127 (which gives 0) to 127.
  static Vec scale(Vec a, Vec n) {
    const __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_mul_ps(a, _mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23)));
  }
  // a where the mask has a 1, b where it has a 0.
  static Vec allowed(const uint8_t* mask, Vec a, Vec b) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(mask));
    return _mm512_mask_mov_ps(b, _mm_test_epi8_mask(bytes, bytes), a);
  }
  static float sum(Vec a) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    const __m128 four =
        _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  // The sum of each, side by side.
  static void four_sums(Vec a, Vec b, Vec c, Vec d, float* to) {
    const Vec ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const Vec cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const Vec all =
        _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    const __m256 eight =
        _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1)));
  }
  static float largest(Vec a) {
    const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    const __m128 four =
        _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }

  template <DType dtype>
  static Vec load_from(const void* data, int64_t index) {
    if constexpr (dtype == kFloat32) {
      return _mm512_loadu_ps(static_cast<const float*>(data) + index);
    } else {
      const uint16_t* halves = static_cast<const uint16_t*>(data) + index;
      const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves));
      if constexpr (dtype == kFloat16) return _mm512_cvtph_ps(raw);
      return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
    }
  }

  static __m256i bfloat16s(Vec a) {
    const __m512i bits = _mm512_castps_si512(a);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __mmask16 is_nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), is_nan,
                                                       _mm512_set1_epi32(0x7fc0)));
  }

  template <DType dtype>
  static void store_to(void* data, int64_t index, Vec a) {
    if constexpr (dtype == kFloat32) {
      _mm512_storeu_ps(static_cast<float*>(data) + index, a);
    } else {
      __m256i raw;
      if constexpr (dtype == kFloat16) {
        raw = _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      } else {
        raw = bfloat16s(a);
      }
      uint16_t* halves = static_cast<uint16_t*>(data) + index;
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(halves), raw);
    }
  }

  // Sixteen rows of `words` words, a multiple of sixteen, become `words` rows of sixteen.
  static void transpose(const float* rows, int64_t words, float* out) {
    for (int64_t word = 0; word < words; word += 16) {
      __m512 v[16], t[16];
      for (int i = 0; i < 16; ++i) v[i] = _mm512_loadu_ps(rows + i * words + word);
      for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
      }
      for (int i = 0; i < 16; i += 4) {
        v[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
        v[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
        v[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        v[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
      }
      for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_f32x4(v[i], v[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_f32x4(v[i], v[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_f32x4(v[i + 8], v[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_f32x4(v[i + 8], v[i + 12], 0xdd);
      }
      for (int i = 0; i < 8; ++i) {
        _mm512_storeu_ps(out + (word + i) * 16, _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88));
        _mm512_storeu_ps(out + (word + i + 8) * 16, _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd));
      }
    }
  }
};

}  // namespace
}  // namespace ince
