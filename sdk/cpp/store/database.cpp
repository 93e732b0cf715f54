#include "database.hpp"

#include <fcntl.h>
#include <sqlite3.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

namespace uniecs::store {
namespace {

constexpr std::uintmax_t LOG_LIMIT_BYTES = 256 << 20;  // beyond this the writer waits a moment for readers
constexpr std::size_t IDLE_READERS = 32;

void empty_log(Connection& connection, int patience_ms) {
    connection.run("PRAGMA busy_timeout = " + std::to_string(patience_ms));
    connection.run("PRAGMA wal_checkpoint(TRUNCATE)");
    connection.run("PRAGMA busy_timeout = 10000");
}

}  // namespace

Database::Database(std::string path, Durability durability)
    : path_(std::move(path)),
      folder_(std::filesystem::path(path_).parent_path().string()),
      durability_(durability),
      process_(::getpid()) {}

Database::~Database() { close(); }

void Database::check_usable() const {
    if (closed_) throw InputError(folder_ + " is closed; open the index again");
    if (process_ != ::getpid())
        throw IndexFileError(folder_ + " was opened before this process was forked from process " +
                             std::to_string(process_) + ": open the index after the fork, in each process");
}

std::unique_ptr<Connection> Database::borrow() {
    check_usable();
    const std::lock_guard<std::mutex> lock(idle_mutex_);
    if (is_frozen_ && frozen_ != signature()) {
        // Somebody with more rights than this process has written meanwhile.
        is_frozen_ = false;
        idle_.clear();
    }
    if (idle_.empty()) return connect_reader();
    std::unique_ptr<Connection> connection = std::move(idle_.back());
    idle_.pop_back();
    return connection;
}

void Database::give_back(std::unique_ptr<Connection> connection) {
    if (process_ != ::getpid()) connection->abandon();
    const std::lock_guard<std::mutex> lock(idle_mutex_);
    if (!closed_ && process_ == ::getpid() && idle_.size() < IDLE_READERS)
        idle_.push_back(std::move(connection));
}

void Database::write(const std::function<void(Connection&)>& work) {
    check_usable();
    Connection& connection = writer();
    connection.run("BEGIN IMMEDIATE");
    try {
        work(connection);
        connection.run("COMMIT");
    } catch (...) {
        // Some errors make SQLite roll back by itself.
        try {
            if (connection.in_transaction()) connection.run("ROLLBACK");
        } catch (const SqliteError&) {
            writer_.reset();  // closing it rolls back; the first error is the one to tell
        }
        throw;
    }
    if (log_bytes() > LOG_LIMIT_BYTES) {
        try {
            empty_log(connection, 20);
        } catch (const SqliteError&) {
            // The change is made: what went wrong here shows at the next one.
        }
    }
}

void Database::checkpoint() {
    check_usable();
    empty_log(writer(), 2000);
}

void Database::close() {
    closed_ = true;
    const std::lock_guard<std::mutex> lock(idle_mutex_);
    if (process_ != ::getpid()) {  // the connections are the parent's
        for (auto& each : idle_) each->abandon();
        if (writer_) writer_->abandon();
    }
    idle_.clear();
    writer_.reset();
}

Connection& Database::writer() {
    if (!writer_) {
        auto made = connect("mode=rw");
        // Pages of the cache in KB; the log is copied into the file every 64 MB.
        made->run(std::string("PRAGMA synchronous = ") +
                  (durability_ == Durability::full ? "FULL" : "NORMAL"));
        for (const char* pragma : {"fullfsync = ON", "cache_size = -65536", "wal_autocheckpoint = 8192",
                                   "secure_delete = OFF", "journal_mode = WAL"})
            made->run(std::string("PRAGMA ") + pragma);
        writer_ = std::move(made);
    }
    return *writer_;
}

std::unique_ptr<Connection> Database::connect_reader() {
    std::unique_ptr<Connection> connection;
    try {
        connection = connect("mode=rw");
    } catch (const SqliteError& error) {
        const int code = error.code() & 0xff;
        if (code != SQLITE_CANTOPEN && code != SQLITE_READONLY) throw;
        connection = connect_frozen();
    }
    connection->run("PRAGMA query_only = ON");
    connection->run("PRAGMA cache_size = -16384");
    return connection;
}

// A folder in which not even the log's index can be made: read without locks, until the files change.
std::unique_ptr<Connection> Database::connect_frozen() {
    const Signature now = signature();
    auto connection = log_bytes() ? connect("mode=ro&vfs=unix-none", "PRAGMA locking_mode = EXCLUSIVE")
                                  : connect("mode=ro&immutable=1");
    frozen_ = now;
    is_frozen_ = true;
    return connection;
}

std::unique_ptr<Connection> Database::connect(const std::string& options, const std::string& pragma) const {
    auto connection = std::make_unique<Connection>(path_, options);
    if (!pragma.empty()) connection->run(pragma);
    connection->run("SELECT count(*) FROM sqlite_master");
    return connection;
}

std::uintmax_t Database::log_bytes() const {
    std::error_code failed;
    const std::uintmax_t bytes = std::filesystem::file_size(path_ + "-wal", failed);
    return failed ? 0 : bytes;
}

Database::Signature Database::signature() const {
    Signature found{};
    for (std::size_t i = 0; i < 2; ++i) {
        const std::string path = path_ + (i ? "-wal" : "");
        std::error_code failed;
        const std::uintmax_t bytes = std::filesystem::file_size(path, failed);
        if (failed) continue;
        found[2 * i] = static_cast<std::int64_t>(bytes) + 1;
        found[2 * i + 1] = std::filesystem::last_write_time(path, failed).time_since_epoch().count();
    }
    return found;
}

void create_database(const std::string& path, const std::string& schema,
                     const std::function<void(Connection&)>& fill) {
    Connection connection(path, "mode=rwc");
    connection.run("PRAGMA page_size = 8192");
    connection.run("PRAGMA journal_mode = WAL");
    connection.run_script("BEGIN; " + schema);
    fill(connection);
    connection.run("COMMIT");
}

void remove_database(const std::string& path) {
    for (const char* suffix : {"-shm", "-wal", ""}) {
        std::error_code failed;
        std::filesystem::remove(path + suffix, failed);
        if (failed) throw IndexFileError(path + suffix + " cannot be removed: " + failed.message());
    }
}

void sync_path(const std::string& path) {
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    const bool good = file >= 0 && ::fsync(file) == 0;
    const int error = errno;
    if (file >= 0) ::close(file);
    if (!good) throw IndexFileError(path + " cannot be written: " + std::strerror(error));
}

}  // namespace uniecs::store
