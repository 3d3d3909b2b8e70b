// What this CPU's instructions mean for the arithmetic of libraries.
#pragma once

namespace lrt {

// Whether kernels of libraries for this CPU add int8 products in 16 bits, where sums may overflow.
// So it is on x86 with AVX2 or AVX-512 and no VNNI. The same rule as latentrt/runtime/cpu.py.
bool int8_overflows();

}  // namespace lrt
