// Serving on any processor.

#include "dense.h"
#include "lora_segments.h"
#include "paged_few.h"
#include "paged_many.h"
#include "lanes_portable.h"

namespace ince {

const Serving kServingPortable = {
    sums_width<Portable>,    few_bytes<Portable>,   attend_few<Portable>,
    join_sums<Portable>,     many_bytes<Portable>,  attend_many<Portable>,
    segment_bytes<Portable>, shrink<Portable>,      expand<Portable>,
    dense_bytes<Portable>, dense<Portable>,
};

}  // namespace ince
