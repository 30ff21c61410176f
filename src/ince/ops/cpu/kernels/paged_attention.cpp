// The C interface of paged attention: checks the tables, and shares the work out.

#include <cstring>
#include <new>

#include "lease.h"
#include "parallel.h"
#include "serving.h"

#define INCE_API extern "C" __attribute__((visibility("default")))

namespace ince {
namespace {

// Products of scores that a thread is worth waking for.
constexpr int64_t kWorth = 1 << 17;

// Rows of queries, of all heads of a key head, that are multiplied as one matrix: about so many.
constexpr int64_t kManyRows = 128;

// A piece of work: blocks of few queries, or queries of many.
struct Task {
  int64_t sequence;
  int64_t first;
  int64_t last;
  int64_t key_head;  // or -1: few
  int64_t piece;
};

// Of a sequence of few queries.
struct Joint {
  float* sums;  // of its pieces
  int64_t num_pieces;
  std::atomic<int64_t> num_left;
};

int64_t num_queries_of(const PagedArgs& args, int64_t sequence) {
  return args.query_starts[sequence + 1] - args.query_starts[sequence];
}

// Whether sequences own all tokens, and their tables point into the pools.
bool is_sound(const PagedArgs& args) {
  if (args.query_starts[0] != 0 || args.query_starts[args.num_sequences] != args.num_tokens) {
    return false;
  }
  for (int64_t s = 0; s < args.num_sequences; ++s) {
    const int64_t count = num_queries_of(args, s), length = args.context_lengths[s];
    if (count < 0 || length < count || length > args.max_blocks * args.block_size) return false;
    if (count == 0) continue;
    const int32_t* blocks = args.block_table + s * args.max_blocks;
    for (int64_t i = 0; i * args.block_size < length; ++i) {
      if (blocks[i] < 0 || blocks[i] >= args.num_blocks) return false;
    }
  }
  return true;
}

// Queries of a piece of many: a matter of shapes alone.
int64_t many_queries(const PagedArgs& args) {
  return at_least(kManyRows / (args.num_heads / args.num_key_heads), 8);
}

// Calls use(task) for all tasks: the long ones, of many queries, first.
template <typename Use>
void for_each_piece(const PagedArgs& args, const Use& use) {
  const int64_t step = many_queries(args);
  for (int64_t s = 0; s < args.num_sequences; ++s) {
    const int64_t count = num_queries_of(args, s);
    if (count <= kFewQueries) continue;
    // The last queries see the most keys.
    for (int64_t last = count; last > 0; last -= at_most(step, last)) {
      for (int64_t head = 0; head < args.num_key_heads; ++head) {
        use(Task{s, at_least(last - step, 0), last, head, 0});
      }
    }
  }
  const int64_t num_blocks = at_least(kPieceKeys / args.block_size, 1);
  for (int64_t s = 0; s < args.num_sequences; ++s) {
    const int64_t count = num_queries_of(args, s), length = args.context_lengths[s];
    if (count == 0 || count > kFewQueries) continue;
    const int64_t first_key =
        args.window > 0 ? at_least(length - count + 1 - args.window, 0) : 0;
    const int64_t end = (length + args.block_size - 1) / args.block_size;
    int64_t piece = 0;
    for (int64_t block = first_key / args.block_size; block < end; block += num_blocks) {
      use(Task{s, block, at_most(block + num_blocks, end), -1, piece++});
    }
  }
}

}  // namespace
}  // namespace ince

using namespace ince;

