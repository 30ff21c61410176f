// Products of small matrices out of the first-level cache: all that attention multiplies.
//
// A word is 32 bits: a float32, or two bfloat16 that follow each other along the sum. V is a
// register (lanes_*.h), W what a word is: Floats here, or the like.

#pragma once

#include <type_traits>

#include "attention.h"
#include "attention_rows.h"

namespace ince {
namespace {

// Words that are float32.
template <class V>
struct Floats {
  using Vec = typename V::Vec;
  // Numbers in a word.
  static constexpr int step = 1;
  // Whether rows of words serve as they are where the sum goes over the rows.
  static constexpr bool is_symmetric = true;

  // Adds the products of two words to sums in float32, lane by lane.
  static Vec dot(Vec sums, Vec a, Vec b) { return V::fma(a, b, sums); }

  // A row of an operand, filled up with zeros.
  static void read_row(const void* data, DType dtype, int64_t index, int64_t width, int64_t padded,
                       float* out) {
    ince::read_row<V>(data, dtype, index, width, padded, out);
  }

  // Sixteen rows of words along the columns, to 16 / step rows of words along the rows.
  static void turn_rows(const float*, int64_t, float*) {}

  // `count` float32, a multiple of sixteen, to words in the same place.
  static void narrow(float*, int64_t) {}

  // `step` rows of a register each, to words along the rows, and to words along the columns. For
  // float32 both are the same, and the first is used.
  static void put_down(const Vec (&rows)[step], float* to) { V::store(to, rows[0]); }
  static void put_along(const Vec (&)[step], float*) {}
};

// body(i) for the numbers below `count`, each a constant. Compilers keep an array in registers only
// where they see constant indices early, and they unroll loops late.
template <int count, typename Body>
inline __attribute__((always_inline)) void unrolled(const Body& body) {
  if constexpr (count > 0) {
    unrolled<count - 1>(body);
    body(std::integral_constant<int, count - 1>{});
  }
}

#define INCE_UNROLLED(i) [&](auto i) __attribute__((always_inline))

// c[i][j] (+)= Σ a[i * a_row + t * a_step] · b[t * b_step + j], for `rows` rows and `columns`
// registers of columns, t over `words`.
template <class V, class W, bool add, int rows, int columns>
inline void block(const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t b_step,
                  int64_t words, float* c, int64_t c_row) {
  using Vec = typename V::Vec;
  Vec sums[rows * columns];
  unrolled<rows>(INCE_UNROLLED(i) {
    unrolled<columns>(INCE_UNROLLED(j) {
      sums[i * columns + j] = add ? V::load(c + i * c_row + j * V::lanes) : V::zero();
    });
  });
  for (int64_t t = 0; t < words; ++t) {
    Vec right[columns];
    unrolled<columns>(INCE_UNROLLED(j) { right[j] = V::load(b + t * b_step + j * V::lanes); });
    unrolled<rows>(INCE_UNROLLED(i) {
      const Vec left = V::broadcast(a + i * a_row + t * a_step);
      unrolled<columns>(INCE_UNROLLED(j) {
        sums[i * columns + j] = W::dot(sums[i * columns + j], left, right[j]);
      });
    });
  }
  unrolled<rows>(INCE_UNROLLED(i) {
    unrolled<columns>(INCE_UNROLLED(j) {
      V::store(c + i * c_row + j * V::lanes, sums[i * columns + j]);
    });
  });
}

#undef INCE_UNROLLED

// A product of sixteen columns; `num_rows` is a multiple of sixteen.
template <class V, class W>
void multiply_tall(int64_t num_rows, const float* a, int64_t a_row, const float* b, int64_t words,
                   float* c, int64_t c_row) {
  constexpr int step = V::tall_columns * V::lanes;
  for (int64_t i = 0; i < num_rows; i += V::tall_rows) {
    for (int64_t j = 0; j < kTile; j += step) {
      block<V, W, false, V::tall_rows, V::tall_columns>(a + i * a_row, a_row, 1, b + j, kTile,
                                                        words, c + i * c_row + j, c_row);
    }
  }
}

// A product of `num_columns` columns, a multiple of sixteen, and so many rows.
template <class V, class W, bool add, int columns = V::wide_columns>
void multiply_wide(int64_t num_rows, int64_t num_columns, const float* a, int64_t a_row,
                   int64_t a_step, const float* b, int64_t words, float* c, int64_t stride,
                   int64_t first = 0) {
  constexpr int step = columns * V::lanes;
  int64_t j = first;
  for (; j + step <= num_columns; j += step) {
    for (int64_t i = 0; i < num_rows; i += V::wide_rows) {
      block<V, W, add, V::wide_rows, columns>(a + i * a_row, a_row, a_step, b + j, stride, words,
                                              c + i * stride + j, stride);
    }
  }
  if constexpr (columns > 1) {
    if (j < num_columns) {
      multiply_wide<V, W, add, columns / 2>(num_rows, num_columns, a, a_row, a_step, b, words, c,
                                            stride, j);
    }
  }
}

}  // namespace
}  // namespace ince
