// Attention with AVX2: products of float32.

#include "attention_backward.h"
#include "lanes_avx2.h"

namespace ince {

const Attention kAttentionAvx2 = {
    forward_bytes<Avx2, Floats<Avx2>>, forward<Avx2, Floats<Avx2>>,
    backward_bytes<Avx2, Floats<Avx2>>, backward<Avx2, Floats<Avx2>>,
    add_partials<Avx2>,
};

}  // namespace ince
