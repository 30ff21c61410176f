// Cross-entropy of rows of logits, and its gradient in their place.
//
// A row is read once from memory for its largest logit and the sum of exponentials, which is
// rescaled where a larger logit comes along; and once more, from the caches, to be overwritten.

#pragma once

#include <cmath>

#include "exponential.h"
#include "training.h"

namespace ince {
namespace {

// Logits as they are, or bent by Gemma's cap, and how steep the cap is there.
struct Uncapped {
  explicit Uncapped(float) {}
  Vector operator()(Vector logits) const { return logits; }
  Vector slope(Vector) const { return all(1.0f); }
};

struct Capped {
  float cap;
  explicit Capped(float cap) : cap(cap) {}
  Vector operator()(Vector logits) const { return tanh_of(logits / cap) * cap; }
  Vector slope(Vector logits) const {
    const Vector share = tanh_of(logits / cap);
    return 1.0f - share * share;
  }
};

// sum = sum of exp(z - most) over a row.
struct Summed {
  float most;
  double sum;
};

template <DType dtype, typename Cap>
Summed summed(const typename Format<dtype>::Stored* logits, int64_t num_cols, const Cap& cap) {
  const auto z = [&](int64_t i, int count) {
    return padded(cap(load<dtype>(logits + i, count)), count, -INFINITY);
  };
  Summed row{-INFINITY, 0};
  for (int64_t start = 0; start < num_cols; start += kPiece) {
    const int64_t n = num_cols - start < kPiece ? num_cols - start : kPiece;
    const float most = most_of_piece(start, n, z);
    if (most > row.most) {
      if (row.sum != 0) row.sum *= double(exp_of(all(row.most - most))[0]);
      row.most = most;
    }
    // Of logits that are all -inf so far, each adds nothing.
    const float shift = row.most == -INFINITY ? 0.0f : row.most;
    row.sum += double(sum_of_piece(
        start, n, [&](int64_t i, int count) { return exp_of(z(i, count) - shift); }));
  }
  return row;
}

template <DType dtype, typename Cap, bool is_grad>
void cross_entropy_rows(const CrossEntropyArgs& args, int64_t first, int64_t last) {
  using Stored = typename Format<dtype>::Stored;
  const Cap cap(args.softcap);
  for (int64_t row = first; row < last; ++row) {
    Stored* logits = static_cast<Stored*>(args.logits) + row * args.stride;
    const int64_t target = args.targets[row];
    if (target == kIgnored) {
      args.losses[row] = 0;
      if (is_grad) std::memset(logits, 0, std::size_t(args.num_cols) * sizeof *logits);
      continue;
    }
    const Summed all_of_row = summed<dtype>(logits, args.num_cols, cap);
    const Vector at_target = load<dtype>(logits + target, 1);
    const float weight = args.weights ? args.weights[row] : 1.0f;
    args.losses[row] = float(std::log(all_of_row.sum) +
                             (double(all_of_row.most) - double(cap(at_target)[0]))) *
                       weight;
    if constexpr (is_grad) {
      const float most = all_of_row.most;
      const float share = float(1.0 / all_of_row.sum);
      const float scale = args.scale * weight;
      const float factor = share * scale;
      for_each(args.num_cols, [&](int64_t i, int count) {
        const Vector values = load<dtype>(logits + i, count);
        const Vector grad = exp_of(cap(values) - most) * factor * cap.slope(values);
        store<dtype>(grad, logits + i, count);
      });
      const Vector probability = exp_of(cap(at_target) - most) * share;
      store<dtype>((probability - 1.0f) * scale * cap.slope(at_target), logits + target, 1);
    }
  }
}

template <bool is_grad>
void cross_entropy_of(const CrossEntropyArgs& args, int64_t first, int64_t last) {
  const bool is_capped = args.softcap != 0;
  switch (args.dtype) {
    case kFloat32:
      return is_capped ? cross_entropy_rows<kFloat32, Capped, is_grad>(args, first, last)
                       : cross_entropy_rows<kFloat32, Uncapped, is_grad>(args, first, last);
    case kBFloat16:
      return is_capped ? cross_entropy_rows<kBFloat16, Capped, is_grad>(args, first, last)
                       : cross_entropy_rows<kBFloat16, Uncapped, is_grad>(args, first, last);
    default:
      return is_capped ? cross_entropy_rows<kFloat16, Capped, is_grad>(args, first, last)
                       : cross_entropy_rows<kFloat16, Uncapped, is_grad>(args, first, last);
  }
}

void cross_entropy(const CrossEntropyArgs& args, int64_t first, int64_t last) {
  cross_entropy_of<false>(args, first, last);
}

void cross_entropy_grad(const CrossEntropyArgs& args, int64_t first, int64_t last) {
  cross_entropy_of<true>(args, first, last);
}

}  // namespace
}  // namespace ince
