#include "database.hpp"

#include <fcntl.h>
#include <pthread.h>
#include <sqlite3.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <set>
#include <thread>

namespace uniecs::store {
namespace {

constexpr std::uintmax_t LOG_LIMIT_BYTES = 256 << 20;  // beyond this the writer waits a moment for readers
constexpr std::size_t IDLE_READERS = 32;
constexpr std::chrono::seconds FORK_PATIENCE{1};  // for what other threads read or write
constexpr std::chrono::microseconds LOOK_EVERY{500};

// All that are open, for whoever forks; never destroyed, as one may live to the end of the process.
struct Open {
    std::mutex mutex;
    std::set<Database*> databases;
};

Open& all_open() {
    static Open& open = *new Open;
    return open;
}

void begin_fork() {
    all_open().mutex.lock();
    for (Database* each : all_open().databases) each->begin_fork();
}

void end_fork() {
    for (Database* each : all_open().databases) each->end_fork();
    all_open().mutex.unlock();
}

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
      process_(::getpid()) {
    static const int told =
        ::pthread_atfork(::uniecs::store::begin_fork, ::uniecs::store::end_fork, ::uniecs::store::end_fork);
    (void)told;
    const std::lock_guard<std::mutex> lock(all_open().mutex);
    all_open().databases.insert(this);
}

Database::~Database() {
    {
        const std::lock_guard<std::mutex> lock(all_open().mutex);
        all_open().databases.erase(this);
    }
    close();
}

void Database::begin_fork() {
    const auto end = std::chrono::steady_clock::now() + FORK_PATIENCE;
    mutex_.lock();
    if (process_ != ::getpid()) return;  // what is left of it refuses to work here
    while (in_use_ && std::chrono::steady_clock::now() < end) {
        mutex_.unlock();
        std::this_thread::sleep_for(LOOK_EVERY);
        mutex_.lock();
    }
    if (in_use_) return;
    idle_.clear();
    writer_.reset();
}

void Database::check_usable() const {
    if (closed_) throw InputError(folder_ + " is closed; open the index again");
    if (process_ != ::getpid())
        throw IndexFileError(folder_ + " was opened before this process was forked from process " +
                             std::to_string(process_) + ": open the index after the fork, in each process");
}

std::unique_ptr<Connection> Database::borrow() {
    check_usable();
    const std::lock_guard<std::mutex> lock(mutex_);
    if (is_frozen_ && frozen_ != signature()) {
        // Somebody with more rights than this process has written meanwhile.
        is_frozen_ = false;
        idle_.clear();
    }
    std::unique_ptr<Connection> connection;
    if (idle_.empty()) {
        connection = connect_reader();
    } else {
        connection = std::move(idle_.back());
        idle_.pop_back();
    }
    ++in_use_;
    return connection;
}

void Database::give_back(std::unique_ptr<Connection> connection, bool good) {
    if (process_ != ::getpid()) connection->abandon();
    const std::lock_guard<std::mutex> lock(mutex_);
    if (good && !closed_ && process_ == ::getpid() && idle_.size() < IDLE_READERS)
        idle_.push_back(std::move(connection));
    connection.reset();  // before a fork goes on
    --in_use_;
}

void Database::write(const std::function<void(Connection&)>& work) {
    const Writing writing(*this);
    Connection& connection = *writer_;
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
    const Writing writing(*this);
    empty_log(*writer_, 2000);
}

void Database::close() {
    closed_ = true;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (process_ != ::getpid()) {  // the connections are the parent's
        for (auto& each : idle_) each->abandon();
        if (writer_) writer_->abandon();
    }
    idle_.clear();
    writer_.reset();
}

Database::Writing::Writing(Database& database) : database_(database) {
    database.check_usable();
    const std::lock_guard<std::mutex> lock(database.mutex_);
    if (!database.writer_) database.writer_ = database.connect_writer();
    ++database.in_use_;
}

Database::Writing::~Writing() {
    const std::lock_guard<std::mutex> lock(database_.mutex_);
    --database_.in_use_;
}

std::unique_ptr<Connection> Database::connect_writer() const {
    auto connection = connect("mode=rw");
    // Pages of the cache in KB; the log is copied into the file every 64 MB.
    connection->run(std::string("PRAGMA synchronous = ") +
                    (durability_ == Durability::full ? "FULL" : "NORMAL"));
    for (const char* pragma : {"fullfsync = ON", "cache_size = -65536", "wal_autocheckpoint = 8192",
                               "secure_delete = OFF", "journal_mode = WAL"})
        connection->run(std::string("PRAGMA ") + pragma);
    return connection;
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
