#include "cpu.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace lrt {

#if defined(__x86_64__)

// Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, CPUID, leaf 7.
bool int8_overflows() {
    constexpr unsigned AVX2 = 1U << 5, AVX512_VNNI = 1U << 11, AMX_INT8 = 1U << 25, AVX_VNNI = 1U << 4;
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
    const bool avx2 = (ebx & AVX2) != 0, vnni = (ecx & AVX512_VNNI) != 0 || (edx & AMX_INT8) != 0;
    if (__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) == 0) return avx2 && !vnni;
    return avx2 && !vnni && (eax & AVX_VNNI) == 0;
}

#else

bool int8_overflows() { return false; }

#endif

}  // namespace lrt
