// Attention backward: a tile of keys at a time, with the query tiles that see it.
//
// Probabilities are computed again from the log of the sums that the forward pass kept. With
// P the probabilities, dP = dO Vᵀ and d = rowsum(dO ∘ O):
//
//   dS = P ∘ (dP - d) · scale,   dV = Pᵀ dO,   dK = dSᵀ Q,   dQ = dS K
//
// Gradients of a piece's keys stay with the piece. Those of queries are gathered head by head in
// memory of the piece; no two threads ever add to one number.

#pragma once

#include "attention_forward.h"

namespace ince {
namespace {

constexpr int64_t kRun = 4;  // query tiles at a time

template <class W>
int64_t backward_bytes_of(const AttentionArgs& args, int64_t num_key_tiles) {
  const Sizes<W> sizes(args);
  const int64_t copies = W::is_symmetric ? 1 : 2;
  const int64_t keys = num_key_tiles * kTile * (3 * sizes.words + 2 * sizes.padded);
  const int64_t queries = sizes.query_tiles * kTile * (2 * copies * sizes.words + sizes.padded + 2);
  const int64_t own = 5 * kRun * kTile * kTile + 3 * kTile * sizes.padded;
  return (keys + queries + own) * int64_t(sizeof(float));
}

template <class V, class W>
int64_t backward_bytes(const AttentionArgs& args, int64_t num_key_tiles) {
  return backward_bytes_of<W>(args, num_key_tiles);
}

// What of a piece's keys and of one head's queries is arranged, and where the results are added.
template <class V, class W>
class Backward {
 public:
  Backward(const AttentionArgs& args, const AttentionPiece& piece, Scratch scratch)
      : args_(args), piece_(piece), sizes_(args), tile_words_(kTile * sizes_.words) {
    const int64_t num_keys = piece.last - piece.first;
    key_panels_ = scratch.take(num_keys * tile_words_);
    key_rows_ = scratch.take(num_keys * tile_words_);
    value_panels_ = scratch.take(num_keys * tile_words_);
    grad_keys_ = scratch.take(num_keys * kTile * sizes_.padded);
    grad_values_ = scratch.take(num_keys * kTile * sizes_.padded);
    const int64_t num_queries = sizes_.query_tiles;
    queries_ = scratch.take(num_queries * tile_words_);
    grads_ = scratch.take(num_queries * tile_words_);
    turned_queries_ = W::is_symmetric ? queries_ : scratch.take(num_queries * tile_words_);
    turned_grads_ = W::is_symmetric ? grads_ : scratch.take(num_queries * tile_words_);
    grad_queries_ = scratch.take(num_queries * kTile * sizes_.padded);
    log_sums_ = scratch.take(num_queries * kTile);
    deltas_ = scratch.take(num_queries * kTile);
    scores_ = scratch.take(kRun * kTile * kTile);
    slopes_ = scratch.take(kRun * kTile * kTile);
    down_probabilities_ = scratch.take(kRun * kTile * kTile);
    down_slopes_ = scratch.take(kRun * kTile * kTile);
    along_slopes_ = scratch.take(kRun * kTile * kTile);
    rows_ = scratch.take(kTile * sizes_.padded);
    more_rows_ = scratch.take(kTile * sizes_.padded);
  }

  void run(float* partial) {
    low_ = sizes_.query_tiles, high_ = 0;
    for (int64_t tile = 0; tile < sizes_.query_tiles; ++tile) {
      for (int64_t key = piece_.first; key < piece_.last; ++key) {
        if (kind(tile, key) == kSkipped) continue;
        if (high_ == 0) low_ = tile;
        high_ = tile + 1;
        break;
      }
    }
    arrange_keys();
    for (int64_t g = 0; g < sizes_.group; ++g) {
      const int64_t head = piece_.key_head * sizes_.group + g;
      arrange_queries(head);
      for (int64_t key = piece_.first; key < piece_.last; ++key) {
        for (int64_t tile = low_; tile < high_;) {
          int64_t count = 0;
          while (tile + count < high_ && count < kRun && kind(tile + count, key) != kSkipped) {
            ++count;
          }
          if (count) add(tile, count, key);
          tile += count ? count : 1;
        }
      }
      write_queries(head, partial ? partial + g * args_.num_queries * args_.width : nullptr);
    }
    for (int64_t key = piece_.first; key < piece_.last; ++key) write_keys(key);
  }

 private:
  uint8_t kind(int64_t query_tile, int64_t key_tile) const {
    return args_.tiles[(piece_.batch * sizes_.query_tiles + query_tile) * sizes_.key_tiles +
                       key_tile];
  }

