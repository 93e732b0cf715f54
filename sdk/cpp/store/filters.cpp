#include "filters.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "uniecs/errors.hpp"

namespace uniecs::store {
namespace {

constexpr unsigned MAX_DEPTH = 64;
constexpr const char* BETWEEN = "$between";

// Below 0, 0 or above 0, exactly.
int compared(std::int64_t a, double b) {
    if (b >= 9223372036854775808.0) return -1;
    if (b < -9223372036854775808.0) return 1;
    const auto whole = static_cast<std::int64_t>(b);  // towards 0
    if (a != whole) return a < whole ? -1 : 1;
    const double rest = b - static_cast<double>(whole);
    return rest > 0 ? -1 : rest < 0 ? 1 : 0;
}

template <typename T>
int three_way(const T& a, const T& b) {
    return a < b ? -1 : b < a ? 1 : 0;
}

// Of two numbers.
int compared(const Scalar& a, const Scalar& b) {
    const auto *i = std::get_if<std::int64_t>(&a), *j = std::get_if<std::int64_t>(&b);
    if (i && j) return three_way(*i, *j);
    if (i) return compared(*i, std::get<double>(b));
    if (j) return -compared(*j, std::get<double>(a));
    return three_way(std::get<double>(a), std::get<double>(b));
}

bool is_number(const Scalar& value) {
    return std::holds_alternative<std::int64_t>(value) || std::holds_alternative<double>(value);
}

// A number itself, and that which a text reads as.
std::optional<Scalar> number_of(const Scalar& value) {
    if (is_number(value)) return value;
    const auto* text = std::get_if<std::string>(&value);
    if (const std::optional<double> read = text ? read_number(*text) : std::nullopt) return *read;
    return std::nullopt;
}

bool equal(const Scalar& wanted, const Scalar& value) {
    if (!is_number(wanted)) return wanted == value;
    const std::optional<Scalar> number = number_of(value);
    return number && compared(*number, wanted) == 0 && (is_number(value) || equals_strings(wanted));
}

// Equal texts for values that are equal in a filter.
std::string identity_of(const std::optional<Scalar>& value) {
    if (!value) return "n";
    if (const auto* boolean = std::get_if<bool>(&*value)) return *boolean ? "t" : "f";
    if (const auto* text = std::get_if<std::string>(&*value))
        return "s" + std::to_string(text->size()) + ":" + *text;
    if (const auto* whole = std::get_if<std::int64_t>(&*value)) return "i" + std::to_string(*whole);
    const double real = std::get<double>(*value);
    if (real >= -9223372036854775808.0 && real < 9223372036854775808.0 && real == std::floor(real))
        return "i" + std::to_string(static_cast<std::int64_t>(real));
    char text[40];
    std::snprintf(text, sizeof text, "d%a", real);
    return text;
}

std::string with_length(const std::string& text) { return std::to_string(text.size()) + ":" + text; }

Filter combined(Filter::Node node, std::vector<Filter> parts) {
    Filter made{node, {}, {}, std::move(parts), {}};
    made.identity = node == Filter::Node::all ? "A" : node == Filter::Node::any ? "O" : "N";
    for (const Filter& part : made.parts) made.identity += with_length(part.identity);
    return made;
}

std::string where(const std::string& key) { return "where[" + json::quoted(key) + "]"; }

Scalar checked_scalar(const std::string& key, const json::Value& value) {
    if (std::optional<Scalar> found = scalar_of(value)) return *found;
    throw FilterError(
        where(key) + " has " + value.kind() +
        "; expected a string, number, true, false, null, an array of them, or {\"$between\": [low, high]}");
}

std::optional<Scalar> optional_scalar(const std::string& key, const json::Value& value) {
    if (value.is_null()) return std::nullopt;
    return checked_scalar(key, value);
}

Filter one_of(const std::string& key, const json::Value& wanted) {
    std::vector<std::optional<Scalar>> values;
    if (const auto* array = wanted.get_if<json::Array>()) {
        if (array->empty()) throw FilterError(where(key) + " is an empty array; expected at least one value");
        for (const json::Value& each : *array) values.push_back(optional_scalar(key, each));
    } else {
        values.push_back(optional_scalar(key, wanted));
    }
    std::set<std::string> identities;
    std::vector<std::optional<Scalar>> distinct;
    for (auto& each : values)
        if (identities.insert(identity_of(each)).second) distinct.push_back(std::move(each));
    Filter made{Filter::Node::one_of, key, std::move(distinct), {}, "=" + with_length(key)};
    for (const std::string& each : identities) made.identity += with_length(each);
    return made;
}

Filter between(const std::string& key, const json::Value& bounds) {
    const auto* array = bounds.get_if<json::Array>();
    if (!array || array->size() != 2)
        throw FilterError(where(key) + ": " + BETWEEN +
                          " needs an array of low and high, one of them may be null");
    const std::optional<Scalar> low = optional_scalar(key, (*array)[0]),
                                high = optional_scalar(key, (*array)[1]);
    const auto is_text = [](const std::optional<Scalar>& bound) {
        return bound && std::holds_alternative<std::string>(*bound);
    };
    const auto is_open_or_number = [](const std::optional<Scalar>& bound) {
        return !bound || is_number(*bound);
    };
    const bool texts = (is_text(low) || !low) && (is_text(high) || !high);
    if ((!low && !high) || !(texts || (is_open_or_number(low) && is_open_or_number(high))))
        throw FilterError(where(key) + ": " + BETWEEN +
                          " needs two numbers or two strings, one of them may be null");
    if (low && high &&
        (texts ? std::get<std::string>(*high) < std::get<std::string>(*low) : compared(*low, *high) > 0))
        throw FilterError(where(key) + ": low is above high");
    return {Filter::Node::between,
            key,
            {low, high},
            {},
            "-" + with_length(key) + with_length(identity_of(low)) + identity_of(high)};
}

Filter parsed(const json::Value& given, const std::string& name, unsigned depth);

Filter parsed_parts(const std::string& key, const json::Value& wanted, unsigned depth) {
    const auto* array = wanted.get_if<json::Array>();
    if (!array) throw FilterError(where(key) + " is " + wanted.kind() + "; expected an array of objects");
    if (array->empty() && key == "$or")
        throw FilterError(where(key) + " is an empty array; expected at least one object");
    std::vector<Filter> parts;
    for (const json::Value& each : *array)
        parts.push_back(parsed(each, "an entry of " + where(key), depth + 1));
    return combined(key == "$and" ? Filter::Node::all : Filter::Node::any, std::move(parts));
}

Filter parsed(const json::Value& given, const std::string& name, unsigned depth) {
    if (depth > MAX_DEPTH)
        throw FilterError("where is nested more than " + std::to_string(MAX_DEPTH) + " deep; expected less");
    const auto* object = given.get_if<json::Object>();
    if (!object)
        throw FilterError(name + " is " + given.kind() + "; expected an object of attributes and values");
    std::vector<Filter> parts;
    for (const auto& [key, wanted] : *object) {
        const auto* inner = wanted.get_if<json::Object>();
        if (key == "$and" || key == "$or") {
            parts.push_back(parsed_parts(key, wanted, depth));
        } else if (key == "$not") {
            parts.push_back(combined(Filter::Node::none, {parsed(wanted, where(key), depth + 1)}));
        } else if (key.empty()) {
            throw FilterError(name +
                              " has an empty key; expected the name of an attribute, $and, $or or $not");
        } else if (inner && inner->size() == 1 && inner->find(BETWEEN)) {
            parts.push_back(between(key, inner->at(BETWEEN)));
        } else {
            parts.push_back(one_of(key, wanted));
        }
    }
    return parts.size() == 1 ? std::move(parts[0]) : combined(Filter::Node::all, std::move(parts));
}

// The values of an attribute one by one; none if it is absent.
template <typename Each>
void for_each_value(const json::Value* attribute, Each each) {
    if (!attribute) return;
    if (const auto* array = attribute->get_if<json::Array>()) {
        for (const json::Value& value : *array)
            if (std::optional<Scalar> found = scalar_of(value)) each(*found);
    } else if (std::optional<Scalar> found = scalar_of(*attribute)) {
        each(*found);
    }
}

bool inside(const Filter& bounds, const Scalar& value) {
    const std::optional<Scalar>&low = bounds.values[0], &high = bounds.values[1];
    const auto* text = std::get_if<std::string>(&value);
    if (std::holds_alternative<std::string>(low ? *low : *high))
        return text && (!low || *text >= std::get<std::string>(*low)) &&
               (!high || *text <= std::get<std::string>(*high));
    const std::optional<Scalar> number = number_of(value);
    return number && (!low || compared(*number, *low) >= 0) && (!high || compared(*number, *high) <= 0);
}

bool before(const Entry& a, const Entry& b) {
    if (a.key != b.key) return a.key < b.key;
    if (a.kind != b.kind) return a.kind < b.kind;
    return a.kind == Kind::string ? std::get<std::string>(a.value) < std::get<std::string>(b.value)
                                  : compared(a.value, b.value) < 0;
}

}  // namespace

bool equals_strings(const Scalar& number) {
    constexpr double exact = 9007199254740992;  // 2^53
    return compared(number, -exact) > 0 && compared(number, exact) < 0;
}

std::optional<Scalar> scalar_of(const json::Value& value) {
    if (const auto* boolean = value.get_if<bool>()) return *boolean;
    if (const auto* whole = value.get_if<std::int64_t>()) return *whole;
    if (const auto* real = value.get_if<double>()) return *real;
    if (const auto* text = value.get_if<std::string>()) return *text;
    return std::nullopt;
}

Filter parse_where(std::string_view json) {
    try {
        return parsed(json::parse(json, 4 * MAX_DEPTH), "where", 0);
    } catch (const json::Error& error) {
        throw FilterError(std::string("where is no JSON: ") + error.what());
    }
}

bool matches(const Filter& filter, const json::Object& attributes) {
    const auto part_matches = [&](const Filter& part) { return matches(part, attributes); };
    switch (filter.node) {
        case Filter::Node::one_of: {
            bool absent = true, found = false;
            for_each_value(attributes.find(filter.key), [&](const Scalar& value) {
                absent = false;
                for (const auto& wanted : filter.values) found = found || (wanted && equal(*wanted, value));
            });
            return absent ? std::count(filter.values.begin(), filter.values.end(), std::nullopt) > 0 : found;
        }
        case Filter::Node::between: {
            bool found = false;
            for_each_value(attributes.find(filter.key),
                           [&](const Scalar& value) { found = found || inside(filter, value); });
            return found;
        }
        case Filter::Node::all:
            return std::all_of(filter.parts.begin(), filter.parts.end(), part_matches);
        case Filter::Node::any:
            return std::any_of(filter.parts.begin(), filter.parts.end(), part_matches);
        case Filter::Node::none:
            return !part_matches(filter.parts[0]);
    }
    return false;
}

std::set<std::string> filter_keys(const Filter& filter) {
    if (!filter.key.empty()) return {filter.key};
    std::set<std::string> keys;
    for (const Filter& part : filter.parts) keys.merge(filter_keys(part));
    return keys;
}

std::vector<Entry> entries(const json::Object& attributes) {
    std::vector<Entry> found;
    for (const auto& [key, attribute] : attributes)
        for_each_value(&attribute, [&, &name = key](const Scalar& value) {
            if (const auto* boolean = std::get_if<bool>(&value)) {
                found.push_back({name, Kind::boolean, std::int64_t{*boolean}});
            } else if (const auto* text = std::get_if<std::string>(&value)) {
                found.push_back({name, Kind::string, value});
                if (const std::optional<double> number = read_number(*text))
                    found.push_back({name, Kind::read_number, *number});
            } else {
                found.push_back({name, Kind::number, value});
            }
        });
    std::sort(found.begin(), found.end(), before);
    const auto same = [](const Entry& a, const Entry& b) { return !before(a, b) && !before(b, a); };
    found.erase(std::unique(found.begin(), found.end(), same), found.end());
    return found;
}

}  // namespace uniecs::store