// 0; 1 where a table points at what is not there, 2 where there is no memory: nothing is written
// then.
INCE_API int32_t ince_paged_attention(const PagedArgs* given, int32_t threads) {
  const PagedArgs& args = *given;
  if (!is_sound(args)) return 1;
  const Serving& serving = *kernels->serving;
  int64_t num_tasks = 0, num_sums = 0, most_few = 0, most_many = 0, num_products = 0;
  const int64_t row_numbers = args.num_heads * serving.sums_width(args);
  for_each_piece(args, [&](const Task& task) {
    ++num_tasks;
    const int64_t count = num_queries_of(args, task.sequence);
    if (task.key_head < 0) {
      num_sums += count * row_numbers;
      most_few = at_least(most_few, count);
      num_products += (task.last - task.first) * args.block_size * count * args.num_heads;
    } else {
      most_many = at_least(most_many, task.last - task.first);
      num_products += (task.last - task.first) * args.context_lengths[task.sequence] *
                      (args.num_heads / args.num_key_heads);
    }
  });
  if (num_tasks == 0) return 0;
  int64_t bytes = most_few ? serving.few_bytes(args, most_few) : 0;
  if (most_many) bytes = at_least(bytes, serving.many_bytes(args, most_many));
  bytes = whole_lines(bytes);
  const int64_t wanted = 1 + num_products / (kWorth / args.width + 1);
  const int64_t workers = at_most(at_most(at_least(threads, 1), num_tasks), wanted);
  const int64_t task_bytes = whole_lines(num_tasks * int64_t(sizeof(Task)));
  const int64_t joint_bytes = whole_lines(args.num_sequences * int64_t(sizeof(Joint)));
  const Lease lease(workers * bytes + task_bytes + joint_bytes +
                    num_sums * int64_t(sizeof(float)));
  if (!lease.memory()) return 2;
  char* memory = lease.memory() + workers * bytes;
  Task* tasks = reinterpret_cast<Task*>(memory);
  Joint* joints = reinterpret_cast<Joint*>(memory + task_bytes);
  float* sums = reinterpret_cast<float*>(memory + task_bytes + joint_bytes);
  int64_t next = 0;
  for_each_piece(args, [&](const Task& task) {
    tasks[next++] = task;
    if (task.key_head >= 0) return;
    Joint& joint = joints[task.sequence];
    if (task.piece == 0) {
      new (&joint.num_left) std::atomic<int64_t>(0);
      joint.sums = sums;
    }
    joint.num_pieces = task.piece + 1;
    joint.num_left.store(joint.num_pieces, std::memory_order_relaxed);
    sums += num_queries_of(args, task.sequence) * row_numbers;
  });
  for_each_task(num_tasks, workers, false, lease.memory(), bytes,
                [&](int64_t index, char* scratch) {
    const Task& task = tasks[index];
    if (task.key_head >= 0) {
      serving.attend_many(args, task.sequence, task.first, task.last, task.key_head, scratch);
      return;
    }
    Joint& joint = joints[task.sequence];
    const int64_t numbers = num_queries_of(args, task.sequence) * row_numbers;
    serving.attend_few(args, task.sequence, task.first, task.last,
                       joint.sums + task.piece * numbers, scratch);
    // Whoever finishes the last piece puts them together, in their order.
    if (joint.num_left.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      serving.join_sums(args, task.sequence, joint.sums, joint.num_pieces);
    }
  });
  return 0;
}

// 0, or 1 where a slot is not in the pools: nothing is written then.
INCE_API int32_t ince_write_kv(const WriteArgs* given, int32_t threads) {
  const WriteArgs& args = *given;
  for (int64_t i = 0; i < args.num_tokens; ++i) {
    if (args.slots[i] < 0 || args.slots[i] >= args.num_slots) return 1;
  }
  const int64_t token_bytes = args.num_heads * args.head_bytes;
  const auto write = [&](void* pool, const void* from, int64_t token, int64_t token_stride,
                         int64_t head_stride) {
    char* to = static_cast<char*>(pool) + args.slots[token] * token_bytes;
    const char* of_token =
        static_cast<const char*>(from) + token * token_stride * args.number_bytes;
    for (int64_t head = 0; head < args.num_heads; ++head) {
      std::memcpy(to + head * args.head_bytes, of_token + head * head_stride * args.number_bytes,
                  std::size_t(args.head_bytes));
    }
  };
  constexpr int64_t worth = 1 << 17;  // bytes
  parallel_for(args.num_tokens, worth / (2 * token_bytes), threads,
               [&](int64_t first, int64_t last) {
    for (int64_t token = first; token < last; ++token) {
      write(args.k_pool, args.k, token, args.k_token_stride, args.k_head_stride);
      write(args.v_pool, args.v, token, args.v_token_stride, args.v_head_stride);
    }
  });
  return 0;
}