  void arrange_keys() {
    for (int64_t key = piece_.first; key < piece_.last; ++key) {
      expect_tile(args_, args_.k, piece_.batch, piece_.key_head, key + 1, args_.num_keys);
      expect_tile(args_, args_.v, piece_.batch, piece_.key_head, key + 1, args_.num_keys);
      const int64_t at = (key - piece_.first) * tile_words_;
      float* rows = W::is_symmetric ? key_rows_ + at : rows_;
      read_tile<W>(args_, args_.k, piece_.batch, piece_.key_head, key, args_.num_keys, sizes_, rows);
      V::transpose(rows, sizes_.words, key_panels_ + at);
      if (!W::is_symmetric) W::turn_rows(rows, sizes_.words, key_rows_ + at);
      read_tile<W>(args_, args_.v, piece_.batch, piece_.key_head, key, args_.num_keys, sizes_, rows_);
      V::transpose(rows_, sizes_.words, value_panels_ + at);
    }
    const int64_t sums = (piece_.last - piece_.first) * kTile * sizes_.padded;
    std::memset(grad_keys_, 0, std::size_t(sums) * sizeof(float));
    std::memset(grad_values_, 0, std::size_t(sums) * sizeof(float));
  }

  void arrange_queries(int64_t head) {
    const int64_t lse = (piece_.batch * args_.num_heads + head) * args_.num_queries;
    for (int64_t tile = low_; tile < high_; ++tile) {
      expect_tile(args_, args_.q, piece_.batch, head, tile + 1, args_.num_queries);
      expect_tile(args_, args_.out, piece_.batch, head, tile + 1, args_.num_queries);
      expect_tile(args_, args_.grad_out, piece_.batch, head, tile + 1, args_.num_queries);
      const int64_t at = tile * tile_words_;
      read_tile<W>(args_, args_.q, piece_.batch, head, tile, args_.num_queries, sizes_, queries_ + at);
      read_tile<W>(args_, args_.grad_out, piece_.batch, head, tile, args_.num_queries, sizes_, grads_ + at);
      if (!W::is_symmetric) {
        W::turn_rows(queries_ + at, sizes_.words, turned_queries_ + at);
        W::turn_rows(grads_ + at, sizes_.words, turned_grads_ + at);
      }
      const int64_t count = rows_in_tile(tile, args_.num_queries);
      for (int64_t row = 0; row < kTile; ++row) {
        const int64_t query = tile * kTile + row;
        // A query that sees nothing, or is not there, has no probability above 0.
        const float log_sum = row < count ? args_.lse[lse + query] : -kInfinity;
        log_sums_[query] = log_sum == -kInfinity ? kInfinity : log_sum * kLog2E;
        deltas_[query] = row < count ? delta(head, query) : 0.0f;
      }
    }
    const int64_t first = low_ * kTile * sizes_.padded;
    const int64_t last = high_ * kTile * sizes_.padded;
    if (first < last) {
      std::memset(grad_queries_ + first, 0, std::size_t(last - first) * sizeof(float));
    }
  }

  float delta(int64_t head, int64_t query) {
    const DType dtype = DType(args_.dtype);
    read_row<V>(args_.grad_out.data, dtype, row_index(args_.grad_out, piece_.batch, head, query),
                args_.width, sizes_.padded, rows_);
    read_row<V>(args_.out.data, dtype, row_index(args_.out, piece_.batch, head, query),
                args_.width, sizes_.padded, more_rows_);
    return dot_rows<V>(rows_, more_rows_, sizes_.padded);
  }

  // `count` neighboring query tiles that all see a key tile.
  void add(int64_t tile, int64_t count, int64_t key) {
    const int64_t num_rows = count * kTile;
    const int64_t key_at = key - piece_.first;
    multiply_tall<V, W>(num_rows, queries_ + tile * tile_words_, sizes_.words,
                        key_panels_ + key_at * tile_words_, sizes_.words, scores_, kTile);
    multiply_tall<V, W>(num_rows, grads_ + tile * tile_words_, sizes_.words,
                        value_panels_ + key_at * tile_words_, sizes_.words, slopes_, kTile);
    for (int64_t i = 0; i < count; ++i) differentiate(tile, i, key);
    const int64_t words = num_rows / W::step;
    multiply_wide<V, W, true>(kTile, sizes_.padded, down_probabilities_, 1, kTile,
                              turned_grads_ + tile * tile_words_, words,
                              grad_values_ + key_at * kTile * sizes_.padded, sizes_.padded);
    multiply_wide<V, W, true>(kTile, sizes_.padded, down_slopes_, 1, kTile,
                              turned_queries_ + tile * tile_words_, words,
                              grad_keys_ + key_at * kTile * sizes_.padded, sizes_.padded);
    multiply_wide<V, W, true>(num_rows, sizes_.padded,
                              W::is_symmetric ? down_slopes_ : along_slopes_, kTile / W::step, 1,
                              key_rows_ + key_at * tile_words_, kTile / W::step,
                              grad_queries_ + tile * kTile * sizes_.padded, sizes_.padded);
  }

