// float16 as bits.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace uniecs {

inline float half_to_float(std::uint16_t half) {
    const std::uint32_t sign = (half & 0x8000u) << 16, exponent = (half >> 10) & 0x1f,
                        fraction = half & 0x3ffu;
    float value;
    if (exponent == 0) {
        value = std::ldexp(static_cast<float>(fraction), -24);
        return sign ? -value : value;
    }
    const std::uint32_t bits = sign | ((exponent == 31 ? 255 : exponent + 112) << 23) | (fraction << 13);
    std::memcpy(&value, &bits, 4);
    return value;
}

// Round to nearest even, of a value that is at most 65504, the largest finite one.
inline std::uint16_t float_to_half(float value) {
    const auto sign = static_cast<std::uint16_t>(std::signbit(value) ? 0x8000 : 0);
    const float size = std::fabs(value);
    if (size < 6.103515625e-5f)  // subnormal: a multiple of 2^-24
        return sign | static_cast<std::uint16_t>(std::nearbyint(std::ldexp(size, 24)));
    int exponent;
    const float fraction = std::frexp(size, &exponent);  // 0.5 to 1
    const auto rounded = static_cast<std::uint32_t>(std::nearbyint(std::ldexp(fraction, 11)));
    return sign | static_cast<std::uint16_t>(((exponent + 13) << 10) + rounded);
}

}  // namespace uniecs
