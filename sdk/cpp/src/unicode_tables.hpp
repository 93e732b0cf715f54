// The layout of what tools/unicode_tables.py writes; unicode.hpp is the way to it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace uniecs::unicode {

struct Range {  // these bits, up to the next range
    std::uint32_t first;
    std::uint16_t bits;
};

struct Decomposition {  // of `code`; `first` may decompose again, `second` is 0 where there is none
    std::uint32_t code, first, second;
};

struct LowerCase {  // each step-th character from first to last is `distance` below its lower case
    std::uint32_t first, last, step;
    std::int32_t distance;
};

extern const Range RANGES[];
extern const std::size_t RANGES_COUNT;
extern const Decomposition DECOMPOSITIONS[];
extern const std::size_t DECOMPOSITIONS_COUNT;
extern const LowerCase LOWER_CASE[];
extern const std::size_t LOWER_CASE_COUNT;

}  // namespace uniecs::unicode
