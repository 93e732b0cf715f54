#include "change.hpp"

#include <algorithm>

namespace uniecs::store {
namespace {

std::int64_t number(std::uint64_t value) { return static_cast<std::int64_t>(value); }

}  // namespace

Change::Change(Connection& connection, const std::string& path)
    : connection_(connection), state_(read_state(connection, path)) {
    ++state_.sequence;
}

std::unordered_map<std::string, Row> Change::find(const std::vector<std::string>& ids) {
    return rows_of_ids(connection_, ids);
}

void Change::remove(const std::vector<Row>& rows) {
    remove_entries(rows);
    for (auto& [view, n] : state_.vectors) {
        Statement statement = connection_.prepare("DELETE FROM vector_" + view + " WHERE row = ?");
        for (const Row row : rows) {
            statement.bind(number(row)).run_and_reset();
            n -= static_cast<std::uint64_t>(connection_.changes());
        }
    }
    Statement product = connection_.prepare("DELETE FROM product WHERE row = ?");
    Statement deleted = connection_.prepare("INSERT INTO deleted VALUES (?, ?)");
    for (const Row row : rows) {
        product.bind(number(row)).run_and_reset();
        deleted.bind(number(state_.sequence)).bind(number(row)).run_and_reset();
    }
    state_.products -= rows.size();
    changed_.removed.insert(changed_.removed.end(), rows.begin(), rows.end());
}

void Change::remove_entries(const std::vector<Row>& rows) {
    std::vector<std::pair<Row, Record>> products;
    bool whole = true;
    select_in(
        connection_, "SELECT row, checksum, CAST(ifnull(content, '') AS BLOB) FROM product WHERE row IN ({})",
        rows, [](Statement& statement, Row row) { statement.bind(number(row)); },
        [&](Statement& line) {
            const auto row = static_cast<Row>(line.integer(0));
            const std::string_view content = line.bytes(2);
            if (line.is_integer(1) && agrees(checksum_of(row, content), line.integer(1)))
                products.emplace_back(row, product_of(content));
            else
                whole = false;
        });
    Statement statement =
        connection_.prepare("DELETE FROM attribute WHERE key = ? AND kind = ? AND value = ? AND row = ?");
    for (const auto& [row, product] : products)
        for (const Entry& entry : entries(product.attributes)) {
            statement.bind(key_of(entry.key, false)).bind(number(static_cast<std::uint64_t>(entry.kind)));
            bind_value(statement, entry.value);
            statement.bind(number(row)).run_and_reset();
            if (connection_.changes() == 0) whole = false;
        }
    if (whole) return;
    // Damaged: what its attributes were is not known, so look at all there are.
    select_in(
        connection_, "DELETE FROM attribute WHERE row IN ({})", rows,
        [](Statement& each, Row row) { each.bind(number(row)); }, [](Statement&) {});
}

void Change::insert(const std::vector<NewProduct>& products) {
    Statement product = connection_.prepare("INSERT INTO product VALUES (?, ?, ?, ?)");
    if (products.size() > MAX_ROW - state_.last_row)
        throw IndexFileError("the index has used all of its " + std::to_string(MAX_ROW) +
                             " rows: build it again");
    for (const NewProduct& each : products) {
        const Row row = ++state_.last_row;
        const std::string content = product_content(each.record);
        product.bind(number(row)).bind(std::string_view(each.record.id)).bind(std::string_view(content));
        product.bind(checksum_of(row, content)).run_and_reset();
        for (const auto& [view, vector] : each.vectors) {
            const std::string_view blob(reinterpret_cast<const char*>(vector.data()), 4 * vector.size());
            Statement statement = connection_.prepare("INSERT INTO vector_" + view + " VALUES (?, ?, ?)");
            statement.bind(number(row)).bind_bytes(blob).bind(checksum_of(row, blob)).run();
            ++state_.vectors.at(view);
        }
        insert_entries(row, each.record.attributes);
        changed_.added.push_back(row);
    }
    state_.products += products.size();
}

void Change::insert_entries(Row row, const json::Object& attributes) {
    Statement statement = connection_.prepare("INSERT INTO attribute VALUES (?, ?, ?, ?)");
    for (const Entry& entry : entries(attributes)) {
        statement.bind(key_of(entry.key, true)).bind(number(static_cast<std::uint64_t>(entry.kind)));
        bind_value(statement, entry.value);
        statement.bind(number(row)).run_and_reset();
    }
}

// The number of a name; where it has none, and none is to be made, one that no name has.
std::int64_t Change::key_of(const std::string& name, bool make) {
    if (const auto known = keys_.find(name); known != keys_.end()) return known->second;
    Statement query = connection_.prepare("SELECT key FROM attribute_key WHERE name = ?");
    query.bind(std::string_view(name));
    std::int64_t key = -1;
    if (query.step()) {
        key = query.integer(0);
    } else if (make) {
        connection_.prepare("INSERT INTO attribute_key (name) VALUES (?)").bind(std::string_view(name)).run();
        key = connection_.last_insert_row();
    } else {
        return key;
    }
    return keys_[name] = key;
}

void Change::purge_deleted(std::uint64_t sequence) {
    --state_.sequence;
    state_.purged = std::max(state_.purged, std::min(sequence, state_.sequence));
    connection_.prepare("DELETE FROM deleted WHERE sequence <= ?").bind(number(state_.purged)).run();
}

Changed Change::finish() {
    write_state(connection_, state_);
    std::sort(changed_.removed.begin(), changed_.removed.end());
    changed_.sequence = state_.sequence;
    changed_.last_row = state_.last_row;
    return std::move(changed_);
}

}  // namespace uniecs::store
