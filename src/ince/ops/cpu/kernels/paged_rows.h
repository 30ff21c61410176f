// What both ways of paged attention share: where keys lie, which of them a query sees, and the
// softmax of a row of scores.

#pragma once

#include <cmath>
#include <cstring>

#include "attention_products.h"
#include "serving.h"

namespace ince {
namespace {

// Sizes that follow from the arguments.
struct PagedSizes {
  int64_t padded;  // numbers of a head in float32, filled up with zeros
  int64_t group;   // query heads of a key head
  int64_t token;   // numbers of a place in the pools

  explicit PagedSizes(const PagedArgs& args)
      : padded((args.width + 15) / 16 * 16),
        group(args.num_heads / args.num_key_heads),
        token(args.num_key_heads * args.width) {}
};

// A sequence: its queries, and where its keys are.
struct Sequence {
  int64_t first_token;
  int64_t num_queries;
  int64_t length;
  const int32_t* blocks;

  Sequence(const PagedArgs& args, int64_t index)
      : first_token(args.query_starts[index]),
        num_queries(args.query_starts[index + 1] - first_token),
        length(args.context_lengths[index]),
        blocks(args.block_table + index * args.max_blocks) {}

  // The position of a query of this sequence.
  int64_t position(int64_t query) const { return length - num_queries + query; }
};

// The first key that a query at `position` sees.
inline int64_t first_key_of(const PagedArgs& args, int64_t position) {
  return args.window > 0 && position >= args.window ? position - args.window + 1 : 0;
}

// What queries are multiplied with, so that scores are powers of two, or what tanh is taken of.
inline float query_factor(const PagedArgs& args) {
  return args.softcap > 0 ? float(args.scale / args.softcap) : float(args.scale) * kLog2E;
}

// A query head as float32.
template <class V>
void read_query(const PagedArgs& args, const PagedSizes& sizes, int64_t token, int64_t head,
                float* out) {
  read_row<V>(args.q, DType(args.dtype), token * args.q_token_stride + head * args.q_head_stride,
              args.width, sizes.padded, out);
  const typename V::Vec factor = V::all(query_factor(args));
  for (int64_t i = 0; i < sizes.padded; i += V::lanes) {
    V::store(out + i, V::mul(V::load(out + i), factor));
  }
}

// softcap · tanh(x) in powers of two.
template <class V>
inline typename V::Vec capped(typename V::Vec x, typename V::Vec cap) {
  const typename V::Vec one = V::all(1.0f);
  const typename V::Vec power = exp2<V>(V::mul(x, V::all(2 * kLog2E)));
  return V::mul(cap, V::sub(one, V::div(V::all(2.0f), V::add(power, one))));
}

// Scores 0 … count-1, a multiple of sixteen, of which the row sees `low` to `high` - 1, become
// probabilities that are not yet divided, and zeros. `largest` and `sum` are of what the row has
// seen so far; returns what earlier sums are to be multiplied with.
template <class V>
float add_scores(const PagedArgs& args, float* scores, int64_t count, int64_t low, int64_t high,
                 float& largest, float& sum) {
  using Vec = typename V::Vec;
  low = low < 0 ? 0 : low < count ? low : count;
  high = high < low ? low : high < count ? high : count;
  if (args.softcap > 0) {
    const Vec cap = V::all(float(args.softcap) * kLog2E);
    for (int64_t i = low / V::lanes * V::lanes; i < high; i += V::lanes) {
      V::store(scores + i, capped<V>(V::load(scores + i), cap));
    }
  }
  for (int64_t i = 0; i < low; ++i) scores[i] = -kInfinity;
  for (int64_t i = high; i < count; ++i) scores[i] = -kInfinity;
  const int64_t first = low / V::lanes * V::lanes;
  const int64_t last = (high + V::lanes - 1) / V::lanes * V::lanes;
  Vec top = V::all(-kInfinity);
  for (int64_t i = first; i < last; i += V::lanes) top = V::max(top, V::load(scores + i));
  const float of_these = V::largest(top);
  const float now = of_these > largest ? of_these : largest;
  // A row that has seen nothing yet has no maximum to subtract.
  const float base = now == -kInfinity ? 0.0f : now;
  const Vec minus = V::all(base);
  Vec added = V::zero();
  std::memset(scores, 0, std::size_t(first) * sizeof(float));
  for (int64_t i = first; i < last; i += V::lanes) {
    const Vec power = exp2<V>(V::sub(V::load(scores + i), minus));
    V::store(scores + i, power);
    added = V::add(added, power);
  }
  if (last < count) std::memset(scores + last, 0, std::size_t(count - last) * sizeof(float));
  const float shrink = std::exp2(largest - base);
  largest = now;
  sum = sum * shrink + V::sum(added);
  return shrink;
}

// Asks for rows of the pools ahead of their turn: blocks lie anywhere.
inline void expect_rows(const void* pool, int64_t index, int64_t stride, int64_t num_rows,
                        int64_t width, int64_t number_bytes) {
  const char* from = static_cast<const char*>(pool) + index * number_bytes;
  for (int64_t row = 0; row < num_rows; ++row) {
    const char* of_row = from + row * stride * number_bytes;
    for (int64_t i = 0; i < width * number_bytes; i += 64) __builtin_prefetch(of_row + i);
  }
}

}  // namespace
}  // namespace ince
