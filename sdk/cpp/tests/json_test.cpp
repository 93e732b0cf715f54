// JSON: what is read, what is refused and why, and strings as Python's json writes them. And which texts may
// be embedded.
#include "../src/json.hpp"

#include <clocale>
#include <cmath>
#include <cstdio>
#include <string>

#include "../src/tokenizer.hpp"

namespace json = uniecs::json;
using namespace std::string_literals;

namespace {

int failures = 0;

void check(bool holds, const std::string& what) {
    if (holds) return;
    std::fprintf(stderr, "FAILED %s\n", what.c_str());
    ++failures;
}

void refused(const std::string& text, const std::string& why) {
    try {
        json::parse(text);
        check(false, "it was read: " + text);
    } catch (const json::Error& error) {
        check(std::string(error.what()).find(why) != std::string::npos, text + ": " + error.what());
    }
}

void reading() {
    const json::Value value = json::parse(
        " {\"b\": [1, -2.5e3, true, null, \"\\u00e9\\ud83d\\ude00\\n/\\/\"], \"a\": {}, \"\": "
        "9223372036854775807,"
        "\"c\": 9223372036854775808}\r\n");
    const json::Object& object = value.object();
    check(object.size() == 4 && object.begin()->first == "b", "members keep their order");
    const json::Array& array = object.at("b").array();
    check(array.size() == 5 && array[0].integer() == 1 && array[0].number() == 1, "an integer is a number");
    check(array[1].number() == -2500 && !array[1].get_if<std::int64_t>(), "a double");
    check(array[2].boolean() && array[3].is_null(), "true and null");
    check(array[4].string() == "\u00e9\U0001f600\n//", "escapes");
    check(object.at("").integer() == INT64_MAX && object.at("c").number() == 9223372036854775808.0,
          "beyond 64 bits");
    check(object.find("x") == nullptr && object.at("a").object().size() == 0, "finding");
    check(json::parse("\"\\u0000x\"").string() == "\0x"s, "NUL");
    check(json::parse("-0").integer() == 0 && json::parse("1e2").number() == 100, "short numbers");
    check(json::parse(std::string(128, '[') + std::string(128, ']')).array().size() == 1, "128 deep");
    try {
        array[0].string();
        check(false, "an integer is no string");
    } catch (const json::Error& error) {
        check(error.what() == "an integer where a string is expected"s, error.what());
    }
}

void refusing() {
    for (const char* text :
         {"", " ", "-", "+1", ".5", "tru", "nul", "NaN", "Infinity", "'a'", "\xef\xbb\xbf{}"})
        refused(text, text[0] && text[0] != ' ' ? "a value of no kind" : "where a value is due");
    for (const char* text : {"01", "1 2", "{} x", "[1]]", "0x10", "-01"}) refused(text, "follows");
    for (const char* text : {"1.", "1e", "1e+", "1.e2"}) refused(text, "expected a digit");
    for (const char* text : {"1e999", "-1e999"}) refused(text, "beyond a double at byte 0");
    for (const char* text : {"[1 2]", "[1", "{\"a\":1 \"b\":2}"}) refused(text, "expected ','");
    for (const char* text : {"{1:2}", "{,}", "{\"a\":1,}", "{"}) refused(text, "expected a name");
    refused("[1,]", "a value of no kind");
    refused("{\"a\" 1}", "expected ':'");
    for (const char* text : {"\"a", "\"\\", "\"\\\""}) refused(text, "does not end");
    refused("\"\\x\"", "unknown escape");
    for (const char* text : {"\"\\u12\"", "\"\\u12g4\"", "\"\\u+123\"", "\"\\u-123\"", "\"\\u"})
        refused(text, "four hexadecimal digits");
    for (const char* text :
         {"\"\\ud800\"", "\"\\udc00\"", "\"\\ud800\\u0041\"", "\"\\ud800x\"", "\"\\ud800\\n\""})
        refused(text, "lone surrogate");
    for (const char* text : {"\"\xff\"", "\"\xc0\x80\"", "\"\xed\xa0\x80\"", "\"\xf4\x90\x80\x80\"",
                             "\"\xc3\"", "\"\xe0\x80\xaf\"", "\"\xe2\x82\"", "\"\xf8\x88\x80\x80\x80\""})
        refused(text, "not UTF-8 at byte 1");
    for (const std::string& text : {"\"\n\""s, "\"\0\""s, "\"\x1f\""s}) refused(text, "control character");
    refused("[{\"a\": 1, \"b\": 2, \"\\u0061\": 3}]", "the name \"a\" comes twice in the object at byte 2");
    refused(std::string(129, '[') + std::string(129, ']'), "nested too deep at byte 129");
    refused(std::string(1 << 20, '['), "nested too deep");
}

void writing() {
    const std::string text = "\"\\/\b\f\n\r\t\x01\x1f\x7f\u00e9\u2028\U0001f600"s + "\0"s;
    check(json::quoted(text) == "\"\\\"\\\\/\\b\\f\\n\\r\\t\\u0001\\u001f\x7f\u00e9\u2028\U0001f600\\u0000\"",
          json::quoted(text));
    check(json::quoted_ascii(text) ==
              "\"\\\"\\\\/\\b\\f\\n\\r\\t\\u0001\\u001f\\u007f\\u00e9\\u2028\\ud83d\\ude00"
              "\\u0000\"",
          json::quoted_ascii(text));
    check(json::parse(json::quoted(text)).string() == text, "what was written is read");
    check(json::parse(json::quoted_ascii(text)).string() == text, "what was written in ASCII is read");
}

void as_python() {
    const json::Value value =
        json::parse_python("[\"\\udcff\\ud83d\\ude00\\ud800x\\udc7f\", 1.5e999, -1.5e999, 1.5e-999, " +
                           std::string(400, '9') + "]");
    const json::Array& array = value.array();
    check(array[0].string() == "\xff\U0001f600\xed\xa0\x80x\xed\xb1\xbf", "lone surrogates");
    check(array[1].number() == HUGE_VAL && array[2].number() == -HUGE_VAL && array[3].number() == 0,
          "far numbers");
    check(array[4].number() == HUGE_VAL, "a far integer");
    check(json::quoted_bytes("\xff\u00e9\xe2\x82") == "\"\\udcff\\u00e9\\udce2\\udc82\"",
          "bytes that are no UTF-8");
    check(json::parse_python(json::quoted_bytes("a\xff\x80\U0001f600")).string() == "a\xff\x80\U0001f600",
          "bytes are read back");
    const auto members = json::members(" {\"a\" : [1, {\"b\":2}] ,\"\\u0063\":\"x\"} ");
    check(members.size() == 2 && members[0].second == "[1, {\"b\":2}]" && members[1].first == "c" &&
              members[1].second == "\"x\"",
          "members as they stand");
    const std::string text = "{\"a\":[1,-2.5,1e+22,3.0,true,null,\"\u00e9\\n\"],\"b\":{}}";
    check(json::written(json::parse(text)) == text, json::written(json::parse(text)));
    check(json::written(json::Value("\u00e9"s), json::quoted_ascii) == "\"\\u00e9\"", "in ASCII");
}

void texts() {
    uniecs::check_text("\u3000");  // as Python: only these spaces count as blank
    for (const std::string& text :
         {""s, " \t\r\n\0"s, "\xff"s, "ab\xed\xa0\x80"s, std::string(1'000'001, 'a')}) {
        try {
            uniecs::check_text(text);
            check(false, "the text passed: " + text.substr(0, 10));
        } catch (const uniecs::TextError&) {
        }
    }
    std::string longest;
    for (int i = 0; i < 1'000'000; ++i) longest += "\u00e9";
    uniecs::check_text(longest);
}

}  // namespace

int main() {
    std::setlocale(LC_ALL, "");  // no locale changes what is read or written
    reading();
    refusing();
    writing();
    as_python();
    texts();
    if (failures == 0) std::puts("ok");
    return failures != 0;
}
