// A few rows times a dense weight, as it lies: what a server's step multiplies.
//
// With few rows what takes time is reading the weight, once. A group of its rows goes into the
// first-level cache, the next one is asked for meanwhile, and all rows of x pass by.

#pragma once

#include "dots.h"
#include "serving.h"

namespace ince {
namespace {

// Rows of the weight in registers, beside four of x.
template <class V>
constexpr int kGroup = V::lanes >= 16 ? 6 : 3;

template <class V>
int64_t dense_bytes(const DenseArgs& args) {
  const int64_t wide = args.dtype == kFloat32 ? 0 : kDenseRows * kDepth;
  return (kDenseRows * kDenseOutputs + wide) * int64_t(sizeof(float));
}

// sums[i][j] += Σ x[i] · w[j] over `depth` numbers, for `rows` rows of x and a group of w.
template <class V, DType dtype, int group>
inline void add_group(const float* x, int64_t x_stride, int64_t rows, const void* w, int64_t index,
                      int64_t w_stride, int64_t depth, float* sums) {
  int64_t i = 0;
  const auto take = [&](auto count, auto ahead) {
    multiply_rows<V, dtype, count, group, ahead>(x + i * x_stride, x_stride, w, index, w_stride,
                                                 depth, sums + i * kDenseOutputs, kDenseOutputs);
    i += count;
  };
  using std::integral_constant;
  using Yes = std::true_type;
  using No = std::false_type;
  if (rows >= 4) take(integral_constant<int, 4>{}, Yes{});
  while (i + 4 <= rows) take(integral_constant<int, 4>{}, No{});
  if (i + 2 <= rows) take(integral_constant<int, 2>{}, Yes{});
  if (i < rows) take(integral_constant<int, 1>{}, Yes{});
}

template <class V, DType dtype>
void finish_dense(const DenseArgs& args, int64_t row, int64_t first, int64_t count, float* sums) {
  if (args.bias) {
    for (int64_t j = 0; j < count; ++j) sums[j] += load_weight(args.bias, dtype, first + j);
  }
  write_row_of<V, dtype>(sums, 1.0f, args.y, row * args.y_stride + first, count);
}

template <class V, DType dtype>
void dense_of(const DenseArgs& args, int64_t first_row, int64_t last_row, int64_t first,
              int64_t last, float* sums) {
  constexpr int group = kGroup<V>;
  const int64_t rows = last_row - first_row;
  float* wide = sums + kDenseRows * kDenseOutputs;
  std::memset(sums, 0, std::size_t(rows * kDenseOutputs) * sizeof(float));
  for (int64_t start = 0; start < args.num_inputs; start += kDepth) {
    const int64_t left = args.num_inputs - start, depth = left < kDepth ? left : kDepth;
    const float* x = static_cast<const float*>(args.x) + first_row * args.x_stride + start;
    int64_t stride = args.x_stride;
    if constexpr (dtype != kFloat32) {
      for (int64_t i = 0; i < rows; ++i) {
        read_row_of<V, dtype>(args.x, (first_row + i) * stride + start, depth, wide + i * kDepth);
      }
      x = wide;
      stride = kDepth;
    }
    int64_t out = first;
    const auto index = [&] { return out * args.weight_stride + start; };
    for (; out + group <= last; out += group) {
      add_group<V, dtype, group>(x, stride, rows, args.weight, index(), args.weight_stride, depth,
                                 sums + (out - first));
    }
    for (; out < last; ++out) {
      add_group<V, dtype, 1>(x, stride, rows, args.weight, index(), args.weight_stride, depth,
                             sums + (out - first));
    }
  }
  for (int64_t i = 0; i < rows; ++i) {
    finish_dense<V, dtype>(args, first_row + i, first, last - first, sums + i * kDenseOutputs);
  }
}

template <class V>
void dense(const DenseArgs& args, int64_t first_row, int64_t last_row, int64_t first, int64_t last,
           void* scratch) {
  const auto run = args.dtype == kFloat32    ? dense_of<V, kFloat32>
                   : args.dtype == kBFloat16 ? dense_of<V, kBFloat16>
                                             : dense_of<V, kFloat16>;
  run(args, first_row, last_row, first, last, static_cast<float*>(scratch));
}

}  // namespace
}  // namespace ince
