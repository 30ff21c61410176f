// The C interface: what Python calls, with addresses and numbers alone.
//
// Nothing is checked here. The operators' declarations check dtypes, shapes and block sizes
// before they call, and no address is kept after a call.

#include <atomic>
#include <cstdlib>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "kernels.h"
#include "parallel.h"
#include "processor.h"

#define INCE_API extern "C" __attribute__((visibility("default")))

namespace ince {

TeamEntry team_entry = nullptr;
const Kernels* kernels = &kPortable;

namespace {

// Weights in a chunk of work: 64 KiB and more of results, small beside a core's L2.
constexpr int64_t kChunk = 1 << 16;

// Weights that a thread is worth waking for.
constexpr int64_t kWorth = 1 << 16;

// Results of more than 32 MiB are memory that the system has just given, and pages of 2 MiB spare
// most of the time that it takes to hand it out.
void advise_huge([[maybe_unused]] void* memory, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr int64_t large = 1 << 25;
  constexpr uintptr_t page = 1 << 21;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(memory) + uintptr_t(bytes)) / page * page;
  if (bytes > large && first < last) {
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#endif
}

// Steps in a chunk: worth a thread, and a few for each, so that one that is held up takes fewer.
int64_t chunk_of(int64_t num_steps, int64_t step_weights, int threads) {
  const int64_t worth = (kWorth + step_weights - 1) / step_weights;
  const int64_t share = num_steps / (8 * int64_t(threads < 1 ? 1 : threads));
  return share > worth ? share : worth;
}

Scales scales_of(const void* absmax, const float* nested, const float* offset, const float* map,
                 int64_t first) {
  return {nested ? nullptr : static_cast<const float*>(absmax),
          nested ? static_cast<const uint8_t*>(absmax) : nullptr, nested, map, offset, first};
}

bool is_supported(const char* name) {
  const Processor processor;
  if (!std::strcmp(name, "avx2")) return processor.avx2;
  if (!std::strcmp(name, "avx512")) return processor.avx512;
  if (!std::strcmp(name, "avx512bf16")) return processor.avx512bf16;
  return !std::strcmp(name, "portable");
}

// Best first.
const Kernels* const kAll[] = {
#if defined(INCE_AVX512BF16)
    &kAvx512Bf16,
#endif
#if defined(INCE_AVX512)
    &kAvx512,
#endif
#if defined(INCE_AVX2)
    &kAvx2,
#endif
    &kPortable,
};

}  // namespace
}  // namespace ince

using namespace ince;

// Rises with every change of this interface, so that an old library is not called.
INCE_API int32_t ince_version() { return 2; }

INCE_API void ince_set_team(void* entry) { team_entry = reinterpret_cast<TeamEntry>(entry); }

// Names of the instruction sets that were compiled and that this processor has, best first,
// with spaces between.
INCE_API void ince_supported(char* names, int64_t size) {
  names[0] = 0;
  for (const Kernels* each : kAll) {
    if (!is_supported(each->name)) continue;
    if (std::strlen(names) + std::strlen(each->name) + 2 > std::size_t(size)) return;
    if (names[0]) std::strcat(names, " ");
    std::strcat(names, each->name);
  }
}

// 1 when the instruction set is now in use, 0 when there is none of this name here.
INCE_API int32_t ince_use(const char* name) {
  for (const Kernels* each : kAll) {
    if (!std::strcmp(each->name, name) && is_supported(name)) {
      kernels = each;
      return 1;
    }
  }
  return 0;
}

// 1, or 0 when a weight is not finite; the results are of no use then.
INCE_API int32_t ince_quantize(const void* weight, int32_t dtype, int64_t num_weights,
                               int64_t blocksize, const Code* code, const float* factors,
                               int32_t num_factors, uint8_t* packed, float* absmax,
                               int32_t threads) {
  const QuantizeArgs args{weight, DType(dtype), num_weights, blocksize, code,
                          factors, num_factors, packed,      absmax};
  std::atomic<bool> finite{true};
  const int64_t num_blocks = (num_weights + blocksize - 1) / blocksize;
  parallel_for(num_blocks, kChunk / blocksize, threads, [&](int64_t first, int64_t last) {
    if (!kernels->quantize(args, first, last)) finite.store(false, std::memory_order_relaxed);
  });
  return finite.load() ? 1 : 0;
}

// `num_rows` runs of `run` weights each, the first from weight `start` on, the next `stride` weights
// later, and so on; all three are multiples of the block size, save that the one run of a whole
// tensor may end with it. The results lie one after the other.
INCE_API void ince_dequantize(const uint8_t* packed, const void* absmax, const float* nested,
                              const float* offset, const float* map, int64_t start,
                              int64_t num_rows, int64_t run, int64_t stride, int64_t blocksize,
                              const Code* code, void* out, int32_t dtype, int32_t threads) {
  const int64_t weight_bytes = dtype == kFloat32 ? 4 : 2;
  const int64_t run_blocks = (run + blocksize - 1) / blocksize;
  const int64_t chunk = kChunk / blocksize;
  advise_huge(out, num_rows * run * weight_bytes);
  const auto of_row = [&](int64_t row) {
    const int64_t first = start + row * stride;
    return DequantizeArgs{
        packed + first / 2,
        scales_of(absmax, nested, offset, map, first / blocksize),
        run,
        blocksize,
        code,
        static_cast<uint8_t*>(out) + row * run * weight_bytes,
        DType(dtype)};
  };
  if (num_rows == 1) {
    const DequantizeArgs args = of_row(0);
    parallel_for(run_blocks, chunk, threads, [&](int64_t first, int64_t last) {
      kernels->dequantize(args, first, last);
    });
    return;
  }
  parallel_for(num_rows, chunk / run_blocks, threads, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      kernels->dequantize(of_row(row), 0, run_blocks);
    }
  });
}

// 1, or 0 when this must be done by expanding the weight; nothing is written then.
INCE_API int32_t ince_multiply(const void* x, int32_t dtype, int64_t num_rows, int64_t num_in,
                               int64_t num_out, const uint8_t* packed, const void* absmax,
                               const float* nested, const float* offset, const float* map,
                               int64_t blocksize, const Code* code, const void* bias, void* y,
                               int32_t threads) {
  ProductArgs args{x,      DType(dtype), num_rows, num_in,
                   num_out, packed,      scales_of(absmax, nested, offset, map, 0),
                   blocksize, code,      bias,     y,
                   nullptr};
  const Product* product = nullptr;
  for (const Product* const* each = kernels->products; *each; ++each) {
    if ((*each)->fits(args)) {
      product = *each;
      break;
    }
  }
  if (!product) return 0;
  if (posix_memalign(&args.arranged, 64, std::size_t(product->arranged_bytes(args)))) return 0;
  const int64_t num_parts = (num_in + product->arrange_step - 1) / product->arrange_step;
  parallel_for(num_parts, chunk_of(num_parts, num_rows * product->arrange_step, threads), threads,
               [&](int64_t first, int64_t last) { product->arrange(args, first, last); });
  const int64_t num_steps = (num_out + product->out_step - 1) / product->out_step;
  parallel_for(num_steps, chunk_of(num_steps, product->out_step * num_in, threads), threads,
               [&](int64_t first, int64_t last) {
                 const int64_t end = last * product->out_step;
                 product->multiply(args, first * product->out_step,
                                   end < num_out ? end : num_out);
               });
  std::free(args.arranged);
  return 1;
}
