#include "json.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <locale>
#include <numeric>
#include <sstream>

#include "utf8.hpp"

namespace uniecs::json {
namespace {

// Python's reading of a number too far from 0 for a double, or too near to it: an infinity, or 0.
double beyond_a_double(const std::string& text) {
    std::istringstream in(text);
    in.imbue(std::locale::classic());
    double found = 0;
    in >> found;  // the largest double of its sign, or 0
    return std::abs(found) < 1 ? found : std::copysign(std::numeric_limits<double>::infinity(), found);
}

class Parser {
  public:
    Parser(std::string_view text, unsigned deepest, bool python)
        : begin_(text.data()), at_(begin_), end_(begin_ + text.size()), left_(deepest), python_(python) {}

    Value whole() {
        Value value = any();
        check_end();
        return value;
    }

    std::vector<std::pair<std::string, std::string_view>> members() {
        skip_space();
        if (at_ == end_ || *at_ != '{') fail("expected an object");
        std::vector<std::pair<std::string, std::string_view>> found;
        each_member([&](std::string name) {
            skip_space();
            const char* const start = at_;
            any();
            found.emplace_back(std::move(name),
                               std::string_view(start, static_cast<std::size_t>(at_ - start)));
        });
        check_end();
        return found;
    }

  private:
    void check_end() {
        skip_space();
        if (at_ != end_) fail("something follows the value");
    }

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

    template <typename Each>
    void each_member(Each each) {
        enter();
        if (!take('}')) {
            do {
                skip_space();
                if (at_ == end_ || *at_ != '"') fail("expected a name");
                std::string name = string();
                skip_space();
                expect(':');
                each(std::move(name));
            } while (another('}'));
        }
        ++left_;
    }

    Object object() {
        const char* const start = at_ + 1;
        std::vector<Object::Member> members;
        each_member([&](std::string name) { members.emplace_back(std::move(name), any()); });
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
            if (c >= 0xd800 && c < 0xdc00) {
                const char* const after = at_;
                const char32_t low = take('\\') && take('u') ? hexadecimal() : 0;
                if (low >= 0xdc00 && low < 0xe000)
                    c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
                else
                    at_ = after;
            }
            if (c >= 0xd800 && c < 0xe000 && !python_) fail("a lone surrogate");
            if (c >= 0xdc80 && c < 0xdd00)
                made += static_cast<char>(c - 0xdc00);
            else
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
            if (python_) return Value(beyond_a_double(std::string(start, at_)));
            at_ = start;
            fail("a number beyond a double");
        }
        return Value(real);
    }

    const char* const begin_;
    const char* at_;
    const char* const end_;
    unsigned left_;
    const bool python_;
};

enum class Broken { refused, escaped };

template <typename Escape>
std::string with_escapes(std::string_view text, Escape escape, Broken broken = Broken::refused) {
    constexpr char DIGITS[] = "0123456789abcdef";
    std::string made = "\"";
    const char* at = text.data();
    const char* const end = at + text.size();
    while (at != end) {
        const char* const start = at;
        char32_t c = utf8::next(at, end);
        if (c == utf8::INVALID) {
            if (broken == Broken::refused) throw Error("a text to be written as JSON is not UTF-8");
            c = 0xdc00 + static_cast<unsigned char>(*at++);
        }
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

Value::Value(const Value&) = default;
Value::Value(Value&&) noexcept = default;
Value& Value::operator=(const Value&) = default;
Value& Value::operator=(Value&&) noexcept = default;
Value::~Value() = default;

Object::Object() = default;
Object::Object(const Object&) = default;
Object::Object(Object&&) noexcept = default;
Object& Object::operator=(const Object&) = default;
Object& Object::operator=(Object&&) noexcept = default;
Object::~Object() = default;

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

Value parse(std::string_view text, unsigned deepest) { return Parser(text, deepest, false).whole(); }

Value parse_python(std::string_view text, unsigned deepest) { return Parser(text, deepest, true).whole(); }

std::vector<std::pair<std::string, std::string_view>> members(std::string_view text) {
    return Parser(text, DEEPEST, true).members();
}

std::string quoted(std::string_view text) {
    return with_escapes(text, [](char32_t c) { return c < 0x20; });
}

std::string quoted_ascii(std::string_view text) {
    return with_escapes(text, [](char32_t c) { return c < 0x20 || c > 0x7e; });
}

std::string quoted_bytes(std::string_view text) {
    return with_escapes(text, [](char32_t c) { return c < 0x20 || c > 0x7e; }, Broken::escaped);
}

namespace {

std::string written_number(double number) {
    if (!std::isfinite(number)) throw Error("a number to be written as JSON is not finite");
    char digits[32];
    std::string made(digits, std::to_chars(digits, digits + sizeof digits, number).ptr);
    return made.find_first_of(".e") == std::string::npos ? made + ".0" : made;  // it stays no integer
}

}  // namespace

std::string written(const Value& value, std::string (*quote)(std::string_view)) {
    if (value.is_null()) return "null";
    if (const auto* boolean = value.get_if<bool>()) return *boolean ? "true" : "false";
    if (const auto* whole = value.get_if<std::int64_t>()) return std::to_string(*whole);
    if (const auto* real = value.get_if<double>()) return written_number(*real);
    if (const auto* text = value.get_if<std::string>()) return quote(*text);
    const auto* array = value.get_if<Array>();
    std::string made = array ? "[" : "{";
    const auto separate = [&] { made += made.size() > 1 ? "," : ""; };
    if (array) {
        for (const Value& each : *array) separate(), made += written(each, quote);
        return made += "]";
    }
    for (const auto& [name, member] : value.object())
        separate(), made += quote(name) + ":" + written(member, quote);
    return made += "}";
}

}  // namespace uniecs::json
