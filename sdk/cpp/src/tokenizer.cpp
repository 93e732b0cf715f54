#include "tokenizer.hpp"

#include <algorithm>

#include "unicode.hpp"
#include "utf8.hpp"

namespace uniecs {
namespace {

void check_utf8(std::string_view text) {
    const std::size_t valid = utf8::valid_prefix(text);
    if (valid != text.size()) throw TextError("text is not valid UTF-8 at byte " + std::to_string(valid));
}

}  // namespace

void check_text(std::string_view text) {
    check_utf8(text);
    const std::size_t length = utf8::length(text);
    if (length > MAX_TEXT_CHARS)
        throw TextError("text has " + std::to_string(length) + " characters; at most " +
                        std::to_string(MAX_TEXT_CHARS) + " are accepted");
    if (text.find_first_not_of(std::string_view(" \t\r\n\0", 5)) == std::string_view::npos)
        throw TextError("text is empty; leave an absent text out");
}

// One text on its way through the steps, each a function that hands single characters to the next. So nothing
// is computed beyond the last id that is kept.
class Tokenizer::Run {
  public:
    Run(const Tokenizer& tokenizer, std::vector<TokenId>& ids)
        : tokenizer_(tokenizer),
          config_(tokenizer.config_),
          properties_(unicode::properties()),
          ids_(ids),
          full_(ids.size() + tokenizer.most_) {}

    bool is_full() const { return ids_.size() >= full_; }

    // Valid UTF-8 without added tokens.
    void piece(std::string_view text) {
        const char* at = text.data();
        const char* const end = at + text.size();
        while (at != end && !is_full()) {
            if (static_cast<unsigned char>(*at) < 0x80)
                ascii(static_cast<unsigned char>(*at++));
            else
                clean(utf8::next(at, end));
        }
        end_marks();
        end_word();
    }

    void added(TokenId id) {
        if (!is_full()) ids_.push_back(id);
    }

    // A word may have given more ids than there is room for.
    void cut() { ids_.resize(std::min(ids_.size(), full_)); }

  private:
    void ascii(unsigned char c) {
        const Ascii kind = tokenizer_.ascii_[c];
        if (kind == Ascii::removed) return;
        end_marks();
        if (kind == Ascii::letter) return letter(static_cast<char32_t>(tokenizer_.ascii_letter_[c]));
        end_word();
        if (kind == Ascii::punctuation) punctuation(static_cast<char32_t>(tokenizer_.ascii_letter_[c]));
    }

    void clean(char32_t c) {
        const auto bits = properties_(c);
        if (config_.clean_text) {
            if (bits & unicode::REMOVED) return;
            if (bits & unicode::SPACE) return decompose(U' ', properties_(U' '));
        }
        if (config_.handle_chinese_chars && bits & unicode::CJK) {
            decompose(U' ', properties_(U' '));
            decompose(c, bits);
            return decompose(U' ', properties_(U' '));
        }
        decompose(c, bits);
    }

    void decompose(char32_t c, std::uint16_t bits) {
        if (!config_.strip_accents) return lower(c, bits);
        if (!(bits & unicode::DECOMPOSES)) return order(c, bits);
        const unicode::Parts parts = unicode::decomposition(c);
        for (unsigned i = 0; i < parts.count; ++i) order(parts.codes[i], properties_(parts.codes[i]));
    }

    // NFD's order: characters of a class other than 0 go by it, up to the next of class 0. Marks are dropped
    // here, which changes the order of no others.
    void order(char32_t c, std::uint16_t bits) {
        const bool dropped = bits & unicode::MARK;
        if (unicode::combining_class(bits) == 0) {
            end_marks();
            if (!dropped) lower(c, bits);
        } else if (!dropped) {
            marks_.push_back({c, bits});
        }
    }

    void end_marks() {
        if (marks_.empty()) return;
        std::stable_sort(marks_.begin(), marks_.end(), [](const Mark& a, const Mark& b) {
            return unicode::combining_class(a.bits) < unicode::combining_class(b.bits);
        });
        for (const Mark& each : marks_) lower(each.c, each.bits);
        marks_.clear();
    }

