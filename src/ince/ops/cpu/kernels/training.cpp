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

void* moved(const void* data, DType dtype, int64_t count) {
  return const_cast<char*>(static_cast<const char*>(data)) + count * (dtype == kFloat32 ? 4 : 2);
}

// kernel(args, first, last) for all rows. Where all tensors lie without gaps they are one row,
// and part(first, count) makes the arguments of a part of it.
template <typename Args, typename Part>
void for_rows(const Args& args, int64_t num_rows, bool has_gaps, int threads,
              void (*kernel)(const Args&, int64_t, int64_t), const Part& part) {
  if (has_gaps) {
    parallel_for(num_rows, rows_of(args.num_cols), threads,
                 [&](int64_t first, int64_t last) { kernel(args, first, last); });
    return;
  }
  parallel_for(num_rows * args.num_cols, kWorth, threads, [&](int64_t first, int64_t last) {
    kernel(part(first, last - first), 0, 1);
  });
}

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

INCE_API void ince_gated(const void* gate, int64_t gate_stride, const void* up, int64_t up_stride,
                         int32_t dtype, int32_t kind, int64_t num_rows, int64_t num_cols, void* h,
                         int32_t threads) {
  const GatedArgs args{gate,     gate_stride, up, up_stride, DType(dtype), ActivationKind(kind),
                       num_cols, h};
  const bool has_gaps = gate_stride != num_cols || up_stride != num_cols;
  for_rows(args, num_rows, has_gaps, threads, kernels->training->gated,
           [&](int64_t first, int64_t count) {
             GatedArgs part = args;
             part.gate = moved(gate, part.dtype, first);
             part.up = moved(up, part.dtype, first);
             part.h = moved(h, part.dtype, first);
             part.num_cols = count;
             return part;
           });
}

INCE_API void ince_gated_grad(void* dh, int64_t dh_stride, void* gate, int64_t gate_stride,
                              void* up, int64_t up_stride, int32_t dtype, int32_t kind,
                              int64_t num_rows, int64_t num_cols, int32_t threads) {
  const GatedGradArgs args{dh,        dh_stride,    gate,             gate_stride, up,
                           up_stride, DType(dtype), ActivationKind(kind), num_cols};
  const bool has_gaps =
      dh_stride != num_cols || gate_stride != num_cols || up_stride != num_cols;
  for_rows(args, num_rows, has_gaps, threads, kernels->training->gated_grad,
           [&](int64_t first, int64_t count) {
             GatedGradArgs part = args;
             part.dh = moved(dh, part.dtype, first);
             part.gate = moved(gate, part.dtype, first);
             part.up = moved(up, part.dtype, first);
             part.num_cols = count;
             return part;
           });
}

INCE_API void ince_rotate(const Heads* queries, const Heads* keys, int32_t dtype,
                          const void* cosines, const void* sines, int64_t table_sequence,
                          int64_t table_position, int32_t table_dtype, int64_t num_sequences,
                          int64_t num_positions, int64_t head_size, int64_t num_rotated,
                          int32_t transposed, int32_t threads) {
  const RotateArgs args{{*queries, *keys}, DType(dtype),   DType(table_dtype), cosines,
                        sines,             table_sequence, table_position,     num_positions,
                        head_size,         num_rotated,    transposed != 0};
  const int64_t token_size = (queries->num_heads + keys->num_heads) * head_size;
  parallel_for(num_sequences * num_positions, rows_of(token_size), threads,
               [&](int64_t first, int64_t last) { kernels->training->rotate(args, first, last); });
}

// -1, or the first row whose target is not one; nothing is written then. With `is_grad` the
// logits become the gradient.
INCE_API int64_t ince_cross_entropy(void* logits, int64_t stride, int32_t dtype,
                                    const int64_t* targets, int64_t num_rows, int64_t num_cols,
                                    float softcap, float scale, const float* weights,
                                    float* losses, int32_t is_grad, int32_t threads) {
  for (int64_t row = 0; row < num_rows; ++row) {
    if (targets[row] != kIgnored && (targets[row] < 0 || targets[row] >= num_cols)) return row;
  }
  const CrossEntropyArgs args{logits,  stride, DType(dtype), targets, num_cols,
                              softcap, scale,  weights,      losses};
  const auto kernel =
      is_grad ? kernels->training->cross_entropy_grad : kernels->training->cross_entropy;
  parallel_for(num_rows, rows_of(num_cols), threads,
               [&](int64_t first, int64_t last) { kernel(args, first, last); });
  return -1;
}
