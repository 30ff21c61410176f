// Attention over packed rows: what library and kernels agree on.
//
// Scores are computed in tiles of kTile queries times kTile keys, and tiles in which the mask
// forbids everything are left out. The layout of AttentionArgs is known to Python (attention.py).

#pragma once

#include "kernels.h"

namespace ince {

constexpr int64_t kTile = 16;
constexpr int64_t kMaxWidth = 256;  // of a head

// What a tile of the mask is.
enum Tile : uint8_t { kSkipped = 0, kWhole = 1, kPartial = 2 };

// A tensor (batch, head, place, width) of the operands' type; the numbers of a place lie side by
// side, strides count numbers.
struct Rows {
  void* data;
  int64_t batch_stride;
  int64_t head_stride;
  int64_t place_stride;
};

// For G = num_heads / num_key_heads, query head h sees key head h / G.
struct AttentionArgs {
  Rows q, k, v;
  Rows out;                     // written forward, read backward
  Rows grad_out;                // backward only, as what follows
  Rows grad_q, grad_k, grad_v;  // written
  const uint8_t* mask;          // (batch, queries, keys) of 0 and 1, keys side by side
  int64_t mask_batch_stride;
  int64_t mask_query_stride;
  const uint8_t* tiles;  // (batch, query tiles, key tiles)
  float* lse;            // (batch, head, query): log of the sum of exponentials
  int64_t batch;
  int64_t num_heads;
  int64_t num_key_heads;
  int64_t num_queries;
  int64_t num_keys;
  int64_t width;
  int64_t dtype;
  double scale;  // of the scores
};

inline int64_t num_tiles(int64_t places) { return (places + kTile - 1) / kTile; }

// A piece of work: some tiles of queries (forward) or keys (backward) of one key head, with all
// its query heads.
struct AttentionPiece {
  int64_t batch;
  int64_t key_head;
  int64_t first;  // tile
  int64_t last;   // and the tile after the last
};

// Each works in the calling thread, in `scratch`: so many bytes, 64-byte aligned.
struct Attention {
  int64_t (*forward_bytes)(const AttentionArgs& args);
  void (*forward)(const AttentionArgs& args, const AttentionPiece& piece, void* scratch);
  // `num_tiles` of keys, at most, in a piece.
  int64_t (*backward_bytes)(const AttentionArgs& args, int64_t num_tiles);
  // Gradients of the keys and values of the piece. Those of the queries from these keys alone are
  // written to grad_q; or, as float32, to `partial` (G, queries, width) where it is not null.
  void (*backward)(const AttentionArgs& args, const AttentionPiece& piece, void* scratch,
                   float* partial);
  // grad_q of a query tile of all heads of a key head: the sum of `num_partials`, one after the
  // other in memory, `partial_stride` numbers apart.
  void (*add_partials)(const AttentionArgs& args, const AttentionPiece& piece,
                       const float* partials, int64_t num_partials, int64_t partial_stride);
};

extern const Attention kAttentionPortable;
#if defined(INCE_AVX2)
extern const Attention kAttentionAvx2;
#endif
#if defined(INCE_AVX512)
extern const Attention kAttentionAvx512;
#endif
#if defined(INCE_AVX512BF16)
extern const Attention kAttentionAvx512Bf16;
#endif

}  // namespace ince
