// The SQLite file under a store: connections and transactions. Write-ahead logging: any number of readers,
// each with a connection of its own, go on while one writes. Who may write is not decided here
// (writer_lock.hpp). No connection lives through a fork, they are closed before it: SQLite in the child would
// count locks as held that are its parent's alone.
#pragma once

#include <sys/types.h>

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "sqlite.hpp"
#include "uniecs/uniecs.hpp"

namespace uniecs::store {

class Database {
  public:
    // The existing file `path`. Safe to share between threads, not between processes: opened before a fork,
    // it refuses to work in the child.
    Database(std::string path, Durability durability);
    ~Database();

    const std::string& path() const { return path_; }

    // A connection to read with, and the end of its use; one that is not `good` any more is closed.
    std::unique_ptr<Connection> borrow();
    void give_back(std::unique_ptr<Connection> connection, bool good = true);

    // One transaction: committed after `work`, undone if it throws. One thread at a time.
    void write(const std::function<void(Connection&)>& work);
    // Copy the write-ahead log into the file and empty it, as far as readers allow; for the writer only.
    void checkpoint();
    // Close what is idle now, and what is in use when it comes back.
    void close();
    // Throws InputError if closed, IndexFileError in a process forked after opening.
    void check_usable() const;
    std::uintmax_t log_bytes() const;

    // Before a fork: waits a moment for what is in use, closes what is not, and lends nothing until the end.
    void begin_fork();
    void end_fork() { mutex_.unlock(); }

  private:
    // While it lives `writer_` is open, and in use.
    class Writing {
      public:
        explicit Writing(Database& database);
        ~Writing();
        Writing(const Writing&) = delete;
        Writing& operator=(const Writing&) = delete;

      private:
        Database& database_;
    };

    // Changes when somebody writes the file or its log.
    using Signature = std::array<std::int64_t, 4>;

    std::unique_ptr<Connection> connect(const std::string& options, const std::string& pragma = {}) const;
    std::unique_ptr<Connection> connect_reader();
    std::unique_ptr<Connection> connect_frozen();
    std::unique_ptr<Connection> connect_writer() const;
    Signature signature() const;

    const std::string path_, folder_;
    const Durability durability_;
    const pid_t process_;
    std::atomic<bool> closed_{false};
    std::mutex mutex_;
    std::size_t in_use_ = 0;  // connections
    std::vector<std::unique_ptr<Connection>> idle_;
    std::unique_ptr<Connection> writer_;
    bool is_frozen_ = false;
    Signature frozen_{};
};

// Make a database in write-ahead mode with the tables of `schema`, and `fill` it; `path` must not exist.
void create_database(const std::string& path, const std::string& schema,
                     const std::function<void(Connection&)>& fill);

// Remove a database file, its log and the log's index, as far as they exist. Throws IndexFileError.
void remove_database(const std::string& path);

// Flush a file, or the names in a folder, to the disk. Throws IndexFileError.
void sync_path(const std::string& path);

}  // namespace uniecs::store
