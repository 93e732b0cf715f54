// Vector instructions of x86, where the compiler can choose them function by function: defines UNIECS_X86
// there. What may run is asked of the CPU by __builtin_cpu_supports.
#pragma once

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define UNIECS_X86 1
#if defined(__GNUC__) && !defined(__clang__)  // GCC 12 takes its own intrinsics' undefined values for ours
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <cpuid.h>
#include <immintrin.h>

namespace uniecs {

inline bool has_f16c() {  // clang 14 does not know it by name
    unsigned a, b, c = 0, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

}  // namespace uniecs
#endif
