// Serving with AVX2.

#include "dense.h"
#include "lora_segments.h"
#include "paged_few.h"
#include "paged_many.h"
#include "lanes_avx2.h"

namespace ince {

const Serving kServingAvx2 = {
    sums_width<Avx2>,    few_bytes<Avx2>,   attend_few<Avx2>,
    join_sums<Avx2>,     many_bytes<Avx2>,  attend_many<Avx2>,
    segment_bytes<Avx2>, shrink<Avx2>,      expand<Avx2>,
    dense_bytes<Avx2>, dense<Avx2>,
};

}  // namespace ince
