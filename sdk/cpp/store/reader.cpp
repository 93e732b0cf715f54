#include "reader.hpp"

#include <algorithm>
#include <cstring>

#include "store.hpp"

namespace uniecs::store {
namespace {

constexpr int BATCH_ROWS = 2048;
constexpr const char* EQUAL =
    "SELECT row FROM attribute WHERE key = (SELECT key FROM attribute_key WHERE name = ?)";

#if defined(__BYTE_ORDER__)
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "vectors lie in the file as little-endian float32");
#endif

const auto BIND_ROW = [](Statement& statement, Row row) { statement.bind(static_cast<std::int64_t>(row)); };

// The kinds under which `entries` lists what equals a scalar.
std::vector<Kind> kinds_of(const Scalar& value) {
    if (std::holds_alternative<bool>(value)) return {Kind::boolean};
    if (std::holds_alternative<std::string>(value)) return {Kind::string};
    if (!equals_strings(value)) return {Kind::number};
    return {Kind::number, Kind::read_number};
}

void add_rows(Statement& statement, std::vector<Row>& found) {
    while (statement.step())
        found.push_back(
            statement.is_integer(0) && statement.integer(0) > 0 ? static_cast<Row>(statement.integer(0)) : 0);
}

}  // namespace

Reader::~Reader() {
    // A query that was cut short would hold its old state.
    give_back(std::uncaught_exceptions() == exceptions_);
}

Connection& Reader::connection() {
    store_.database_.check_usable();
    if (!connection_) connection_ = store_.database_.borrow();
    return *connection_;
}

void Reader::give_back(bool good) {
    if (connection_) store_.database_.give_back(std::move(connection_), good);
}

Reader::Moment::Moment(Reader& reader) : reader_(reader.in_moment_ ? nullptr : &reader) {
    if (!reader_) return;
    Connection& connection = reader.connection();
    connection.run("BEGIN");
    reader.in_moment_ = true;
    try {
        connection.run("SELECT count(*) FROM sqlite_master");  // the state is fixed by the first read
    } catch (...) {
        reader.in_moment_ = false;
        reader.give_back(false);
        throw;
    }
}

Reader::Moment::~Moment() {
    if (!reader_) return;
    reader_->in_moment_ = false;
    try {
        if (reader_->connection_) reader_->connection_->run("COMMIT");
    } catch (const Error&) {
        reader_->give_back(false);  // its state ends with it
    }
}

State Reader::state() {
    State state = read_state(connection(), store_.path());
    for (const std::string& view : store_.header().config.views)
        if (!state.vectors.count(view))
            throw IndexFileError(store_.path() + " is not valid: it does not say how many vectors the view " +
                                 view + " has");
    return state;
}

std::unordered_map<std::string, Row> Reader::rows_of(const std::vector<std::string>& ids) {
    return rows_of_ids(connection(), ids);
}

std::unordered_map<Row, RecordPtr> Reader::products(const std::vector<Row>& rows) {
    std::unordered_map<Row, RecordPtr> found, read;
    const std::uint64_t removals = store_.cache_.get(rows, found);
    std::vector<Row> missing;
    for (const Row row : rows)
        if (!found.count(row)) missing.push_back(row);
    if (missing.empty()) return found;
    select_in(connection(),
              "SELECT row, checksum, CAST(ifnull(content, '') AS BLOB) FROM product WHERE row IN ({})",
              missing, BIND_ROW, [&](Statement& line) {
                  const auto row = static_cast<Row>(line.integer(0));
                  const std::string_view content = line.bytes(2);
                  if (!line.is_integer(1) || !agrees(checksum_of(row, content), line.integer(1)))
                      damaged(store_.path(), "the product of row " + std::to_string(row));
                  read.emplace(row, std::make_shared<const Record>(product_of(content)));
              });
    store_.cache_.put(read, removals);
    found.merge(read);
    return found;
}

namespace {

// Adds (row, checksum, vector) of a query's line to `found`.
void add_vector(const std::string& path, const std::string& view, std::size_t dim, Statement& line,
                Vectors& found) {
    const auto row = static_cast<Row>(line.integer(0));
    const std::string_view blob = line.bytes(2);
    if (!line.is_integer(1) || blob.size() != 4 * dim || !agrees(checksum_of(row, blob), line.integer(1)))
        damaged(path, "the vector of row " + std::to_string(row) + " in the view '" + view + "'");
    found.rows.push_back(row);
    found.values.resize(found.values.size() + dim);
    std::memcpy(&found.values[found.values.size() - dim], blob.data(), blob.size());
}

const std::string VECTOR_COLUMNS = "SELECT row, checksum, CAST(ifnull(vector, '') AS BLOB) FROM vector_";

}  // namespace

