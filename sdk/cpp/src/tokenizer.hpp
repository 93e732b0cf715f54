// Texts to token ids, exactly as Hugging Face `tokenizers` gives them for BERT's kind of tokenizer.json:
// special tokens, BertNormalizer, BertPreTokenizer, WordPiece, and a template around the text.
//
//   uniecs::Tokenizer tokenizer(bytes_of_tokenizer_json, 64);
//   std::vector<std::int64_t> ids = tokenizer.encode("Blue cotton shirt");  // [CLS] ... [SEP], 64 at most
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "uniecs/errors.hpp"
#include "wordpiece.hpp"

namespace uniecs {

constexpr std::size_t MAX_TEXT_CHARS = 1'000'000;

// What may be embedded: throws TextError for a text that is blank, not UTF-8, or longer than MAX_TEXT_CHARS.
void check_text(std::string_view text);

struct AddedToken {
    std::string content;
    TokenId id;
};

// What a tokenizer.json says, as far as ids depend on it.
struct TokenizerConfig {
    bool clean_text, handle_chinese_chars, strip_accents, lowercase;
    std::vector<AddedToken> added;
    std::vector<TokenId> before, after;  // the text's own tokens
    std::size_t vocab_size;
    WordPiece model;

    // Throws BundleError, naming it, for anything that is damaged or not supported.
    static TokenizerConfig parse(std::string_view tokenizer_json);
};

class Tokenizer {
  public:
    // Padding and truncation in the file are ignored: a text becomes at most `max_tokens` ids. Throws
    // BundleError.
    Tokenizer(std::string_view tokenizer_json, std::size_t max_tokens);

    // Number of token ids, the special ones included.
    std::size_t vocab_size() const { return config_.vocab_size; }

    // From any number of threads at a time. Throws TextError for what is not UTF-8; other texts, blank ones
    // too, have ids (`check_text`).
    std::vector<TokenId> encode(std::string_view text) const;

  private:
    class Run;
    enum class Ascii : unsigned char { removed, space, punctuation, letter };

    const AddedToken* added_at(std::string_view text) const;

    TokenizerConfig config_;
    std::size_t most_;  // ids of a text without those of the template
    std::array<bool, 256> begins_added_{};
    std::array<Ascii, 128> ascii_;  // what becomes of a character, all steps together
    std::array<char, 128> ascii_letter_;
};

}  // namespace uniecs
