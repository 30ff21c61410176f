// Rotary position embedding: of each head, number i and number i + half turn by an angle of the
// token's position. Two heads' tensors at once, read and written at any distances.

#pragma once

#include "floats.h"
#include "training.h"

namespace ince {
namespace {

template <DType dtype>
void turn_heads(const Heads& heads, const RotateArgs& args, int64_t sequence, int64_t position,
                const float* cosines, const float* sines) {
  using Stored = typename Format<dtype>::Stored;
  const int64_t half = args.num_rotated / 2;
  const int64_t rest = args.head_size - args.num_rotated;
  for (int64_t head = 0; head < heads.num_heads; ++head) {
    const Stored* from = static_cast<const Stored*>(heads.from) + sequence * heads.from_sequence +
                         position * heads.from_position + head * heads.from_head;
    Stored* to = static_cast<Stored*>(heads.to) + sequence * heads.to_sequence +
                 position * heads.to_position + head * heads.to_head;
    for_each(half, [&](int64_t i, int count) {
      const Vector lower = load<dtype>(from + i, count);
      const Vector upper = load<dtype>(from + half + i, count);
      const Vector lower_cos = load<kFloat32>(cosines + i, count);
      const Vector upper_cos = load<kFloat32>(cosines + half + i, count);
      // Transposed, each sine stands where the other one did, with the other sign.
      const Vector lower_sin = load<kFloat32>(sines + (args.transposed ? half : 0) + i, count);
      const Vector upper_sin = load<kFloat32>(sines + (args.transposed ? 0 : half) + i, count);
      if (args.transposed) {
        store<dtype>(lower * lower_cos + upper * lower_sin, to + i, count);
        store<dtype>(upper * upper_cos - lower * upper_sin, to + half + i, count);
      } else {
        store<dtype>(lower * lower_cos - upper * lower_sin, to + i, count);
        store<dtype>(upper * upper_cos + lower * upper_sin, to + half + i, count);
      }
    });
    if (rest && from != to) {
      std::memcpy(to + args.num_rotated, from + args.num_rotated, std::size_t(rest) * sizeof *to);
    }
  }
}

template <DType table_type>
void load_tables(const RotateArgs& args, int64_t start, float* cosines, float* sines) {
  using Stored = typename Format<table_type>::Stored;
  const Stored* cosine = static_cast<const Stored*>(args.cosines) + start;
  const Stored* sine = static_cast<const Stored*>(args.sines) + start;
  for_each(args.num_rotated, [&](int64_t i, int count) {
    store<kFloat32>(load<table_type>(cosine + i, count), cosines + i, count);
    store<kFloat32>(load<table_type>(sine + i, count), sines + i, count);
  });
}

// Tokens first … last-1 of all sequences.
template <DType dtype>
void rotate_tokens(const RotateArgs& args, int64_t first, int64_t last) {
  float cosines[kMaxRotated], sines[kMaxRotated];
  for (int64_t token = first; token < last; ++token) {
    const int64_t sequence = token / args.num_positions;
    const int64_t position = token % args.num_positions;
    const int64_t start = sequence * args.table_sequence + position * args.table_position;
    if (args.table_dtype == kFloat32) {
      load_tables<kFloat32>(args, start, cosines, sines);
    } else if (args.table_dtype == kBFloat16) {
      load_tables<kBFloat16>(args, start, cosines, sines);
    } else {
      load_tables<kFloat16>(args, start, cosines, sines);
    }
    for (const Heads& heads : args.heads) {
      turn_heads<dtype>(heads, args, sequence, position, cosines, sines);
    }
  }
}

void rotate(const RotateArgs& args, int64_t first, int64_t last) {
  switch (args.dtype) {
    case kFloat32:
      return rotate_tokens<kFloat32>(args, first, last);
    case kBFloat16:
      return rotate_tokens<kBFloat16>(args, first, last);
    default:
      return rotate_tokens<kFloat16>(args, first, last);
  }
}

}  // namespace
}  // namespace ince
