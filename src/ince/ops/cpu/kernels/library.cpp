// The C interface: what Python calls, with addresses and numbers alone.
//
// Nothing is checked here. The operators' declarations check dtypes, shapes and block sizes
// before they call, and no address is kept after a call.

#include <atomic>
#include <cstring>

#include "kernels.h"
#include "parallel.h"

#define INCE_API extern "C" __attribute__((visibility("default")))

namespace ince {

TeamEntry team_entry = nullptr;

namespace {

const Kernels* kernels = &kPortable;

// Weights in a chunk of work: 64 KiB and more of results, small beside a core's L2.
constexpr int64_t kChunk = 1 << 16;

// Results of more weights than this would only push others out of the caches.
constexpr int64_t kStreamed = 1 << 24;

bool is_supported(const char* name) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  if (!std::strcmp(name, "avx2")) return avx2;
  if (!std::strcmp(name, "avx512")) return avx512;
  if (!std::strcmp(name, "avx512bf16")) return avx512 && __builtin_cpu_supports("avx512bf16");
#endif
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
INCE_API int32_t ince_version() { return 1; }

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
                               int64_t blocksize, const Code* code, uint8_t* packed,
                               float* absmax, int32_t threads) {
  const QuantizeArgs args{weight, DType(dtype), num_weights, blocksize, code, packed, absmax};
  std::atomic<bool> finite{true};
  const int64_t num_blocks = (num_weights + blocksize - 1) / blocksize;
  parallel_for(num_blocks, kChunk / blocksize, threads, [&](int64_t first, int64_t last) {
    if (!kernels->quantize(args, first, last)) finite.store(false, std::memory_order_relaxed);
  });
  return finite.load() ? 1 : 0;
}

INCE_API void ince_dequantize(const uint8_t* packed, const void* absmax, const float* nested,
                              const float* offset, const float* map, int64_t num_weights,
                              int64_t blocksize, const Code* code, void* out, int32_t dtype,
                              int32_t threads) {
  const Scales scales{nested ? nullptr : static_cast<const float*>(absmax),
                      nested ? static_cast<const uint8_t*>(absmax) : nullptr, nested, map, offset};
  const DequantizeArgs args{packed, scales, num_weights, blocksize,
                            code,   out,    DType(dtype), num_weights > kStreamed};
  const int64_t num_blocks = (num_weights + blocksize - 1) / blocksize;
  parallel_for(num_blocks, kChunk / blocksize, threads,
               [&](int64_t first, int64_t last) { kernels->dequantize(args, first, last); });
}
