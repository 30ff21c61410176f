// Memory of a call, and tasks that share it out among threads.

#pragma once

#include <atomic>
#include <cstdlib>

#include "parallel.h"

namespace ince {

// Memory that is kept from call to call, at most: the system hands out new memory page by page,
// which takes longer than a short row's attention.
constexpr int64_t kKept = 1 << 26;

struct Block {
  int64_t bytes;
  void* memory;
};

inline std::atomic<Block*> kept{nullptr};

inline void drop(Block* block) {
  if (!block) return;
  std::free(block->memory);
  std::free(block);
}

// Memory of one call.
class Lease {
 public:
  explicit Lease(int64_t bytes) : block_(kept.exchange(nullptr)) {
    if (block_ && block_->bytes >= bytes) return;
    drop(block_);
    block_ = static_cast<Block*>(std::malloc(sizeof(Block)));
    if (!block_) return;
    block_->bytes = bytes;
    if (posix_memalign(&block_->memory, 64, std::size_t(bytes))) {
      std::free(block_);
      block_ = nullptr;
    }
  }

  ~Lease() {
    if (block_ && block_->bytes <= kKept) block_ = kept.exchange(block_);
    drop(block_);
  }

  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  char* memory() const { return block_ ? static_cast<char*>(block_->memory) : nullptr; }

 private:
  Block* block_;
};

inline int64_t whole_lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }

inline int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }

inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

// body(task, scratch) for all tasks from the last to the first or the other way round, in as many
// threads as there are; each has `bytes` of `memory` to itself.
template <typename Body>
void for_each_task(int64_t num_tasks, int64_t num_workers, bool last_first, char* memory,
                   int64_t bytes, const Body& body) {
  std::atomic<int64_t> next{0};
  parallel_for(num_workers, 1, int(num_workers), [&](int64_t first, int64_t last) {
    for (int64_t worker = first; worker < last; ++worker) {
      for (;;) {
        const int64_t task = next.fetch_add(1, std::memory_order_relaxed);
        if (task >= num_tasks) break;
        body(last_first ? num_tasks - 1 - task : task, memory + worker * bytes);
      }
    }
  });
}

}  // namespace ince
