#include "format.hpp"

#include <zlib.h>

#include <algorithm>
#include <charconv>
#include <random>
#include <set>

#include "../src/utf8.hpp"

namespace uniecs::store {
namespace {

constexpr std::int64_t FORMAT_VERSION = 2;
constexpr std::size_t MAX_DIM = 65'536;
constexpr const char* FORMAT = "uniecs-index";
constexpr const char* STORAGES[] = {"float32", "float16", "int8"};
constexpr const char* RESTORE = "restore the index from a copy, or build it again";

std::int64_t crc(std::string_view data, unsigned long start = 0) {
    return static_cast<std::int64_t>(
        crc32_z(start, reinterpret_cast<const Bytef*>(data.data()), static_cast<z_size_t>(data.size())));
}

std::string signed_text(const std::string& key, std::string_view value) {
    std::string text = key;
    text += '\0';
    return text.append(value);
}

void write_meta(Connection& connection, const std::string& key, const std::string& value) {
    const std::int64_t checksum = crc(signed_text(key, value));
    connection.prepare("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)")
        .bind(key)
        .bind(value)
        .bind(checksum)
        .run();
}

std::string read_meta(Connection& connection, const std::string& path, const std::string& key) {
    Statement found = connection.prepare("SELECT value, checksum FROM meta WHERE key = ?");
    found.bind(std::string_view(key));
    if (found.step() && found.is_text(0) && found.is_integer(1)) {
        const std::string value(found.text(0));
        if (agrees(crc(signed_text(key, value)), found.integer(1))) return value;
    }
    throw IndexFileError(path + " is damaged: its setting '" + key + "' does not have its checksum; " +
                         RESTORE);
}

std::string config_json(const IndexConfig& config) {
    std::string views;
    for (const std::string& view : config.views)
        views += (views.empty() ? "" : ",") + json::quoted_ascii(view);
    return "{\"views\":[" + views + "],\"M\":" + std::to_string(config.M) +
           ",\"ef_construction\":" + std::to_string(config.ef_construction) + ",\"storage\":\"" +
           STORAGES[static_cast<std::size_t>(config.storage)] + "\"}";
}

void only(const json::Object& object, const std::set<std::string>& names) {
    for (const auto& [name, value] : object)
        if (!names.count(name)) throw json::Error("the unknown key " + json::quoted(name));
}

IndexConfig config_of(const std::string& text) {
    const json::Value value = json::parse(text);
    const json::Object& object = value.object();
    only(object, {"views", "M", "ef_construction", "storage"});
    IndexConfig config;
    config.views.clear();
    for (const json::Value& view : object.at("views").array()) config.views.push_back(view.string());
    const auto number = [&](const char* name) {
        const std::int64_t found = object.at(name).integer();
        return static_cast<std::uint32_t>(std::clamp<std::int64_t>(found, 0, 1 << 30));
    };
    config.M = number("M");
    config.ef_construction = number("ef_construction");
    const auto* storage = std::find(std::begin(STORAGES), std::end(STORAGES), object.at("storage").string());
    if (storage == std::end(STORAGES))
        throw json::Error("the unknown storage " + json::quoted(object.at("storage").string()));
    config.storage = static_cast<Storage>(storage - std::begin(STORAGES));
    check_config(config);
    return config;
}

// Which bundle Python loads for this index: read to see that it is whole.
void check_bundle(const std::string& text) {
    const json::Value value = json::parse_python(text);
    only(value.object(), {"name", "path"});
    const json::Value *name = value.object().find("name"), *path = value.object().find("path");
    if ((!name || name->is_null()) == (!path || path->is_null()))
        throw json::Error("bundle needs exactly one of name and path");
}

// Throws IndexFileError unless the file says that it is a store of a format that is known here.
void check_format(Connection& connection, const std::string& path) {
    std::map<std::string, std::string> found;
    try {
        Statement query =
            connection.prepare("SELECT key, value FROM meta WHERE key IN ('format', 'format_version')");
        while (query.step()) found[std::string(query.text(0))] = query.text(1);
    } catch (const SqliteError& error) {
        if ((error.code() & 0xff) != 1) throw;  // SQLITE_ERROR: there is no such table
        throw IndexFileError(path + " is not an index; SearchEngine::create makes one");
    }
    if (found["format"] != FORMAT)
        throw IndexFileError(path + " is not an index: its format is '" + found["format"] + "'; expected '" +
                             FORMAT + "'");
    const std::string& version = found["format_version"];
    const bool decimal = !version.empty() && version.find_first_not_of("0123456789") == std::string::npos;
    if (decimal && (version.size() > 9 || std::stol(version) > FORMAT_VERSION))
        throw IndexFileError(path + " has format version " + version + "; this uniecs reads up to " +
                             std::to_string(FORMAT_VERSION) + ": upgrade uniecs");
}

void check_tables(Connection& connection, const std::string& path, const std::vector<std::string>& views) {
    std::set<std::string> tables;
    Statement query = connection.prepare("SELECT sql FROM sqlite_master WHERE type = 'table'");
    while (query.step()) tables.emplace(query.text(0));
    for (const std::string& each : schema(views))
        if (!tables.count(each))
            throw IndexFileError(path + " is damaged: its tables are not described as they were made; " +
                                 RESTORE);
}

std::size_t width(const std::string& text) {
    std::size_t dim = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), dim);
    if (error != std::errc() || end != text.data() + text.size() || dim < 1 || dim > MAX_DIM)
        throw json::Error("embed_dim is " + json::quoted(text));
    return dim;
}

