// Root mean square normalization, forward and back. Shapes: rows of num_cols.

#pragma once

#include <cmath>

#include "floats.h"
#include "training.h"

namespace ince {
namespace {

inline int piece_of(int64_t num_cols, int64_t start) {
  return num_cols - start < kPiece ? int(num_cols - start) : kPiece;
}

void norm(const NormArgs& args, int64_t first, int64_t last) {
  Piece piece, scaled;
  for (int64_t row = first; row < last; ++row) {
    const int64_t begin = row * args.x_stride;
    double squares = 0;
    for (int64_t start = 0; start < args.num_cols; start += kPiece) {
      const int n = piece_of(args.num_cols, start);
      const float* x = load(args.x, args.x_dtype, begin + start, n, piece);
      squares += sum_of_products(x, x, n);
    }
    const float rstd = 1.0f / std::sqrt(float(squares / double(args.num_cols)) + args.eps);
    args.rstd[row] = rstd;
    for (int64_t start = 0; start < args.num_cols; start += kPiece) {
      const int n = piece_of(args.num_cols, start);
      const float* x = load(args.x, args.x_dtype, begin + start, n, piece);
      const float* weight = args.weight + start;
      float* y = scaled.values;
      for (int i = 0; i < n; ++i) y[i] = x[i] * rstd;
      if (args.rounds_before_weight) round_to(y, args.x_dtype, n);
      for (int i = 0; i < n; ++i) y[i] *= weight[i];
      store(y, args.y, args.y_dtype, row * args.num_cols + start, n);
    }
  }
}

// With g = dy * weight and n = x * rstd: dx = (g - n * mean(g * n)) * rstd.
void norm_grad(const NormGradArgs& args, int64_t first, int64_t last) {
  Piece dy_piece, x_piece, residual_piece, result;
  for (int64_t row = first; row < last; ++row) {
    const float rstd = args.rstd[row];
    double products = 0;
    for (int64_t start = 0; start < args.num_cols; start += kPiece) {
      const int n = piece_of(args.num_cols, start);
      const float* dy = load(args.dy, args.dy_dtype, row * args.dy_stride + start, n, dy_piece);
      const float* x = load(args.x, args.x_dtype, row * args.x_stride + start, n, x_piece);
      const float* weight = args.weight + start;
      for (int i = 0; i < n; ++i) result.values[i] = dy[i] * weight[i];
      products += sum_of_products(result.values, x, n);
    }
    // The mean of g * n, times the rstd that makes n of x.
    const float slope = float(products / double(args.num_cols)) * rstd * rstd;
    for (int64_t start = 0; start < args.num_cols; start += kPiece) {
      const int n = piece_of(args.num_cols, start);
      const float* dy = load(args.dy, args.dy_dtype, row * args.dy_stride + start, n, dy_piece);
      const float* x = load(args.x, args.x_dtype, row * args.x_stride + start, n, x_piece);
      const float* weight = args.weight + start;
      float* dx = result.values;
      for (int i = 0; i < n; ++i) dx[i] = (dy[i] * weight[i] - x[i] * slope) * rstd;
      if (args.residual) {
        const float* residual = load(args.residual, args.x_dtype,
                                     row * args.residual_stride + start, n, residual_piece);
        for (int i = 0; i < n; ++i) dx[i] += residual[i];
      }
      store(dx, args.dx, args.x_dtype, row * args.dx_stride + start, n);
    }
  }
}

}  // namespace
}  // namespace ince
