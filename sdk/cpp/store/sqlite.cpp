#include "sqlite.hpp"

#include <sqlite3.h>

#include <cctype>

namespace uniecs::store {
namespace {

constexpr int BUSY_MS = 10'000;
constexpr std::size_t KEPT_STATEMENTS = 256;
constexpr const char* RESTORE = "restore the index from a copy, or build it again";

// An absolute or relative path as a URI that SQLite takes.
std::string uri(const std::string& path, const std::string& options) {
    std::string made = "file:";
    constexpr char DIGITS[] = "0123456789ABCDEF";
    for (const char each : path) {
        const auto byte = static_cast<unsigned char>(each);
        if (std::isalnum(byte) || (byte < 0x80 && std::string_view("/._-~").find(each) != std::string::npos))
            made += each;
        else
            made += {'%', DIGITS[byte >> 4], DIGITS[byte & 15]};
    }
    return made + "?" + options;
}

std::string words(int code, const std::string& path, const std::string& error) {
    switch (code & 0xff) {
        case SQLITE_FULL:
            return path +
                   " cannot grow: the disk is full; this change was not made, what was there before is "
                   "unharmed";
        case SQLITE_READONLY:
        case SQLITE_PERM:
        case SQLITE_AUTH:
            return path + " cannot be written (" + error +
                   "); check the permissions of the file and its folder";
        case SQLITE_CANTOPEN:
            return path + " cannot be opened (" + error + "); check that it exists, and the permissions";
        case SQLITE_BUSY:
        case SQLITE_LOCKED:
            return path + " is held by another process (" + error + "); try again when that has ended";
        case SQLITE_NOTADB:
        case SQLITE_CORRUPT:
            return path + " is damaged (" + error + "); " + RESTORE;
        case SQLITE_IOERR:
            return path + " cannot be read or written (" + error + ", " + std::to_string(code) +
                   "); check the disk";
        default:
            return path + " does not hold what it should (" + error + "); " + RESTORE;
    }
}

}  // namespace

Statement::Statement(Statement&& other) noexcept
    : connection_(other.connection_),
      sql_(std::move(other.sql_)),
      statement_(other.statement_),
      bound_(other.bound_) {
    other.statement_ = nullptr;
}

Statement::~Statement() {
    if (statement_) connection_->give_back(std::move(sql_), statement_);
}

Statement& Statement::bind(std::int64_t value) {
    if (const int code = sqlite3_bind_int64(statement_, ++bound_, value)) connection_->fail(code);
    return *this;
}

Statement& Statement::bind(double value) {
    if (const int code = sqlite3_bind_double(statement_, ++bound_, value)) connection_->fail(code);
    return *this;
}

Statement& Statement::bind(std::string_view text) {
    if (const int code = sqlite3_bind_text64(statement_, ++bound_, text.data() ? text.data() : "",
                                             text.size(), SQLITE_STATIC, SQLITE_UTF8))
        connection_->fail(code);
    return *this;
}

Statement& Statement::bind_bytes(std::string_view bytes) {
    if (const int code = sqlite3_bind_blob64(statement_, ++bound_, bytes.data() ? bytes.data() : "",
                                             bytes.size(), SQLITE_STATIC))
        connection_->fail(code);
    return *this;
}

Statement& Statement::bind_null() {
    ++bound_;
    return *this;
}

bool Statement::step() {
    const int code = sqlite3_step(statement_);
    if (code == SQLITE_ROW) return true;
    if (code != SQLITE_DONE) connection_->fail(code);
    return false;
}

void Statement::run() {
    while (step()) {
    }
}

void Statement::run_and_reset() {
    run();
    sqlite3_reset(statement_);
    sqlite3_clear_bindings(statement_);
    bound_ = 0;
}

bool Statement::is_integer(int column) const {
    return sqlite3_column_type(statement_, column) == SQLITE_INTEGER;
}

bool Statement::is_text(int column) const { return sqlite3_column_type(statement_, column) == SQLITE_TEXT; }

std::int64_t Statement::integer(int column) const { return sqlite3_column_int64(statement_, column); }

std::string_view Statement::text(int column) const {
    const auto* text = reinterpret_cast<const char*>(sqlite3_column_text(statement_, column));
    return {text ? text : "", static_cast<std::size_t>(sqlite3_column_bytes(statement_, column))};
}

std::string_view Statement::bytes(int column) const {
    const auto* bytes = static_cast<const char*>(sqlite3_column_blob(statement_, column));
    return {bytes ? bytes : "", static_cast<std::size_t>(sqlite3_column_bytes(statement_, column))};
}

Connection::Connection(std::string path, const std::string& options) : path_(std::move(path)) {
    constexpr int FLAGS = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI | SQLITE_OPEN_NOMUTEX;
    const int code = sqlite3_open_v2(uri(path_, options).c_str(), &connection_, FLAGS, nullptr);
    try {
        if (code != SQLITE_OK) fail(code);
        sqlite3_extended_result_codes(connection_, 1);
        sqlite3_busy_timeout(connection_, BUSY_MS);
    } catch (...) {
        sqlite3_close_v2(connection_);
        throw;
    }
}

Connection::~Connection() {
    if (!connection_) return;
    for (const auto& [sql, statement] : idle_) sqlite3_finalize(statement);
    sqlite3_close_v2(connection_);
}

Statement Connection::prepare(std::string sql) {
    if (const auto kept = idle_.find(sql); kept != idle_.end()) {
        sqlite3_stmt* const statement = kept->second;
        idle_.erase(kept);
        return {*this, std::move(sql), statement};
    }
    sqlite3_stmt* statement = nullptr;
    const int code = sqlite3_prepare_v3(connection_, sql.data(), static_cast<int>(sql.size()),
                                        SQLITE_PREPARE_PERSISTENT, &statement, nullptr);
    if (code != SQLITE_OK) fail(code);
    return {*this, std::move(sql), statement};
}

void Connection::give_back(std::string sql, sqlite3_stmt* statement) {
    if (!connection_) return;
    sqlite3_reset(statement);
    sqlite3_clear_bindings(statement);
    if (idle_.size() < KEPT_STATEMENTS)
        idle_.emplace(std::move(sql), statement);
    else
        sqlite3_finalize(statement);
}

void Connection::run_script(const std::string& sql) {
    const int code = sqlite3_exec(connection_, sql.c_str(), nullptr, nullptr, nullptr);
    if (code != SQLITE_OK) fail(code);
}

std::int64_t Connection::changes() const { return sqlite3_changes64(connection_); }

std::int64_t Connection::last_insert_row() const { return sqlite3_last_insert_rowid(connection_); }

bool Connection::in_transaction() const { return !sqlite3_get_autocommit(connection_); }

void Connection::fail(int code) const {
    const std::string error = connection_ ? sqlite3_errmsg(connection_) : "too little memory";
    const int extended = connection_ ? sqlite3_extended_errcode(connection_) : code;
    if ((code & 0xff) == SQLITE_TOOBIG)
        throw InputError("a product is too large for the index (" + error + "); expected less than 1 GB");
    throw SqliteError(words(code, path_, error), extended ? extended : code);
}

}  // namespace uniecs::store