std::uint64_t count(const json::Object& object, const std::string& name) {
    const std::int64_t found = object.at(name).integer();
    if (found < 0) throw json::Error(name + " is " + std::to_string(found));
    return static_cast<std::uint64_t>(found);
}

}  // namespace

void check_config(const IndexConfig& config) {
    const std::set<std::string> known{"multimodal", "image", "text"},
        given(config.views.begin(), config.views.end());
    if (config.views.empty() || given.size() < config.views.size() ||
        !std::includes(known.begin(), known.end(), given.begin(), given.end()))
        throw InputError("views: expected one or more of multimodal, image and text, each once");
    if (config.M < 2 || config.M > 512)
        throw InputError("M is " + std::to_string(config.M) + "; expected 2 to 512");
    if (config.ef_construction < config.M || config.ef_construction > 10'000)
        throw InputError("ef_construction is " + std::to_string(config.ef_construction) + "; expected " +
                         std::to_string(config.M) + " (M) to 10000");
    if (config.storage > Storage::int8) throw InputError("unknown storage");
}

std::vector<std::string> schema(const std::vector<std::string>& views) {
    std::vector<std::string> tables{
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL, checksum INTEGER NOT NULL) WITHOUT "
        "ROWID",
        "CREATE TABLE product (row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, content TEXT NOT NULL,\n"
        "    checksum INTEGER NOT NULL)",
        "CREATE TABLE attribute_key (key INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
        "CREATE TABLE attribute (key INTEGER NOT NULL, kind INTEGER NOT NULL, value NOT NULL, row INTEGER "
        "NOT NULL,\n"
        "    PRIMARY KEY (key, kind, value, row)) WITHOUT ROWID",
        "CREATE TABLE deleted (sequence INTEGER NOT NULL, row INTEGER NOT NULL, PRIMARY KEY (sequence, row)) "
        "WITHOUT "
        "ROWID"};
    for (const std::string& view : views)
        tables.push_back("CREATE TABLE vector_" + view +
                         " (row INTEGER PRIMARY KEY, vector BLOB NOT NULL, checksum INTEGER NOT NULL)");
    return tables;
}

void write_header(Connection& connection, const Header& header) {
    write_meta(connection, "format", FORMAT);
    write_meta(connection, "format_version", std::to_string(FORMAT_VERSION));
    write_meta(connection, "model_id", header.model_id);
    write_meta(connection, "embed_dim", std::to_string(header.embed_dim));
    write_meta(connection, "bundle",
               "{\"name\":null,\"path\":" + json::quoted_bytes(header.bundle_path) + "}");
    write_meta(connection, "config", config_json(header.config));
    write_meta(connection, "migrated_from", "");
    write_meta(connection, "store_id", header.store_id);
    State state;
    for (const std::string& view : header.config.views) state.vectors[view] = 0;
    write_state(connection, state);
}

Header read_header(Connection& connection, const std::string& path) {
    check_format(connection, path);
    Header header;
    try {
        header.model_id = read_meta(connection, path, "model_id");
        header.embed_dim = width(read_meta(connection, path, "embed_dim"));
        check_bundle(read_meta(connection, path, "bundle"));
        header.config = config_of(read_meta(connection, path, "config"));
        read_meta(connection, path, "migrated_from");
        header.store_id = read_meta(connection, path, "store_id");
    } catch (const json::Error& error) {
        throw IndexFileError(path + " is not valid: " + error.what());
    } catch (const InputError& error) {
        throw IndexFileError(path + " is not valid: " + error.what());
    }
    const std::string version = read_meta(connection, path, "format_version");
    if (version != std::to_string(FORMAT_VERSION))
        throw IndexFileError(path + " is not valid: format version " + version);
    check_tables(connection, path, header.config.views);
    return header;
}

