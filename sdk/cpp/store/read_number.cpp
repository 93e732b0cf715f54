// Which texts Python's `float` reads, and as what.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "../src/utf8.hpp"
#include "filters.hpp"

namespace uniecs::store {
namespace {

// The digit 0 of every script (Unicode's category Nd); 1 to 9 follow it. tests/test_cpp_engine.py compares
// them with Python's.
constexpr char32_t ZEROS[] = {
    0x660,   0x6f0,   0x7c0,   0x966,   0x9e6,   0xa66,   0xae6,   0xb66,   0xbe6,   0xc66,   0xce6,
    0xd66,   0xde6,   0xe50,   0xed0,   0xf20,   0x1040,  0x1090,  0x17e0,  0x1810,  0x1946,  0x19d0,
    0x1a80,  0x1a90,  0x1b50,  0x1bb0,  0x1c40,  0x1c50,  0xa620,  0xa8d0,  0xa900,  0xa9d0,  0xa9f0,
    0xaa50,  0xabf0,  0xff10,  0x104a0, 0x10d30, 0x11066, 0x110f0, 0x11136, 0x111d0, 0x112f0, 0x11450,
    0x114d0, 0x11650, 0x116c0, 0x11730, 0x118e0, 0x11950, 0x11c50, 0x11d50, 0x11da0, 0x16a60, 0x16ac0,
    0x16b50, 0x1d7ce, 0x1d7d8, 0x1d7e2, 0x1d7ec, 0x1d7f6, 0x1e140, 0x1e2f0, 0x1e950, 0x1fbf0};

bool is_wide_space(char32_t c) {
    return c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 ||
           c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

// Digits and spaces of all scripts as ASCII, anything else beyond it as '?'.
std::string in_ascii(std::string_view text) {
    std::string made;
    for (const char *at = text.data(), *end = at + text.size(); at != end;) {
        const char32_t c = utf8::next(at, end);
        if (c == utf8::INVALID) return "?";
        const char32_t* const above = std::upper_bound(std::begin(ZEROS), std::end(ZEROS), c);
        if (c < 0x7f)
            made += static_cast<char>(c);
        else if (is_wide_space(c))
            made += ' ';
        else if (above != std::begin(ZEROS) && c - above[-1] < 10)
            made += static_cast<char>('0' + (c - above[-1]));
        else
            return "?";
    }
    return made;
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Without underscores, each of which stands between two digits; false: one does not.
bool drop_underscores(std::string& text) {
    for (std::size_t i = 0; i < text.size(); ++i)
        if (text[i] == '_' &&
            (i == 0 || i + 1 == text.size() || !is_digit(text[i - 1]) || !is_digit(text[i + 1])))
            return false;
    text.erase(std::remove(text.begin(), text.end(), '_'), text.end());
    return true;
}

// Digits with a point, and an exponent.
bool is_decimal(std::string_view text) {
    std::size_t at = 0, digits = 0;
    const auto skip_digits = [&] {
        const std::size_t start = at;
        while (at < text.size() && is_digit(text[at])) ++at;
        return at - start;
    };
    digits = skip_digits();
    if (at < text.size() && text[at] == '.') ++at, digits += skip_digits();
    if (digits == 0) return false;
    if (at < text.size() && (text[at] == 'e' || text[at] == 'E')) {
        ++at;
        if (at < text.size() && (text[at] == '+' || text[at] == '-')) ++at;
        if (skip_digits() == 0) return false;
    }
    return at == text.size();
}

// Whether a decimal that no double can hold is too large, rather than too near to 0.
bool is_huge(std::string_view text) {
    const std::size_t e = text.find_first_of("eE");
    const std::string_view digits = text.substr(0, e);
    const std::size_t first = digits.find_first_of("123456789");
    if (first == std::string_view::npos) return false;
    const std::size_t point = std::min(digits.find('.'), digits.size());
    const double before = static_cast<double>(point) - static_cast<double>(first);
    double exponent = 0;
    if (e != std::string_view::npos) {
        std::string_view tail = text.substr(e + 1);
        const bool negative = tail[0] == '-';
        if (negative || tail[0] == '+') tail.remove_prefix(1);
        for (const char each : tail) exponent = 10 * exponent + (each - '0');
        if (negative) exponent = -exponent;
    }
    return before + exponent > 0;
}

}  // namespace

std::optional<double> read_number(std::string_view text) {
    constexpr std::string_view SPACES = " \t\n\v\f\r";
    std::string ascii = in_ascii(text);
    const std::size_t first = ascii.find_first_not_of(SPACES);
    if (first == std::string::npos) return std::nullopt;
    ascii = ascii.substr(first, ascii.find_last_not_of(SPACES) + 1 - first);
    if (!drop_underscores(ascii)) return std::nullopt;
    const bool negative = ascii[0] == '-';
    if (negative || ascii[0] == '+') ascii.erase(0, 1);
    std::string lower = ascii;
    for (char& c : lower)
        if (c >= 'A' && c <= 'Z') c = static_cast<char>(c + ('a' - 'A'));
    double value = std::numeric_limits<double>::infinity();
    if (lower != "inf" && lower != "infinity") {
        if (!is_decimal(ascii)) return std::nullopt;
        const auto [end, error] = std::from_chars(ascii.data(), ascii.data() + ascii.size(), value);
        if (error != std::errc()) value = is_huge(ascii) ? std::numeric_limits<double>::infinity() : 0;
    }
    return negative ? -value : value;
}

}  // namespace uniecs::store
