// The C interface of attention: divides the work into pieces and lends each thread its memory.

#include "attention.h"

#include <cstring>

#include "lease.h"
#include "parallel.h"

#define INCE_API extern "C" __attribute__((visibility("default")))

namespace ince {
namespace {

// Tiles of each piece so that `num_pieces` make up all of them.
int64_t share(int64_t num_tiles, int64_t num_pieces) {
  return (num_tiles + num_pieces - 1) / num_pieces;
}

// The keys of a piece, so that there are about kTasks pieces and none is small. It depends on
// shapes alone: gradients of queries are sums over pieces, in their order.
int64_t key_tiles_of_piece(const AttentionArgs& args) {
  constexpr int64_t wanted = 16, smallest = 16;  // pieces, tiles
  const int64_t tiles = num_tiles(args.num_keys);
  const int64_t heads = args.batch * args.num_key_heads;
  const int64_t pieces = at_most((wanted + heads - 1) / heads, at_least(tiles / smallest, 1));
  return share(tiles, pieces);
}

}  // namespace
}  // namespace ince

using namespace ince;

// What each tile of a mask is.
INCE_API void ince_attention_tiles(const uint8_t* mask, int64_t batch_stride,
                                   int64_t query_stride, int64_t batch, int64_t num_queries,
                                   int64_t num_keys, uint8_t* tiles, int32_t threads) {
  const int64_t query_tiles = num_tiles(num_queries);
  const int64_t key_tiles = num_tiles(num_keys);
  constexpr int64_t worth = 1 << 18;  // entries that a thread is worth waking for
  parallel_for(batch * query_tiles, worth / (kTile * (num_keys + 1)), threads,
               [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t row = task % query_tiles * kTile;
      const int64_t count = at_most(kTile, num_queries - row);
      const uint8_t* of_task = mask + task / query_tiles * batch_stride + row * query_stride;
      for (int64_t key = 0; key < key_tiles; ++key) {
        uint8_t any[kTile] = {};
        uint8_t all[kTile];
        std::memset(all, 1, kTile);
        const int64_t width = at_most(kTile, num_keys - key * kTile);
        if (width < kTile) std::memset(all, 0, kTile);
        for (int64_t i = 0; i < count; ++i) {
          uint8_t bytes[kTile] = {};
          std::memcpy(bytes, of_task + i * query_stride + key * kTile, std::size_t(width));
          for (int64_t j = 0; j < kTile; ++j) {
            any[j] |= bytes[j];
            all[j] &= bytes[j];
          }
        }
        uint8_t is_any = 0, is_all = 1;
        for (int64_t j = 0; j < kTile; ++j) {
          is_any |= any[j];
          is_all &= all[j];
        }
        tiles[task * key_tiles + key] = is_all ? kWhole : is_any ? kPartial : kSkipped;
      }
    }
  });
}

// 1, or 0 where there is no memory; nothing is written then.
INCE_API int32_t ince_attention(const AttentionArgs* given, int32_t threads) {
  const AttentionArgs& args = *given;
  const Attention& attention = *kernels->attention;
  const int64_t tiles = num_tiles(args.num_queries);
  const int64_t heads = args.batch * args.num_key_heads;
  // A few pieces for each thread. Every one of them arranges the keys that it needs.
  const int64_t wanted = threads > 1 ? (4 * threads + heads - 1) / heads : 1;
  const int64_t of_piece = share(tiles, at_most(wanted, at_least(tiles / 4, 1)));
  const int64_t pieces = share(tiles, of_piece);
  const int64_t workers = at_most(at_least(threads, 1), heads * pieces);
  const int64_t bytes = whole_lines(attention.forward_bytes(args));
  const Lease lease(workers * bytes);
  if (!lease.memory()) return 0;
  // The last queries see the most keys.
  for_each_task(heads * pieces, workers, true, lease.memory(), bytes,
                [&](int64_t task, char* scratch) {
    const int64_t piece = task / heads, head = task % heads;
    const AttentionPiece work{head / args.num_key_heads, head % args.num_key_heads,
                              piece * of_piece, at_most((piece + 1) * of_piece, tiles)};
    attention.forward(args, work, scratch);
  });
  return 1;
}

// 1, or 0 where there is no memory; nothing is written then.
INCE_API int32_t ince_attention_backward(const AttentionArgs* given, int32_t threads) {
  const AttentionArgs& args = *given;
  const Attention& attention = *kernels->attention;
  const int64_t tiles = num_tiles(args.num_keys);
  const int64_t heads = args.batch * args.num_key_heads;
  const int64_t of_piece = key_tiles_of_piece(args);
  const int64_t pieces = share(tiles, of_piece);
  const int64_t workers = at_most(at_least(threads, 1), heads * pieces);
  const int64_t bytes = whole_lines(attention.backward_bytes(args, of_piece));
  const int64_t of_head = args.num_heads / args.num_key_heads * args.num_queries * args.width;
  const int64_t of_all = heads * of_head;
  const Lease lease(workers * bytes + (pieces > 1 ? pieces * of_all * int64_t(sizeof(float)) : 0));
  if (!lease.memory()) return 0;
  float* partials = reinterpret_cast<float*>(lease.memory() + workers * bytes);
  // The first keys are seen by the most queries.
  for_each_task(heads * pieces, workers, false, lease.memory(), bytes,
                [&](int64_t task, char* scratch) {
    const int64_t piece = task / heads, head = task % heads;
    const AttentionPiece work{head / args.num_key_heads, head % args.num_key_heads,
                              piece * of_piece, at_most((piece + 1) * of_piece, tiles)};
    attention.backward(args, work, scratch,
                       pieces > 1 ? partials + piece * of_all + head * of_head : nullptr);
  });
  if (pieces == 1) return 1;
  const int64_t query_tiles = num_tiles(args.num_queries);
  parallel_for(heads * query_tiles, 4, threads, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t head = task / query_tiles, tile = task % query_tiles;
      const AttentionPiece work{head / args.num_key_heads, head % args.num_key_heads, tile,
                                tile + 1};
      attention.add_partials(args, work, partials + head * of_head, pieces, of_all);
    }
  });
  return 1;
}