  // Scores and dP of a tile become words of P and dS.
  void differentiate(int64_t first_tile, int64_t number, int64_t key) {
    const int64_t tile = first_tile + number;
    const Vec factor = V::all(float(args_.scale) * kLog2E);
    const Vec scale = V::all(float(args_.scale));
    const bool is_partial = kind(tile, key) != kWhole;
    const int64_t count = rows_in_tile(tile, args_.num_queries);
    uint8_t end[W::step][kTile];
    const uint8_t* masks[W::step];
    for (int64_t row = 0; row < kTile; row += W::step) {
      const int64_t at = (number * kTile + row) * kTile;
      for (int64_t i = 0; is_partial && i < W::step; ++i) {
        if (row + i < count) {
          masks[i] = mask_of(args_, piece_.batch, tile * kTile + row + i, key, end[i]);
        } else {
          std::memset(end[i], 0, kTile);
          masks[i] = end[i];
        }
      }
      for (int64_t j = 0; j < kTile; j += V::lanes) {
        Vec probabilities[W::step], slopes[W::step];
        for (int64_t i = 0; i < W::step; ++i) {
          const int64_t query = tile * kTile + row + i;
          const Vec score = V::load(scores_ + at + i * kTile + j);
          Vec p = exp2<V>(V::sub(V::mul(score, factor), V::all(log_sums_[query])));
          if (is_partial) p = V::allowed(masks[i] + j, p, V::zero());
          const Vec dp = V::sub(V::load(slopes_ + at + i * kTile + j), V::all(deltas_[query]));
          probabilities[i] = p;
          slopes[i] = V::mul(V::mul(p, dp), scale);
        }
        const int64_t down = at / W::step + j;
        W::put_down(probabilities, down_probabilities_ + down);
        W::put_down(slopes, down_slopes_ + down);
        W::put_along(slopes, along_slopes_ + (at + j) / W::step);
      }
    }
  }

  void write_queries(int64_t head, float* partial) {
    for (int64_t query = 0; query < args_.num_queries; ++query) {
      const bool is_touched = low_ * kTile <= query && query < high_ * kTile;
      float* row = grad_queries_ + query * sizes_.padded;
      if (!is_touched) std::memset(row, 0, std::size_t(sizes_.padded) * sizeof(float));
      if (partial) {
        std::memcpy(partial + query * args_.width, row, std::size_t(args_.width) * sizeof(float));
      } else {
        write_row<V>(row, 1.0f, args_.grad_q.data, DType(args_.dtype),
                     row_index(args_.grad_q, piece_.batch, head, query), args_.width);
      }
    }
  }

  void write_keys(int64_t tile) {
    const int64_t at = (tile - piece_.first) * kTile * sizes_.padded;
    const int64_t count = rows_in_tile(tile, args_.num_keys);
    for (int64_t row = 0; row < count; ++row) {
      const int64_t key = tile * kTile + row;
      write_row<V>(grad_keys_ + at + row * sizes_.padded, 1.0f, args_.grad_k.data,
                   DType(args_.dtype), row_index(args_.grad_k, piece_.batch, piece_.key_head, key),
                   args_.width);
      write_row<V>(grad_values_ + at + row * sizes_.padded, 1.0f, args_.grad_v.data,
                   DType(args_.dtype), row_index(args_.grad_v, piece_.batch, piece_.key_head, key),
                   args_.width);
    }
  }

  using Vec = typename V::Vec;
  const AttentionArgs& args_;
  const AttentionPiece& piece_;
  const Sizes<W> sizes_;
  const int64_t tile_words_;
  int64_t low_ = 0, high_ = 0;  // query tiles that see any of these keys
  // By key tile. Panels have keys side by side; rows have words along the keys.
  float *key_panels_, *key_rows_, *value_panels_, *grad_keys_, *grad_values_;
  // By query tile, of one head. The turned ones have words along the queries.
  float *queries_, *grads_, *turned_queries_, *turned_grads_, *grad_queries_;
  float *log_sums_, *deltas_;  // by query; sums in powers of two
  // Of a run of query tiles and one key tile.
  float *scores_, *slopes_, *down_probabilities_, *down_slopes_, *along_slopes_;
  float *rows_, *more_rows_;
};

template <class V, class W>
void backward(const AttentionArgs& args, const AttentionPiece& piece, void* scratch,
              float* partial) {
  Backward<V, W>(args, piece, Scratch{static_cast<float*>(scratch)}).run(partial);
}

template <class V>
void add_partials(const AttentionArgs& args, const AttentionPiece& piece, const float* partials,
                  int64_t num_partials, int64_t partial_stride) {
  float row[kMaxWidth];
  const int64_t group = args.num_heads / args.num_key_heads;
  const int64_t last = piece.last * kTile < args.num_queries ? piece.last * kTile : args.num_queries;
  for (int64_t g = 0; g < group; ++g) {
    for (int64_t query = piece.first * kTile; query < last; ++query) {
      const float* from = partials + (g * args.num_queries + query) * args.width;
      std::memcpy(row, from, std::size_t(args.width) * sizeof(float));
      for (int64_t part = 1; part < num_partials; ++part) {
        for (int64_t i = 0; i < args.width; ++i) row[i] += from[part * partial_stride + i];
      }
      write_row<V>(row, 1.0f, args.grad_q.data, DType(args.dtype),
                   row_index(args.grad_q, piece.batch, piece.key_head * group + g, query),
                   args.width);
    }
  }
}

}  // namespace
}  // namespace ince
