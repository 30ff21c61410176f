// Attention on any processor: plain C++, products of float32.

#include "attention_backward.h"
#include "lanes_portable.h"

namespace ince {

const Attention kAttentionPortable = {
    forward_bytes<Portable, Floats<Portable>>, forward<Portable, Floats<Portable>>,
    backward_bytes<Portable, Floats<Portable>>, backward<Portable, Floats<Portable>>,
    add_partials<Portable>,
};

}  // namespace ince
