// Tens of rows times a packed weight, inputs in bfloat16: prompts, and batches while training.
//
// The rows of x lie across the lanes, sixteen to a register, arranged once as pairs of inputs;
// weights are expanded twelve outputs at a time into a buffer in the first-level cache, in the
// order that they have, and each pair of them is broadcast. So nothing is transposed but x, and
// the expanded weight never leaves the core. Sums stay in registers over a piece of the inputs.

#pragma once

#include "avx512.h"

namespace ince {
namespace {
namespace rows_bf16 {

constexpr int64_t kOuts = 12;      // outputs expanded together
constexpr int64_t kPiece = 512;    // inputs of them
constexpr int64_t kPanel = 64;     // rows, in four registers
constexpr int64_t kMaxRows = 128;  // above, one large product of an expanded weight is as quick
constexpr int64_t kMaxScales = kPiece / 32 + 1 + 16;

bool fits(const ProductArgs& args) {
  return args.dtype == kBFloat16 && args.num_in % 64 == 0 && args.num_rows <= kMaxRows;
}

inline int64_t num_groups(const ProductArgs& args) { return (args.num_rows + 15) / 16; }

int64_t arranged_bytes(const ProductArgs& args) {
  return num_groups(args) * 16 * args.num_in * int64_t(sizeof(uint16_t));
}

// Where pair `pair` of the inputs of the panel of group `group` begins, in 32-bit words.
inline int64_t panel_start(const ProductArgs& args, int64_t panel) {
  return panel * kPanel * (args.num_in / 2);
}

inline int64_t groups_of_panel(const ProductArgs& args, int64_t panel) {
  const int64_t left = num_groups(args) - panel * 4;
  return left < 4 ? left : 4;
}

// ----------------------------------------------------------------------------------- arrange x

// Sixteen rows of sixteen 32-bit words: rows become columns.
inline void transpose(__m512i (&v)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; ++i) {
    v[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    v[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
  }
}

void arrange(const ProductArgs& args, int64_t first, int64_t last) {
  const int64_t num_pairs = args.num_in / 2;
  const uint32_t* x = static_cast<const uint32_t*>(args.x);
  uint32_t* out = static_cast<uint32_t*>(args.arranged);
  for (int64_t group = 0; group < num_groups(args); ++group) {
    const int64_t panel = group / 4;
    const int64_t stride = groups_of_panel(args, panel) * 16;
    uint32_t* to = out + panel_start(args, panel) + group % 4 * 16;
    for (int64_t part = first; part < last; ++part) {
      __m512i words[16];
      for (int64_t i = 0; i < 16; ++i) {
        const int64_t row = group * 16 + i;
        words[i] = row < args.num_rows ? _mm512_loadu_si512(x + row * num_pairs + part * 16)
                                       : _mm512_setzero_si512();
      }
      transpose(words);
      for (int64_t i = 0; i < 16; ++i) {
        _mm512_store_si512(to + (part * 16 + i) * stride, words[i]);
      }
    }
  }
}

// ------------------------------------------------------------------------------------ multiply

// `length` weights from weight `pos` on, both multiples of 32.
inline void expand_piece(const ProductArgs& args, __m512 code, int64_t pos, int64_t length,
                         uint16_t* out) {
  float decoded[kMaxScales];
  const int64_t first_block = pos / args.blocksize;
  const int64_t num_blocks = (pos + length - 1) / args.blocksize + 1 - first_block;
  const float* scales = decode_scales(args.scales, first_block, num_blocks, decoded);
  const uint8_t* packed = args.packed + pos / 2;
  const int64_t end = pos + length;
  for (int64_t block = 0; block < num_blocks; ++block) {
    const __m512i table = product_table<kBFloat16>(code, scales[block]);
    const int64_t block_end = (first_block + block + 1) * args.blocksize;
    const int64_t stop = block_end < end ? block_end : end;
    for (; pos < stop; pos += 32, packed += 16, out += 32) {
      _mm512_store_si512(out, look_up<kBFloat16>(table, packed));
    }
  }
}

// Adds the products of a piece to the sums of `outs` outputs and `groups` times sixteen rows.
template <int groups, int outs>
inline void add_piece(const uint16_t* weights, const uint32_t* x, int64_t num_pairs, float* sums) {
  __m512 acc[outs][groups];
  for (int o = 0; o < outs; ++o) {
    for (int g = 0; g < groups; ++g) acc[o][g] = _mm512_load_ps(sums + (o * groups + g) * 16);
  }
  for (int64_t pair = 0; pair < num_pairs; ++pair) {
    __m512i inputs[groups];
    for (int g = 0; g < groups; ++g) {
      inputs[g] = _mm512_load_si512(x + (pair * groups + g) * 16);
    }
    for (int o = 0; o < outs; ++o) {
      int32_t two;
      std::memcpy(&two, weights + o * kPiece + pair * 2, sizeof two);
      const __m512i broadcast = _mm512_set1_epi32(two);
      for (int g = 0; g < groups; ++g) {
        acc[o][g] = _mm512_dpbf16_ps(acc[o][g], (__m512bh)broadcast, (__m512bh)inputs[g]);
      }
    }
  }
  for (int o = 0; o < outs; ++o) {
    for (int g = 0; g < groups; ++g) _mm512_store_ps(sums + (o * groups + g) * 16, acc[o][g]);
  }
}

template <int groups>
void add_outs(const uint16_t* weights, const uint32_t* x, int64_t num_pairs, float* sums) {
  // As many sums as registers hold beside the inputs.
  constexpr int outs = groups > 2 ? 6 : 12;
  for (int o = 0; o < kOuts; o += outs) {
    add_piece<groups, outs>(weights + o * kPiece, x, num_pairs, sums + o * groups * 16);
  }
}

void store_outs(const ProductArgs& args, int64_t panel, int64_t first, int64_t num_outs,
                const float* sums) {
  const int64_t groups = groups_of_panel(args, panel);
  const int64_t row0 = panel * kPanel;
  const int64_t left = args.num_rows - row0;
  const int64_t num_rows = left < groups * 16 ? left : groups * 16;
  alignas(64) uint16_t halves[kOuts][kPanel];
  for (int64_t o = 0; o < num_outs; ++o) {
    const __m512 bias = _mm512_set1_ps(
        args.bias ? from_bfloat16(static_cast<const uint16_t*>(args.bias)[first + o]) : 0.0f);
    for (int64_t g = 0; g < groups; ++g) {
      const __m512 sum = _mm512_load_ps(sums + (o * groups + g) * 16);
      _mm256_store_si256(reinterpret_cast<__m256i*>(&halves[o][g * 16]),
                         to_bfloat16s(_mm512_add_ps(sum, bias)));
    }
  }
  uint16_t* y = static_cast<uint16_t*>(args.y) + row0 * args.num_out + first;
  for (int64_t row = 0; row < num_rows; ++row, y += args.num_out) {
    for (int64_t o = 0; o < num_outs; ++o) y[o] = halves[o][row];
  }
}

void multiply(const ProductArgs& args, int64_t first, int64_t last) {
  constexpr int64_t max_panels = kMaxRows / kPanel;
  alignas(64) uint16_t weights[kOuts * kPiece];
  alignas(64) float sums[max_panels][kOuts * kPanel];
  const __m512 code = _mm512_loadu_ps(args.code->values);
  const uint32_t* x = static_cast<const uint32_t*>(args.arranged);
  const int64_t num_panels = (args.num_rows + kPanel - 1) / kPanel;
  for (int64_t out = first; out < last; out += kOuts) {
    const int64_t num_outs = last - out < kOuts ? last - out : kOuts;
    // Outputs that are not there multiply zeros.
    if (num_outs < kOuts) std::memset(weights, 0, sizeof weights);
    std::memset(sums, 0, std::size_t(num_panels) * sizeof sums[0]);
    for (int64_t i = 0; i < args.num_in; i += kPiece) {
      const int64_t length = args.num_in - i < kPiece ? args.num_in - i : kPiece;
      for (int64_t o = 0; o < num_outs; ++o) {
        expand_piece(args, code, (out + o) * args.num_in + i, length, weights + o * kPiece);
      }
      for (int64_t panel = 0; panel < num_panels; ++panel) {
        const int64_t groups = groups_of_panel(args, panel);
        const uint32_t* inputs = x + panel_start(args, panel) + i / 2 * groups * 16;
        switch (groups) {
          case 1:
            add_outs<1>(weights, inputs, length / 2, sums[panel]);
            break;
          case 2:
            add_outs<2>(weights, inputs, length / 2, sums[panel]);
            break;
          case 3:
            add_outs<3>(weights, inputs, length / 2, sums[panel]);
            break;
          default:
            add_outs<4>(weights, inputs, length / 2, sums[panel]);
        }
      }
    }
    for (int64_t panel = 0; panel < num_panels; ++panel) {
      store_outs(args, panel, out, num_outs, sums[panel]);
    }
  }
}

const Product kProduct = {fits, arranged_bytes, arrange, 32, multiply, kOuts};

}  // namespace rows_bf16
}  // namespace
}  // namespace ince
