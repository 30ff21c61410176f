// The element-wise kernels of training, and the arguments that every instruction set takes.
//
// A row is `num_cols` numbers that lie side by side; rows lie `stride` numbers apart. A kernel
// works on a range of rows in the calling thread; training.cpp divides the work.

#pragma once

#include "kernels.h"

namespace ince {

// y = x / sqrt(mean(x²) + eps) * weight, row by row.
struct NormArgs {
  const void* x;
  int64_t x_stride;
  DType x_dtype;
  DType y_dtype;
  const float* weight;
  bool rounds_before_weight;  // to the type of x, as Llama does
  float eps;
  int64_t num_cols;
  void* y;      // without gaps
  float* rstd;  // one a row: 1 / sqrt(mean(x²) + eps)
};

struct NormGradArgs {
  const void* dy;
  int64_t dy_stride;
  DType dy_dtype;
  DType x_dtype;  // also of residual and dx
  const void* x;
  int64_t x_stride;
  const float* weight;
  const float* rstd;
  int64_t num_cols;
  const void* residual;  // added to the result; or null
  int64_t residual_stride;
  void* dx;
  int64_t dx_stride;
};

// Numbered as in ince.ops.cpu.gated.
enum ActivationKind : int32_t { kSilu = 0, kGeluTanh = 1, kGelu = 2 };

// h = act(gate) * up
struct GatedArgs {
  const void* gate;
  int64_t gate_stride;
  const void* up;
  int64_t up_stride;
  DType dtype;
  ActivationKind kind;
  int64_t num_cols;
  void* h;  // without gaps
};

// In place: dh becomes h, gate and up become their gradients.
struct GatedGradArgs {
  void* dh;
  int64_t dh_stride;
  void* gate;
  int64_t gate_stride;
  void* up;
  int64_t up_stride;
  DType dtype;
  ActivationKind kind;
  int64_t num_cols;
};

// Heads of queries or of keys; distances in numbers, those within a head are one.
struct Heads {
  const void* from;
  void* to;  // may be where they are read
  int64_t num_heads;
  int64_t from_sequence, from_position, from_head;
  int64_t to_sequence, to_position, to_head;
};

constexpr int64_t kMaxRotated = 1024;

// to = from * cosine + rotate_half(from) * sine in the first num_rotated numbers of a head, or
// with the transposed matrix, which takes the gradient back. The rest is copied.
struct RotateArgs {
  Heads heads[2];
  DType dtype;
  DType table_dtype;
  const void* cosines;  // num_rotated a token, at most kMaxRotated
  const void* sines;
  int64_t table_sequence, table_position;  // distances
  int64_t num_positions;                   // in a sequence
  int64_t head_size;
  int64_t num_rotated;
  bool transposed;
};

// The target of a row that has no loss.
constexpr int64_t kIgnored = -100;

// loss = log(sum(exp(z))) - z[target] with z = softcap * tanh(logits / softcap), or the logits.
struct CrossEntropyArgs {
  void* logits;  // which the gradient times `scale` replaces
  int64_t stride;
  DType dtype;
  const int64_t* targets;  // below num_cols, or kIgnored
  int64_t num_cols;
  float softcap;         // 0 for none
  float scale;           // of the gradient alone
  const float* weights;  // one a row, of loss and gradient; or null
  float* losses;
};

struct Training {
  void (*norm)(const NormArgs& args, int64_t first, int64_t last);
  void (*norm_grad)(const NormGradArgs& args, int64_t first, int64_t last);
  void (*gated)(const GatedArgs& args, int64_t first, int64_t last);
  void (*gated_grad)(const GatedGradArgs& args, int64_t first, int64_t last);
  void (*rotate)(const RotateArgs& args, int64_t first, int64_t last);
  void (*cross_entropy)(const CrossEntropyArgs& args, int64_t first, int64_t last);
  void (*cross_entropy_grad)(const CrossEntropyArgs& args, int64_t first, int64_t last);
};

}  // namespace ince