Vectors Reader::vectors(const std::string& view, const std::vector<Row>& rows) {
    std::vector<Row> wanted = rows;
    std::sort(wanted.begin(), wanted.end());
    Vectors found;
    select_in(
        connection(), VECTOR_COLUMNS + view + " WHERE row IN ({}) ORDER BY row", wanted, BIND_ROW,
        [&](Statement& line) { add_vector(store_.path(), view, store_.header().embed_dim, line, found); });
    return found;
}

Vectors Reader::vectors_after(const std::string& view, Row row) {
    Vectors found;
    Statement query = connection().prepare(VECTOR_COLUMNS + view + " WHERE row > ? ORDER BY row LIMIT ?");
    query.bind(static_cast<std::int64_t>(row)).bind(std::int64_t{BATCH_ROWS});
    while (query.step()) add_vector(store_.path(), view, store_.header().embed_dim, query, found);
    return found;
}

std::vector<Row> Reader::deleted_after(std::uint64_t sequence) {
    const Moment moment(*this);
    const std::uint64_t purged = state().purged;
    if (sequence < purged)
        throw IndexFileError("sequence is " + std::to_string(sequence) + "; removed rows are known from " +
                             std::to_string(purged) + " on");
    std::vector<Row> found;
    Statement query = connection().prepare("SELECT row FROM deleted WHERE sequence > ?");
    query.bind(static_cast<std::int64_t>(sequence));
    add_rows(query, found);
    return given(std::move(found));
}

// `rows`, ascending, if they are such as were ever given: no checksum tells.
std::vector<Row> Reader::given(std::vector<Row> rows) {
    std::sort(rows.begin(), rows.end());
    rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
    if (!rows.empty()) {
        const Row last = state().last_row;
        if (rows.front() < 1 || rows.back() > last)
            throw IndexFileError(store_.path() + " is damaged: it lists the rows " +
                                 std::to_string(rows.front()) + " to " + std::to_string(rows.back()) +
                                 " of 1 to " + std::to_string(last) +
                                 "; restore the index from a copy, or build it again");
    }
    return rows;
}

std::vector<Row> Reader::rows_matching(const Filter& predicate) {
    const Moment moment(*this);
    std::vector<Row> found;
    if (predicate.node == Filter::Node::between)
        rows_between(predicate, found);
    else
        for (const auto& value : predicate.values) rows_of_value(predicate, value, found);
    return given(std::move(found));
}

void Reader::rows_of_value(const Filter& predicate, const std::optional<Scalar>& value,
                           std::vector<Row>& found) {
    if (value) {
        for (const Kind kind : kinds_of(*value)) {
            Statement query = connection().prepare(std::string(EQUAL) + " AND kind = ? AND value = ?");
            query.bind(std::string_view(predicate.key)).bind(static_cast<std::int64_t>(kind));
            bind_value(query, *value);
            add_rows(query, found);
        }
        return;
    }
    std::vector<Row> having, all;
    Statement query = connection().prepare(EQUAL);
    query.bind(std::string_view(predicate.key));
    add_rows(query, having);
    Statement everything = connection().prepare("SELECT row FROM product");
    add_rows(everything, all);
    std::sort(having.begin(), having.end());
    std::sort(all.begin(), all.end());
    std::set_difference(all.begin(), all.end(), having.begin(), having.end(), std::back_inserter(found));
}

void Reader::rows_between(const Filter& predicate, std::vector<Row>& found) {
    const std::optional<Scalar>&low = predicate.values[0], &high = predicate.values[1];
    const bool texts = std::holds_alternative<std::string>(low ? *low : *high);
    std::string sql = std::string(EQUAL) + " AND kind = ?";
    if (low) sql += " AND value >= ?";
    if (high) sql += " AND value <= ?";
    for (const Kind kind : {texts ? Kind::string : Kind::number, Kind::read_number}) {
        if (texts && kind == Kind::read_number) break;
        Statement query = connection().prepare(sql);
        query.bind(std::string_view(predicate.key)).bind(static_cast<std::int64_t>(kind));
        for (const auto* bound : {&low, &high})
            if (*bound) bind_value(query, **bound);
        add_rows(query, found);
    }
}

std::set<std::string> Reader::attribute_keys() {
    std::set<std::string> names;
    Statement query = connection().prepare(
        "SELECT name FROM attribute_key AS k WHERE EXISTS (SELECT 1 FROM attribute WHERE key = k.key)");
    while (query.step()) {
        if (!query.is_text(0))
            throw IndexFileError(store_.path() +
                                 " is damaged: its list of attributes has a name that is no text");
        names.emplace(query.text(0));
    }
    return names;
}

}  // namespace uniecs::store
