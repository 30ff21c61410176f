// AVX-512 (F, BW, VL, DQ): Intel from Skylake-X on, AMD from Zen 4 on.

#include "attention.h"
#include "serving.h"
#include "avx512_gemv.h"
#include "training_set.h"

namespace ince {

const Kernels kAvx512 = {
    "avx512", quantize, dequantize, {&gemv::kProduct, nullptr}, &kTraining,
    &kAttentionAvx512, &kServingAvx512};

}  // namespace ince
