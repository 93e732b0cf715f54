// JSON (RFC 8259), strictly: UTF-8 without a byte order mark, no lone surrogates, no duplicate keys, no
// numbers beyond a double, nesting up to a bound; and strings as Python's json writes them.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace uniecs::json {

// The text is no JSON, and where; or a value is of another type than was asked for.
class Error : public std::runtime_error {
    using std::runtime_error::runtime_error;
};

class Value;
using Array = std::vector<Value>;

// Members in the order of the file; found by name in logarithmic time.
class Object {
  public:
    using Member = std::pair<std::string, Value>;

    Object();
    Object(const Object&);
    Object(Object&&) noexcept;
    Object& operator=(const Object&);
    Object& operator=(Object&&) noexcept;
    ~Object();
    // Throws Error, naming it, for a name that comes twice.
    explicit Object(std::vector<Member> members);

    const Value* find(std::string_view name) const;  // nullptr: there is none
    const Value& at(std::string_view name) const;    // throws Error, naming it, if there is none
    std::size_t size() const;
    const Member* begin() const;
    const Member* end() const;

  private:
    std::vector<Member> members_;
    std::vector<std::uint32_t> by_name_;
};

class Value {
  public:
    // An integer is a number without fraction and exponent that fits 64 bits; all others are doubles.
    using Content = std::variant<std::nullptr_t, bool, std::int64_t, double, std::string, Array, Object>;

    Value() = default;
    // Compiled once, in json.cpp: they are long.
    Value(const Value&);
    Value(Value&&) noexcept;
    Value& operator=(const Value&);
    Value& operator=(Value&&) noexcept;
    ~Value();
    // Of one of the types of Content.
    template <typename T, typename = std::enable_if_t<!std::is_same_v<std::decay_t<T>, Value>>>
    explicit Value(T&& content) : content_(std::in_place_type<std::decay_t<T>>, std::forward<T>(content)) {}

    bool is_null() const { return std::holds_alternative<std::nullptr_t>(content_); }
    bool boolean() const { return get<bool>("true or false"); }
    std::int64_t integer() const { return get<std::int64_t>("an integer"); }
    double number() const;  // integers too
    const std::string& string() const { return get<std::string>("a string"); }
    const Array& array() const { return get<Array>("an array"); }
    const Object& object() const { return get<Object>("an object"); }

    template <typename T>
    const T* get_if() const {
        return std::get_if<T>(&content_);
    }
    // "an integer", "null" and so on: for messages.
    const char* kind() const;

  private:
    template <typename T>
    const T& get(const char* expected) const {
        if (const T* found = get_if<T>()) return *found;
        mismatch(expected);
    }
    [[noreturn]] void mismatch(const char* expected) const;

    Content content_;
};

constexpr unsigned DEEPEST = 128;

// Throws Error for anything but one JSON value, of at most `deepest` arrays and objects in one another.
Value parse(std::string_view text, unsigned deepest = DEEPEST);

// As `parse`, and what Python's json writes besides: a lone surrogate from U+DC80 to U+DCFF is a byte that
// was not UTF-8 (Python's surrogateescape), any other is encoded as if it were a character; numbers beyond a
// double are infinite or 0.
Value parse_python(std::string_view text, unsigned deepest = DEEPEST);

// The members of the object that `text` is, each value as it stands there. Reads as `parse_python`.
std::vector<std::pair<std::string, std::string_view>> members(std::string_view text);

// A valid UTF-8 text as a JSON string, escaped as Python's json does without and with `ensure_ascii`.
std::string quoted(std::string_view text);
std::string quoted_ascii(std::string_view text);
// As `quoted_ascii`, but a byte that is not UTF-8 becomes a lone surrogate, as Python's surrogateescape has
// it.
std::string quoted_bytes(std::string_view text);

// A value as JSON in one line, which gives the value back; its doubles are finite.
std::string written(const Value& value, std::string (*quote)(std::string_view) = quoted);

}  // namespace uniecs::json
