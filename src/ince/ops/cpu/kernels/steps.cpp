// The C interface of optimizer steps and of state in 8 bits; see library.cpp.

#include <atomic>

#include "parallel.h"
#include "training.h"

#define INCE_API extern "C" __attribute__((visibility("default")))

namespace {

// Blocks that a thread takes at a time.
constexpr int64_t kBlocks = 64;

}  // namespace

using namespace ince;

INCE_API void ince_step(const StepArgs* args, int32_t threads) {
  parallel_for(args->count, kBlocks * kStateBlock, threads, [&](int64_t first, int64_t last) {
    kernels->training->step(*args, first, last);
  });
}

// 0 where a number is not finite; codes and scales are of no use then.
INCE_API int32_t ince_quantize_8bit(const EightBitArgs* args, int32_t threads) {
  const int64_t num_blocks = (args->count + kStateBlock - 1) / kStateBlock;
  std::atomic<bool> is_finite{true};
  parallel_for(num_blocks, kBlocks, threads, [&](int64_t first, int64_t last) {
    if (!kernels->training->quantize_8bit(*args, first, last)) is_finite = false;
  });
  return is_finite;
}

INCE_API void ince_dequantize_8bit(const EightBitArgs* args, int32_t threads) {
  const int64_t num_blocks = (args->count + kStateBlock - 1) / kStateBlock;
  parallel_for(num_blocks, kBlocks, threads, [&](int64_t first, int64_t last) {
    kernels->training->dequantize_8bit(*args, first, last);
  });
}
