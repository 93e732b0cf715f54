// What one thread reads of a store: each query of the last commit, or within a `Moment` all of one and the
// same.
#pragma once

#include <exception>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "filters.hpp"
#include "format.hpp"

namespace uniecs::store {

class Store;

struct Vectors {
    std::vector<Row> rows;      // ascending
    std::vector<float> values;  // rows x embed_dim
};

class Reader {
  public:
    explicit Reader(const Store& store) : store_(store) {}
    ~Reader();
    Reader(const Reader&) = delete;
    Reader& operator=(const Reader&) = delete;

    // While it lives, the reader sees one state. They may be nested. Keep it short: the log grows.
    class Moment {
      public:
        explicit Moment(Reader& reader);
        ~Moment();
        Moment(const Moment&) = delete;
        Moment& operator=(const Moment&) = delete;

      private:
        Reader* reader_;  // nullptr: within another
    };

    State state();
    // id -> row, for those of `ids` that the store holds.
    std::unordered_map<std::string, Row> rows_of(const std::vector<std::string>& ids);
    // Row -> product, for those of `rows` that hold one; one that another process removed since may still be
    // given.
    std::unordered_map<Row, RecordPtr> products(const std::vector<Row>& rows);
    // Those of `rows` that have a vector in the view.
    Vectors vectors(const std::string& view, const std::vector<Row>& rows);
    // Of the lowest rows above `row`, some thousands at most; none: there are no more.
    Vectors vectors_after(const std::string& view, Row row);
    // The rows removed by changes after `sequence`, ascending. Throws IndexFileError if that is below
    // `purged`.
    std::vector<Row> deleted_after(std::uint64_t sequence);
    // The rows of the products that match one_of or between, ascending.
    std::vector<Row> rows_matching(const Filter& predicate);
    // Every attribute that some product has.
    std::set<std::string> attribute_keys();

  private:
    Connection& connection();
    void give_back(bool good);
    void rows_of_value(const Filter& predicate, const std::optional<Scalar>& value, std::vector<Row>& found);
    void rows_between(const Filter& predicate, std::vector<Row>& found);
    std::vector<Row> given(std::vector<Row> rows);

    const Store& store_;
    std::unique_ptr<Connection> connection_;
    bool in_moment_ = false;
    const int exceptions_ = std::uncaught_exceptions();
};

}  // namespace uniecs::store
