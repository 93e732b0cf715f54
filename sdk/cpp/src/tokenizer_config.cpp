// tokenizer.json, of which every part is either understood or refused.
#include <algorithm>
#include <initializer_list>
#include <limits>

#include "json.hpp"
#include "tokenizer.hpp"

namespace uniecs {
namespace {

using json::Object;
using json::Value;
using Names = std::initializer_list<std::string_view>;

constexpr std::int64_t LONGEST_WORD = 1000;  // splitting a word takes time by the square of its length

[[noreturn]] void refuse(const std::string& what) { throw BundleError("tokenizer.json: " + what); }

// A value and where it stands, for messages.
struct Node {
    const Value* value;
    std::string path;

    [[noreturn]] void refuse(const std::string& expected) const {
        const auto* text = value->get_if<std::string>();
        const auto* flag = value->get_if<bool>();
        const auto* whole = value->get_if<std::int64_t>();
        const std::string got = text    ? json::quoted(*text)
                                : flag  ? *flag ? "true" : "false"
                                : whole ? std::to_string(*whole)
                                        : value->kind();
        uniecs::refuse(path + " is " + got + "; " + expected);
    }

    const Object& object() const {
        if (const auto* found = value->get_if<Object>()) return *found;
        refuse("expected an object");
    }

    Node operator[](std::string_view name) const {
        const std::string inner = path + (path.empty() ? "" : ".") + std::string(name);
        const Value* found = object().find(name);
        if (!found) uniecs::refuse(inner + " is missing");
        return {found, inner};
    }

    bool has(std::string_view name) const { return object().find(name) != nullptr; }

    std::vector<Node> elements() const {
        const auto* found = value->get_if<json::Array>();
        if (!found) refuse("expected an array");
        std::vector<Node> nodes;
        for (std::size_t i = 0; i < found->size(); ++i)
            nodes.push_back({&(*found)[i], path + "[" + std::to_string(i) + "]"});
        return nodes;
    }

    const std::string& string() const {
        if (const auto* found = value->get_if<std::string>()) return *found;
        refuse("expected a string");
    }

    bool boolean() const {
        if (const auto* found = value->get_if<bool>()) return *found;
        refuse("expected true or false");
    }

    std::int64_t integer(std::int64_t least, std::int64_t most) const {
        const auto* found = value->get_if<std::int64_t>();
        if (found && *found >= least && *found <= most) return *found;
        refuse("expected an integer from " + std::to_string(least) + " to " + std::to_string(most));
    }

    TokenId id() const { return integer(0, std::numeric_limits<std::int32_t>::max()); }

    // Nothing but these may be in the object.
    void only(Names names) const {
        for (const auto& [name, each] : object())
            if (std::find(names.begin(), names.end(), name) == names.end())
                uniecs::refuse(path + (path.empty() ? "" : ".") + name + " is not supported");
    }

