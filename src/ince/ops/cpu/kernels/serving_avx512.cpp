// Serving with AVX-512.

#include "dense.h"
#include "lora_segments.h"
#include "paged_few.h"
#include "paged_many.h"
#include "lanes_avx512.h"

namespace ince {

const Serving kServingAvx512 = {
    sums_width<Avx512>,    few_bytes<Avx512>,   attend_few<Avx512>,
    join_sums<Avx512>,     many_bytes<Avx512>,  attend_many<Avx512>,
    segment_bytes<Avx512>, shrink<Avx512>,      expand<Avx512>,
    dense_bytes<Avx512>, dense<Avx512>,
};

}  // namespace ince
