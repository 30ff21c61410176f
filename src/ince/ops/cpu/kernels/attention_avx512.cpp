// Attention with AVX-512: products of float32.

#include "attention_backward.h"
#include "lanes_avx512.h"

namespace ince {

const Attention kAttentionAvx512 = {
    forward_bytes<Avx512, Floats<Avx512>>, forward<Avx512, Floats<Avx512>>,
    backward_bytes<Avx512, Floats<Avx512>>, backward<Avx512, Floats<Avx512>>,
    add_partials<Avx512>,
};

}  // namespace ince
