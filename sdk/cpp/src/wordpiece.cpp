#include "wordpiece.hpp"

#include <algorithm>

namespace uniecs {
namespace {

constexpr std::uint64_t SEED = 0xcbf29ce484222325, PRIME = 0x100000001b3;  // FNV-1a: each prefix has its hash

std::uint64_t step(std::uint64_t hash, char byte) {
    return (hash ^ static_cast<unsigned char>(byte)) * PRIME;
}

// FNV's low bits depend on the low bits of the text alone.
std::size_t place(std::uint64_t hash, std::size_t slots) { return (hash ^ hash >> 32) & (slots - 1); }

bool begins_character(char byte) { return (static_cast<unsigned char>(byte) & 0xc0) != 0x80; }

std::vector<TokenTable::Entry> without_prefix(const std::vector<TokenTable::Entry>& vocabulary,
                                              std::string_view prefix) {
    std::vector<TokenTable::Entry> found;
    for (const auto& [token, id] : vocabulary)
        if (token.size() > prefix.size() && token.substr(0, prefix.size()) == prefix)
            found.push_back({token.substr(prefix.size()), id});
    return found;
}

}  // namespace

TokenTable::TokenTable(const std::vector<Entry>& tokens) {
    std::size_t size = 4;
    while (size < 2 * tokens.size()) size *= 2;
    slots_.resize(size);
    for (const auto& [token, id] : tokens) {
        std::uint64_t hash = SEED;
        for (char byte : token) hash = step(hash, byte);
        std::size_t at = place(hash, size);
        while (slots_[at].bytes) at = (at + 1) & (size - 1);
        slots_[at] = {hash, static_cast<std::uint32_t>(letters_.size()),
                      static_cast<std::uint32_t>(token.size()), id};
        letters_ += token;
        longest_ = std::max(longest_, token.size());
    }
}

const TokenTable::Slot* TokenTable::find(std::uint64_t hash, std::string_view token) const {
    for (std::size_t at = place(hash, slots_.size()); slots_[at].bytes; at = (at + 1) & (slots_.size() - 1)) {
        const Slot& slot = slots_[at];
        if (slot.hash == hash && token == std::string_view(letters_).substr(slot.start, slot.bytes))
            return &slot;
    }
    return nullptr;
}

TokenTable::Match TokenTable::longest(std::string_view word, std::vector<std::uint64_t>& scratch) const {
    const std::size_t most = std::min(word.size(), longest_);
    if (scratch.size() < most) scratch.resize(most);
    std::uint64_t hash = SEED;
    for (std::size_t i = 0; i < most; ++i) scratch[i] = hash = step(hash, word[i]);
    for (std::size_t bytes = most; bytes > 0; --bytes) {
        if (bytes < word.size() && !begins_character(word[bytes])) continue;
        if (const Slot* slot = find(scratch[bytes - 1], word.substr(0, bytes))) return {slot->id, bytes};
    }
    return {0, 0};
}

WordPiece::WordPiece(const std::vector<TokenTable::Entry>& vocabulary, std::string_view prefix,
                     TokenId unknown, std::size_t longest_word)
    : beginning_(without_prefix(vocabulary, "")),
      going_on_(without_prefix(vocabulary, prefix)),
      unknown_(unknown),
      longest_word_(longest_word) {}

void WordPiece::append(std::string_view word, std::vector<TokenId>& ids,
                       std::vector<std::uint64_t>& scratch) const {
    const std::size_t before = ids.size();
    for (const TokenTable* table = &beginning_; !word.empty(); table = &going_on_) {
        const auto [id, bytes] = table->longest(word, scratch);
        if (bytes == 0) {
            ids.resize(before);
            ids.push_back(unknown_);
            return;
        }
        ids.push_back(id);
        word.remove_prefix(bytes);
    }
}

}  // namespace uniecs
