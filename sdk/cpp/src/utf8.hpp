// UTF-8, strictly: no overlong forms, no surrogates, nothing above U+10FFFF.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace uniecs::utf8 {

constexpr char32_t INVALID = 0xffffffff;

// The character at `at`, which moves behind it; INVALID, and `at` stays, where there is none.
inline char32_t next(const char*& at, const char* end) {
    const auto byte = [&](int i) { return static_cast<unsigned char>(at[i]); };
    const auto follows = [&](int i) { return (byte(i) & 0xc0) == 0x80; };
    const auto low = [&](int i) { return static_cast<char32_t>(byte(i) & 0x3f); };
    const std::ptrdiff_t left = end - at;
    if (left <= 0) return INVALID;
    const char32_t lead = byte(0);
    char32_t c = INVALID;
    if (lead < 0x80) {
        ++at;
        return lead;
    }
    if (lead >= 0xc2 && lead < 0xe0) {
        if (left < 2 || !follows(1)) return INVALID;
        c = (lead & 0x1f) << 6 | low(1);
        at += 2;
    } else if (lead >= 0xe0 && lead < 0xf0) {
        if (left < 3 || !follows(1) || !follows(2)) return INVALID;
        c = (lead & 0x0f) << 12 | low(1) << 6 | low(2);
        if (c < 0x800 || (c >= 0xd800 && c < 0xe000)) return INVALID;
        at += 3;
    } else if (lead >= 0xf0 && lead < 0xf5) {
        if (left < 4 || !follows(1) || !follows(2) || !follows(3)) return INVALID;
        c = (lead & 0x07) << 18 | low(1) << 12 | low(2) << 6 | low(3);
        if (c < 0x10000 || c > 0x10ffff) return INVALID;
        at += 4;
    }
    return c;
}

inline void append(std::string& out, char32_t c) {
    if (c < 0x80) {
        out += static_cast<char>(c);
        return;
    }
    if (c < 0x800) {
        out += static_cast<char>(0xc0 | c >> 6);
    } else if (c < 0x10000) {
        out += static_cast<char>(0xe0 | c >> 12);
        out += static_cast<char>(0x80 | (c >> 6 & 0x3f));
    } else {
        out += static_cast<char>(0xf0 | c >> 18);
        out += static_cast<char>(0x80 | (c >> 12 & 0x3f));
        out += static_cast<char>(0x80 | (c >> 6 & 0x3f));
    }
    out += static_cast<char>(0x80 | (c & 0x3f));
}

// Where `text` stops being UTF-8; its size where it does not.
inline std::size_t valid_prefix(std::string_view text) {
    const char* at = text.data();
    const char* const end = at + text.size();
    for (;;) {
        for (std::uint64_t eight; end - at >= 8; at += 8) {  // ASCII goes by eights
            std::memcpy(&eight, at, 8);
            if (eight & 0x8080808080808080) break;
        }
        if (at == end || next(at, end) == INVALID) break;
    }
    return static_cast<std::size_t>(at - text.data());
}

// Number of characters of a valid text.
inline std::size_t length(std::string_view text) {
    std::size_t n = 0;
    for (char byte : text) n += (static_cast<unsigned char>(byte) & 0xc0) != 0x80;
    return n;
}

}  // namespace uniecs::utf8
