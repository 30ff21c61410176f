// A step of AdamW or Lion, with moments in float32 or in 8 bits.
//
// Parameter, gradient and moments are read once and written once. Moments in 8 bits are expanded
// into a block of 256 numbers that stays in the nearest cache, and coded from there. Operations
// are those of PyTorch on a processor that fuses products and sums, in its order: where it fuses
// two, so does this. But for the square root: PyTorch's is that of a library, and not the nearest
// number in one case of six. AdamW on float32 moments, which is to equal PyTorch's, takes it from
// there, in between its two halves.

#pragma once

#include <cmath>

#include "eight_bit.h"
#include "training.h"

namespace ince {
namespace {

// a * b + c, rounded once.
inline Vector fused(Vector a, Vector b, Vector c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#else
  Vector values;
  for (int i = 0; i < kWidth; ++i) values[i] = std::fma(a[i], b[i], c[i]);
  return values;
#endif
}

inline Vector root_of(Vector values) {
#if defined(__AVX512F__)
  return _mm512_sqrt_ps(values);
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(values);
#else
  for (int i = 0; i < kWidth; ++i) values[i] = std::sqrt(values[i]);
  return values;
#endif
}

// start + share * (end - start), reckoned from the nearer end, as torch.lerp does.
struct Lerp {
  Vector share;
  bool is_near_start;

  explicit Lerp(float share)
      : share(all(share < 0.5f ? share : share - 1.0f)), is_near_start(share < 0.5f) {}
  Vector operator()(Vector start, Vector end) const {
    return fused(share, end - start, is_near_start ? start : end);
  }
};

struct AdamW {
  static constexpr int kStates = 2;
  static constexpr bool writes_parameter = true, writes_states = true;
  Vector decay, beta, rest, root, eps, size;
  Lerp first;

  explicit AdamW(const StepArgs& args)
      : decay(all(args.decay)), beta(all(args.beta)), rest(all(args.rest)), root(all(args.root)),
        eps(all(args.eps)), size(all(args.size)), first(args.share) {}

  void move(Vector grad, Vector (&moments)[kStates]) const {
    moments[0] = first(moments[0], grad);
    moments[1] = fused(rest * grad, grad, moments[1] * beta);
  }

  Vector moved(Vector moment, Vector root_of_second) const {
    return size * moment / (root_of_second / root + eps);
  }

  void operator()(Vector& parameter, Vector grad, Vector (&moments)[kStates]) const {
    move(grad, moments);
    parameter = parameter * decay + moved(moments[0], root_of(moments[1]));
  }
};

// The first half of AdamW, of which the parameter has no part.
struct AdamWMoments {
  static constexpr int kStates = 2;
  static constexpr bool writes_parameter = false, writes_states = true;
  AdamW whole;

  explicit AdamWMoments(const StepArgs& args) : whole(args) {}

  void operator()(Vector&, Vector grad, Vector (&moments)[kStates]) const {
    whole.move(grad, moments);
  }
};

// The second half: moments are the first one, and the root of the second.
struct AdamWParameter {
  static constexpr int kStates = 2;
  static constexpr bool writes_parameter = true, writes_states = false;
  AdamW whole;

  explicit AdamWParameter(const StepArgs& args) : whole(args) {}

  void operator()(Vector& parameter, Vector, Vector (&moments)[kStates]) const {
    parameter = parameter * whole.decay + whole.moved(moments[0], moments[1]);
  }
};

struct Lion {
  static constexpr int kStates = 1;
  static constexpr bool writes_parameter = true, writes_states = true;
  Vector decay, size;
  Lerp mixed, kept;

  explicit Lion(const StepArgs& args)
      : decay(all(args.decay)), size(all(args.size)), mixed(args.share), kept(args.rest) {}

  void operator()(Vector& parameter, Vector grad, Vector (&moments)[kStates]) const {
    const Vector direction = mixed(moments[0], grad);
    // Zeros of either sign are +0, and what is no number stays that.
    Vector sign = direction > 0.0f ? all(1.0f) : direction < 0.0f ? all(-1.0f) : all(0.0f);
    sign = direction == direction ? sign : direction;
    parameter = parameter * decay + size * sign;
    moments[0] = kept(moments[0], grad);
  }
};

template <typename Rule, DType dtype, DType grad_dtype>
void step_blocks(const StepArgs& args, int64_t first, int64_t last) {
  using Stored = typename Format<dtype>::Stored;
  using Grad = typename Format<grad_dtype>::Stored;
  constexpr int kStates = Rule::kStates;
  const Rule rule(args);
  const bool is_coded = args.absmax[0] != nullptr;
  float expanded[kStates][kStateBlock];
  for (int64_t start = first; start < last; start += kStateBlock) {
    const int64_t n = smaller(kStateBlock, last - start);
    const int64_t block = start / kStateBlock;
    Stored* parameter = static_cast<Stored*>(args.parameter) + start;
    const Grad* grad = static_cast<const Grad*>(args.gradient) + start;
    float* states[kStates];
    for (int s = 0; s < kStates; ++s) {
      if (is_coded) {
        states[s] = expanded[s];
        expand_codes(static_cast<const uint8_t*>(args.states[s]) + start, args.absmax[s][block],
                     *args.maps[s], n, states[s]);
      } else {
        states[s] = static_cast<float*>(args.states[s]) + start;
      }
    }
    for_each(n, [&](int64_t i, int count) {
      Vector moments[kStates];
      for (int s = 0; s < kStates; ++s) moments[s] = load<kFloat32>(states[s] + i, count);
      Vector values = load<dtype>(parameter + i, count);
      rule(values, load<grad_dtype>(grad + i, count), moments);
      if constexpr (Rule::writes_parameter) store<dtype>(values, parameter + i, count);
      if constexpr (Rule::writes_states) {
        for (int s = 0; s < kStates; ++s) store<kFloat32>(moments[s], states[s] + i, count);
      }
    });
    if (!is_coded) continue;
    for (int s = 0; s < kStates; ++s) {
      code_block(states[s], n, *args.maps[s], static_cast<uint8_t*>(args.states[s]) + start,
                 args.absmax[s] + block);
    }
  }
}

template <typename Rule>
void step_of(const StepArgs& args, int64_t first, int64_t last) {
  const bool is_wide = args.gradient_dtype == kFloat32;
  switch (args.dtype) {
    case kFloat32:
      return step_blocks<Rule, kFloat32, kFloat32>(args, first, last);
    case kBFloat16:
      return is_wide ? step_blocks<Rule, kBFloat16, kFloat32>(args, first, last)
                     : step_blocks<Rule, kBFloat16, kBFloat16>(args, first, last);
    default:
      return is_wide ? step_blocks<Rule, kFloat16, kFloat32>(args, first, last)
                     : step_blocks<Rule, kFloat16, kFloat16>(args, first, last);
  }
}

void step(const StepArgs& args, int64_t first, int64_t last) {
  switch (args.rule) {
    case kAdamW:
      return step_of<AdamW>(args, first, last);
    case kAdamWMoments:
      return step_of<AdamWMoments>(args, first, last);
    case kAdamWParameter:
      return step_of<AdamWParameter>(args, first, last);
    default:
      return step_of<Lion>(args, first, last);
  }
}

}  // namespace
}  // namespace ince