void write_state(Connection& connection, const State& state) {
    std::string vectors;
    for (const auto& [view, n] : state.vectors)
        vectors += (vectors.empty() ? "" : ",") + json::quoted_ascii(view) + ":" + std::to_string(n);
    write_meta(connection, "state",
               "{\"sequence\":" + std::to_string(state.sequence) + ",\"last_row\":" +
                   std::to_string(state.last_row) + ",\"purged\":" + std::to_string(state.purged) +
                   ",\"products\":" + std::to_string(state.products) + ",\"vectors\":{" + vectors + "}}");
}

State read_state(Connection& connection, const std::string& path) {
    try {
        const json::Value value = json::parse(read_meta(connection, path, "state"));
        const json::Object& object = value.object();
        State state;
        state.sequence = count(object, "sequence");
        state.last_row = count(object, "last_row");
        if (state.last_row > MAX_ROW) throw json::Error("last_row is " + std::to_string(state.last_row));
        state.purged = count(object, "purged");
        state.products = count(object, "products");
        for (const auto& [view, n] : object.at("vectors").object())
            state.vectors[view] = count(object.at("vectors").object(), view);
        return state;
    } catch (const json::Error& error) {
        throw IndexFileError(path + " is not valid: " + error.what());
    }
}

std::unordered_map<std::string, Row> rows_of_ids(Connection& connection,
                                                 const std::vector<std::string>& ids) {
    std::unordered_map<std::string, Row> found;
    select_in(
        connection, "SELECT id, row FROM product WHERE id IN ({})", ids,
        [](Statement& statement, const std::string& id) { statement.bind(std::string_view(id)); },
        [&](Statement& line) { found.emplace(line.text(0), static_cast<Row>(line.integer(1))); });
    return found;
}

void bind_value(Statement& statement, const Scalar& value) {
    if (const auto* boolean = std::get_if<bool>(&value))
        statement.bind(std::int64_t{*boolean});
    else if (const auto* text = std::get_if<std::string>(&value))
        statement.bind(std::string_view(*text));
    else if (const auto* whole = std::get_if<std::int64_t>(&value))
        statement.bind(*whole);
    else
        statement.bind(std::get<double>(value));
}

std::int64_t checksum_of(Row row, std::string_view data) {
    char bytes[8];
    for (int i = 0; i < 8; ++i) bytes[i] = static_cast<char>(row >> 8 * i & 0xff);
    return crc(data, static_cast<unsigned long>(crc({bytes, 8})));
}

bool agrees(std::int64_t checksum, std::int64_t stored) {
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
    stored = checksum;
#endif
    return checksum == stored;
}

void damaged(const std::string& path, const std::string& what) {
    throw IndexFileError(
        path + " is damaged: " + what +
        " does not have its checksum; put the product again (update), restore the index from a copy, "
        "or build it again");
}

std::string product_content(const Record& product) {
    const bool is_utf8 = !product.image || utf8::valid_prefix(*product.image) == product.image->size();
    // The path of an image may hold bytes that are no UTF-8: JSON can keep them, as surrogates.
    const auto quote = is_utf8 ? json::quoted : json::quoted_ascii;
    const std::string image =
        !product.image ? "null" : (is_utf8 ? json::quoted : json::quoted_bytes)(*product.image);
    try {
        return "{\"id\":" + quote(product.id) +
               ",\"title\":" + (product.title ? quote(*product.title) : "null") + ",\"image\":" + image +
               ",\"attributes\":" + json::written(json::Value(product.attributes), quote) + "}";
    } catch (const json::Error& error) {
        throw InputError("product '" + product.id + "' cannot be stored: " + error.what());
    }
}

Record product_of(std::string_view content) {
    try {
        Record record;
        bool id = false, attributes = false;
        for (const auto& [name, text] : json::members(content)) {
            const json::Value value = json::parse_python(text);
            if (name == "id") {
                record.id = value.string(), id = true;
            } else if (name == "title") {
                if (!value.is_null()) record.title = value.string();
            } else if (name == "image") {
                if (!value.is_null()) record.image = value.string();
            } else if (name == "attributes") {
                record.attributes = value.object(), attributes = true;
                record.attributes_json = text;
            }
        }
        if (!id || !attributes) throw json::Error("it has no id or no attributes");
        return record;
    } catch (const json::Error& error) {
        throw IndexFileError(std::string("the store holds a product that is not valid (") + error.what() +
                             "): " + std::string(content.substr(0, 200)));
    }
}

std::string random_id() {
    std::random_device device;
    std::string id;
    for (int i = 0; i < 4; ++i)
        for (std::uint32_t bits = device(), k = 0; k < 8; ++k, bits >>= 4)
            id += "0123456789abcdef"[bits & 15];
    return id;
}

}  // namespace uniecs::store
