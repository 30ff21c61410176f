// AVX-512 with its bfloat16 instructions: Intel from Cooper Lake on, AMD from Zen 4 on.

#include "avx512.h"

namespace ince {

const Kernels kAvx512Bf16 = {"avx512bf16", quantize, dequantize};

}  // namespace ince
