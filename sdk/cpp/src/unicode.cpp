#include "unicode.hpp"

#include <algorithm>
#include <map>

#include "unicode_tables.hpp"

namespace uniecs::unicode {
namespace {

// The Unicode Standard, section 3.12: Hangul syllables decompose by arithmetic.
constexpr char32_t HANGUL = 0xac00, LEADING = 0x1100, VOWEL = 0x1161, TRAILING = 0x11a7;
constexpr char32_t VOWELS = 21, TRAILINGS = 28, SYLLABLES = 19 * VOWELS * TRAILINGS;

const Decomposition* decomposition_entry(char32_t c) {
    const auto* end = DECOMPOSITIONS + DECOMPOSITIONS_COUNT;
    const auto* found = std::lower_bound(
        DECOMPOSITIONS, end, c, [](const Decomposition& each, char32_t code) { return each.code < code; });
    return found != end && found->code == c ? found : nullptr;
}

}  // namespace

Properties::Properties() {
    std::map<std::vector<std::uint16_t>, std::uint16_t> known;
    std::vector<std::uint16_t> block(BLOCK);
    std::size_t range = 0;
    for (char32_t c = 0; c <= LAST; ++c) {
        while (range + 1 < RANGES_COUNT && RANGES[range + 1].first <= c) ++range;
        block[c & (BLOCK - 1)] = RANGES[range].bits;
        if ((c & (BLOCK - 1)) != BLOCK - 1) continue;
        const auto [place, is_new] = known.emplace(block, static_cast<std::uint16_t>(known.size()));
        if (is_new) bits_.insert(bits_.end(), block.begin(), block.end());
        blocks_[c >> BLOCK_SHIFT] = place->second;
    }
}

const Properties& properties() {
    static const Properties made;
    return made;
}

Parts decomposition(char32_t c) {
    Parts parts;
    if (c - HANGUL < SYLLABLES) {
        const char32_t index = c - HANGUL, trailing = index % TRAILINGS;
        parts.codes = {LEADING + index / (VOWELS * TRAILINGS), VOWEL + index / TRAILINGS % VOWELS,
                       TRAILING + trailing};
        parts.count = trailing ? 3 : 2;
        return parts;
    }
    // Only the first of a pair decomposes again, so the parts come up last first.
    for (const auto* entry = decomposition_entry(c); entry; entry = decomposition_entry(c)) {
        if (entry->second) parts.codes[parts.count++] = entry->second;
        c = entry->first;
        if (parts.count + 1 == parts.codes.size()) break;
    }
    parts.codes[parts.count++] = c;
    std::reverse(parts.codes.begin(), parts.codes.begin() + parts.count);
    return parts;
}

Parts lower_case(char32_t c) {
    if (c == 0x130) return {{U'i', 0x307}, 2};
    const auto* end = LOWER_CASE + LOWER_CASE_COUNT;
    const auto* after = std::upper_bound(
        LOWER_CASE, end, c, [](char32_t code, const LowerCase& each) { return code < each.first; });
    if (after == LOWER_CASE) return {{c}, 1};
    const LowerCase& run = after[-1];
    const bool inside = c <= run.last && (c - run.first) % run.step == 0;
    return {{inside ? c + static_cast<char32_t>(run.distance) : c}, 1};
}

}  // namespace uniecs::unicode
