// Vector instructions of x86, where the compiler can choose them function by function: defines UNIECS_X86
// there. What may run is asked of the CPU by __builtin_cpu_supports.
#pragma once

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define UNIECS_X86 1
#if defined(__GNUC__) && !defined(__clang__)  // GCC 12 takes its own intrinsics' undefined values for ours
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
// What stands between the two is compiled for the instructions that are named.
#define UNIECS_PRAGMA(text) _Pragma(#text)
#ifdef __clang__
#define UNIECS_COMPILE_FOR(instructions) \
    UNIECS_PRAGMA(clang attribute push(__attribute__((target(instructions))), apply_to = function))
#define UNIECS_COMPILE_FOR_ALL UNIECS_PRAGMA(clang attribute pop)
#else
#define UNIECS_COMPILE_FOR(instructions) \
    UNIECS_PRAGMA(GCC push_options) UNIECS_PRAGMA(GCC target(instructions))
#define UNIECS_COMPILE_FOR_ALL UNIECS_PRAGMA(GCC pop_options)
#endif
#include <cpuid.h>
#include <immintrin.h>

namespace uniecs {

inline bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

// With what every CPU with AVX2 has beside it: fused products and sums, and conversions of float16.
inline bool has_avx2() {
    unsigned a, b, c = 0, d;  // clang 14 does not know f16c by name
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

// Whether products of bytes are summed in 32 bits at once. AVX2 sums pairs of them in 16, which overflow.
inline bool has_vnni() {
    constexpr unsigned AVX_VNNI = 1u << 4;
    unsigned a = 0, b, c, d;
    return __builtin_cpu_supports("avx512vnni") ||
           (has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && a & AVX_VNNI);
}

}  // namespace uniecs
#endif
