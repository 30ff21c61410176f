// AVX-512 with its bfloat16 and byte permutation instructions: Intel from Sapphire Rapids on, AMD
// from Zen 4 on.

#include "attention.h"
#include "serving.h"
#include "avx512bf16_gemv.h"
#include "avx512bf16_rows.h"
#include "training_set.h"

namespace ince {

const Kernels kAvx512Bf16 = {
    "avx512bf16",
    quantize,
    dequantize,
    {&gemv_bf16::kProduct, &rows_bf16::kProduct, &gemv::kProduct, nullptr},
    &kTraining,
    &kAttentionAvx512Bf16,
    &kServingAvx512,
};

}  // namespace ince
