// Answering many requests at once: what library and kernels agree on.
//
// The layouts of PagedArgs, SegmentArgs and DenseArgs are known to Python (paged_attention.py,
// lora_segments.py, dense.py): fields of eight bytes each.

#pragma once

#include "kernels.h"

namespace ince {

// Attention of N queries of S sequences over pools (block, place, key head, width) without gaps.
// For G = num_heads / num_key_heads, query head h sees key head h / G.
struct PagedArgs {
  const void* q;  // (token, head, width), the numbers of a head side by side
  int64_t q_token_stride;
  int64_t q_head_stride;
  const void* k_pool;
  const void* v_pool;
  void* out;  // (token, head, width) without gaps
  int64_t dtype;
  int64_t num_tokens;
  int64_t num_heads;
  int64_t num_key_heads;
  int64_t width;
  int64_t num_blocks;
  int64_t block_size;
  const int32_t* block_table;  // (sequence, max_blocks)
  int64_t max_blocks;
  const int32_t* query_starts;     // of each sequence, and the end
  const int32_t* context_lengths;  // of each sequence
  int64_t num_sequences;
  int64_t window;  // 0: all keys
  double scale;
  double softcap;  // 0: none
};

// The place of every token's keys and values in the pools.
struct WriteArgs {
  void* k_pool;
  void* v_pool;
  const void* k;  // (token, head, width), the numbers of a head side by side
  const void* v;
  int64_t k_token_stride;
  int64_t k_head_stride;
  int64_t v_token_stride;
  int64_t v_head_stride;
  int64_t head_bytes;
  int64_t number_bytes;
  int64_t num_heads;
  int64_t num_tokens;
  const int64_t* slots;
  int64_t num_slots;
};

// One segment, as the operator's declaration says.
struct Segment {
  int64_t block;
  int64_t start;
  int64_t stop;
  int64_t rank;
  int64_t a_offset;
  int64_t b_offset;
  int64_t turn_offset;
  int64_t shift_offset;
};

// An adapter's numbers, float32 or bfloat16.
struct AdapterBlock {
  const void* data;
  int64_t size;
  int64_t dtype;
};

struct SegmentArgs {
  void* y;        // (row, output), the numbers of a row side by side
  const void* x;  // (row, input), the same
  int64_t y_stride;
  int64_t x_stride;
  int64_t dtype;
  int64_t num_rows;
  int64_t num_inputs;
  int64_t num_outputs;
  const Segment* segments;
  int64_t num_segments;
  const AdapterBlock* blocks;
  int64_t num_blocks;
};

// y = x Wᵀ + b, all of one type.
struct DenseArgs {
  void* y;             // (row, output), the numbers of a row side by side
  const void* x;       // (row, input), the same
  const void* weight;  // (output, input), the same
  const void* bias;    // (output), or null
  int64_t y_stride;
  int64_t x_stride;
  int64_t weight_stride;
  int64_t dtype;
  int64_t num_rows;
  int64_t num_inputs;
  int64_t num_outputs;
};

// Keys of a piece of a long context, at least.
constexpr int64_t kPieceKeys = 256;

// Queries of a sequence that are taken one by one; more are multiplied as matrices.
constexpr int64_t kFewQueries = 4;

// Rows of a segment that one task takes, at most.
constexpr int64_t kSegmentRows = 32;

// Rows and outputs of a block of a dense product, at most.
constexpr int64_t kDenseRows = 64, kDenseOutputs = 48;

// Each works in the calling thread, in `scratch`: so many bytes, 64-byte aligned.
struct Serving {
  // Numbers in a row of sums.
  int64_t (*sums_width)(const PagedArgs& args);
  int64_t (*few_bytes)(const PagedArgs& args, int64_t num_queries);
  // All queries of a sequence with the keys of its blocks first … last-1: sums (query head, query)
  // of values that are not yet divided, with what `join_sums` needs to do so.
  void (*attend_few)(const PagedArgs& args, int64_t sequence, int64_t first, int64_t last,
                     float* sums, void* scratch);
  // The results of a sequence from the sums of its pieces, one after the other in memory.
  void (*join_sums)(const PagedArgs& args, int64_t sequence, const float* sums,
                    int64_t num_pieces);
  int64_t (*many_bytes)(const PagedArgs& args, int64_t num_queries);
  // Queries first … last-1 of a sequence, and the query heads of one key head.
  void (*attend_many)(const PagedArgs& args, int64_t sequence, int64_t first, int64_t last,
                      int64_t key_head, void* scratch);

  int64_t (*segment_bytes)(const SegmentArgs& args);
  // products[row - first_row][i] = x · A for ranks first_rank … last_rank-1, and so many rows.
  void (*shrink)(const SegmentArgs& args, const Segment& segment, int64_t first_row,
                 int64_t last_row, int64_t first_rank, int64_t last_rank, float* products,
                 void* scratch);
  // Those products times B onto columns first_column … last_column-1 of y, and what follows.
  // first_column is a multiple of kColumns.
  void (*expand)(const SegmentArgs& args, const Segment& segment, int64_t first_row,
                 int64_t last_row, int64_t first_column, int64_t last_column,
                 const float* products, void* scratch);

  int64_t (*dense_bytes)(const DenseArgs& args);
  // Rows first_row … last_row-1 of y, outputs first … last-1; no more than a block.
  void (*dense)(const DenseArgs& args, int64_t first_row, int64_t last_row, int64_t first,
                int64_t last, void* scratch);
};

constexpr int64_t kColumns = 256;

extern const Serving kServingPortable;
#if defined(INCE_AVX2)
extern const Serving kServingAvx2;
#endif
#if defined(INCE_AVX512)
extern const Serving kServingAvx512;
#endif

}  // namespace ince
