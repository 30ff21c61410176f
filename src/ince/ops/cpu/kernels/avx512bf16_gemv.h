// A few rows times a packed weight, inputs in bfloat16, on the instruction that multiplies pairs.
//
// Thirty-two 16-bit words hold the codes of 128 weights. Shifted by 4 s and cleared of the rest,
// they are indices into the products of two blocks, rounded to bfloat16 as the reference rounds
// them: what is multiplied is exactly the expanded weight.

#pragma once

#include "avx512_gemv.h"

namespace ince {
namespace {
namespace gemv_bf16 {

constexpr int64_t kMaxRows = 8;

using gemv::kChunk;
using gemv::kMaxScales;
using gemv::kSegment;
using gemv::padded;

// Which of four weights of a word lies in nibble s.
constexpr int kInWord[4] = {1, 0, 3, 2};

bool fits(const ProductArgs& args) {
  return args.dtype == kBFloat16 && args.num_in % 64 == 0 && args.num_rows <= kMaxRows;
}

int64_t arranged_bytes(const ProductArgs& args) {
  return args.num_rows * padded(args.num_in) * int64_t(sizeof(uint16_t));
}

void arrange(const ProductArgs& args, int64_t first, int64_t last) {
  const int64_t width = padded(args.num_in);
  for (int64_t row = 0; row < args.num_rows; ++row) {
    const uint16_t* from = static_cast<const uint16_t*>(args.x) + row * args.num_in;
    uint16_t* to = static_cast<uint16_t*>(args.arranged) + row * width;
    for (int64_t chunk = first; chunk < last; ++chunk) {
      const int64_t i = chunk * kChunk;
      for (int64_t nibble = 0; nibble < 4; ++nibble) {
        const int64_t num_words = args.num_in - i >= kChunk ? 32 : 16;
        uint16_t* words = to + i + nibble * 32;
        for (int64_t word = 0; word < num_words; ++word) {
          words[word] = from[i + word * 4 + kInWord[nibble]];
        }
        for (int64_t word = num_words; word < 32; ++word) words[word] = 0;
      }
    }
  }
}

// Products of two blocks with all sixteen values, in bfloat16.
inline __m512i two_tables(__m512 code, float scale0, float scale1) {
  return __m512i(_mm512_cvtne2ps_pbh(_mm512_mul_ps(code, _mm512_set1_ps(scale1)),
                                     _mm512_mul_ps(code, _mm512_set1_ps(scale0))));
}

template <int rows, int outs, bool small>
void multiply_outs(const ProductArgs& args, int64_t first) {
  const __m512 code = _mm512_loadu_ps(args.code->values);
  const __m512i nibble_bits = _mm512_set1_epi16(15);
  // Which table a word looks into: of two of 64 weights, or of four of 32.
  const __m512i table_bits =
      small ? _mm512_set_epi64(0x0030003000300030, 0x0030003000300030, 0x0020002000200020,
                               0x0020002000200020, 0x0010001000100010, 0x0010001000100010, 0, 0)
            : _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(16), 1);
  const int64_t shift = gemv::log2_of(args.blocksize);
  const int64_t width = padded(args.num_in);
  const uint16_t* x = static_cast<const uint16_t*>(args.arranged);
  // One product waits for another of the same sum, so that there should be eight sums or more.
  constexpr int parts = outs * rows < 8 ? 2 : 1;
  __m512 sums[outs][rows][parts];
  for (int o = 0; o < outs; ++o) {
    for (int r = 0; r < rows; ++r) {
      for (int part = 0; part < parts; ++part) sums[o][r][part] = _mm512_setzero_ps();
    }
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
      const __mmask16 present = end - i >= kChunk ? 0xffff : 0x00ff;
      for (int o = 0; o < outs; ++o) {
        const int64_t pos = (first + o) * args.num_in + i;
        const int64_t in_blocks = pos - (first_block[o] << shift);
        const auto scale = [&](int64_t offset) {
          const int64_t block = (in_blocks + offset) >> shift;
          return scales[o][block < last_block[o] ? block : last_block[o]];
        };
        const __m512i words = _mm512_maskz_loadu_epi32(present, args.packed + pos / 2);
        gemv::prefetch(args, pos, outs);
        __m512i table0, table1;
        if constexpr (small) {
          table0 = two_tables(code, scale(0), scale(32));
          table1 = two_tables(code, scale(64), scale(96));
        } else {
          table0 = table1 = two_tables(code, scale(0), scale(64));
        }
        const auto add = [&](__m512i shifted, int nibble) {
          // (shifted & nibble_bits) | table_bits
          const __m512i index =
              _mm512_ternarylogic_epi32(shifted, nibble_bits, table_bits, 0xea);
          const __m512i weights = small ? _mm512_permutex2var_epi16(table0, index, table1)
                                        : _mm512_permutexvar_epi16(index, table0);
          for (int r = 0; r < rows; ++r) {
            const __m512i inputs = _mm512_load_si512(x + r * width + i + nibble * 32);
            __m512& sum = sums[o][r][nibble % parts];
            sum = _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)inputs);
          }
        };
        add(words, 0);
        add(_mm512_srli_epi16(words, 4), 1);
        add(_mm512_srli_epi16(words, 8), 2);
        add(_mm512_srli_epi16(words, 12), 3);
      }
    }
  }
  for (int o = 0; o < outs; ++o) {
    for (int r = 0; r < rows; ++r) {
      __m512 sum = sums[o][r][0];
      for (int part = 1; part < parts; ++part) sum = _mm512_add_ps(sum, sums[o][r][part]);
      gemv::store_result(args, r, first + o, _mm512_reduce_add_ps(sum));
    }
  }
}

template <int rows, bool small>
void multiply_rows(const ProductArgs& args, int64_t first, int64_t last) {
  constexpr int outs = rows <= 4 ? 4 : 2;  // what the registers hold
  int64_t out = first;
  for (; out + outs <= last; out += outs) multiply_outs<rows, outs, small>(args, out);
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
    case 4:
      return multiply_rows<4, small>(args, first, last);
    case 5:
      return multiply_rows<5, small>(args, first, last);
    case 6:
      return multiply_rows<6, small>(args, first, last);
    case 7:
      return multiply_rows<7, small>(args, first, last);
    default:
      return multiply_rows<8, small>(args, first, last);
  }
}

void multiply(const ProductArgs& args, int64_t first, int64_t last) {
  if (args.blocksize < 64) return multiply_sized<true>(args, first, last);
  return multiply_sized<false>(args, first, last);
}

const Product kProduct = {fits, arranged_bytes, arrange, kChunk, multiply, 4};

}  // namespace gemv_bf16
}  // namespace
}  // namespace ince
