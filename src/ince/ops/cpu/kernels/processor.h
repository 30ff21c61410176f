// What the processor can do, and the system lets it: asked of the processor itself, since the
// compilers' own functions for it know other names from version to version.

#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace ince {

struct Processor {
  bool avx2 = false;        // with FMA and F16C
  bool avx512 = false;      // F, BW, VL, DQ, and the above
  bool avx512bf16 = false;  // with VBMI, and the above

  Processor() {
#if defined(__x86_64__)
    const auto bit = [](uint32_t word, int number) { return (word >> number & 1u) != 0; };
    uint32_t eax, ebx, ecx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return;
    // Registers that the system does not save are not to be used.
    if (!bit(ecx, 27)) return;
    uint32_t saved, high;
    __asm__ volatile("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    const bool has_fma_f16c = bit(ecx, 12) && bit(ecx, 29);
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return;
    const uint32_t num_leaves = eax;
    avx2 = (saved & 0x06) == 0x06 && has_fma_f16c && bit(ebx, 5);
    avx512 = avx2 && (saved & 0xe6) == 0xe6 && bit(ebx, 16) && bit(ebx, 17) && bit(ebx, 30) &&
             bit(ebx, 31);
    const bool has_vbmi = bit(ecx, 1);
    if (num_leaves < 1 || !__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) return;
    avx512bf16 = avx512 && has_vbmi && bit(eax, 5);
#endif
  }
};

}  // namespace ince
