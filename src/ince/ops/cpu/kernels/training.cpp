// The C interface of the kernels of training; see library.cpp.

#include "training.h"

#include "parallel.h"

#define INCE_API extern "C" __attribute__((visibility("default")))

namespace ince {
namespace {

// Numbers that a thread is worth waking for, and that it takes at a time.
constexpr int64_t kWorth = 1 << 14;

// Rows of one such piece of work.
int64_t rows_of(int64_t num_cols) { return num_cols < kWorth ? kWorth / (num_cols + 1) : 1; }

}  // namespace
}  // namespace ince

using namespace ince;

INCE_API void ince_norm(const void* x, int64_t x_stride, int32_t x_dtype, const float* weight,
                        int32_t rounds_before_weight, float eps, int64_t num_rows,
                        int64_t num_cols, void* y, int32_t y_dtype, float* rstd,
                        int32_t threads) {
  const NormArgs args{x,   x_stride, DType(x_dtype), DType(y_dtype), weight, rounds_before_weight != 0,
                      eps, num_cols, y,              rstd};
  parallel_for(num_rows, rows_of(num_cols), threads, [&](int64_t first, int64_t last) {
    kernels->training->norm(args, first, last);
  });
}

// `residual` may be null, and may be dx.
INCE_API void ince_norm_grad(const void* dy, int64_t dy_stride, int32_t dy_dtype, const void* x,
                             int64_t x_stride, int32_t x_dtype, const float* weight,
                             const float* rstd, int64_t num_rows, int64_t num_cols,
                             const void* residual, int64_t residual_stride, void* dx,
                             int64_t dx_stride, int32_t threads) {
  const NormGradArgs args{dy,       dy_stride, DType(dy_dtype), DType(x_dtype),
                          x,        x_stride,  weight,          rstd,
                          num_cols, residual,  residual_stride, dx,
                          dx_stride};
  parallel_for(num_rows, rows_of(num_cols), threads, [&](int64_t first, int64_t last) {
    kernels->training->norm_grad(args, first, last);
  });
}
