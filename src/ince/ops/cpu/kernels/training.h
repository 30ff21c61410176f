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

constexpr int64_t kStateBlock = 256;  // numbers that share a scale

// The upper sixteen bits of magnitudes up to 1, from 2⁻²⁴ on; what is smaller is at the first.
constexpr int32_t kFirstPlace = (127 - 24) << 7;
constexpr int32_t kNumPlaces = (127 << 7) - kFirstPlace + 1;

// A dynamic map of 8 bits, and how numbers are looked up in it.
struct ByteMap {
  float values[256];      // ascending
  float thresholds[256];  // a code is how many lie strictly below; the last is infinity
  // Of numbers and of negative ones, by their upper bits: how many thresholds lie below all of
  // them. Reads of four bytes may begin at the last.
  uint8_t ranks[2][kNumPlaces];
  uint8_t unused[4];
};

struct EightBitArgs {
  void* values;
  uint8_t* codes;
  float* absmax;  // one a block
  const ByteMap* map;
  int64_t count;
  int32_t dtype;  // of the values
};

enum StepRule : int32_t { kAdamW = 0, kAdamWMoments = 1, kAdamWParameter = 2, kLion = 3 };

// Numbered and ordered as in ince.ops.cpu.steps.
struct StepArgs {
  void* parameter;
  const void* gradient;
  void* states[2];         // float32, or codes where there are scales
  float* absmax[2];        // one a block; or null
  const ByteMap* maps[2];
  int64_t count;
  int32_t dtype, gradient_dtype;
  int32_t rule;
  float decay;  // what is left of the parameter
  float share;  // of the gradient in the first moment, or in Lion's direction
  float beta;   // what is left of the second moment
  float rest;   // of the squared gradient in the second moment, or of it in Lion's moment
  float root;   // of the second moment's correction
  float eps;
  float size;   // how far, negative
};

struct Training {
  void (*norm)(const NormArgs& args, int64_t first, int64_t last);
  void (*norm_grad)(const NormGradArgs& args, int64_t first, int64_t last);
  void (*gated)(const GatedArgs& args, int64_t first, int64_t last);
  void (*gated_grad)(const GatedGradArgs& args, int64_t first, int64_t last);
  void (*rotate)(const RotateArgs& args, int64_t first, int64_t last);
  void (*cross_entropy)(const CrossEntropyArgs& args, int64_t first, int64_t last);
  void (*cross_entropy_grad)(const CrossEntropyArgs& args, int64_t first, int64_t last);
  // Numbers first … last-1; `first` begins a block.
  void (*step)(const StepArgs& args, int64_t first, int64_t last);
  // Blocks; false when one of them holds a number that is not finite.
  bool (*quantize_8bit)(const EightBitArgs& args, int64_t first, int64_t last);
  void (*dequantize_8bit)(const EightBitArgs& args, int64_t first, int64_t last);
};

}  // namespace ince
