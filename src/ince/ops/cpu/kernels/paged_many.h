// Many queries of a sequence, as where a prompt is read: queries and keys of a head are multiplied
// as matrices, a chunk of keys at a time, and sums are scaled to the new maximum where a query sees
// more than one chunk, as in FlashAttention (arXiv:2205.14135).

#pragma once

#include "paged_rows.h"

namespace ince {
namespace {

// Keys whose scores are held at once, and those whose values are.
constexpr int64_t kHeldKeys = 256, kHeldValues = 64;

inline int64_t whole_tiles(int64_t count) { return (count + kTile - 1) / kTile * kTile; }

template <class V>
int64_t many_bytes(const PagedArgs& args, int64_t num_queries) {
  const PagedSizes sizes(args);
  const int64_t rows = whole_tiles(num_queries * sizes.group);
  const int64_t numbers = rows * (2 * sizes.padded + kHeldKeys + 2) +
                          (kHeldValues + kTile) * sizes.padded;
  return numbers * int64_t(sizeof(float));
}

// Keys or values `first` … `last` - 1 of a head, in rows of float32.
template <class V>
void read_places(const PagedArgs& args, const PagedSizes& sizes, const Sequence& sequence,
                 const void* pool, int64_t head, int64_t first, int64_t last, float* out) {
  for (int64_t key = first; key < last; ++key, out += sizes.padded) {
    const int64_t block = sequence.blocks[key / args.block_size];
    const int64_t place = block * args.block_size + key % args.block_size;
    read_row<V>(pool, DType(args.dtype), place * sizes.token + head * args.width, args.width,
                sizes.padded, out);
  }
}

template <class V>
void attend_many(const PagedArgs& args, int64_t index, int64_t first, int64_t last,
                 int64_t key_head, void* memory) {
  using W = Floats<V>;
  const PagedSizes sizes(args);
  const Sequence sequence(args, index);
  const int64_t num_queries = last - first, num_rows = num_queries * sizes.group;
  const int64_t padded = sizes.padded, rows = whole_tiles(num_rows);
  float* queries = static_cast<float*>(memory);
  float* sums = queries + rows * padded;
  float* scores = sums + rows * padded;
  float* places = scores + rows * kHeldKeys;
  float* turned = places + kHeldValues * padded;
  float* largest = turned + kTile * padded;
  float* totals = largest + rows;
  // Row = head of the group · num_queries + query.
  for (int64_t row = 0; row < num_rows; ++row) {
    read_query<V>(args, sizes, sequence.first_token + first + row % num_queries,
                  key_head * sizes.group + row / num_queries, queries + row * padded);
    largest[row] = -kInfinity;
    totals[row] = 0;
  }
  std::memset(queries + num_rows * padded, 0,
              std::size_t((rows - num_rows) * padded) * sizeof(float));
  std::memset(sums, 0, std::size_t(rows * padded) * sizeof(float));
  const int64_t end = sequence.position(last - 1) + 1;
  const int64_t begin = first_key_of(args, sequence.position(first)) / kTile * kTile;
  for (int64_t start = begin; start < end; start += kHeldKeys) {
    const int64_t stop = end - start < kHeldKeys ? end : start + kHeldKeys;
    const int64_t held = whole_tiles(stop - start);
    const auto read = [&](const void* pool, int64_t key, int64_t count) {
      const int64_t there = stop - key < count ? stop - key : count;
      read_places<V>(args, sizes, sequence, pool, key_head, key, key + there, places);
      std::memset(places + there * padded, 0,
                  std::size_t((count - there) * padded) * sizeof(float));
    };
    for (int64_t i = 0; i < held; i += kTile) {
      read(args.k_pool, start + i, kTile);
      V::transpose(places, padded, turned);
      multiply_tall<V, W>(rows, queries, padded, turned, padded, scores + i, kHeldKeys);
    }
    for (int64_t row = 0; row < num_rows; ++row) {
      const int64_t position = sequence.position(first + row % num_queries);
      const float shrink =
          add_scores<V>(args, scores + row * kHeldKeys, held, first_key_of(args, position) - start,
                        position + 1 - start, largest[row], totals[row]);
      if (start == begin || shrink == 1.0f) continue;
      for (int64_t i = 0; i < padded; i += V::lanes) {
        float* at = sums + row * padded + i;
        V::store(at, V::mul(V::load(at), V::all(shrink)));
      }
    }
    for (int64_t i = 0; i < held; i += kHeldValues) {
      const int64_t count = held - i < kHeldValues ? held - i : kHeldValues;
      read(args.v_pool, start + i, count);
      multiply_wide<V, W, true>(rows, padded, scores + i, kHeldKeys, 1, places, count, sums, padded);
    }
  }
  for (int64_t row = 0; row < num_rows; ++row) {
    const int64_t token = sequence.first_token + first + row % num_queries;
    const int64_t head = key_head * sizes.group + row / num_queries;
    write_row<V>(sums + row * padded, 1.0f / totals[row], args.out, DType(args.dtype),
                 (token * args.num_heads + head) * args.width, args.width);
  }
}

}  // namespace
}  // namespace ince
