// What a text normaliser asks about a character, answered as Hugging Face `tokenizers` would.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace uniecs::unicode {

enum : std::uint16_t {
    REMOVED = 1,       // by `clean_text`
    SPACE = 2,         // Unicode's White_Space
    CJK = 4,           // set apart by `handle_chinese_chars`
    MARK = 8,          // dropped by `strip_accents`
    PUNCTUATION = 16,  // a word of its own
    DECOMPOSES = 32,   // in NFD
    CASED = 64,        // differs from its lower case
};
constexpr unsigned CLASS_SHIFT = 8;
constexpr char32_t LAST = 0x10ffff;

// The bits of every character, in blocks, equal ones kept once.
class Properties {
  public:
    Properties();
    std::uint16_t operator()(char32_t c) const {
        return bits_[static_cast<std::size_t>(blocks_[c >> BLOCK_SHIFT]) << BLOCK_SHIFT | (c & (BLOCK - 1))];
    }

  private:
    static constexpr unsigned BLOCK_SHIFT = 7;
    static constexpr char32_t BLOCK = 1 << BLOCK_SHIFT;
    std::array<std::uint16_t, (LAST + 1) / BLOCK> blocks_;
    std::vector<std::uint16_t> bits_;
};

// Made when it is first asked for.
const Properties& properties();

// The canonical combining class, from a character's bits.
inline unsigned combining_class(std::uint16_t bits) { return bits >> CLASS_SHIFT; }

// A character's canonical decomposition, in full; for characters with DECOMPOSES.
struct Parts {
    std::array<char32_t, 4> codes;
    unsigned count = 0;
};
Parts decomposition(char32_t c);

// For characters with CASED: one, but for U+0130 two.
Parts lower_case(char32_t c);

}  // namespace uniecs::unicode
