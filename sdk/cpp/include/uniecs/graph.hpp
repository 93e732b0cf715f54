// The index core of uniecs: one HNSW graph over unit vectors, the same class for Python and C++.
//
//   uniecs::Graph graph({256});                       // dim; M, ef_construction and storage have defaults
//   graph.apply({}, rows, vectors, threads);          // add: rows (ids of vectors, > 0), vectors (n x dim)
//   auto hits = graph.search(query, 10);              // rows and cosine similarities, best first
//   graph.apply(old_rows, new_rows, vectors, 2);      // replace, in one step for every search
//   graph.save("graph.hnsw", {"model", sequence, last_row});
//
// Any number of threads may search while one thread at a time changes the graph (changes queue on a mutex). A
// search sees the graph as some `apply` left it, never a part of one: nodes carry the step that added and
// removed them. Searches take no lock: links are atomic words, memory never moves, and a removed node's place
// is used again only after every search that could still see it has ended.
//
// Vectors at one place are one node to a walk, which meets its twins with it (src/twins.cpp). How broad a
// walk has to be is measured on the vectors (src/breadth.cpp).
//
// Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical Navigable
// Small World graphs" (2016): Algorithms 1, 2, 4 and 5. Repair after removals follows Singh et al.,
// "FreshDiskANN" (2021), Algorithm 4; the filtered search expands through neighbours that do not match, as
// Patel et al., "ACORN" (2024), do.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace uniecs {

using Row = std::uint64_t;

// C++20's std::span, as far as it is needed here, with C++26's way from a list: n values that somebody else
// keeps, for as long as a call takes.
template <typename T>
class Span {
  public:
    Span() = default;
    Span(T* data, std::size_t size) : data_(data), size_(size) {}
    template <typename Container>
    Span(Container&& c) : data_(c.data()), size_(c.size()) {}  // NOLINT: implicit, as span
    Span(std::initializer_list<std::remove_const_t<T>> list) : Span(list.begin(), list.size()) {}

    T* data() const { return data_; }
    std::size_t size() const { return size_; }
    bool empty() const { return size_ == 0; }
    T& operator[](std::size_t i) const { return data_[i]; }
    T* begin() const { return data_; }
    T* end() const { return data_ + size_; }

  private:
    T* data_ = nullptr;
    std::size_t size_ = 0;
};

// How vectors lie in the graph. Beside float32 there are int8 codes: walks compare those, and score what they
// find by the vectors. float16 and int8 alone are for finding candidates: score them anew from the store.
enum class Storage : std::uint32_t { float32 = 0, float16 = 1, int8 = 2 };

struct GraphConfig {
    std::uint32_t dim = 0;  // 1 to 65536
    std::uint32_t M = 16;   // links a node on upper layers, twice as many on the lowest; 2 to 512
    std::uint32_t ef_construction = 200;  // breadth of building, at least M
    Storage storage = Storage::float32;
};

// Damaged or foreign snapshot files; other misuse is std::invalid_argument.
class SnapshotError : public std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A set of rows as bits. One thread at a time may insert while any number of searches read.
class RowSet {
  public:
    explicit RowSet(Span<const Row> rows = {});

    void insert(Row row);
    bool contains(Row row) const;
    std::size_t count() const;
    std::size_t count_shared(const RowSet& other) const;  // rows that are in both
    std::vector<Row> rows() const;
    RowSet intersection(const RowSet& other) const;
    RowSet united(const RowSet& other) const;
    // All rows from 1 to `last` that are not in this set.
    RowSet complement(Row last) const;

    class Words;
    std::shared_ptr<const Words> words() const;  // what a search reads, whatever is inserted meanwhile

  private:
    explicit RowSet(std::shared_ptr<Words> words) : words_(std::move(words)) {}
    std::shared_ptr<Words> words_;
};

enum class Strategy { graph, filtered_graph, exact };

// How a search went: for `engine.explain`, benchmarks and tests.
struct Plan {
    Strategy strategy = Strategy::exact;
    std::size_t ef = 0;         // breadth of the search in the graph; 0 for an exact one
    std::size_t narrow_ef = 0;  // of a filtered one where what is near matches as often as what is not
    std::size_t close_ef = 0;   // of one that has found products as near as they are to each other
    std::size_t matching = 0;   // rows that match the filter: of the set, or all
    std::size_t compared = 0;   // vectors compared with the query
};

struct Hits {
    std::vector<Row> rows;
    std::vector<float> scores;  // cosine similarities, best first; equal ones by lower row
    Plan plan;
};

struct SearchOptions {
    std::size_t ef = 0;                  // 0: chosen for a recall@10 of at least 0.95
    const RowSet* filter = nullptr;      // rows that may be found
    std::size_t matching = SIZE_MAX;     // filter->count(), where the caller knows it
    const Strategy* strategy = nullptr;  // nullptr: the cheapest that keeps the recall
};

struct SnapshotInfo {
    std::string model_id;
    std::uint64_t sequence = 0;  // of the store, when the snapshot was taken
    Row last_row = 0;            // the highest row that the store had ever given by then
};

struct GraphStats {
    std::size_t live = 0, removed = 0, free = 0;  // nodes: found, still linked, places to be used again
    std::size_t vector_bytes = 0, link_bytes = 0, other_bytes = 0;
    std::uint32_t top_layer = 0;
};

class Graph {
  public:
    explicit Graph(const GraphConfig& config);
    Graph(Graph&&) noexcept;
    Graph& operator=(Graph&&) noexcept;
    ~Graph();

    const GraphConfig& config() const;
    std::size_t size() const;  // live rows
    bool contains(Row row) const;
    std::vector<Row> rows() const;  // live rows, ascending

    // Remove `removed` and add `rows` with their unit vectors, for searches in one step. Throws
    // std::invalid_argument, and changes nothing, for a removed row that is not there, a row that is, row 0,
    // or vectors that are not finite.
    void apply(Span<const Row> removed, Span<const Row> rows, Span<const float> vectors,
               unsigned threads = 1);

    // Take removed nodes out of the links of the others and free their places. `apply` does so by itself once
    // three in ten nodes are removed ones. Searches go on meanwhile.
    void repair(unsigned threads = 1);

    // The k rows nearest to a unit vector (dim). Throws std::invalid_argument for another width.
    Hits search(Span<const float> query, std::size_t k, const SearchOptions& options = {}) const;
    // For each of the queries (n x dim), as `search`.
    std::vector<Hits> search_batch(Span<const float> queries, std::size_t k,
                                   const SearchOptions& options = {}, unsigned threads = 1) const;

    // The vector of a live row as it is stored: decoded, so near its original for float16 and int8. False: no
    // such row.
    bool vector(Row row, Span<float> out) const;

    GraphStats stats() const;

    // Write a snapshot: to a temporary file beside `path`, flushed to the disk and renamed. Throws
    // std::runtime_error.
    void save(const std::string& path, const SnapshotInfo& info) const;
    // Read a snapshot, whole and valid or not at all: throws SnapshotError for anything that is not as it was
    // written, or made under another configuration or for another model.
    static Graph load(const std::string& path, const GraphConfig& config, const std::string& model_id,
                      SnapshotInfo* info = nullptr);

  private:
    class Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace uniecs
