// Filters on attributes: `where` parsed into a small tree, and what each node of it means; the same as
// sdk/uniecs/filters.py, whose `matches` is the definition.
//
//   {"gender": "Women", "price": {"$between": [null, 50]}}     all must hold; null: open
//   {"brand": ["a", "b", null]}                                any of these, or the product has no brand
//   {"$or": [{...}, {...}], "$and": [{...}], "$not": {...}}
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "../src/json.hpp"

namespace uniecs::store {

// A value as filters see it: an integer beyond 64 bits is a double.
using Scalar = std::variant<bool, std::int64_t, double, std::string>;

// Their numbers are part of the index format.
enum class Kind : std::int64_t { boolean = 0, number = 1, string = 2, read_number = 3 };

struct Filter {
    enum class Node { one_of, between, all, any, none };

    Node node;
    std::string key;  // of one_of and between
    std::vector<std::optional<Scalar>>
        values;                 // one_of: any of them, empty for absent; between: low and high
    std::vector<Filter> parts;  // of all, any and none; none has one
    std::string identity;       // the same for filters that mean the same in the same order
};

// Throws FilterError for a text that is no such filter.
Filter parse_where(std::string_view json);

bool matches(const Filter& filter, const json::Object& attributes);

// The attributes that a filter names.
std::set<std::string> filter_keys(const Filter& filter);

// What an index keeps of a product: its distinct (key, kind, value).
struct Entry {
    std::string key;
    Kind kind;
    Scalar value;  // an integer, a double or a string
};
std::vector<Entry> entries(const json::Object& attributes);

// The number that a string reads as, if any, by the rules of Python's float; "nan" is none.
std::optional<double> read_number(std::string_view text);

// Whether a number equals the strings that read as it: below 2^53 no two whole numbers read as one.
bool equals_strings(const Scalar& number);

// A scalar of JSON; none for null, arrays and objects.
std::optional<Scalar> scalar_of(const json::Value& value);

}  // namespace uniecs::store
