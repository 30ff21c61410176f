// Attention forward: a tile of queries at a time, with the key tiles that it may see.
//
// Scores of up to kChunk key tiles are held at once, and probabilities follow in place; where a
// query sees more, the sums so far are scaled to the new maximum, as in FlashAttention
// (arXiv:2205.14135). So most rows of packed documents need one softmax and no scaling.

#pragma once

#include <cmath>
#include <cstring>

#include "attention_products.h"

namespace ince {
namespace {

constexpr int64_t kChunk = 16;  // key tiles
constexpr int64_t kChunkKeys = kChunk * kTile;

// Sizes of the arranged operands, in numbers.
template <class W>
struct Sizes {
  int64_t words;       // in a row, filled up with zeros
  int64_t padded;      // numbers in a row, so filled up
  int64_t group;       // query heads of a key head
  int64_t query_tiles;
  int64_t key_tiles;

  explicit Sizes(const AttentionArgs& args)
      : words((args.width + kTile * W::step - 1) / (kTile * W::step) * kTile),
        padded(words * W::step),
        group(args.num_heads / args.num_key_heads),
        query_tiles(num_tiles(args.num_queries)),
        key_tiles(num_tiles(args.num_keys)) {}
};

// Memory taken piece by piece.
struct Scratch {
  float* next;

  // Words, in multiples of sixteen.
  float* take(int64_t count) {
    float* taken = next;
    next += (count + 15) / 16 * 16;
    return taken;
  }
};

inline int64_t rows_in_tile(int64_t tile, int64_t places) {
  const int64_t left = places - tile * kTile;
  return left < kTile ? left : kTile;
}

inline int64_t row_index(const Rows& rows, int64_t batch, int64_t head, int64_t place) {
  return batch * rows.batch_stride + head * rows.head_stride + place * rows.place_stride;
}

// What a query may see in a key tile: sixteen bytes, zero beyond the last key.
inline const uint8_t* mask_of(const AttentionArgs& args, int64_t batch, int64_t query,
                              int64_t key_tile, uint8_t (&end)[kTile]) {
  const uint8_t* mask = args.mask + batch * args.mask_batch_stride +
                        query * args.mask_query_stride + key_tile * kTile;
  const int64_t left = args.num_keys - key_tile * kTile;
  if (left >= kTile) return mask;
  std::memset(end, 0, kTile);
  std::memcpy(end, mask, std::size_t(left));
  return end;
}

// Asks for a tile of an operand ahead of its turn: its rows lie a whole place apart, which no
// processor foresees. Nothing where there is no such tile.
inline void expect_tile(const AttentionArgs& args, const Rows& rows, int64_t batch, int64_t head,
                        int64_t tile, int64_t places) {
  const int64_t size = args.dtype == kFloat32 ? 4 : 2;
  for (int64_t row = 0; row < rows_in_tile(tile, places); ++row) {
    const char* from = static_cast<const char*>(rows.data) +
                       row_index(rows, batch, head, tile * kTile + row) * size;
    for (int64_t i = 0; i < args.width * size; i += 64) __builtin_prefetch(from + i);
  }
}

// A tile of an operand as sixteen rows of words, zeros where there is no place.
template <class W>
void read_tile(const AttentionArgs& args, const Rows& rows, int64_t batch, int64_t head,
               int64_t tile, int64_t places, const Sizes<W>& sizes, float* out) {
  const int64_t count = rows_in_tile(tile, places);
  for (int64_t row = 0; row < count; ++row) {
    W::read_row(rows.data, DType(args.dtype), row_index(rows, batch, head, tile * kTile + row),
                args.width, sizes.padded, out + row * sizes.words);
  }
  std::memset(out + count * sizes.words, 0,
              std::size_t((kTile - count) * sizes.words) * sizeof(float));
}

template <class V, class W>
int64_t forward_bytes(const AttentionArgs& args) {
  const Sizes<W> sizes(args);
  const int64_t arranged = sizes.key_tiles * kTile * (sizes.words + sizes.words);
  const int64_t own = kTile * (sizes.words + sizes.words + sizes.padded + kChunkKeys);
  return (arranged + own) * int64_t(sizeof(float));
}

// The softmax of a query tile, over chunks of keys.
template <class V, class W>
struct Softmax {
  float largest[kTile];  // of the scores so far, in powers of two
  float sums[kTile];     // of the probabilities so far

