// WordPiece: a word becomes the longest token that it begins with, then the longest that goes on, and so
// forth.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace uniecs {

// Token ids, as the graphs take them.
using TokenId = std::int64_t;

// Texts and their ids, for finding the longest that a text begins with.
class TokenTable {
  public:
    // No two of `tokens` are equal, none is empty.
    struct Entry {
        std::string_view token;
        TokenId id;
    };
    explicit TokenTable(const std::vector<Entry>& tokens);

    struct Match {
        TokenId id;
        std::size_t bytes;  // 0: none
    };
    // The longest token that the valid UTF-8 text `word` begins with, at the end of a character.
    Match longest(std::string_view word, std::vector<std::uint64_t>& scratch) const;

  private:
    struct Slot {
        std::uint64_t hash;
        std::uint32_t start, bytes;  // in letters_; no bytes: a free slot
        TokenId id;
    };
    const Slot* find(std::uint64_t hash, std::string_view token) const;

    std::string letters_;
    std::vector<Slot> slots_;
    std::size_t longest_ = 0;  // bytes
};

class WordPiece {
  public:
    // `unknown` stands for words that have no pieces, or more than `longest_word` characters. `prefix` marks
    // the tokens that go on.
    WordPiece(const std::vector<TokenTable::Entry>& vocabulary, std::string_view prefix, TokenId unknown,
              std::size_t longest_word);

    std::size_t longest_word() const { return longest_word_; }
    TokenId unknown() const { return unknown_; }
    // Append the ids of a word of at most `longest_word` characters.
    void append(std::string_view word, std::vector<TokenId>& ids, std::vector<std::uint64_t>& scratch) const;

  private:
    TokenTable beginning_, going_on_;
    TokenId unknown_;
    std::size_t longest_word_;
};

}  // namespace uniecs
