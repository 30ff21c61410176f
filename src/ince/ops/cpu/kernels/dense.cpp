// The C interface of dense products: shares outputs out among threads.

#include "lease.h"
#include "parallel.h"
#include "serving.h"

#define INCE_API extern "C" __attribute__((visibility("default")))

namespace ince {
namespace {

// Bytes of the weight, or products, that a thread is worth waking for.
constexpr int64_t kWorthBytes = 1 << 17, kWorthProducts = 1 << 19;

// Outputs of a task are a multiple of it: whole groups, in any instruction set.
constexpr int64_t kStep = 6;

}  // namespace
}  // namespace ince

using namespace ince;

// 0; 2 where there is no memory: then nothing is written.
INCE_API int32_t ince_dense(const DenseArgs* given, int32_t threads) {
  const DenseArgs& args = *given;
  if (args.num_rows == 0 || args.num_outputs == 0) return 0;
  const int64_t numbers = args.num_inputs * args.num_outputs;
  const int64_t worth = at_least(numbers * (args.dtype == kFloat32 ? 4 : 2) / kWorthBytes,
                                 numbers * args.num_rows / kWorthProducts);
  const int64_t team = at_most(at_least(threads, 1), worth + 1);
  // A few tasks for each thread, so that one that is held up takes fewer.
  const int64_t share = (args.num_outputs + 4 * team - 1) / (4 * team);
  const int64_t width = at_most((share + kStep - 1) / kStep * kStep, kDenseOutputs);
  const int64_t bytes = whole_lines(kernels->serving->dense_bytes(args));
  const Lease lease(team * bytes);
  if (!lease.memory()) return 2;
  const int64_t num_tasks = (args.num_outputs + width - 1) / width;
  for_each_task(num_tasks, team, false, lease.memory(), bytes, [&](int64_t task, char* scratch) {
    const int64_t first = task * width, last = at_most(first + width, args.num_outputs);
    for (int64_t row = 0; row < args.num_rows; row += kDenseRows) {
      kernels->serving->dense(args, row, at_most(row + kDenseRows, args.num_rows), first, last,
                              scratch);
    }
  });
  return 0;
}
