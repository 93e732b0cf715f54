#include "products.hpp"

#include <charconv>

#include "../src/tokenizer.hpp"
#include "../src/utf8.hpp"

namespace uniecs {
namespace {

bool is_blank(std::string_view text) {
    return text.find_first_not_of(std::string_view(" \t\r\n\0", 5)) == std::string::npos;
}

bool is_absent(const json::Value& value) {
    const auto* text = value.get_if<std::string>();
    return value.is_null() || (text && is_blank(*text));
}

void check_scalar(const std::string& name, const json::Value& value) {
    if (value.get_if<json::Array>() || value.get_if<json::Object>())
        throw InputError("attribute " + json::quoted(name) + " is " + value.kind() +
                         "; expected a string, number, true, false or an array of them");
}

// Without what is absent.
json::Object attributes_of(const std::string& text) {
    const json::Value value = json::parse(text);
    std::vector<json::Object::Member> kept;
    for (const auto& [name, attribute] : value.object()) {
        if (name.empty()) throw InputError("an attribute has an empty name");
        if (const auto* array = attribute.get_if<json::Array>()) {
            json::Array values;
            for (const json::Value& each : *array) {
                check_scalar(name, each);
                if (!is_absent(each)) values.push_back(each);
            }
            if (!values.empty()) kept.emplace_back(name, json::Value(std::move(values)));
        } else if (!is_absent(attribute)) {
            check_scalar(name, attribute);
            kept.emplace_back(name, attribute);
        }
    }
    return json::Object(std::move(kept));
}

std::string quoted(const std::string& text) {
    return utf8::valid_prefix(text) == text.size() ? json::quoted(text) : json::quoted_bytes(text);
}

std::string score_json(float score) {
    char digits[32];
    return {digits, std::to_chars(digits, digits + sizeof digits, score).ptr};
}

}  // namespace

bool has_image(const Product& product) {
    return product.image && (product.image->data().data() || !is_blank(product.image->path()));
}

store::Record record_of(const Product& product) {
    if (is_blank(product.id)) throw InputError("the id is blank; expected a text");
    if (utf8::valid_prefix(product.id) != product.id.size())
        throw InputError("the id '" + product.id + "' is not UTF-8");
    store::Record record;
    record.id = product.id;
    if (product.title && !is_blank(*product.title)) {
        check_text(*product.title);
        record.title = product.title;
    }
    if (has_image(product) && !product.image->path().empty()) record.image = product.image->path();
    if (!record.title && !has_image(product))
        throw InputError("product '" + product.id +
                         "' has neither a title nor an image; expected at least one");
    try {
        record.attributes = attributes_of(product.attributes);
    } catch (const json::Error& error) {
        throw InputError("the attributes of product '" + product.id +
                         "' are not a JSON object: " + error.what());
    }
    return record;
}

std::string to_json(Span<const Hit> hits) {
    std::string made = "[";
    for (const Hit& hit : hits) {
        const Product& product = hit.product;
        made += made.size() > 1 ? ",{" : "{";
        made += "\"id\":" + quoted(hit.id) + ",\"score\":" + score_json(hit.score);
        made += ",\"title\":" + (product.title ? quoted(*product.title) : "null");
        made += ",\"image\":" + (product.image ? quoted(product.image->path()) : "null");
        made += ",\"attributes\":" + product.attributes + "}";
    }
    return made + "]";
}

}  // namespace uniecs
