// Updates by adapters: a segment's rows times its A, and the products times its B, both as they lie.
//
// With one row an adapter's numbers are read once, and that is what takes time: four rows of a
// factor are read side by side, and in bfloat16, where rows end sooner than a processor foresees,
// the next four are asked for meanwhile. With more, four rows share what is read. Each sum is taken in one order however many rows there are,
// so that a row's result does not depend on its neighbors.

#pragma once

#include <cstring>

#include "dots.h"
#include "serving.h"

namespace ince {
namespace {

#define INCE_UNROLLED(i) [&](auto i) __attribute__((always_inline))

// Numbers of the sums that are held at once, of all rows.
constexpr int64_t kHeld = 4096;

template <class V, DType dtype>
void shrink_by(const SegmentArgs& args, const Segment& segment, int64_t first_row,
               int64_t last_row, int64_t first_rank, int64_t last_rank, float* products,
               float* wide) {
  const void* a = args.blocks[segment.block].data;
  const int64_t num_ranks = last_rank - first_rank;
  for (int64_t row = first_row; row < last_row; ++row) {
    std::memset(products + (row - first_row) * segment.rank + first_rank, 0,
                std::size_t(num_ranks) * sizeof(float));
  }
  for (int64_t start = 0; start < args.num_inputs; start += kDepth) {
    const int64_t left = args.num_inputs - start, depth = left < kDepth ? left : kDepth;
    const int64_t index = segment.a_offset + first_rank * args.num_inputs + start;
    const float* x = static_cast<const float*>(args.x) + first_row * args.x_stride + start;
    int64_t stride = args.x_stride;
    if (args.dtype != kFloat32) {
      for (int64_t row = first_row; row < last_row; ++row) {
        read_row<V>(args.x, DType(args.dtype), row * args.x_stride + start, depth, depth,
                    wide + (row - first_row) * kDepth);
      }
      x = wide;
      stride = kDepth;
    }
    int64_t row = first_row;
    const auto multiply = [&](auto rows, auto ranks) {
      const int64_t i = row - first_row;
      multiply_ranks<V, dtype, rows, ranks, rows == 1 && dtype == kBFloat16>(x + i * stride, stride, a, index, args.num_inputs,
                                                num_ranks, depth,
                                                products + i * segment.rank + first_rank,
                                                segment.rank);
      row += rows;
    };
    using std::integral_constant;
    while (row + 4 <= last_row) {
      multiply(integral_constant<int, 4>{}, integral_constant<int, 3>{});
    }
    if (row + 2 <= last_row) multiply(integral_constant<int, 2>{}, integral_constant<int, 4>{});
    if (row < last_row) multiply(integral_constant<int, 1>{}, integral_constant<int, 4>{});
  }
}

// sums[c] (+)= Σ products[t] · b[t][c], for `ranks` rows of b that lie side by side in time.
template <class V, DType dtype, int ranks, bool add>
inline void stream(const float* products, const void* b, int64_t b_index, int64_t b_stride,
                   int64_t num_columns, float* sums) {
  using Vec = typename V::Vec;
  Vec left[ranks];
  unrolled<ranks>(INCE_UNROLLED(t) { left[t] = V::all(products[t]); });
  int64_t c = 0;
  for (; c + V::lanes <= num_columns; c += V::lanes) {
    Vec sum = add ? V::load(sums + c) : V::zero();
    unrolled<ranks>(INCE_UNROLLED(t) {
      expect<dtype>(b, b_index + (t + ranks) * b_stride + c, c);
      sum = V::fma(left[t], V::template load_from<dtype>(b, b_index + t * b_stride + c), sum);
    });
    V::store(sums + c, sum);
  }
  if (c < num_columns) {
    Vec sum = add ? V::load(sums + c) : V::zero();
    unrolled<ranks>(INCE_UNROLLED(t) {
      const Vec right = load_part<V, dtype>(b, b_index + t * b_stride + c, num_columns - c);
      sum = V::fma(left[t], right, sum);
    });
    V::store(sums + c, sum);
  }
}

template <class V, DType dtype>
void stream_all(const float* products, int64_t rank, const void* b, int64_t b_index,
                int64_t b_stride, int64_t num_columns, float* sums) {
  int64_t t = 0;
  if (rank >= 4) {
    stream<V, dtype, 4, false>(products, b, b_index, b_stride, num_columns, sums);
    t = 4;
  } else {
    std::memset(sums, 0, std::size_t(num_columns) * sizeof(float));
  }
  for (; t + 4 <= rank; t += 4) {
    stream<V, dtype, 4, true>(products + t, b, b_index + t * b_stride, b_stride, num_columns,
                              sums);
  }
  for (; t < rank; ++t) {
    stream<V, dtype, 1, true>(products + t, b, b_index + t * b_stride, b_stride, num_columns,
                              sums);
  }
}

// The same for four rows at once and `columns` registers, all sums in registers.
template <class V, DType dtype, int columns, bool whole>
inline void four_rows(const float* products, int64_t rank, const void* b, int64_t b_index,
                      int64_t b_stride, int64_t count, float* sums, int64_t stride) {
  using Vec = typename V::Vec;
  Vec held[4 * columns];
  unrolled<4 * columns>(INCE_UNROLLED(i) { held[i] = V::zero(); });
  for (int64_t t = 0; t < rank; ++t) {
    Vec right[columns];
    unrolled<columns>(INCE_UNROLLED(j) {
      const int64_t index = b_index + t * b_stride + j * V::lanes;
      if constexpr (whole) {
        right[j] = V::template load_from<dtype>(b, index);
      } else {
        right[j] = load_part<V, dtype>(b, index, count);
      }
    });
    unrolled<4>(INCE_UNROLLED(i) {
      const Vec left = V::broadcast(products + i * rank + t);
      unrolled<columns>(INCE_UNROLLED(j) {
        held[i * columns + j] = V::fma(left, right[j], held[i * columns + j]);
      });
    });
  }
  unrolled<4>(INCE_UNROLLED(i) {
    unrolled<columns>(INCE_UNROLLED(j) {
      V::store(sums + i * stride + j * V::lanes, held[i * columns + j]);
    });
  });
}

template <class V, DType dtype>
void four_rows_all(const float* products, int64_t rank, const void* b, int64_t b_index,
                   int64_t b_stride, int64_t num_columns, float* sums, int64_t stride) {
  int64_t c = 0;
  for (; c + 2 * V::lanes <= num_columns; c += 2 * V::lanes) {
    four_rows<V, dtype, 2, true>(products, rank, b, b_index + c, b_stride, 0, sums + c, stride);
  }
  for (; c + V::lanes <= num_columns; c += V::lanes) {
    four_rows<V, dtype, 1, true>(products, rank, b, b_index + c, b_stride, 0, sums + c, stride);
  }
  if (c < num_columns) {
    four_rows<V, dtype, 1, false>(products, rank, b, b_index + c, b_stride, num_columns - c,
                                  sums + c, stride);
  }
}

#undef INCE_UNROLLED

// y ← y + sums; then y ← y + turn · y + shift, rounded once.
template <class V, DType dtype, DType block_dtype>
void finish_row(const SegmentArgs& args, const Segment& segment, int64_t row, int64_t first,
                int64_t count, const float* sums) {
  using Vec = typename V::Vec;
  const void* block = args.blocks[segment.block].data;
  const int64_t at = row * args.y_stride + first;
  const bool turns = segment.turn_offset >= 0, shifts = segment.shift_offset >= 0;
  const auto finished = [&](Vec sum, Vec y, Vec turn, Vec shift) {
    sum = V::add(y, sum);
    if (turns) sum = V::add(sum, V::mul(turn, sum));
    return shifts ? V::add(sum, shift) : sum;
  };
  const auto of_block = [&](int64_t offset, int64_t c) {
    return offset >= 0 ? V::template load_from<block_dtype>(block, offset + first + c) : V::zero();
  };
  int64_t c = 0;
  for (; c + V::lanes <= count; c += V::lanes) {
    const Vec y = V::template load_from<dtype>(args.y, at + c);
    V::template store_to<dtype>(args.y, at + c,
                                finished(V::load(sums + c), y, of_block(segment.turn_offset, c),
                                         of_block(segment.shift_offset, c)));
  }
  if (c == count) return;
  const auto part = [&](int64_t offset) {
    return offset >= 0 ? load_part<V, block_dtype>(block, offset + first + c, count - c)
                       : V::zero();
  };
  using Stored = std::conditional_t<dtype == kFloat32, float, uint16_t>;
  Stored end[V::lanes];
  const Vec y = load_part<V, dtype>(args.y, at + c, count - c);
  V::template store_to<dtype>(end, 0,
                              finished(load_part<V, kFloat32>(sums, c, count - c), y,
                                       part(segment.turn_offset), part(segment.shift_offset)));
  std::memcpy(static_cast<Stored*>(args.y) + at + c, end,
              std::size_t(count - c) * sizeof(Stored));
}

template <class V, DType block_dtype>
void expand_by(const SegmentArgs& args, const Segment& segment, int64_t first_row,
               int64_t last_row, int64_t first_column, int64_t last_column, const float* products,
               float* sums) {
  const void* b = args.blocks[segment.block].data;
  const int64_t rank = segment.rank;
  const int64_t rows = last_row - first_row < 4 ? 1 : 4;
  const int64_t most = kHeld / rows;
  for (int64_t column = first_column; column < last_column; column += most) {
    const int64_t left = last_column - column, count = left < most ? left : most;
    const int64_t index = segment.b_offset + column;
    for (int64_t row = first_row; row < last_row;) {
      const float* of_row = products + (row - first_row) * rank;
      const int64_t taken = last_row - row < 4 ? 1 : 4;
      if (taken == 4) {
        four_rows_all<V, block_dtype>(of_row, rank, b, index, args.num_outputs, count, sums, most);
      } else {
        stream_all<V, block_dtype>(of_row, rank, b, index, args.num_outputs, count, sums);
      }
      for (int64_t i = 0; i < taken; ++i) {
        const auto finish = args.dtype == kFloat32    ? finish_row<V, kFloat32, block_dtype>
                            : args.dtype == kBFloat16 ? finish_row<V, kBFloat16, block_dtype>
                                                      : finish_row<V, kFloat16, block_dtype>;
        finish(args, segment, row + i, column, count, sums + i * most);
      }
      row += taken;
    }
  }
}

template <class V>
int64_t segment_bytes(const SegmentArgs& args) {
  const int64_t wide = args.dtype == kFloat32 ? 0 : kSegmentRows * kDepth;
  return (wide > kHeld ? wide : kHeld) * int64_t(sizeof(float));
}

template <class V>
void shrink(const SegmentArgs& args, const Segment& segment, int64_t first_row, int64_t last_row,
            int64_t first_rank, int64_t last_rank, float* products, void* scratch) {
  const auto run = args.blocks[segment.block].dtype == kFloat32 ? shrink_by<V, kFloat32>
                                                                : shrink_by<V, kBFloat16>;
  run(args, segment, first_row, last_row, first_rank, last_rank, products,
      static_cast<float*>(scratch));
}

template <class V>
void expand(const SegmentArgs& args, const Segment& segment, int64_t first_row, int64_t last_row,
            int64_t first_column, int64_t last_column, const float* products, void* scratch) {
  const auto run = args.blocks[segment.block].dtype == kFloat32 ? expand_by<V, kFloat32>
                                                                : expand_by<V, kBFloat16>;
  run(args, segment, first_row, last_row, first_column, last_column, products,
      static_cast<float*>(scratch));
}

}  // namespace
}  // namespace ince
