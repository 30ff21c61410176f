// A few rows times a packed weight with AVX2, in float32; see avx512_gemv.h for the idea.
//
// Eight 32-bit words hold the codes of 64 weights. A permutation of eight looks at three bits of
// an index, so that a weight takes two of them and the fourth bit chooses.

#pragma once

#include <immintrin.h>

#include "scalar.h"

namespace ince {
namespace {
namespace gemv {

constexpr int64_t kChunk = 64;
constexpr int64_t kMaxRows = 4;

// Which of eight weights of a word lies in nibble s: bytes hold the earlier in the high nibble.
constexpr int kInWord[8] = {1, 0, 3, 2, 5, 4, 7, 6};

inline bool fits(const ProductArgs& args) {
  return args.num_rows <= kMaxRows && args.num_in % kChunk == 0;
}

inline int64_t arranged_bytes(const ProductArgs& args) {
  return args.num_rows * args.num_in * int64_t(sizeof(float));
}

void arrange(const ProductArgs& args, int64_t first, int64_t last) {
  for (int64_t row = 0; row < args.num_rows; ++row) {
    const int64_t start = row * args.num_in;
    float* out = static_cast<float*>(args.arranged) + start;
    for (int64_t chunk = first; chunk < last; ++chunk) {
      for (int64_t i = 0; i < kChunk; ++i) {
        const int64_t from = chunk * kChunk + i % 8 * 8 + kInWord[i / 8];
        out[chunk * kChunk + i] = load_weight(args.x, args.dtype, start + from);
      }
    }
  }
}

inline float sum_of(__m256 values) {
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps(values, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

inline void store_result(const ProductArgs& args, int64_t row, int64_t out, float sum) {
  if (args.bias) sum += load_weight(args.bias, args.dtype, out);
  const int64_t index = row * args.num_out + out;
  if (args.dtype == kFloat32) {
    static_cast<float*>(args.y)[index] = sum;
  } else {
    static_cast<uint16_t*>(args.y)[index] =
        args.dtype == kBFloat16 ? to_bfloat16(sum) : to_float16(sum);
  }
}

template <int rows>
void multiply_rows(const ProductArgs& args, int64_t first, int64_t last) {
  const __m256 lower = _mm256_loadu_ps(args.code->values);
  const __m256 upper = _mm256_loadu_ps(args.code->values + 8);
  const float* x = static_cast<const float*>(args.arranged);
  for (int64_t out = first; out < last; ++out) {
    __m256 sums[rows];
    for (int r = 0; r < rows; ++r) sums[r] = _mm256_setzero_ps();
    for (int64_t i = 0; i < args.num_in; i += kChunk) {
      const int64_t pos = out * args.num_in + i;
      // Beyond the end of the row lies the next.
      _mm_prefetch(reinterpret_cast<const char*>(args.packed + pos / 2 + 1024), _MM_HINT_T0);
      const __m256i codes =
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(args.packed + pos / 2));
      __m256 part[rows];
      for (int r = 0; r < rows; ++r) part[r] = _mm256_setzero_ps();
      // Nibble s: `low` brings its bits 0 … 2 to the end, `high` its bit 3 to the front.
      const auto add = [&](__m256i low, __m256i high, int nibble) {
        const __m256 weights = _mm256_blendv_ps(_mm256_permutevar8x32_ps(lower, low),
                                                _mm256_permutevar8x32_ps(upper, low),
                                                _mm256_castsi256_ps(high));
        for (int r = 0; r < rows; ++r) {
          const __m256 inputs = _mm256_loadu_ps(x + r * args.num_in + i + nibble * 8);
          part[r] = _mm256_fmadd_ps(weights, inputs, part[r]);
        }
      };
      add(codes, _mm256_slli_epi32(codes, 28), 0);
      add(_mm256_srli_epi32(codes, 4), _mm256_slli_epi32(codes, 24), 1);
      add(_mm256_srli_epi32(codes, 8), _mm256_slli_epi32(codes, 20), 2);
      add(_mm256_srli_epi32(codes, 12), _mm256_slli_epi32(codes, 16), 3);
      add(_mm256_srli_epi32(codes, 16), _mm256_slli_epi32(codes, 12), 4);
      add(_mm256_srli_epi32(codes, 20), _mm256_slli_epi32(codes, 8), 5);
      add(_mm256_srli_epi32(codes, 24), _mm256_slli_epi32(codes, 4), 6);
      add(_mm256_srli_epi32(codes, 28), codes, 7);
      // Blocks of 32 weights have a scale for each half of the words.
      const int64_t block = pos / args.blocksize;
      const float scale = scale_of(args.scales, block);
      const float later = args.blocksize < kChunk ? scale_of(args.scales, block + 1) : scale;
      const __m256 factor = _mm256_set_m128(_mm_set1_ps(later), _mm_set1_ps(scale));
      for (int r = 0; r < rows; ++r) sums[r] = _mm256_fmadd_ps(part[r], factor, sums[r]);
    }
    for (int r = 0; r < rows; ++r) store_result(args, r, out, sum_of(sums[r]));
  }
}

void multiply(const ProductArgs& args, int64_t first, int64_t last) {
  switch (args.num_rows) {
    case 1:
      return multiply_rows<1>(args, first, last);
    case 2:
      return multiply_rows<2>(args, first, last);
    case 3:
      return multiply_rows<3>(args, first, last);
    default:
      return multiply_rows<4>(args, first, last);
  }
}

const Product kProduct = {fits, arranged_bytes, arrange, kChunk, multiply, 1};

}  // namespace gemv
}  // namespace
}  // namespace ince
