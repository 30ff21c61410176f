// Attention with AVX-512 and its bfloat16 instructions: bfloat16 is multiplied in pairs, which
// adds two products to each sum at once; other types as with AVX-512 alone.

#include "attention_backward.h"
#include "lanes_avx512.h"

namespace ince {
namespace {

// Words of two bfloat16.
struct Pairs {
  using Vec = __m512;
  static constexpr int step = 2;
  static constexpr bool is_symmetric = false;

  static Vec dot(Vec sums, Vec a, Vec b) {
    return _mm512_dpbf16_ps(sums, (__m512bh)a, (__m512bh)b);
  }

  static void read_row(const void* data, DType, int64_t index, int64_t width, int64_t padded,
                       float* out) {
    char* bytes = reinterpret_cast<char*>(out);
    std::memcpy(bytes, static_cast<const uint16_t*>(data) + index, std::size_t(width) * 2);
    std::memset(bytes + width * 2, 0, std::size_t(padded - width) * 2);
  }

  // Sixteen of one row and sixteen of the next, in turns.
  static __m512i in_turns(__m512i first_and_next) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9,
                                           24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1,
                                           16, 0);
    return _mm512_permutexvar_epi16(order, first_and_next);
  }

  static void turn_rows(const float* rows, int64_t words, float* out) {
    for (int64_t row = 0; row < kTile; row += 2) {
      const float* first = rows + row * words;
      for (int64_t word = 0; word < words; word += 8, out += 16) {
        const __m256 low = _mm256_loadu_ps(first + word);
        const __m256 high = _mm256_loadu_ps(first + words + word);
        const __m512 both = _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
        _mm512_storeu_si512(out, in_turns(_mm512_castps_si512(both)));
      }
    }
  }

  static void narrow(float* values, int64_t count) {
    for (int64_t i = 0; i < count; i += 16) {
      const __m256i halves = (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(values + i));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(values + i / 2), halves);
    }
  }

  static void put_down(const Vec (&rows)[step], float* to) {
    const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(rows[1], rows[0]);
    _mm512_storeu_si512(to, in_turns(halves));
  }

  static void put_along(const Vec (&rows)[step], float* to) {
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(rows[1], rows[0]));
  }
};

using Singles = Floats<Avx512>;

int64_t forward_bytes_of_type(const AttentionArgs& args) {
  return args.dtype == kBFloat16 ? forward_bytes<Avx512, Pairs>(args)
                                 : forward_bytes<Avx512, Singles>(args);
}

void forward_of_type(const AttentionArgs& args, const AttentionPiece& piece, void* scratch) {
  const auto run = args.dtype == kBFloat16 ? forward<Avx512, Pairs> : forward<Avx512, Singles>;
  run(args, piece, scratch);
}

int64_t backward_bytes_of_type(const AttentionArgs& args, int64_t num_key_tiles) {
  return args.dtype == kBFloat16 ? backward_bytes<Avx512, Pairs>(args, num_key_tiles)
                                 : backward_bytes<Avx512, Singles>(args, num_key_tiles);
}

void backward_of_type(const AttentionArgs& args, const AttentionPiece& piece, void* scratch,
                      float* partial) {
  const auto run = args.dtype == kBFloat16 ? backward<Avx512, Pairs> : backward<Avx512, Singles>;
  run(args, piece, scratch, partial);
}

}  // namespace

const Attention kAttentionAvx512Bf16 = {
    forward_bytes_of_type,  forward_of_type,      backward_bytes_of_type,
    backward_of_type,       add_partials<Avx512>,
};

}  // namespace ince
