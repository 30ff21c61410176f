// A few rows times a packed weight with AVX-512, in float32: what decoding does with every layer.
//
// Time is that of reading the packed weight, so nothing is put in order on the way. Sixteen
// 32-bit words hold the codes of 128 weights; shifted by 4 s they are indices of a permutation
// (which looks at four bits alone), and the weights so looked up are multiplied with inputs that
// were put in the same order once. Scales are applied to sums, not to weights.

#pragma once

#include "avx512.h"

namespace ince {
namespace {
namespace gemv {

constexpr int64_t kChunk = 128;     // weights looked up together
constexpr int64_t kSegment = 4096;  // weights of which the scales are decoded together
constexpr int64_t kMaxRows = 4;     // of x

// Scales of a segment: one more where it begins within a block, and the room of decode_scales.
constexpr int64_t kMaxScales = kSegment / 32 + 1 + 16;

inline int64_t padded(int64_t num_in) { return (num_in + kChunk - 1) / kChunk * kChunk; }

// Halves of a chunk lie in one row and in one block, or in two of 32.
inline bool is_regular(const ProductArgs& args) {
  return args.num_rows <= kMaxRows && args.num_in % 64 == 0;
}

inline int64_t log2_of(int64_t power) { return __builtin_ctzll(uint64_t(power)); }

inline float load_float(const void* values, DType dtype, int64_t index) {
  return load_weight(values, dtype, index);
}

inline void store_result(const ProductArgs& args, int64_t row, int64_t out, float sum) {
  if (args.bias) sum += load_float(args.bias, args.dtype, out);
  const int64_t index = row * args.num_out + out;
  if (args.dtype == kFloat32) {
    static_cast<float*>(args.y)[index] = sum;
  } else {
    static_cast<uint16_t*>(args.y)[index] =
        args.dtype == kBFloat16 ? to_bfloat16(sum) : to_float16(sum);
  }
}

// The codes at this place of the next outputs. Rows of a few KiB, read side by side, end before the
// processor has found out where they lead.
inline void prefetch(const ProductArgs& args, int64_t pos, int64_t outs) {
  _mm_prefetch(reinterpret_cast<const char*>(args.packed + pos / 2 + outs * args.num_in / 2),
               _MM_HINT_T0);
}

// ------------------------------------------------------------------------------------ float32

// Which of eight weights of a word lies in nibble s: bytes hold the earlier in the high nibble.
constexpr int kInWord[8] = {1, 0, 3, 2, 5, 4, 7, 6};

inline int64_t arranged_bytes(const ProductArgs& args) {
  return args.num_rows * padded(args.num_in) * int64_t(sizeof(float));
}

void arrange(const ProductArgs& args, int64_t first, int64_t last) {
  const int64_t width = padded(args.num_in);
  for (int64_t row = 0; row < args.num_rows; ++row) {
    const int64_t start = row * args.num_in;
    float* out = static_cast<float*>(args.arranged) + row * width;
    for (int64_t chunk = first; chunk < last; ++chunk) {
      float* to = out + chunk * kChunk;
      for (int64_t nibble = 0; nibble < 8; ++nibble) {
        for (int64_t word = 0; word < 16; ++word) {
          const int64_t i = chunk * kChunk + word * 8 + kInWord[nibble];
          to[nibble * 16 + word] =
              i < args.num_in ? load_float(args.x, args.dtype, start + i) : 0.0f;
        }
      }
    }
  }
}

// Scales of the 128 weights from `pos` on, as they lie in sixteen words.
template <bool small>
inline __m512 scales_of_words(const float* scales, int64_t pos, int64_t last, int64_t shift) {
  const auto at = [&](int64_t i) {
    const int64_t block = (pos + i) >> shift;
    return _mm512_set1_ps(scales[block < last ? block : last]);
  };
  __m512 result = _mm512_mask_mov_ps(at(0), 0xff00, at(64));
  if constexpr (small) {
    result = _mm512_mask_mov_ps(result, 0x00f0, at(32));
    result = _mm512_mask_mov_ps(result, 0xf000, at(96));
  }
  return result;
}

template <int rows, int outs, bool small>
void multiply_outs(const ProductArgs& args, int64_t first) {
  const __m512 code = _mm512_loadu_ps(args.code->values);
  const int64_t shift = log2_of(args.blocksize);
  const int64_t width = padded(args.num_in);
  const float* x = static_cast<const float*>(args.arranged);
  __m512 sums[outs][rows];
  for (int o = 0; o < outs; ++o) {
    for (int r = 0; r < rows; ++r) sums[o][r] = _mm512_setzero_ps();
  }
  float decoded[outs][kMaxScales];
  for (int64_t segment = 0; segment < args.num_in; segment += kSegment) {
    const int64_t end = segment + kSegment < args.num_in ? segment + kSegment : args.num_in;
    const float* scales[outs];
    int64_t first_block[outs], last_block[outs];
    for (int o = 0; o < outs; ++o) {
      const int64_t start = (first + o) * args.num_in;
      first_block[o] = (start + segment) >> shift;
      last_block[o] = ((start + end - 1) >> shift) - first_block[o];
      scales[o] = decode_scales(args.scales, first_block[o], last_block[o] + 1, decoded[o]);
    }
    for (int64_t i = segment; i < end; i += kChunk) {
      const __mmask16 words = end - i >= kChunk ? 0xffff : 0x00ff;
      for (int o = 0; o < outs; ++o) {
        const int64_t pos = (first + o) * args.num_in + i;
        prefetch(args, pos, outs);
        const __m512i codes = _mm512_maskz_loadu_epi32(words, args.packed + pos / 2);
        const __m512 scale = scales_of_words<small>(
            scales[o], pos - (first_block[o] << shift), last_block[o], shift);
        __m512 part[rows];
        for (int r = 0; r < rows; ++r) part[r] = _mm512_setzero_ps();
        const auto add = [&](__m512i index, int nibble) {
          const __m512 weights = _mm512_permutexvar_ps(index, code);
          for (int r = 0; r < rows; ++r) {
            const __m512 inputs = _mm512_load_ps(x + r * width + i + nibble * 16);
            part[r] = _mm512_fmadd_ps(weights, inputs, part[r]);
          }
        };
        add(codes, 0);
        add(_mm512_srli_epi32(codes, 4), 1);
        add(_mm512_srli_epi32(codes, 8), 2);
        add(_mm512_srli_epi32(codes, 12), 3);
        add(_mm512_srli_epi32(codes, 16), 4);
        add(_mm512_srli_epi32(codes, 20), 5);
        add(_mm512_srli_epi32(codes, 24), 6);
        add(_mm512_srli_epi32(codes, 28), 7);
        for (int r = 0; r < rows; ++r) sums[o][r] = _mm512_fmadd_ps(part[r], scale, sums[o][r]);
      }
    }
  }
  for (int o = 0; o < outs; ++o) {
    for (int r = 0; r < rows; ++r) {
      store_result(args, r, first + o, _mm512_reduce_add_ps(sums[o][r]));
    }
  }
}

template <int rows, bool small>
void multiply_rows(const ProductArgs& args, int64_t first, int64_t last) {
  int64_t out = first;
  for (; out + 4 <= last; out += 4) multiply_outs<rows, 4, small>(args, out);
  for (; out < last; ++out) multiply_outs<rows, 1, small>(args, out);
}

template <bool small>
void multiply_sized(const ProductArgs& args, int64_t first, int64_t last) {
  switch (args.num_rows) {
    case 1:
      return multiply_rows<1, small>(args, first, last);
    case 2:
      return multiply_rows<2, small>(args, first, last);
    case 3:
      return multiply_rows<3, small>(args, first, last);
    default:
      return multiply_rows<4, small>(args, first, last);
  }
}

void multiply(const ProductArgs& args, int64_t first, int64_t last) {
  if (args.blocksize < 64) return multiply_sized<true>(args, first, last);
  return multiply_sized<false>(args, first, last);
}

const Product kProduct = {is_regular, arranged_bytes, arrange, kChunk, multiply, 4};

}  // namespace gemv
}  // namespace
}  // namespace ince
