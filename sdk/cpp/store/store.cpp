#include "store.hpp"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>

#include "../src/absolute_path.hpp"
#include "../src/utf8.hpp"
#include "change.hpp"

namespace uniecs::store {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t CACHED_PRODUCTS = 4096;
constexpr const char* STORE_FILE = "/store.sqlite";
constexpr const char* OLD_MANIFEST = "/manifest.json";  // of format version 1

std::string joined(const std::vector<std::string>& tables) {
    std::string script;
    for (const std::string& each : tables) script += each + ";\n";
    return script;
}

// It appears whole, or not at all.
void build_store(const std::string& folder, const Header& header) {
    const std::string path = folder + STORE_FILE, made = path + ".new";
    std::error_code failed;
    if (fs::exists(path, failed))
        throw IndexFileError(folder +
                             " already exists; open it with SearchEngine::open, or choose another path");
    remove_database(made);
    try {
        create_database(made, joined(schema(header.config.views)),
                        [&](Connection& connection) { write_header(connection, header); });
        if (const auto bytes = fs::file_size(made + "-wal", failed); !failed && bytes)
            throw IndexFileError(made + " is in use by another process; try again when that has ended");
        sync_path(made);
        remove_database(path);  // a log without its file would be taken for this one's
        fs::rename(made, path, failed);
        if (failed) throw IndexFileError(path + " cannot be written: " + failed.message());
    } catch (...) {
        remove_database(made);
        throw;
    }
    sync_path(folder);
}

void check_product(const NewProduct& product, const Header& header) {
    const std::string name = "product '" + product.record.id + "'";
    if (utf8::valid_prefix(product.record.id) != product.record.id.size())
        throw InputError("the id '" + product.record.id + "' is not UTF-8");
    for (const auto& [view, vector] : product.vectors)
        if (std::find(header.config.views.begin(), header.config.views.end(), view) ==
                header.config.views.end() ||
            vector.size() != header.embed_dim ||
            !std::all_of(vector.begin(), vector.end(), [](float each) { return std::isfinite(each); }))
            throw InputError(name + " has a vector of " + std::to_string(vector.size()) +
                             " values for the view '" + view + "'; expected " +
                             std::to_string(header.embed_dim) + " finite ones for a view of the index");
    // Text that is no UTF-8, and numbers that are not finite.
    product_content(product.record);
}

}  // namespace

std::uint64_t ProductCache::get(const std::vector<Row>& rows,
                                std::unordered_map<Row, RecordPtr>& found) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const Row row : rows)
        if (const auto kept = products_.find(row); kept != products_.end()) found.insert(*kept);
    return removals_;
}

void ProductCache::put(const std::unordered_map<Row, RecordPtr>& products, std::uint64_t removals) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (removals_ != removals) return;
    for (const auto& each : products)
        if (products_.insert(each).second) order_.push_back(each.first);
    for (; order_.size() > CACHED_PRODUCTS; order_.pop_front()) products_.erase(order_.front());
}

void ProductCache::forget(const std::vector<Row>& rows) {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++removals_;
    for (const Row row : rows) products_.erase(row);  // in `order_` it stays a while: no row comes twice
}

void ProductCache::forget_all() {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++removals_;
    products_.clear();
    order_.clear();
}

std::unique_ptr<Store> Store::create(const std::string& path, Header header, Durability durability) {
    const std::string folder = absolute_path(path);
    check_config(header.config);
    std::error_code failed;
    fs::create_directories(folder, failed);
    if (failed) throw IndexFileError(folder + " cannot be written: " + failed.message());
    WriterLock lock(folder);
    lock.acquire();
    if (fs::exists(folder + OLD_MANIFEST, failed))
        throw IndexFileError(folder +
                             " already exists, in an older format; open it with Python's SearchEngine.open");
    header.store_id = random_id();
    build_store(folder, header);
    return std::make_unique<Store>(folder, std::move(lock), durability);
}

std::unique_ptr<Store> Store::open(const std::string& path, Durability durability) {
    const std::string folder = absolute_path(path);
    std::error_code failed;
    if (!fs::is_regular_file(folder + STORE_FILE, failed)) {
        if (failed && failed != std::errc::no_such_file_or_directory && failed != std::errc::not_a_directory)
            throw IndexFileError(folder + " cannot be read: " + failed.message() + "; check the permissions");
        if (fs::is_regular_file(folder + OLD_MANIFEST, failed))
            throw IndexFileError(
                folder +
                " has format version 1: open it once with Python's SearchEngine.open, which rewrites it");
        throw IndexFileError(folder +
                             " is not an index: it has no store.sqlite; SearchEngine::create makes one");
    }
    return std::make_unique<Store>(folder, WriterLock(folder), durability);
}

Store::Store(const std::string& folder, WriterLock lock, Durability durability)
    : folder_(folder),
      database_(folder + STORE_FILE, durability),
      lock_(std::move(lock)),
      writes_(lock_.held()) {
    auto connection = database_.borrow();
    header_ = read_header(*connection, path());
    read_state(*connection, path());
    database_.give_back(std::move(connection));
}

void Store::begin_writing() {
    const std::lock_guard<std::recursive_mutex> writing(writing_);
    database_.check_usable();
    if (lock_.held()) return;
    lock_.acquire();
    writes_ = true;
    cache_.forget_all();
}

template <typename Work>
Changed Store::change(Work work) {
    const std::lock_guard<std::recursive_mutex> writing(writing_);
    begin_writing();
    Changed changed;
    database_.write([&](Connection& connection) {
        Change change(connection, path());
        work(change);
        changed = change.finish();
    });
    cache_.forget(changed.removed);
    return changed;
}

Changed Store::put(const std::vector<NewProduct>& products) {
    std::set<std::string> distinct;
    std::vector<std::string> ids;
    for (const NewProduct& each : products) {
        check_product(each, header_);
        ids.push_back(each.record.id);
        if (!distinct.insert(each.record.id).second)
            throw InputError("id '" + each.record.id + "' is given more than once");
    }
    return change([&](Change& change) {
        std::vector<Row> replaced;
        for (const auto& [id, row] : change.find(ids)) replaced.push_back(row);
        change.remove(replaced);
        change.insert(products);
    });
}

Changed Store::remove(const std::vector<std::string>& ids) {
    return change([&](Change& change) {
        const auto found = change.find(ids);
        std::vector<Row> rows;
        for (const std::string& id : ids) {
            if (!found.count(id)) throw InputError("id '" + id + "' is not in the index");
            rows.push_back(found.at(id));
        }
        std::sort(rows.begin(), rows.end());
        rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
        change.remove(rows);
    });
}

void Store::purge_deleted(std::uint64_t sequence) {
    change([&](Change& change) { change.purge_deleted(sequence); });
}

void Store::checkpoint() {
    const std::lock_guard<std::recursive_mutex> writing(writing_);
    begin_writing();
    database_.checkpoint();
}

void Store::close() {
    const std::lock_guard<std::recursive_mutex> writing(writing_);
    database_.close();
    writes_ = false;
    lock_.release();
}

}  // namespace uniecs::store
