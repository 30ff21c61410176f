// Threads of the caller's OpenMP: work is divided over the team that PyTorch itself uses, so
// that two libraries never keep two teams busy on the same processors.
//
// OpenMP is not linked. The address of GOMP_parallel is handed over from the library that
// PyTorch has loaded; without it work is done in the calling thread. Chunks are taken from a
// counter, one after the other: a thread that is held up takes fewer.

#pragma once

#include <atomic>
#include <cstdint>

namespace ince {

using TeamEntry = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

// Set once, before the first call.
extern TeamEntry team_entry;

template <typename Body>
struct SharedWork {
  const Body* body;
  int64_t count;
  int64_t chunk;
  std::atomic<int64_t> next;

  static void run(void* self) {
    SharedWork& work = *static_cast<SharedWork*>(self);
    for (;;) {
      const int64_t first = work.next.fetch_add(work.chunk, std::memory_order_relaxed);
      if (first >= work.count) return;
      const int64_t last = first + work.chunk < work.count ? first + work.chunk : work.count;
      (*work.body)(first, last);
    }
  }
};

// body(first, last) for ranges that make up [0, count), each of at most `chunk`.
template <typename Body>
void parallel_for(int64_t count, int64_t chunk, int threads, const Body& body) {
  if (chunk < 1) chunk = 1;
  const int64_t num_chunks = (count + chunk - 1) / chunk;
  const int64_t team = num_chunks < threads ? num_chunks : threads;
  if (team <= 1 || team_entry == nullptr) {
    body(int64_t(0), count);
    return;
  }
  SharedWork<Body> work{&body, count, chunk, {0}};
  team_entry(&SharedWork<Body>::run, &work, unsigned(team), 0);
}

}  // namespace ince