  // Scores of `count` key tiles become probabilities; `sums_so_far` are scaled to them.
  void add(const AttentionArgs& args, int64_t batch, int64_t first_query, int64_t num_rows,
           const int64_t* tiles, const uint8_t* kinds, int64_t count, bool is_first, float* scores,
           float* values, int64_t padded) {
    using Vec = typename V::Vec;
    const Vec factor = V::all(float(args.scale) * kLog2E);
    const Vec forbidden = V::all(-kInfinity);
    uint8_t end[kTile];
    for (int64_t row = 0; row < num_rows; ++row) {
      float* of_row = scores + row * kChunkKeys;
      Vec top = forbidden;
      for (int64_t i = 0; i < count; ++i) {
        const uint8_t* mask = kinds[tiles[i]] == kWhole
                                  ? nullptr
                                  : mask_of(args, batch, first_query + row, tiles[i], end);
        for (int64_t j = 0; j < kTile; j += V::lanes) {
          float* at = of_row + i * kTile + j;
          Vec score = V::mul(V::load(at), factor);
          if (mask) score = V::allowed(mask + j, score, forbidden);
          V::store(at, score);
          top = V::max(top, score);
        }
      }
      const float before = is_first ? -kInfinity : largest[row];
      const float chunk_top = V::largest(top);
      const float now = chunk_top > before ? chunk_top : before;
      // A row that has seen nothing yet has no maximum to subtract.
      const float base = now == -kInfinity ? 0.0f : now;
      const Vec minus = V::all(base);
      Vec sum = V::zero();
      for (int64_t i = 0; i < count * kTile; i += V::lanes) {
        const Vec power = exp2<V>(V::sub(V::load(of_row + i), minus));
        V::store(of_row + i, power);
        sum = V::add(sum, power);
      }
      W::narrow(of_row, count * kTile);
      largest[row] = now;
      if (is_first) {
        sums[row] = V::sum(sum);
        continue;
      }
      const float shrink = std::exp2(before - base);
      sums[row] = sums[row] * shrink + V::sum(sum);
      for (int64_t i = 0; i < padded; i += V::lanes) {
        float* at = values + row * padded + i;
        V::store(at, V::mul(V::load(at), V::all(shrink)));
      }
    }
  }
};

// One query tile of one head, with the key tiles from `low` to `high` - 1 arranged.
template <class V, class W>
void attend(const AttentionArgs& args, const Sizes<W>& sizes, int64_t batch, int64_t head,
            int64_t tile, int64_t low, int64_t high, const float* keys, const float* key_values,
            Scratch scratch) {
  float* queries = scratch.take(kTile * sizes.words);
  float* scores = scratch.take(kTile * kChunkKeys);
  float* values = scratch.take(kTile * sizes.padded);
  const uint8_t* kinds = args.tiles + (batch * sizes.query_tiles + tile) * sizes.key_tiles;
  const int64_t num_rows = rows_in_tile(tile, args.num_queries);
  const int64_t tile_words = kTile * sizes.words;
  Softmax<V, W> softmax;
  bool is_first = true;
  for (int64_t key = low;;) {
    int64_t seen[kChunk];
    int64_t count = 0;
    for (; key < high && count < kChunk; ++key) {
      if (kinds[key] != kSkipped) seen[count++] = key;
    }
    if (count == 0) break;
    if (is_first) read_tile<W>(args, args.q, batch, head, tile, args.num_queries, sizes, queries);
    for (int64_t i = 0; i < count; ++i) {
      multiply_tall<V, W>(kTile, queries, sizes.words, keys + (seen[i] - low) * tile_words,
                          sizes.words, scores + i * kTile, kChunkKeys);
    }
    softmax.add(args, batch, tile * kTile, num_rows, seen, kinds, count, is_first, scores, values,
                sizes.padded);
    // Neighboring key tiles are one product.
    for (int64_t i = 0, length; i < count; i += length) {
      length = 1;
      while (i + length < count && seen[i + length] == seen[i] + length) ++length;
      const float* weights = scores + i * kTile / W::step;
      const float* right = key_values + (seen[i] - low) * tile_words;
      const int64_t words = length * kTile / W::step;
      const auto multiply = is_first && i == 0 ? multiply_wide<V, W, false> : multiply_wide<V, W, true>;
      multiply(kTile, sizes.padded, weights, kChunkKeys, 1, right, words, values, sizes.padded, 0);
    }
    is_first = false;
  }
  if (is_first) {
    softmax = Softmax<V, W>{};
    std::memset(values, 0, std::size_t(kTile * sizes.padded) * sizeof(float));
  }
  for (int64_t row = 0; row < num_rows; ++row) {
    const int64_t query = tile * kTile + row;
    const float sum = softmax.sums[row];
    write_row<V>(values + row * sizes.padded, sum == 0 ? 0.0f : 1.0f / sum, args.out.data,
                 DType(args.dtype), row_index(args.out, batch, head, query), args.width);
    args.lse[(batch * args.num_heads + head) * args.num_queries + query] =
        sum == 0 ? -kInfinity : (softmax.largest[row] + std::log2(sum)) * kLn2;
  }
}

template <class V, class W>
void forward(const AttentionArgs& args, const AttentionPiece& piece, void* memory) {
  const Sizes<W> sizes(args);
  const uint8_t* tiles = args.tiles + piece.batch * sizes.query_tiles * sizes.key_tiles;
  // The key tiles from the first to the last that any of these queries may see.
  int64_t low = sizes.key_tiles, high = 0;
  for (int64_t tile = piece.first; tile < piece.last; ++tile) {
    const uint8_t* kinds = tiles + tile * sizes.key_tiles;
    for (int64_t key = 0; key < low; ++key) {
      if (kinds[key] != kSkipped) low = key;
    }
    for (int64_t key = sizes.key_tiles; key > high; --key) {
      if (kinds[key - 1] != kSkipped) high = key;
    }
  }
  Scratch scratch{static_cast<float*>(memory)};
  const int64_t tile_words = kTile * sizes.words;
  float* keys = scratch.take(sizes.key_tiles * tile_words);
  float* key_values = scratch.take(sizes.key_tiles * tile_words);
  float* rows = scratch.take(tile_words);
  for (int64_t tile = low; tile < high; ++tile) {
    expect_tile(args, args.k, piece.batch, piece.key_head, tile + 1, args.num_keys);
    expect_tile(args, args.v, piece.batch, piece.key_head, tile + 1, args.num_keys);
    read_tile<W>(args, args.k, piece.batch, piece.key_head, tile, args.num_keys, sizes, rows);
    V::transpose(rows, sizes.words, keys + (tile - low) * tile_words);
    float* turned = key_values + (tile - low) * tile_words;
    read_tile<W>(args, args.v, piece.batch, piece.key_head, tile, args.num_keys, sizes,
                 W::is_symmetric ? turned : rows);
    if (!W::is_symmetric) W::turn_rows(rows, sizes.words, turned);
  }
  for (int64_t tile = piece.first; tile < piece.last; ++tile) {
    for (int64_t g = 0; g < sizes.group; ++g) {
      expect_tile(args, args.q, piece.batch, piece.key_head * sizes.group + g, tile + 1,
                  args.num_queries);
      attend<V, W>(args, sizes, piece.batch, piece.key_head * sizes.group + g, tile, low, high,
                   keys, key_values, scratch);
    }
  }
}

}  // namespace
}  // namespace ince
