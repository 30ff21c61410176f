// Activations that gate: h = act(gate) * up, and its gradient in place of its arguments.

#pragma once

#include "exponential.h"
#include "training.h"

namespace ince {
namespace {

// act(x) and its derivative. What is not used of the two is not computed.
struct Activated {
  Vector value, slope;
};

// x * sigmoid(x)
struct Silu {
  static Activated at(Vector x) {
    const Vector share = sigmoid_of(x);
    return {x * share, share * (1.0f + x * (1.0f - share))};
  }
};

// x / 2 * (1 + tanh(c (x + 0.044715 x³))), which is x * sigmoid(2 c (x + 0.044715 x³))
struct GeluTanh {
  static constexpr float kTwice = 1.5957691216f;  // 2 sqrt(2 / pi)

  static Activated at(Vector x) {
    const Vector share = sigmoid_of(x * (kTwice + x * x * (kTwice * 0.044715f)));
    const Vector steepness = kTwice + x * x * (3.0f * kTwice * 0.044715f);
    return {x * share, share * (1.0f + x * steepness * (1.0f - share))};
  }
};

// x / 2 * erfc(-x / sqrt(2))
struct Gelu {
  static Activated at(Vector x) {
    Vector magnitude = x < 0.0f ? -x : x;
    magnitude = magnitude > 20.0f ? all(20.0f) : magnitude;  // all is decided long before
    // exp(-x² / 2), with the square in two parts: the first, of twelve bits, is exact.
    const Vector head = floats_of(bits_of(magnitude) & 0xfffff000u);
    const Vector bell =
        exp_of_sum(head * head * -0.5f, (magnitude - head) * (magnitude + head) * -0.5f);
    const Vector tail = erfcx_of(magnitude * 0.70710678f) * bell * 0.5f;
    const Vector share = x < 0.0f ? tail : 1.0f - tail;
    return {x * share, share + x * bell * 0.39894228f};
  }
};

template <typename Activation, DType dtype>
void gated_rows(const GatedArgs& args, int64_t first, int64_t last) {
  using Stored = typename Format<dtype>::Stored;
  for (int64_t row = first; row < last; ++row) {
    const Stored* gate = static_cast<const Stored*>(args.gate) + row * args.gate_stride;
    const Stored* up = static_cast<const Stored*>(args.up) + row * args.up_stride;
    Stored* h = static_cast<Stored*>(args.h) + row * args.num_cols;
    for_each(args.num_cols, [&](int64_t i, int count) {
      const Vector value = Activation::at(load<dtype>(gate + i, count)).value;
      store<dtype>(value * load<dtype>(up + i, count), h + i, count);
    });
  }
}

template <typename Activation, DType dtype>
void gated_grad_rows(const GatedGradArgs& args, int64_t first, int64_t last) {
  using Stored = typename Format<dtype>::Stored;
  for (int64_t row = first; row < last; ++row) {
    Stored* dh = static_cast<Stored*>(args.dh) + row * args.dh_stride;
    Stored* gate = static_cast<Stored*>(args.gate) + row * args.gate_stride;
    Stored* up = static_cast<Stored*>(args.up) + row * args.up_stride;
    for_each(args.num_cols, [&](int64_t i, int count) {
      const Activated act = Activation::at(load<dtype>(gate + i, count));
      const Vector grad = load<dtype>(dh + i, count);
      const Vector ups = load<dtype>(up + i, count);
      store<dtype>(act.value * ups, dh + i, count);
      store<dtype>(grad * ups * act.slope, gate + i, count);
      store<dtype>(grad * act.value, up + i, count);
    });
  }
}

template <typename Activation>
void gated_of(const GatedArgs& args, int64_t first, int64_t last) {
  switch (args.dtype) {
    case kFloat32:
      return gated_rows<Activation, kFloat32>(args, first, last);
    case kBFloat16:
      return gated_rows<Activation, kBFloat16>(args, first, last);
    default:
      return gated_rows<Activation, kFloat16>(args, first, last);
  }
}

template <typename Activation>
void gated_grad_of(const GatedGradArgs& args, int64_t first, int64_t last) {
  switch (args.dtype) {
    case kFloat32:
      return gated_grad_rows<Activation, kFloat32>(args, first, last);
    case kBFloat16:
      return gated_grad_rows<Activation, kBFloat16>(args, first, last);
    default:
      return gated_grad_rows<Activation, kFloat16>(args, first, last);
  }
}

void gated(const GatedArgs& args, int64_t first, int64_t last) {
  switch (args.kind) {
    case kSilu:
      return gated_of<Silu>(args, first, last);
    case kGeluTanh:
      return gated_of<GeluTanh>(args, first, last);
    default:
      return gated_of<Gelu>(args, first, last);
  }
}

void gated_grad(const GatedGradArgs& args, int64_t first, int64_t last) {
  switch (args.kind) {
    case kSilu:
      return gated_grad_of<Silu>(args, first, last);
    case kGeluTanh:
      return gated_grad_of<GeluTanh>(args, first, last);
    default:
      return gated_grad_of<Gelu>(args, first, last);
  }
}

}  // namespace
}  // namespace ince
