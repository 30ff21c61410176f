// Any processor: plain C++.

#include "attention.h"
#include "serving.h"
#include "scalar.h"
#include "training_set.h"

namespace ince {
namespace {

bool quantize(const QuantizeArgs& args, int64_t first, int64_t last) {
  for (int64_t block = first; block < last; ++block) {
    if (!quantize_block(args, block)) return false;
  }
  return true;
}

void dequantize(const DequantizeArgs& args, int64_t first, int64_t last) {
  for (int64_t block = first; block < last; ++block) dequantize_block(args, block);
}

}  // namespace

const Kernels kPortable = {"portable", quantize, dequantize, {nullptr}, &kTraining,
                           &kAttentionPortable, &kServingPortable};

}  // namespace ince
