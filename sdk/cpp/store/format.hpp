// The tables of a store, and their rows to and from products, vectors and settings (docs/index-format.md).
// Every value that is read back is compared with its checksum.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "../src/json.hpp"
#include "filters.hpp"
#include "sqlite.hpp"
#include "uniecs/uniecs.hpp"

namespace uniecs::store {

// A product as it is stored.
struct Record {
    std::string id;
    std::optional<std::string> title, image;
    std::string attributes_json;
    json::Object attributes;
};
using RecordPtr = std::shared_ptr<const Record>;

// What is fixed when an index is made.
struct Header {
    std::string model_id;
    std::size_t embed_dim = 0;
    std::string bundle_path;  // in a new store; a packaged bundle of Python is not known here
    IndexConfig config;
    std::string store_id;  // what a graph was made from
};

// The highest row that a graph takes.
constexpr Row MAX_ROW = (Row{1} << 32) - 1;

// What every change rewrites.
struct State {
    std::uint64_t sequence = 0;  // changes so far
    Row last_row = 0;            // the highest row ever used
    std::uint64_t purged = 0;    // rows deleted by changes after this one are listed in `deleted`
    std::uint64_t products = 0;
    std::map<std::string, std::uint64_t> vectors;  // by view
};

// Throws InputError for views, links or a breadth that no index can have.
void check_config(const IndexConfig& config);

// The statements that make the tables, each to be found in the file as it stands here.
std::vector<std::string> schema(const std::vector<std::string>& views);

void write_header(Connection& connection, const Header& header);
// Throws IndexFileError for a file that is no store, damaged, or of a newer format.
Header read_header(Connection& connection, const std::string& path);
void write_state(Connection& connection, const State& state);
State read_state(Connection& connection, const std::string& path);

// id -> row of those of `ids` that are there.
std::unordered_map<std::string, Row> rows_of_ids(Connection& connection, const std::vector<std::string>& ids);
// The value of an attribute, as its table has it; true and false are 1 and 0.
void bind_value(Statement& statement, const Scalar& value);

// CRC-32 of the row as an int64 and the data after it.
std::int64_t checksum_of(Row row, std::string_view data);
// Whether a checksum is the one that was stored; always so in a build for fuzzing, which does not find them.
bool agrees(std::int64_t checksum, std::int64_t stored);
[[noreturn]] void damaged(const std::string& path, const std::string& what);

// The JSON text that is stored of a product. Throws InputError for an id, title or attribute that is not
// UTF-8.
std::string product_content(const Record& product);
// The inverse; throws IndexFileError for anything else.
Record product_of(std::string_view content);

std::string random_id();  // 32 hexadecimal digits

}  // namespace uniecs::store
