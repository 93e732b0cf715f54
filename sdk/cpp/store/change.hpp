// One change of a store, within one transaction: rows removed, rows added, the state rewritten.
#pragma once

#include "store.hpp"

namespace uniecs::store {

class Change {
  public:
    // `connection` is within a transaction that may write.
    Change(Connection& connection, const std::string& path);

    // id -> row of those of `ids` that are there.
    std::unordered_map<std::string, Row> find(const std::vector<std::string>& ids);
    // Remove products that are there.
    void remove(const std::vector<Row>& rows);
    // Add products whose ids are not there.
    void insert(const std::vector<NewProduct>& products);
    // Forget the rows deleted by changes up to `sequence`; in itself no change of the products.
    void purge_deleted(std::uint64_t sequence);
    // Write the new state, and say what was done.
    Changed finish();

  private:
    void remove_entries(const std::vector<Row>& rows);
    void insert_entries(Row row, const json::Object& attributes);
    std::int64_t key_of(const std::string& name, bool make);

    Connection& connection_;
    State state_;
    Changed changed_{};
    std::map<std::string, std::int64_t> keys_;
};

}  // namespace uniecs::store