    void lower(char32_t c, std::uint16_t bits) {
        if (!config_.lowercase || !(bits & unicode::CASED)) return split(c, bits);
        const unicode::Parts parts = unicode::lower_case(c);
        for (unsigned i = 0; i < parts.count; ++i) split(parts.codes[i], properties_(parts.codes[i]));
    }

    void split(char32_t c, std::uint16_t bits) {
        if (!(bits & (unicode::SPACE | unicode::PUNCTUATION))) return letter(c);
        end_word();
        if (!(bits & unicode::SPACE)) punctuation(c);
    }

    void letter(char32_t c) {
        if (++characters_ <= config_.model.longest_word()) utf8::append(word_, c);
    }

    void punctuation(char32_t c) {
        letter(c);
        end_word();
    }

    void end_word() {
        if (characters_ == 0) return;
        if (characters_ > config_.model.longest_word())
            ids_.push_back(config_.model.unknown());
        else
            config_.model.append(word_, ids_, scratch_);
        word_.clear();
        characters_ = 0;
    }

    struct Mark {
        char32_t c;
        std::uint16_t bits;
    };
    const Tokenizer& tokenizer_;
    const TokenizerConfig& config_;
    const unicode::Properties& properties_;
    std::vector<TokenId>& ids_;
    const std::size_t full_;
    std::vector<Mark> marks_;  // what waits for NFD's order
    std::string word_;
    std::size_t characters_ = 0;  // of the word; those beyond the longest are not kept
    std::vector<std::uint64_t> scratch_;
};

Tokenizer::Tokenizer(std::string_view tokenizer_json, std::size_t max_tokens)
    : config_(TokenizerConfig::parse(tokenizer_json)) {
    const std::size_t around = config_.before.size() + config_.after.size();
    if (max_tokens < around)
        throw BundleError("max_tokens is " + std::to_string(max_tokens) + "; tokenizer.json adds " +
                          std::to_string(around) + " tokens to each text");
    most_ = max_tokens - around;
    std::stable_sort(
        config_.added.begin(), config_.added.end(),
        [](const AddedToken& a, const AddedToken& b) { return a.content.size() > b.content.size(); });
    for (const AddedToken& each : config_.added)
        begins_added_[static_cast<unsigned char>(each.content.front())] = true;
    const unicode::Properties& properties = unicode::properties();
    for (char32_t c = 0; c < 128; ++c) {
        const auto bits = properties(c);
        ascii_letter_[c] = static_cast<char>(
            config_.lowercase && bits & unicode::CASED ? unicode::lower_case(c).codes[0] : c);
        ascii_[c] = config_.clean_text && bits & unicode::REMOVED ? Ascii::removed
                    : bits & unicode::SPACE                       ? Ascii::space
                    : bits & unicode::PUNCTUATION                 ? Ascii::punctuation
                                                                  : Ascii::letter;
    }
}

// The longest added token that `text` begins with, or nullptr.
const AddedToken* Tokenizer::added_at(std::string_view text) const {
    for (const AddedToken& each : config_.added)
        if (text.substr(0, each.content.size()) == each.content) return &each;
    return nullptr;
}

std::vector<TokenId> Tokenizer::encode(std::string_view text) const {
    check_utf8(text);
    std::vector<TokenId> ids(config_.before);
    Run run(*this, ids);
    std::size_t start = 0;
    for (std::size_t at = 0; at < text.size() && !run.is_full();) {
        const AddedToken* found =
            begins_added_[static_cast<unsigned char>(text[at])] ? added_at(text.substr(at)) : nullptr;
        if (!found) {
            ++at;
            continue;
        }
        run.piece(text.substr(start, at - start));
        run.added(found->id);
        start = at += found->content.size();
    }
    run.piece(text.substr(start));
    run.cut();
    ids.insert(ids.end(), config_.after.begin(), config_.after.end());
    return ids;
}

}  // namespace uniecs
