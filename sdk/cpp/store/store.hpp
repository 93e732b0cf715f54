// The store of an index: products, attributes and vectors in one SQLite file (docs/index-format.md). It is
// the truth; graphs are made from it. The same file as Python's, read and written by the same rules.
//
// Every version of a product has a row number of its own, ascending and never used again. What a row holds
// never changes: an update removes the old row and adds a new one, in one transaction. Each change raises the
// sequence by one.
#pragma once

#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "database.hpp"
#include "format.hpp"
#include "reader.hpp"
#include "writer_lock.hpp"

namespace uniecs::store {

struct NewProduct {
    Record record;
    std::map<std::string, std::vector<float>> vectors;  // by view
};

struct Changed {
    std::uint64_t sequence;
    Row last_row;
    std::vector<Row> added;    // in the order of the products
    std::vector<Row> removed;  // ascending
};

// The products read last, by row.
class ProductCache {
  public:
    // Those that are here; returns the number of removals so far, for `put`.
    std::uint64_t get(const std::vector<Row>& rows, std::unordered_map<Row, RecordPtr>& found) const;
    // Keep what was read, unless rows were removed since: these might be among them.
    void put(const std::unordered_map<Row, RecordPtr>& products, std::uint64_t removals);
    void forget(const std::vector<Row>& rows);
    void forget_all();

  private:
    mutable std::mutex mutex_;
    std::unordered_map<Row, RecordPtr> products_;
    std::deque<Row> order_;
    std::uint64_t removals_ = 0;
};

class Store {
  public:
    // A new, empty store in a folder, which is made if need be; it has the writer lock from the start.
    static std::unique_ptr<Store> create(const std::string& path, Header header, Durability durability);
    // Throws IndexFileError for what is no store, damaged, of a newer format, or still of format version 1.
    static std::unique_ptr<Store> open(const std::string& path, Durability durability);

    Store(const std::string& folder, WriterLock lock, Durability durability);
    ~Store() { close(); }

    const std::string& folder() const { return folder_; }  // an absolute path
    const std::string& path() const { return database_.path(); }
    const Header& header() const { return header_; }

    // Whether this store has the writer lock.
    bool writes() const { return writes_; }
    // Take the writer lock, unless this store has it. Throws IndexFileError, naming the process that has it.
    void begin_writing();
    // Add products with their vectors, or replace those of their ids whole: all or none, durable on return.
    Changed put(const std::vector<NewProduct>& products);
    // Remove products, all or none, durable on return. Throws InputError for an unknown id.
    Changed remove(const std::vector<std::string>& ids);
    // Forget which rows were removed by the changes up to `sequence`: all graphs on the disk are beyond it.
    void purge_deleted(std::uint64_t sequence);
    // Empty the write-ahead log into the file, as far as readers allow.
    void checkpoint();
    // Close the file and give the writer lock back.
    void close();

  private:
    friend class Reader;

    template <typename Work>
    Changed change(Work work);

    const std::string folder_;
    mutable Database database_;
    mutable ProductCache cache_;
    std::recursive_mutex writing_;
    WriterLock lock_;
    std::atomic<bool> writes_;
    Header header_;
};

}  // namespace uniecs::store
