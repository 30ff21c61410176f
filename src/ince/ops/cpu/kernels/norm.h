// Root mean square normalization, forward and back. Shapes: rows of num_cols.

#pragma once

#include <cmath>

#include "floats.h"
#include "training.h"

namespace ince {
namespace {

template <DType x_type, DType y_type>
void norm_rows(const NormArgs& args, int64_t first, int64_t last) {
  const int64_t num_cols = args.num_cols;
  const float* weight = args.weight;
  for (int64_t row = first; row < last; ++row) {
    const auto* x = static_cast<const typename Format<x_type>::Stored*>(args.x);
    auto* y = static_cast<typename Format<y_type>::Stored*>(args.y) + row * num_cols;
    x += row * args.x_stride;
    const double squares = sum_of(num_cols, [&](int64_t i, int count) {
      const Vector values = load<x_type>(x + i, count);
      return values * values;
    });
    const float rstd = 1.0f / std::sqrt(float(squares / double(num_cols)) + args.eps);
    args.rstd[row] = rstd;
    const auto write = [&](auto round) {
      for_each(num_cols, [&](int64_t i, int count) {
        const Vector normalized = round(load<x_type>(x + i, count) * rstd);
        store<y_type>(normalized * load<kFloat32>(weight + i, count), y + i, count);
      });
    };
    if (args.rounds_before_weight) {
      write([](Vector values) { return rounded_to<x_type>(values); });
    } else {
      write([](Vector values) { return values; });
    }
  }
}

// With g = dy * weight and n = x * rstd: dx = (g - n * mean(g * n)) * rstd.
template <DType dy_type, DType x_type>
void norm_grad_rows(const NormGradArgs& args, int64_t first, int64_t last) {
  using X = typename Format<x_type>::Stored;
  const int64_t num_cols = args.num_cols;
  const float* weight = args.weight;
  for (int64_t row = first; row < last; ++row) {
    const auto* dy = static_cast<const typename Format<dy_type>::Stored*>(args.dy);
    dy += row * args.dy_stride;
    const X* x = static_cast<const X*>(args.x) + row * args.x_stride;
    const X* residual = static_cast<const X*>(args.residual);
    X* dx = static_cast<X*>(args.dx) + row * args.dx_stride;
    const float rstd = args.rstd[row];
    const auto g = [&](int64_t i, int count) {
      return load<dy_type>(dy + i, count) * load<kFloat32>(weight + i, count);
    };
    const double products = sum_of(num_cols, [&](int64_t i, int count) {
      return g(i, count) * load<x_type>(x + i, count);
    });
    // The mean of g * n, times the rstd that makes n of x.
    const float slope = float(products / double(num_cols)) * rstd * rstd;
    const auto grad = [&](int64_t i, int count) {
      return (g(i, count) - load<x_type>(x + i, count) * slope) * rstd;
    };
    if (residual) {
      residual += row * args.residual_stride;
      for_each(num_cols, [&](int64_t i, int count) {
        store<x_type>(grad(i, count) + load<x_type>(residual + i, count), dx + i, count);
      });
    } else {
      for_each(num_cols, [&](int64_t i, int count) {
        store<x_type>(grad(i, count), dx + i, count);
      });
    }
  }
}

void norm(const NormArgs& args, int64_t first, int64_t last) {
  const bool is_wide = args.y_dtype == kFloat32;
  switch (args.x_dtype) {
    case kFloat32:
      return norm_rows<kFloat32, kFloat32>(args, first, last);
    case kBFloat16:
      return is_wide ? norm_rows<kBFloat16, kFloat32>(args, first, last)
                     : norm_rows<kBFloat16, kBFloat16>(args, first, last);
    default:
      return is_wide ? norm_rows<kFloat16, kFloat32>(args, first, last)
                     : norm_rows<kFloat16, kFloat16>(args, first, last);
  }
}

void norm_grad(const NormGradArgs& args, int64_t first, int64_t last) {
  const bool is_wide = args.dy_dtype == kFloat32;
  switch (args.x_dtype) {
    case kFloat32:
      return norm_grad_rows<kFloat32, kFloat32>(args, first, last);
    case kBFloat16:
      return is_wide ? norm_grad_rows<kFloat32, kBFloat16>(args, first, last)
                     : norm_grad_rows<kBFloat16, kBFloat16>(args, first, last);
    default:
      return is_wide ? norm_grad_rows<kFloat32, kFloat16>(args, first, last)
                     : norm_grad_rows<kFloat16, kFloat16>(args, first, last);
  }
}

}  // namespace
}  // namespace ince
