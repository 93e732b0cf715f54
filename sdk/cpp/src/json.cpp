#include "json.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>

#include "utf8.hpp"

namespace uniecs::json {
namespace {

class Parser {
  public:
    Parser(std::string_view text, unsigned deepest)
        : begin_(text.data()), at_(begin_), end_(begin_ + text.size()), left_(deepest) {}

    Value whole() {
        Value value = any();
        skip_space();
        if (at_ != end_) fail("something follows the value");
        return value;
    }

  private:
    [[noreturn]] void fail(const std::string& why) const {
        throw Error(why + " at byte " + std::to_string(at_ - begin_));
    }

    void skip_space() {
        while (at_ != end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\t' || *at_ == '\r')) ++at_;
    }

    bool take(char wanted) {
        if (at_ == end_ || *at_ != wanted) return false;
        ++at_;
        return true;
    }

    void expect(char wanted) {
        if (!take(wanted)) fail(std::string("expected '") + wanted + "'");
    }

    Value any() {
        skip_space();
        if (at_ == end_) fail("the text ends where a value is due");
        switch (*at_) {
            case '{':
                return Value(object());
            case '[':
                return Value(array());
            case '"':
                return Value(string());
            case 't':
                return word("true", true);
            case 'f':
                return word("false", false);
            case 'n':
                return word("null", nullptr);
            default:
                return number();
        }
    }

    template <typename T>
    Value word(std::string_view spelling, T content) {
        if (std::string_view(at_, static_cast<std::size_t>(end_ - at_)).substr(0, spelling.size()) !=
            spelling)
            fail("a value of no kind");
        at_ += spelling.size();
        return Value(content);
    }

    void enter() {
        ++at_;
        if (left_ == 0) fail("nested too deep");
        --left_;
        skip_space();
    }

    Array array() {
        enter();
        Array values;
        if (!take(']')) {
            do values.push_back(any());
            while (another(']'));
        }
        ++left_;
        return values;
    }

    Object object() {
        enter();
        const char* const start = at_;
        std::vector<Object::Member> members;
        if (!take('}')) {
            do {
                skip_space();
                if (at_ == end_ || *at_ != '"') fail("expected a name");
                std::string name = string();
                skip_space();
                expect(':');
                members.emplace_back(std::move(name), any());
            } while (another('}'));
        }
        ++left_;
        try {
            return Object(std::move(members));
        } catch (const Error& error) {
            throw Error(std::string(error.what()) + " in the object at byte " +
                        std::to_string(start - begin_));
        }
    }

    bool another(char closing) {
        skip_space();
        if (take(closing)) return false;
        if (!take(',')) fail(std::string("expected ',' or '") + closing + "'");
        return true;
    }

    std::string string() {
        ++at_;
        std::string made;
        for (;;) {
            const char* const run = at_;
            while (at_ != end_ && *at_ != '"' && *at_ != '\\' && static_cast<unsigned char>(*at_) >= 0x20) {
                if (utf8::next(at_, end_) == utf8::INVALID) fail("not UTF-8");
            }
            made.append(run, at_);
            if (at_ == end_) fail("a string does not end");
            if (take('"')) return made;
            if (!take('\\')) fail("a control character in a string");
            escape(made);
        }
    }

    void escape(std::string& made) {
        constexpr std::string_view NAMES = "\"\\/bfnrt", MEANT = "\"\\/\b\f\n\r\t";
        if (at_ == end_) fail("a string does not end");
        if (take('u')) {
            char32_t c = hexadecimal();
            if (c >= 0xdc00 && c < 0xe000) fail("a lone surrogate");
            if (c >= 0xd800 && c < 0xdc00) {
                const char32_t low = take('\\') && take('u') ? hexadecimal() : 0;
                if (low < 0xdc00 || low >= 0xe000) fail("a lone surrogate");
                c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
            }
            utf8::append(made, c);
            return;
        }
        const std::size_t which = NAMES.find(*at_);
        if (which == std::string_view::npos) fail("an unknown escape");
        made += MEANT[which];
        ++at_;
    }

    char32_t hexadecimal() {
        std::uint32_t c = 0;
        const char* const stop = end_ - at_ < 4 ? end_ : at_ + 4;
        const auto [after, error] = std::from_chars(at_, stop, c, 16);
        if (error != std::errc() || after - at_ != 4) fail("expected four hexadecimal digits");
        at_ = after;
        return c;
    }

    bool digits() {
        const char* const start = at_;
        while (at_ != end_ && *at_ >= '0' && *at_ <= '9') ++at_;
        return at_ != start;
    }

    Value number() {
        const char* const start = at_;
        take('-');
        if (!take('0') && !digits()) {
            at_ = start;
            fail("a value of no kind");
        }
        bool integral = true;
        if (take('.')) {
            integral = false;
            if (!digits()) fail("expected a digit");
        }
        if (take('e') || take('E')) {
            integral = false;
            if (!take('+')) take('-');
            if (!digits()) fail("expected a digit");
        }
        std::int64_t whole;
        if (integral && std::from_chars(start, at_, whole).ec == std::errc()) return Value(whole);
        double real;
        // from_chars knows no locale. Numbers too near to 0 are refused as those too far from it are.
        if (std::from_chars(start, at_, real).ec != std::errc()) {
            at_ = start;
            fail("a number beyond a double");
        }
        return Value(real);
    }

    const char* const begin_;
    const char* at_;
    const char* const end_;
    unsigned left_;
};

template <typename Escape>
std::string with_escapes(std::string_view text, Escape escape) {
    constexpr char DIGITS[] = "0123456789abcdef";
    std::string made = "\"";
    const char* at = text.data();
    const char* const end = at + text.size();
    while (at != end) {
        const char* const start = at;
        const char32_t c = utf8::next(at, end);
        if (c == utf8::INVALID) throw Error("a text to be written as JSON is not UTF-8");
        constexpr std::string_view SHORT = "\"\\\b\f\n\r\t", NAMES = "\"\\bfnrt";
        const std::size_t named = c < 0x80 ? SHORT.find(static_cast<char>(c)) : std::string_view::npos;
        const auto unit = [&](char32_t u) {
            made += {'\\', 'u', DIGITS[u >> 12], DIGITS[u >> 8 & 15], DIGITS[u >> 4 & 15], DIGITS[u & 15]};
        };
        if (named != std::string_view::npos) {
            made += {'\\', NAMES[named]};
        } else if (!escape(c)) {
            made.append(start, at);
        } else if (c >= 0x10000) {
            unit(0xd800 + ((c - 0x10000) >> 10));
            unit(0xdc00 + (c & 0x3ff));
        } else {
            unit(c);
        }
    }
    return made += '"';
}

}  // namespace

Object::Object(std::vector<Member> members) : members_(std::move(members)), by_name_(members_.size()) {
    std::iota(by_name_.begin(), by_name_.end(), 0u);
    const auto name = [&](std::uint32_t i) -> const std::string& { return members_[i].first; };
    std::sort(by_name_.begin(), by_name_.end(), [&](auto a, auto b) { return name(a) < name(b); });
    const auto twice = std::adjacent_find(by_name_.begin(), by_name_.end(),
                                          [&](auto a, auto b) { return name(a) == name(b); });
    if (twice != by_name_.end()) throw Error("the name " + quoted(name(*twice)) + " comes twice");
}

const Value* Object::find(std::string_view name) const {
    const auto found = std::lower_bound(by_name_.begin(), by_name_.end(), name,
                                        [&](auto i, std::string_view n) { return members_[i].first < n; });
    return found != by_name_.end() && members_[*found].first == name ? &members_[*found].second : nullptr;
}

const Value& Object::at(std::string_view name) const {
    if (const Value* found = find(name)) return *found;
    throw Error(quoted(name) + " is missing");
}

std::size_t Object::size() const { return members_.size(); }
const Object::Member* Object::begin() const { return members_.data(); }
const Object::Member* Object::end() const { return members_.data() + members_.size(); }

double Value::number() const {
    if (const auto* whole = get_if<std::int64_t>()) return static_cast<double>(*whole);
    return get<double>("a number");
}

const char* Value::kind() const {
    static constexpr const char* KINDS[] = {"null",     "true or false", "an integer", "a number",
                                            "a string", "an array",      "an object"};
    return KINDS[content_.index()];
}

void Value::mismatch(const char* expected) const {
    throw Error(std::string(kind()) + " where " + expected + " is expected");
}

Value parse(std::string_view text, unsigned deepest) { return Parser(text, deepest).whole(); }

std::string quoted(std::string_view text) {
    return with_escapes(text, [](char32_t c) { return c < 0x20; });
}

std::string quoted_ascii(std::string_view text) {
    return with_escapes(text, [](char32_t c) { return c < 0x20 || c > 0x7e; });
}

}  // namespace uniecs::json
