// The exponential and what is made of it, a register at a time.
//
// Polynomials are minimax fits for this file, in relative error. Errors below are in units of
// 2**-24, half of float32's last place; tests/kernels/test_cpu_gated.py holds them.

#pragma once

#include "floats.h"

namespace ince {
namespace {

// exp(x + tail), for a tail of at most 0.09; within 3 units. Infinite above 88.72, and zero below
// -87, where the result is at the end of the normal numbers.
inline Vector exp_of_sum(Vector x, Vector tail) {
  const Vector least = all(-87.3f), most = all(88.8f);
  x = x < least ? least : x;
  x = x > most ? most : x;
  // Adding 3 * 2**22 leaves the nearest whole number in the lowest bits, here plus 126.
  const float shift = 12582912.0f + 126.0f;
  const Vector shifted = x * 0x1.715476p+0f + shift;
  const Vector n = shifted - shift;
  // ln 2 in two parts, the first short enough that n times it is exact.
  const Vector r = (x - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f + tail;
  Vector q = r * 0.00138145987f + 0.00836871658f;
  q = q * r + 0.0416683890f;
  q = q * r + 0.166665211f;
  q = q * r + 0.499999940f;
  const Vector power = q * r * r + r + 1.0f;
  // Times 2**n, as twice 2**(n - 1): n may be 128.
  return (power + power) * floats_of(bits_of(shifted) << 23);
}

inline Vector exp_of(Vector x) { return exp_of_sum(x, Vector{}); }

// 1 / (1 + exp(-x)), within 5 units, and what rounding x makes of it.
inline Vector sigmoid_of(Vector x) { return 1.0f / (1.0f + exp_of(-x)); }

// Within 6 units, small arguments included.
inline Vector tanh_of(Vector x) {
  const Vector magnitude = x < 0.0f ? -x : x;
  const Vector square = x * x;
  Vector p = square * 0.0172414915f - 0.0530454943f;
  p = p * square + 0.133258790f;
  p = p * square - 0.333331439f;
  const Vector small = x + x * square * p;
  const Vector large = 1.0f - 2.0f / (1.0f + exp_of(magnitude + magnitude));
  return magnitude < 0.5f ? small : x < 0.0f ? -large : large;
}

// erfc(z) * exp(z²) for z >= 0, within 6 units.
inline Vector erfcx_of(Vector z) {
  const Vector t = 1.0f / (1.0f + z * 0.5f);
  Vector p = t * -0.0593863502f + 0.286123484f;
  p = p * t - 0.490405560f;
  p = p * t + 0.281732589f;
  p = p * t - 0.0291482229f;
  p = p * t + 0.203752473f;
  p = p * t + 0.242835104f;
  p = p * t + 0.282412112f;
  p = p * t + 0.282084346f;
  return p * t;
}

}  // namespace
}  // namespace ince
