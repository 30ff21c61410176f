// The C interface of updates by many adapters: checks the layout, and shares the work out.

#include <initializer_list>

#include "lease.h"
#include "parallel.h"
#include "serving.h"

#define INCE_API extern "C" __attribute__((visibility("default")))

namespace ince {
namespace {

// Bytes of adapters, or products and sums, that a thread is worth waking for.
constexpr int64_t kWorthBytes = 1 << 17, kWorthProducts = 1 << 18;

// Ranks of a piece of the first product where rows are too few to share out.
constexpr int64_t kRanks = 8;

// Rows of one segment.
struct Piece {
  const Segment* segment;
  int64_t first_row;
  int64_t last_row;
  float* products;  // (row, rank)
};

bool is_inside(int64_t offset, int64_t rows, int64_t columns, int64_t size) {
  return offset >= 0 && offset <= size && (columns == 0 || rows <= (size - offset) / columns);
}

// Whether segments follow each other, and every one lies within its rows and its block.
bool is_sound(const SegmentArgs& args) {
  int64_t before = 0;
  for (int64_t i = 0; i < args.num_segments; ++i) {
    const Segment& segment = args.segments[i];
    if (segment.start < before || segment.stop < segment.start || segment.stop > args.num_rows) {
      return false;
    }
    before = segment.stop;
    if (segment.block < 0 || segment.block >= args.num_blocks || segment.rank < 0) return false;
    const int64_t size = args.blocks[segment.block].size;
    if (segment.rank > 0 &&
        !(is_inside(segment.a_offset, segment.rank, args.num_inputs, size) &&
          is_inside(segment.b_offset, segment.rank, args.num_outputs, size))) {
      return false;
    }
    for (const int64_t offset : {segment.turn_offset, segment.shift_offset}) {
      if (offset != -1 && !is_inside(offset, 1, args.num_outputs, size)) return false;
    }
  }
  return true;
}

// Calls use(segment, first_row, last_row) for pieces of so many rows.
template <typename Use>
void for_each_piece(const SegmentArgs& args, int64_t num_rows, const Use& use) {
  for (int64_t i = 0; i < args.num_segments; ++i) {
    const Segment& segment = args.segments[i];
    for (int64_t row = segment.start; row < segment.stop; row += num_rows) {
      use(segment, row, at_most(row + num_rows, segment.stop));
    }
  }
}

int64_t count_pieces(const SegmentArgs& args, int64_t num_rows) {
  int64_t count = 0;
  for_each_piece(args, num_rows, [&](const Segment&, int64_t, int64_t) { ++count; });
  return count;
}

// First all of the first products, then all of the second, each in parts of a piece.
void in_two_steps(const SegmentArgs& args, const Piece* pieces, int64_t num_pieces, int64_t workers,
                  char* memory, int64_t bytes) {
  int64_t most_rank = 0;
  for (int64_t i = 0; i < num_pieces; ++i) {
    most_rank = at_least(most_rank, pieces[i].segment->rank);
  }
  const int64_t rank_parts = (most_rank + kRanks - 1) / kRanks;
  for_each_task(num_pieces * rank_parts, workers, false, memory, bytes,
                [&](int64_t task, char* scratch) {
    const Piece& piece = pieces[task / rank_parts];
    const int64_t first = task % rank_parts * kRanks;
    if (first >= piece.segment->rank) return;
    kernels->serving->shrink(args, *piece.segment, piece.first_row, piece.last_row, first,
                             at_most(first + kRanks, piece.segment->rank), piece.products,
                             scratch);
  });
  const int64_t column_parts = (args.num_outputs + kColumns - 1) / kColumns;
  for_each_task(num_pieces * column_parts, workers, false, memory, bytes,
                [&](int64_t task, char* scratch) {
    const Piece& piece = pieces[task / column_parts];
    const int64_t first = task % column_parts * kColumns;
    kernels->serving->expand(args, *piece.segment, piece.first_row, piece.last_row, first,
                             at_most(first + kColumns, args.num_outputs), piece.products,
                             scratch);
  });
}

}  // namespace
}  // namespace ince

using namespace ince;

// 0; 1 where a segment points at what is not there, 2 where there is no memory: then nothing is
// written.
INCE_API int32_t ince_add_segments(const SegmentArgs* given, int32_t threads) {
  const SegmentArgs& args = *given;
  if (!is_sound(args)) return 1;
  int64_t adapter_bytes = 0, num_products = 0, num_sums = 0;
  for (int64_t i = 0; i < args.num_segments; ++i) {
    const Segment& segment = args.segments[i];
    const int64_t rows = segment.stop - segment.start;
    if (rows == 0) continue;
    const int64_t size = segment.rank * (args.num_inputs + args.num_outputs);
    adapter_bytes += size * (args.blocks[segment.block].dtype == kFloat32 ? 4 : 2);
    num_products += size * rows;
    num_sums += segment.rank * rows;
  }
  const int64_t worth = at_least(adapter_bytes / kWorthBytes, num_products / kWorthProducts);
  int64_t team = at_most(at_least(threads, 1), worth + 1);
  int64_t rows = kSegmentRows;
  int64_t num_pieces = count_pieces(args, rows);
  if (team > 1 && num_pieces < 4 * team) {
    rows = 8;
    num_pieces = count_pieces(args, rows);
  }
  if (num_pieces == 0) return 0;
  const int64_t bytes = whole_lines(kernels->serving->segment_bytes(args));
  const int64_t piece_bytes = whole_lines(num_pieces * int64_t(sizeof(Piece)));
  const Lease lease(team * bytes + piece_bytes + num_sums * int64_t(sizeof(float)));
  if (!lease.memory()) return 2;
  Piece* pieces = reinterpret_cast<Piece*>(lease.memory() + team * bytes);
  float* products = reinterpret_cast<float*>(lease.memory() + team * bytes + piece_bytes);
  int64_t next = 0;
  for_each_piece(args, rows, [&](const Segment& segment, int64_t first, int64_t last) {
    pieces[next++] = {&segment, first, last, products};
    products += (last - first) * segment.rank;
  });
  if (team > 1 && num_pieces < 4 * team) {
    in_two_steps(args, pieces, num_pieces, team, lease.memory(), bytes);
    return 0;
  }
  for_each_task(num_pieces, team, false, lease.memory(), bytes, [&](int64_t task, char* scratch) {
    const Piece& piece = pieces[task];
    const Segment& segment = *piece.segment;
    if (segment.rank) {
      kernels->serving->shrink(args, segment, piece.first_row, piece.last_row, 0, segment.rank,
                               piece.products, scratch);
    }
    kernels->serving->expand(args, segment, piece.first_row, piece.last_row, 0, args.num_outputs,
                             piece.products, scratch);
  });
  return 0;
}
