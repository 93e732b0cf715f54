// SQLite: connections and statements that close themselves, and its errors as those of uniecs.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "uniecs/errors.hpp"

struct sqlite3;
struct sqlite3_stmt;

namespace uniecs::store {

// What SQLite could not do, in the words of uniecs; `code` is SQLite's, extended.
class SqliteError : public IndexFileError {
  public:
    SqliteError(const std::string& message, int code) : IndexFileError(message), code_(code) {}
    int code() const { return code_; }

  private:
    int code_;
};

class Connection;

// A prepared statement under way; it goes back to its connection, reset, when it is destroyed.
class Statement {
  public:
    Statement(Connection& connection, std::string sql, sqlite3_stmt* statement)
        : connection_(&connection), sql_(std::move(sql)), statement_(statement) {}
    Statement(Statement&& other) noexcept;
    Statement& operator=(Statement&&) = delete;
    ~Statement();

    // Values for the question marks, from the first on. Text and bytes must stay until the statement ends.
    Statement& bind(std::int64_t value);
    Statement& bind(double value);
    Statement& bind(std::string_view text);
    Statement& bind_bytes(std::string_view bytes);
    Statement& bind_null();

    bool step();  // true: there is a row
    void run();   // to its end
    // Run it, and make it ready for other values.
    void run_and_reset();

    bool is_integer(int column) const;
    bool is_text(int column) const;
    std::int64_t integer(int column) const;
    std::string_view text(int column) const;   // until the next step
    std::string_view bytes(int column) const;  // until the next step

  private:
    Connection* connection_;
    std::string sql_;
    sqlite3_stmt* statement_;
    int bound_ = 0;
};

// An open file, for one thread at a time.
class Connection {
  public:
    // `options` are those of SQLite's URIs, such as "mode=rw". Waits up to ten seconds for locks of others.
    Connection(std::string path, const std::string& options);
    ~Connection();
    Connection(const Connection&) = delete;
    Connection& operator=(const Connection&) = delete;

    // One statement, compiled once; there may be several of the same text at a time.
    Statement prepare(std::string sql);
    void run(const std::string& sql) { prepare(sql).run(); }
    // Any number of statements.
    void run_script(const std::string& sql);

    std::int64_t changes() const;  // rows of the last INSERT, UPDATE or DELETE
    std::int64_t last_insert_row() const;
    bool in_transaction() const;
    // In a forked process: the file stays open, it is the parent's.
    void abandon() { connection_ = nullptr; }
    [[noreturn]] void fail(int code) const;

  private:
    friend class Statement;
    void give_back(std::string sql, sqlite3_stmt* statement);

    std::string path_;
    sqlite3* connection_ = nullptr;
    std::multimap<std::string, sqlite3_stmt*> idle_;
};

// What `work(statement)` does with the rows of `query`, whose {} stands for a list of values: as many queries
// as the values need.
template <typename Values, typename Bind, typename Work>
void select_in(Connection& connection, const std::string& query, const Values& values, Bind bind, Work work) {
    constexpr std::size_t MOST = 512;  // values bound to one query
    const std::size_t place = query.find("{}");
    for (std::size_t start = 0; start < values.size(); start += MOST) {
        const std::size_t some = values.size() - start < MOST ? values.size() - start : MOST;
        std::size_t marks = 1;  // a few lengths only, so that most statements are prepared already
        while (marks < some) marks *= 2;
        std::string list = "?";
        for (std::size_t i = 1; i < marks; ++i) list += ",?";
        Statement statement = connection.prepare(query.substr(0, place) + list + query.substr(place + 2));
        for (std::size_t i = 0; i < marks; ++i) bind(statement, values[start + (i < some ? i : some - 1)]);
        while (statement.step()) work(statement);
    }
}

}  // namespace uniecs::store