    // The object's type is this one.
    void is_a(std::string_view type) const {
        if (!value->get_if<Object>()) refuse("only " + std::string(type) + " is supported");
        const Node given = (*this)["type"];
        if (given.string() != type) given.refuse("only " + std::string(type) + " is supported");
    }
};

void read_normalizer(const Node& node, TokenizerConfig& config) {
    node.is_a("BertNormalizer");
    node.only({"type", "clean_text", "handle_chinese_chars", "strip_accents", "lowercase"});
    config.clean_text = node["clean_text"].boolean();
    config.handle_chinese_chars = node["handle_chinese_chars"].boolean();
    config.lowercase = node["lowercase"].boolean();
    const bool given = node.has("strip_accents") && !node["strip_accents"].value->is_null();
    config.strip_accents = given ? node["strip_accents"].boolean() : config.lowercase;
}

// The ids that a template puts around a text.
void read_template(const Node& node, TokenizerConfig& config) {
    node.only({"type", "single", "pair", "special_tokens"});
    const Node special = node["special_tokens"];
    (void)node["pair"].elements();
    bool text_seen = false;
    for (const Node& piece : node["single"].elements()) {
        piece.only({"Sequence", "SpecialToken"});
        if (piece.object().size() != 1) piece.refuse("expected one of Sequence and SpecialToken");
        const Node content = piece[piece.has("Sequence") ? "Sequence" : "SpecialToken"];
        content.only({"id", "type_id"});
        (void)content["type_id"].id();  // the graphs have no use for it
        const Node which = content["id"];
        if (piece.has("Sequence")) {
            if (which.string() != "A" || text_seen)
                which.refuse("a template with the text once is supported");
            text_seen = true;
            continue;
        }
        const Node token = special[which.string()];
        token.only({"id", "ids", "tokens"});
        (void)token["id"].string();
        (void)token["tokens"].elements();
        for (const Node& id : token["ids"].elements())
            (text_seen ? config.after : config.before).push_back(id.id());
    }
    if (!text_seen) node["single"].refuse("expected the text in it");
}

// ["[SEP]", 102]
TokenId second(const Node& pair) {
    const std::vector<Node> parts = pair.elements();
    if (parts.size() != 2) pair.refuse("expected a token and its id");
    (void)parts[0].string();
    return parts[1].id();
}

void read_post_processor(const Node& node, TokenizerConfig& config) {
    if (!node.value->get_if<Object>())
        node.refuse("only TemplateProcessing and BertProcessing are supported");
    const Node type = node["type"];
    if (type.string() == "TemplateProcessing") return read_template(node, config);
    if (type.string() != "BertProcessing")
        type.refuse("only TemplateProcessing and BertProcessing are supported");
    node.only({"type", "sep", "cls"});
    config.before = {second(node["cls"])};
    config.after = {second(node["sep"])};
}

std::vector<AddedToken> read_added(const Node& node, const Node& vocabulary) {
    std::vector<AddedToken> added;
    for (const Node& each : node.elements()) {
        each.only({"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
        for (std::string_view flag : {"single_word", "lstrip", "rstrip", "normalized"})
            if (each[flag].boolean()) each[flag].refuse("only false is supported");
        (void)each["special"].boolean();  // either way it is found in texts
        const std::string& content = each["content"].string();
        if (content.empty()) each["content"].refuse("expected a token");
        if (!vocabulary.has(content) || vocabulary[content].id() != each["id"].id())
            each["id"].refuse("only added tokens that the vocabulary holds under the same id are supported");
        for (const AddedToken& other : added)
            if (other.content == content) each["content"].refuse("it comes twice");
        added.push_back({content, each["id"].id()});
    }
    return added;
}

WordPiece read_model(const Node& node) {
    // Files of 2020 have no type here.
    if (!node.value->get_if<Object>() || node.has("type")) node.is_a("WordPiece");
    node.only({"type", "unk_token", "continuing_subword_prefix", "max_input_chars_per_word", "vocab"});
    const Node vocabulary = node["vocab"];
    std::vector<TokenTable::Entry> tokens;
    for (const auto& [token, id] : vocabulary.object())
        tokens.push_back({token, Node{&id, "model.vocab of " + json::quoted(token)}.id()});
    const Node unknown = node["unk_token"];
    if (!vocabulary.has(unknown.string())) unknown.refuse("expected a token of the vocabulary");
    return WordPiece(tokens, node["continuing_subword_prefix"].string(), vocabulary[unknown.string()].id(),
                     static_cast<std::size_t>(node["max_input_chars_per_word"].integer(1, LONGEST_WORD)));
}

TokenizerConfig read(const Node& root) {
    root.only({"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
               "post_processor", "decoder", "model"});
    if (root["version"].string() != "1.0") root["version"].refuse("only \"1.0\" is supported");
    TokenizerConfig config{false, false, false, false, {}, {}, {}, 0, read_model(root["model"])};
    const Node vocabulary = root["model"]["vocab"];
    config.vocab_size = vocabulary.object().size();
    config.added = read_added(root["added_tokens"], vocabulary);
    read_normalizer(root["normalizer"], config);
    root["pre_tokenizer"].is_a("BertPreTokenizer");
    root["pre_tokenizer"].only({"type"});
    read_post_processor(root["post_processor"], config);
    return config;
}

}  // namespace

TokenizerConfig TokenizerConfig::parse(std::string_view tokenizer_json) {
    try {
        const Value root = json::parse(tokenizer_json);
        return read({&root, ""});
    } catch (const json::Error& error) {
        refuse(error.what());
    }
}

}  // namespace uniecs
