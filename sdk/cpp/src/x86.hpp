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
#endif
