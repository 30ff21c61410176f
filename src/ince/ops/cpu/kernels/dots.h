// Rows of one matrix times rows of another, both as they lie: sums along what is side by side in
// memory. Each sum is taken in one order, however many rows are beside it.

#pragma once

#include <cstring>

#include "attention_products.h"

namespace ince {
namespace {

#define INCE_UNROLLED(i) [&](auto i) __attribute__((always_inline))

// Numbers of a row that stay in the first-level cache beside their neighbors.
constexpr int64_t kDepth = 1024;

// The first `count` numbers of a register, and zeros.
template <class V, DType dtype>
inline typename V::Vec load_part(const void* data, int64_t index, int64_t count) {
  using Stored = std::conditional_t<dtype == kFloat32, float, uint16_t>;
  Stored part[V::lanes] = {};
  std::memcpy(part, static_cast<const Stored*>(data) + index, std::size_t(count) * sizeof(Stored));
  return V::template load_from<dtype>(part, 0);
}

// Asks for the numbers at `index`, once for each line.
template <DType dtype>
inline void expect(const void* data, int64_t index, int64_t position) {
  constexpr int64_t size = dtype == kFloat32 ? 4 : 2;
  if (position % (64 / size) == 0) {
    __builtin_prefetch(static_cast<const char*>(data) + index * size, 0, 2);
  }
}

// out[i][j] += Σ x[i] · a[j] over `depth` numbers, for so many rows of each. `ahead` asks for the
// rows of `a` that follow.
template <class V, DType dtype, int rows, int ranks, bool ahead>
inline void multiply_rows(const float* x, int64_t x_stride, const void* a, int64_t a_index,
                          int64_t a_stride, int64_t depth, float* out, int64_t out_stride) {
  using Vec = typename V::Vec;
  Vec sums[rows * ranks];
  unrolled<rows * ranks>(INCE_UNROLLED(i) { sums[i] = V::zero(); });
  int64_t d = 0;
  for (; d + V::lanes <= depth; d += V::lanes) {
    Vec right[ranks];
    unrolled<ranks>(INCE_UNROLLED(j) {
      if constexpr (ahead) {
        expect<dtype>(a, a_index + (j + ranks) * a_stride + d, d);
      }
      right[j] = V::template load_from<dtype>(a, a_index + j * a_stride + d);
    });
    unrolled<rows>(INCE_UNROLLED(i) {
      const Vec left = V::load(x + i * x_stride + d);
      unrolled<ranks>(INCE_UNROLLED(j) {
        sums[i * ranks + j] = V::fma(left, right[j], sums[i * ranks + j]);
      });
    });
  }
  if (d < depth) {
    unrolled<rows>(INCE_UNROLLED(i) {
      const Vec left = load_part<V, kFloat32>(x, i * x_stride + d, depth - d);
      unrolled<ranks>(INCE_UNROLLED(j) {
        const Vec right = load_part<V, dtype>(a, a_index + j * a_stride + d, depth - d);
        sums[i * ranks + j] = V::fma(left, right, sums[i * ranks + j]);
      });
    });
  }
  unrolled<rows>(INCE_UNROLLED(i) {
    unrolled<ranks>(INCE_UNROLLED(j) { out[i * out_stride + j] += V::sum(sums[i * ranks + j]); });
  });
}

// The same for any number of rows of `a`, so many at a time.
template <class V, DType dtype, int rows, int ranks, bool ahead>
inline void multiply_ranks(const float* x, int64_t x_stride, const void* a, int64_t a_index,
                               int64_t a_stride, int64_t num_ranks, int64_t depth, float* out,
                               int64_t out_stride) {
  int64_t j = 0;
  for (; j + ranks <= num_ranks; j += ranks) {
    multiply_rows<V, dtype, rows, ranks, ahead>(x, x_stride, a, a_index + j * a_stride, a_stride, depth,
                                         out + j, out_stride);
  }
  for (; j < num_ranks; ++j) {
    multiply_rows<V, dtype, rows, 1, ahead>(x, x_stride, a, a_index + j * a_stride, a_stride, depth,
                                     out + j, out_stride);
  }
}

#undef INCE_UNROLLED

}  // namespace
}  // namespace ince
